"""Read bodies of requests whose objects name each key once: others keep the last one of several, in silence."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from t5peft.compat.json_text import parse_json


class _UniqueKeysRequest(Request):
    async def json(self) -> Any:
        """Return what the body holds."""
        return parse_json(await self.body())


class UniqueKeysRoute(APIRoute):
    """A route that refuses a body with an object that names a key more than once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of requests."""
        handle = super().get_route_handler()

        async def handle_unique(request: Request) -> Response:
            return await handle(_UniqueKeysRequest(request.scope, request.receive))

        return handle_unique
