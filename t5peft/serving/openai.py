"""The routes of OpenAI's API: completions and models, as the ``openai`` client asks them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from fastapi import APIRouter, Request, Response

from t5peft.serving.answers import Tickets, new_id, usage
from t5peft.serving.completions import Part, Plan, choice, parts, plan_of, whole_parts
from t5peft.serving.context import REFUSALS, Context, EventStream, UniqueKeysRoute, context_of, unless_gone
from t5peft.serving.errors import Json, as_api_error, to_json
from t5peft.serving.schemas import Completion, CompletionBody, ModelCard, ModelList

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=REFUSALS, route_class=UniqueKeysRoute)

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


@router.post("/completions", responses={200: {"model": Completion, "content": _STREAM}})
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """Answer source texts, or records of the adapter's task.

    Records of a task with labels are ranked, as by ``t5peft predict``: the answer is the most probable label, and fields of
    sampling change nothing.
    """
    return await unless_gone(request, _complete(body, context_of(request)))


async def _complete(body: CompletionBody, context: Context) -> Response:
    served = await context.read(lambda: context.catalog.find(body.model))
    plan = await context.read(lambda: plan_of(body, served, context.settings))
    head = {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": served.name}
    if body.stream:
        return await _stream(head, plan, context, bool(body.stream_options and body.stream_options.include_usage))
    with closing(Tickets(context.engine)) as tickets:
        found = await whole_parts(plan, context, tickets)
    choices = [choice(index, part, plan) for index, part in enumerate(found)]
    counts = usage(plan.prompt_tokens, sum(part.count for part in found))
    context.metrics.count_tokens(plan.served.name, counts)
    return Json({**head, "choices": choices, "usage": counts})


async def _stream(head: dict[str, Any], plan: Plan, context: Context, with_usage: bool) -> EventStream:
    """Wait for the first part, so that a refusal has its status, and send it with all that follow."""
    tickets = Tickets(context.engine)
    coming = parts(plan, context, tickets)
    try:
        first = await anext(coming)
    except BaseException:
        tickets.close()
        raise
    return EventStream(_events(head, plan, context, first, coming, with_usage), tickets)


async def _events(
    head: dict[str, Any],
    plan: Plan,
    context: Context,
    first: tuple[int, Part],
    coming: AsyncIterator[tuple[int, Part]],
    with_usage: bool,
) -> AsyncIterator[bytes]:
    counted, no_usage, done = 0, {"usage": None} if with_usage else {}, False
    try:
        index, part = first
        while True:
            counted += part.count
            yield _event({**head, "choices": [choice(index, part, plan)], **no_usage})
            try:
                index, part = await anext(coming)
            except StopAsyncIteration:
                break
        counts = usage(plan.prompt_tokens, counted)
        context.metrics.count_tokens(plan.served.name, counts)
        if with_usage:
            yield _event({**head, "choices": [], "usage": counts})
        done = True
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        if not done:
            context.metrics.gone.inc()
        raise
    except Exception as error:  # the status was sent, so that the error can only be an event
        yield _event(as_api_error(error).body())


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"


@router.get("/models", responses={200: {"model": ModelList}})
async def list_models(request: Request) -> Response:
    """List the backbone and every adapter of the folder."""
    context = context_of(request)
    names = await context.read(context.catalog.models)
    return Json({"object": "list", "data": [_card(name, context) for name in names]})


@router.get("/models/{model:path}", responses={200: {"model": ModelCard}})
async def retrieve_model(model: str, request: Request) -> Response:
    """Return one model."""
    context = context_of(request)
    served = await context.read(lambda: context.catalog.find(model))
    return Json(_card(served.name, context))


def _card(name: str, context: Context) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": context.started, "owned_by": "t5peft"}
