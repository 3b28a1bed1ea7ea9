"""The things that every route works with, how a client that goes away is noticed, and how bodies are read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from t5peft.compat.json_text import parse_json
from t5peft.serving.answers import Tickets, as_json_number
from t5peft.serving.engine import Engine
from t5peft.serving.errors import ApiError, ClientGoneError
from t5peft.serving.metrics import Metrics
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import (
    ClassifyRequest,
    EngineClosedError,
    Generated,
    Ids,
    RankRequest,
    Scores,
    Ticket,
    UnusableAdapterError,
)
from t5peft.serving.schemas import ErrorBody
from t5peft.serving.served import Catalog, Served, without_path
from t5peft.serving.settings import ServerSettings

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
        metrics: Counts.
        started: When the server started, in seconds since 1970.
        stopping: Whether it stops.
    """

    engine: Engine
    pool: AdapterPool
    settings: ServerSettings
    catalog: Catalog
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False
    # Texts are tokenized by one thread at a time: tokenizers are not made to be shared.
    _one_at_a_time: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    async def read(self, work: Callable[[], Result]) -> Result:
        """Run what reads files or tokenizes in a worker thread.

        Args:
            work: The function.

        Returns:
            What it returns.
        """
        return await anyio.to_thread.run_sync(work, limiter=self._one_at_a_time)

    async def result(self, ticket: Ticket, served: Served) -> Generated | Scores:
        """Wait for a ticket.

        Args:
            ticket: From the engine.
            served: The model that was asked.

        Returns:
            The answer.

        Raises:
            UnusableAdapterError: The adapter cannot be loaded; the text names no path.
            EngineClosedError: The engine gave the request up.
        """
        result = asyncio.wrap_future(ticket.result)
        await asyncio.wait({result})
        if result.cancelled():
            raise EngineClosedError("Got a request that the server dropped; expected time for it. Send it again.")
        try:
            return result.result()
        except UnusableAdapterError as error:
            if served.adapter is None:
                raise
            folder = self.pool.path(served.adapter)
            raise UnusableAdapterError(without_path(str(error), folder, served.adapter)) from error

    async def scores(self, requests: Sequence[RankRequest | ClassifyRequest], served: Served) -> list[list[float]]:
        """Return the log-probabilities that rankings or classifications give.

        Args:
            requests: One for each source.
            served: The model that is asked.

        Returns:
            One list for each source.
        """
        with closing(Tickets(self.engine)) as tickets:
            taken = [tickets.take(request) for request in requests]
            found = await asyncio.gather(*(self.result(ticket, served) for ticket in taken))
        return [[as_json_number(value) for value in one.log_probabilities] for one in found if isinstance(one, Scores)]

    async def label_scores(self, sources: Ids, served: Served) -> list[list[float]]:
        """Return the log-probability of each label of the task, or of each class of the head.

        Args:
            sources: Token ids.
            served: The model that is asked.

        Returns:
            One list for each source.

        Raises:
            ApiError: The model has neither a head nor a task with labels.
        """
        if served.has_head:
            assert served.adapter is not None
            return await self.scores([ClassifyRequest(served.adapter, ids) for ids in sources], served)
        candidates = await self.read(lambda: served.candidate_ids)
        if not candidates:
            raise ApiError(
                f"Got {served.name!r}, which has neither a head nor a task with labels; expected one of them. Use /v1/rank with "
                "candidates, or /v1/completions.",
                param="model",
            )
        return await self.scores([RankRequest(served.adapter, ids, candidates) for ids in sources], served)


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
