"""Several replicas by Ray Serve: the API of one server, with each adapter on as few replicas as its load needs.

    t5peft serve --backbone NAME --adapters DIR --ray --replicas 4
    serve run t5peft.serving.ray:app backbone=NAME adapters=DIR replicas=4

Each replica has an engine, a pool and the application of ``create_app``. A gateway without a model reads the name of the adapter
in the body. It hands the request to the replica that consistent hashing gives to the name, or to the next ones while that one is
full. Ray's own batches hold one model only (``serve.batch`` with multiplexing). So the engines make the batches, of all adapters of
a replica.

A replica that dies takes no request with it whose answer has not begun: the gateway asks another one. All replicas read the same
folder of adapters, so replacing an adapter's folder rolls it out.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from t5peft.serving.errors import ApiError, Json, to_json
from t5peft.serving.launch import ServeOptions, open_app, public_name
from t5peft.serving.metrics import labeled
from t5peft.serving.scheduler import Limits
from t5peft.serving.settings import ServerSettings

if TYPE_CHECKING:
    from ray.serve.deployment import Application
    from ray.serve.handle import DeploymentHandle

Message = MutableMapping[str, Any]

_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.2  # doubled for every try, while Ray notices that a replica is gone
_PREFIX = "T5PEFT_"


class Replica:
    """A server without a socket: requests come by Ray.

    Args:
        options: What it serves.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._opened = ExitStack()
        self._app = self._opened.enter_context(open_app(options))

    async def answer(self, scope: Message, body: bytes) -> AsyncGenerator[Message, None]:
        """Answer a request.

        Args:
            scope: Of ASGI.
            body: The whole body.

        Yields:
            The messages of the response. When nobody wants more, the application sees that the client went away.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Message:
            if coming:
                return coming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await working
        finally:
            gone.set()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def answer_at_once(self, scope: Message, body: bytes) -> tuple[str, list[Message]]:
        """Return the name of this replica and all messages of the response, for calls to every replica.

        Args:
            scope: Of ASGI.
            body: The whole body.
        """
        name = serve.get_replica_context().replica_id.unique_id
        return name, [message async for message in self.answer(scope, body)]

    def __del__(self) -> None:
        """Stop the engine with the replica; Ray calls this after the last request."""
        self._opened.close()


class Gateway:
    """Hand each request to the replica of its adapter, and to another one where that one died.

    Args:
        replicas: The handle of the replicas.
        max_body_bytes: The longest body of a request.
    """

    def __init__(self, replicas: DeploymentHandle[Any], max_body_bytes: int) -> None:
        self._replicas, self._max_body_bytes = replicas, max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Answer a request as a replica does.

        Args:
            request: Of the client.

        Returns:
            The response.
        """
        body = b""
        async for chunk in request.stream():
            # One byte more than allowed is enough for the replica to refuse it.
            body = (body + chunk)[: self._max_body_bytes + 1]
        scope = _plain_scope(request)
        if request.url.path.rstrip("/") in ("/v1/adapters/unload", "/metrics"):
            every = dict(await self._replicas.broadcast("answer_at_once", scope, body).results_async())
            return _metrics(every) if request.url.path.startswith("/metrics") else _whole(next(iter(every.values())))
        error = ApiError("Got a request, but no replica is running; expected one. Retry it.", 503, "no_replica")
        for number in range(_TRIES):
            try:
                return await self._ask(scope, body)
            except BackPressureError:
                error = ApiError(
                    "Got a request while too many are waiting; expected fewer. Try again later.", 503, "queue_full"
                )
                break
            except (RayActorError, RayServeException):
                await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**number)
        return Json(error.body(), error.status, headers={"Retry-After": "1"})

    async def _ask(self, scope: Message, body: bytes) -> Response:
        """Return the response of a replica: whole, or, where it is a stream, begun."""
        handle = self._replicas.options(stream=True, session_id=adapter_of(body))
        messages = handle.answer.remote(scope, body)
        begin = await anext(messages)
        if not _is_stream(begin):
            return _whole([begin, *[message async for message in messages]])
        first = await anext(messages)
        return StreamingResponse(_chunks(first, messages), begin["status"], headers=_headers(begin))


async def _chunks(first: Message, messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    yield first.get("body", b"")
    try:
        async for message in messages:
            yield message.get("body", b"")
    except RayError:
        lost = ApiError(
            "Got a stream whose replica died; expected its end. Send the request again.", 503, "replica_died"
        )
        yield b"data: " + to_json(lost.body()) + b"\n\n"


def _whole(messages: list[Message]) -> Response:
    begin, *rest = messages
    content = b"".join(message.get("body", b"") for message in rest)
    return Response(content, begin["status"], headers=_headers(begin))


def _metrics(every: Mapping[str, list[Message]]) -> Response:
    """Return the metrics of all replicas with their names, or the first response that is an error."""
    responses = {name: _whole(messages) for name, messages in sorted(every.items())}
    if wrong := next((response for response in responses.values() if response.status_code != 200), None):
        return wrong
    texts = {name: bytes(response.body).decode() for name, response in responses.items()}
    return Response(labeled(texts), headers={"content-type": next(iter(responses.values())).headers["content-type"]})


def _headers(begin: Message) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in begin["headers"]}


def _is_stream(begin: Message) -> bool:
    return _headers(begin).get("content-type", "").startswith("text/event-stream")


def _plain_scope(request: Request) -> Message:
    """Return what an application must know of a request, without what cannot travel."""
    names = (
        "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client", "server",
    )  # fmt: skip
    scope = {name: request.scope[name] for name in names if name in request.scope}
    return {**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}, "headers": list(request.scope["headers"])}


def adapter_of(body: bytes) -> str:
    """Return the name of the adapter in a body; empty where there is none, which any replica may answer.

    Args:
        body: JSON, or anything else.

    Returns:
        The name.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    name = (found.get("model") or found.get("adapter")) if isinstance(found, dict) else None
    return name.encode("utf-8", "replace").decode()[:255] if isinstance(name, str) else ""


def build(
    options: ServeOptions,
    *,
    replicas: int = 1,
    max_replicas: int | None = None,
    gpus: float = 0,
    stop_seconds: float = 30,
) -> Application:
    """Return the application of Ray Serve.

    Args:
        options: What each replica serves.
        replicas: How many there are, or at least.
        max_replicas: Most of them, where their number follows the load.
        gpus: GPUs of each replica.
        stop_seconds: How long running requests may take to finish when a replica stops.

    Returns:
        The application, for ``serve.run``.

    Raises:
        ValueError: A number is wrong.
    """
    most = replicas if max_replicas is None else max_replicas
    if replicas < 1 or most < replicas:
        raise ValueError(f"Got {replicas} to {most} replicas; expected at least 1, and no more at least than at most.")
    limits = options.limits
    # So many rows run or wait in one replica before requests spill over to the next.
    full = limits.max_rows + limits.max_waiting // 2
    number: dict[str, Any] = {"num_replicas": replicas}
    if most > replicas:
        scaling = {"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": limits.max_rows}
        number = {"autoscaling_config": scaling}
    deployment = serve.deployment(
        name="Replica",
        max_ongoing_requests=full,
        max_queued_requests=limits.max_waiting,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER, request_router_kwargs={"num_fallback_replicas": max(0, most - 1)}
        ),
        ray_actor_options={"num_gpus": gpus},
        graceful_shutdown_timeout_s=stop_seconds,
        health_check_period_s=2,
        health_check_timeout_s=30,
        **number,
    )(Replica)
    gateway = serve.deployment(
        name="Gateway",
        max_ongoing_requests=full * most * 2,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=stop_seconds,
    )(Gateway)
    return gateway.bind(deployment.bind(options), options.settings.max_body_bytes)


def app(arguments: dict[str, str]) -> Application:
    """Return the application for ``serve run t5peft.serving.ray:app``.

    Args:
        arguments: ``backbone``, ``adapters``, ``replicas``, ``max_replicas``, ``gpus``, ``memory`` in bytes, and the fields of
            ``Limits``. Each may come from the environment instead, as ``T5PEFT_BACKBONE``. Keys come only from there:
            ``T5PEFT_API_KEY``, several with commas between them.

    Returns:
        The application.

    Raises:
        ValueError: One is missing, not known or not a number.
    """
    names = ("backbone", "adapters", "replicas", "max_replicas", "gpus", "memory", *(f.name for f in fields(Limits)))
    if unknown := sorted(set(arguments) - set(names)):
        raise ValueError(f"Got {', '.join(unknown)}; expected some of {', '.join(names)}. Correct the arguments.")
    given = {name: os.environ[_PREFIX + name.upper()] for name in names if _PREFIX + name.upper() in os.environ}
    given |= arguments
    if missing := [name for name in ("backbone", "adapters") if not given.get(name)]:
        raise ValueError(f"Got no {' and no '.join(missing)}; expected both. Give backbone=NAME adapters=DIR.")
    limits = Limits(**{f.name: _whole_number(given, f.name) for f in fields(Limits) if f.name in given})
    keys = tuple(filter(None, os.environ.get(f"{_PREFIX}API_KEY", "").split(",")))
    settings = ServerSettings(public_name(given["backbone"]), api_keys=keys)
    memory, replicas, most, gpus = (
        _whole_number(given, name) if name in given else None for name in ("memory", "replicas", "max_replicas", "gpus")
    )
    options = ServeOptions(given["backbone"], given["adapters"], settings, limits, max_bytes=memory)
    return build(options, replicas=1 if replicas is None else replicas, max_replicas=most, gpus=gpus or 0)


def _whole_number(given: Mapping[str, str], name: str) -> int:
    text = str(given[name])
    if not text.isdecimal():
        raise ValueError(f"Got {name}={text!r}; expected a whole number. Correct it.")
    return int(text)


def start(application: Application, host: str, port: int) -> None:
    """Start Ray where it does not run yet, and the application on it.

    Args:
        application: From ``build``.
        host: Where the proxy of Ray Serve listens.
        port: Likewise.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster that runs; without it one is started here, for this process.
        ray.init(include_dashboard=False if "RAY_ADDRESS" not in os.environ else None, log_to_driver=False)
    serve.start(http_options={"host": host, "port": port})
    serve.run(application, name="t5peft", route_prefix="/")


def stop() -> None:
    """Finish the requests that run, and stop the application and what ``start`` has started."""
    import ray

    serve.shutdown()
    ray.shutdown()
