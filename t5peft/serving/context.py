"""The things that every route works with, how a client that goes away is noticed, and how bodies are read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from t5peft.compat.json_text import parse_json
from t5peft.serving.answers import Asking, Tickets
from t5peft.serving.errors import ClientGoneError
from t5peft.serving.metrics import Metrics
from t5peft.serving.schemas import ErrorBody
from t5peft.serving.served import Catalog
from t5peft.serving.settings import ServerSettings

if TYPE_CHECKING:
    from t5peft.serving.engine import Engine
    from t5peft.serving.pool import AdapterPool

Result = TypeVar("Result")

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "An invalid, unknown or forbidden request"},
    "503": {
        "model": ErrorBody,
        "description": "Too many requests are waiting, or the server is stopping; see Retry-After",
    },
}
"""The errors that every route may answer, for the OpenAPI page."""


@dataclass
class Context:
    """The things that every route works with.

    Args:
        engine: Answers requests.
        pool: The adapters.
        settings: The limits.
        catalog: The models by name.
        asking: Asks the engine.
        metrics: Counts.
        started: When the server started, in seconds since 1970.
        stopping: Whether it stops.
    """

    engine: Engine
    pool: AdapterPool
    settings: ServerSettings
    catalog: Catalog
    asking: Asking
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False


def context_of(request: Request) -> Context:
    """Return the context of the application that a request came to."""
    return cast(Context, request.app.state.context)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for work, and give it up when the client closes the connection.

    Args:
        request: Whose body was read.
        work: What makes the answer.

    Returns:
        Its result.

    Raises:
        ClientGoneError: The client was faster.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            context_of(request).metrics.gone.inc()
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events that cancel their tickets when they end, however they end.

    Args:
        events: The bytes of each event.
        tickets: Of the request.
    """

    def __init__(self, events: AsyncIterator[bytes], tickets: Tickets) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._tickets.close()


class _UniqueKeysRequest(Request):
    async def json(self) -> Any:
        """Return what the body holds."""
        return parse_json(await self.body())


class UniqueKeysRoute(APIRoute):
    """A route that refuses a body with an object that names a key more than once: others keep the last one, in silence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of requests."""
        handle = super().get_route_handler()

        async def handle_unique(request: Request) -> Response:
            return await handle(_UniqueKeysRequest(request.scope, request.receive))

        return handle_unique
