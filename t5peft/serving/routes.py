"""Our own routes beside OpenAI's: rankings, classifications, adapters, and the state of the server."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from itertools import repeat
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from t5peft.serving.answers import LOWEST, new_id, softmax, usage
from t5peft.serving.answers import label_probabilities as probabilities_of
from t5peft.serving.context import REFUSALS, Context, UniqueKeysRoute, context_of, unless_gone
from t5peft.serving.errors import ApiError, Json
from t5peft.serving.requests import RankRequest, UnknownAdapterError, UnusableAdapterError
from t5peft.serving.schemas import (
    AdapterBody,
    AdapterList,
    AdapterState,
    ClassifyAnswer,
    ClassifyBody,
    ErrorBody,
    Health,
    RankAnswer,
    RankBody,
)
from t5peft.serving.served import Served, without_path
from t5peft.serving.sources import encode_candidates, sources_of

router = APIRouter(prefix="/v1", responses=REFUSALS, route_class=UniqueKeysRoute)
state_router = APIRouter(tags=["state"])


@router.post("/rank", tags=["scores"], responses={200: {"model": RankAnswer}})
async def rank(body: RankBody, request: Request) -> Response:
    """Score candidates for each source: those of the request, or the words of the adapter's task."""
    return await unless_gone(request, _rank(body, context_of(request)))


async def _rank(body: RankBody, context: Context) -> Response:
    settings = context.settings
    served = await context.read(lambda: context.catalog.find(body.model))
    if served.has_head:
        raise ApiError(
            f"Got a ranking by {served.name!r}, which has a classification head; expected a model that generates. Use "
            "/v1/classify.",
            param="model",
        )
    sources = await context.read(lambda: sources_of(body, served, settings.max_answers))
    texts, candidates = await context.read(lambda: _candidates(body, served, settings.max_candidates))
    scores = await context.scores([RankRequest(served.adapter, ids, candidates) for ids in sources], served)
    if body.normalize_by_length:
        scores = [[max(LOWEST, s / len(c)) for s, c in zip(row, candidates, strict=True)] for row in scores]
    labels = list(served.task.labels) if body.candidates is None and served.task is not None else None
    results = [_ranking(index, row, texts, labels) for index, row in enumerate(scores)]
    counts = usage(sum(map(len, sources)), 0)
    context.metrics.count_tokens(served.name, counts)
    return Json({**_head("rank", "ranking", served), "results": results, "usage": counts})


@router.post("/classify", tags=["scores"], responses={200: {"model": ClassifyAnswer}})
async def classify(body: ClassifyBody, request: Request) -> Response:
    """Return the probability of each label of the adapter's task, or of each class of its head."""
    return await unless_gone(request, _classify(body, context_of(request)))


async def _classify(body: ClassifyBody, context: Context) -> Response:
    served = await context.read(lambda: context.catalog.find(body.model))
    sources = await context.read(lambda: sources_of(body, served, context.settings.max_answers))
    results = []
    for index, row in enumerate(await context.label_scores(sources, served)):
        probabilities = probabilities_of(row, served)
        best = max(probabilities, key=lambda label: probabilities[label])
        results.append({"index": index, "label": best, "probabilities": probabilities})
    counts = usage(sum(map(len, sources)), 0)
    context.metrics.count_tokens(served.name, counts)
    return Json({**_head("class", "classification", served), "results": results, "usage": counts})


def _head(prefix: str, kind: str, served: Served) -> dict[str, Any]:
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": served.name}


def _candidates(body: RankBody, served: Served, most: int) -> tuple[list[str], list[list[int]]]:
    if body.candidates is not None:
        return body.candidates, encode_candidates(body.candidates, served, most)
    if not served.candidate_ids or served.task is None:
        raise ApiError(
            f"Got no candidates for {served.name!r}, whose task has no labels; expected a list of texts. Give candidates.",
            param="candidates",
        )
    return list(served.task.candidates), served.candidate_ids


def _ranking(index: int, scores: list[float], texts: list[str], labels: list[str] | None) -> dict[str, Any]:
    rows = zip(texts, labels or repeat(None, len(texts)), scores, softmax(scores), strict=True)
    return {
        "index": index,
        "best": scores.index(max(scores)),
        "candidates": [
            {"text": text, "label": label, "log_probability": score, "probability": probability}
            for text, label, score, probability in rows
        ],
    }


@router.get("/adapters", tags=["adapters"], responses={200: {"model": AdapterList}})
async def list_adapters(request: Request) -> Response:
    """List every adapter of the folder with its state."""
    context = context_of(request)
    return Json(await context.read(partial(_adapters, context)))


def _adapters(context: Context) -> dict[str, Any]:
    loaded = context.pool.loaded()
    cards = [_adapter(name, loaded.get(name), context) for name in context.pool.names()]
    return {"data": cards, "num_bytes": context.pool.num_bytes, "max_bytes": context.pool.max_bytes}


def _adapter(name: str, num_bytes: int | None, context: Context) -> dict[str, Any]:
    card: dict[str, Any] = {"name": name, "loaded": num_bytes is not None, "num_bytes": num_bytes}
    card |= {"method": None, "task": None, "has_head": False, "problem": None}
    try:
        served = context.catalog.find(name)
    except (UnknownAdapterError, UnusableAdapterError) as error:
        return {**card, "problem": str(error.args[0])}
    task = served.task
    if task is not None:
        card["task"] = {**asdict(task), "columns": list(task.columns), "labels": list(task.labels)}
    return {**card, "method": served.method, "has_head": served.has_head}


@router.post("/adapters/load", tags=["adapters"], responses={200: {"model": AdapterState}})
async def load_adapter(body: AdapterBody, request: Request) -> Response:
    """Load an adapter of the folder into memory, so that the first request does not wait for it."""
    context = context_of(request)
    name = await _known(body.adapter, context)

    def load() -> None:
        context.pool.release(context.pool.acquire(name))

    try:
        await anyio.to_thread.run_sync(load)
    except UnusableAdapterError as error:
        raise UnusableAdapterError(without_path(str(error), context.pool.path(name), name)) from error
    return Json({"name": name, "loaded": True})


@router.post("/adapters/unload", tags=["adapters"], responses={200: {"model": AdapterState}})
async def unload_adapter(body: AdapterBody, request: Request) -> Response:
    """Take an adapter out of memory once the requests that run are done; a later request loads it anew."""
    context = context_of(request)
    name = await _known(body.adapter, context)
    await anyio.to_thread.run_sync(context.pool.unload, name)
    return Json({"name": name, "loaded": False})


async def _known(name: str, context: Context) -> str:
    """Return the name of an adapter that is there."""
    await context.read(lambda: context.catalog.folder(name))
    return name


@state_router.get("/health", responses={200: {"model": Health}})
async def health() -> Response:
    """Answer as long as the process lives."""
    return Json({"status": "ok"})


@state_router.get("/ready", responses={200: {"model": Health}, 503: {"model": ErrorBody}})
async def ready(request: Request) -> Response:
    """Answer 200 while new requests are accepted, else 503."""
    if context_of(request).stopping:
        raise ApiError(
            "Got a request while the server is stopping; expected none. Use another server.", 503, "shutting_down"
        )
    return Json({"status": "ready"})


@state_router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return counts and times in the text format of Prometheus."""
    text, media_type = context_of(request).metrics.exposition()
    return Response(text, media_type=media_type)
