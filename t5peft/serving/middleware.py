"""Checks before a route is reached, and counts behind it, as plain ASGI so that streams and disconnects pass through."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t5peft.serving.errors import ApiError, Json
from t5peft.serving.metrics import Metrics

# Without secrets, and needed by a browser or a load balancer that has no key.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Count:
    """Count responses and their times by route.

    Args:
        app: The application behind it.
        metrics: Where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # a name of ours, so that their number is bounded
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


class Guard:
    """Refuse requests without a key, or, where there are no keys, such as come by a foreign host name.

    A page of another site can send requests to the loopback of its visitor under a name of its own (DNS rebinding). They bring
    that name.

    Args:
        app: The application behind it.
        api_keys: Keys of which a request must bring one.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode("utf-8")) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
            await Json(refusal.body(), refusal.status, headers=headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._digests:
            if _host(headers.get("host", "")) in LOOPBACK:
                return None
            return ApiError(
                "Got a request under a foreign host name; expected localhost, as this server has no API key. Start it with one.",
                403,
                "foreign_host",
            )
        if scope["path"] in OPEN_PATHS or self._knows(headers.get("authorization", "")):
            return None
        return ApiError(
            "Got no API key or a wrong one; expected the header Authorization: Bearer KEY. Ask the operator for a key.",
            401,
            "invalid_api_key",
        )

    def _knows(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        given = _digest(key.strip().encode("latin-1"))  # the bytes of the header, as they came
        # All are compared, so that the time tells neither which key fits nor how far.
        return kind.lower() == "bearer" and sum(hmac.compare_digest(given, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _host(header: str) -> str:
    """Return the host of a ``Host`` header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


class BodyLimit:
    """Refuse bodies that are too long, by their header or while they come.

    Args:
        app: The application behind it.
        max_bytes: Of the longest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            error = _too_large(self._max_bytes)
            # What follows of the body is not read, so that the connection cannot be used again.
            await Json(error.body(), error.status, headers={"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, _too_large(self._max_bytes).message)
            return message

        await self._app(scope, counted, send)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        f"Got a body of more than {max_bytes} bytes; expected at most this many. Send several requests.",
        413,
        "body_too_large",
    )
