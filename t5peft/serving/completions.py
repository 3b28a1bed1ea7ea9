"""OpenAI's completions: what a request asks of the engine, and the texts that come of it, at once or part by part."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from t5peft.serving.answers import Tickets, as_json_number, label_probabilities, read_text
from t5peft.serving.context import Context
from t5peft.serving.engine import Ticket
from t5peft.serving.errors import ApiError
from t5peft.serving.requests import FinishReason, Generated, GenerateRequest, Token
from t5peft.serving.schemas import CompletionBody
from t5peft.serving.served import Served
from t5peft.serving.settings import ServerSettings
from t5peft.serving.sources import sources_of
from t5peft.serving.text_stream import TextStream

# As OpenAI's API has it; an adapter's task knows better.
DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True)
class Plan:
    """A completion that was read and is not yet asked.

    Args:
        served: The model.
        sources: Token ids of each source.
        answers_per_source: ``n``.
        as_records: Whether the sources were records, so that the task reads the answers.
        ranks_labels: Whether answers are labels of the task, which are ranked and not generated.
        request: What is asked of each source; empty where labels are ranked.
        stop: Texts at which an answer ends.
        logprobs: Alternatives of each token; None for no log-probabilities at all.
    """

    served: Served
    sources: list[list[int]]
    answers_per_source: int
    as_records: bool
    ranks_labels: bool
    request: GenerateRequest
    stop: tuple[str, ...]
    logprobs: int | None

    @property
    def prompt_tokens(self) -> int:
        """Return the number of tokens of all sources."""
        return sum(map(len, self.sources))

    @property
    def samples(self) -> bool:
        """Return whether the answers to one source differ."""
        return self.request.temperature > 0

    def requests(self) -> list[GenerateRequest]:
        """Return one request for each different answer, those of a source next to each other."""
        count = self.answers_per_source if self.samples else 1
        return [
            replace(self.request, source_ids=ids, seed=(self.request.seed + number) % (1 << 63))
            for ids in self.sources
            for number in range(count)
        ]

    def indices(self, number: int) -> list[int]:
        """Return which choices the request of a number answers: all of its source where these are the same."""
        count = self.answers_per_source
        return [number] if self.samples else list(range(number * count, (number + 1) * count))


@dataclass(frozen=True)
class Part:
    """The next part of one answer, or the whole.

    Args:
        text: That follows what came before.
        tokens: That came with it, each with the place in the text where it begins; only where they were asked for.
        finish_reason: Why the answer ended; None where it goes on.
        probabilities: Of the labels, where these were ranked.
        count: Tokens of the whole answer, in its last part.
    """

    text: str
    tokens: list[tuple[Token, int]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    probabilities: dict[str, float] | None = None
    count: int = 0


def plan_of(body: CompletionBody, served: Served, settings: ServerSettings) -> Plan:
    """Read a completion. This tokenizes, so it belongs into a worker thread.

    Args:
        body: The request.
        served: The model that it names.
        settings: The limits.

    Returns:
        The plan.

    Raises:
        ApiError: A field asks for what a T5 cannot do, or the sources are wrong.
    """
    _refuse_unsupported(body)
    task, as_records = served.task, body.task is not None
    if served.has_head and not as_records:
        raise ApiError(
            f"Got a completion of {served.name!r}, which has a classification head; expected a model that generates. Use "
            "/v1/classify.",
            param="model",
        )
    count = body.n or 1
    sources = sources_of(body, served, max(1, settings.max_answers // count))
    beams = body.num_beams or (task.num_beams if task is not None and as_records and not body.temperature else 1)
    request = GenerateRequest(
        adapter=served.adapter,
        source_ids=(),
        max_new_tokens=body.max_tokens or (DEFAULT_MAX_TOKENS if task is None else task.max_target_length),
        num_beams=beams,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(62) if body.seed is None else body.seed % (1 << 63),
        top_log_probabilities=body.logprobs or 0,
    )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    ranks_labels = as_records and (served.has_head or (task is not None and task.verbalizer is not None))
    return Plan(served, sources, count, as_records, ranks_labels, request, tuple(filter(None, stop)), body.logprobs)


async def whole_parts(plan: Plan, context: Context, tickets: Tickets) -> list[Part]:
    """Return every answer as one part.

    Args:
        plan: The completion.
        context: Of the application.
        tickets: Where to take tickets.

    Returns:
        The parts in the order of choices.
    """
    if plan.ranks_labels:
        return await _ranked(plan, context)
    requests = plan.requests()
    if plan.stop or plan.logprobs is not None:
        merged = [Part("") for _ in range(len(plan.sources) * plan.answers_per_source)]
        async for index, part in parts(plan, context, tickets):
            old = merged[index]
            merged[index] = replace(part, text=old.text + part.text, tokens=old.tokens + part.tokens)
        return merged
    taken = [tickets.take(request) for request in requests]
    found: list[Part] = []
    for number, ticket in enumerate(taken):
        generated = await context.result(ticket, plan.served)
        assert isinstance(generated, Generated)
        text = await context.read(partial(read_text, generated.ids, plan.served, as_record=plan.as_records))
        part = Part(text, finish_reason=generated.finish_reason, count=len(generated.tokens))
        found += [part] * len(plan.indices(number))
    return found


async def parts(plan: Plan, context: Context, tickets: Tickets) -> AsyncIterator[tuple[int, Part]]:
    """Yield the index of a choice and its next part, as they come.

    Args:
        plan: The completion.
        context: Of the application.
        tickets: Where to take tickets.

    Yields:
        Index and part; the last part of each choice has a finish reason.
    """
    if plan.ranks_labels:
        for index, ranked in enumerate(await _ranked(plan, context)):
            yield index, ranked
        return
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Token | None]]()

    def put(number: int, token: Token | None) -> None:  # in the engine's thread
        loop.call_soon_threadsafe(queue.put_nowait, (number, token))

    def end(number: int, _: object) -> None:  # whatever the end of the ticket is
        if not loop.is_closed():
            put(number, None)

    streams: list[_Stream] = []
    for number, request in enumerate(plan.requests()):
        ticket = tickets.take(request, partial(put, number))
        ticket.result.add_done_callback(partial(end, number))
        streams.append(_Stream(plan, ticket))
    while not all(stream.finished for stream in streams):
        number, token = await queue.get()
        stream = streams[number]
        if stream.finished:
            continue
        part: Part | None
        if token is None:
            generated = await context.result(stream.ticket, plan.served)
            assert isinstance(generated, Generated)
            part = stream.end(generated)
        else:
            part = stream.push(token)
        if part is not None:
            for index in plan.indices(number):
                yield index, part


class _Stream:
    """The answer of one ticket on its way."""

    def __init__(self, plan: Plan, ticket: Ticket) -> None:
        self.ticket, self.finished = ticket, False
        self._plan = plan
        served = plan.served
        self._text = TextStream(served.pieces, plan.stop)
        # The task moves spaces around special tokens of its target, which is done when all is there.
        self._whole = plan.as_records and bool(served.special_tokens)
        self._held, self._tokens, self._count = "", list[tuple[Token, int]](), 0

    def push(self, token: Token) -> Part | None:
        """Return the next part, if there is one."""
        self._take(token)
        if self._text.stopped:
            self.ticket.cancel()
            return self._last("stop")
        return None if self._whole or not self._held else self._part()

    def end(self, generated: Generated) -> Part:
        """Return the last part, also where no token was told before, as with beams."""
        for token in generated.tokens[self._count :]:
            if not self._text.stopped:
                self._take(token)
        self._held += self._text.finish()
        return self._last("stop" if self._text.stopped else generated.finish_reason)

    def _take(self, token: Token) -> None:
        self._count += 1
        if self._plan.logprobs is not None:
            self._tokens.append((token, self._text.offset))
        self._held += self._text.push(token.id)

    def _last(self, reason: FinishReason) -> Part:
        self.finished = True
        if self._whole and self._plan.served.task is not None:
            self._held = self._plan.served.task.read(self._held, self._plan.served.tokenizer)
        return replace(self._part(), finish_reason=reason, count=self._count)

    def _part(self) -> Part:
        part = Part(self._held, self._tokens)
        self._held, self._tokens = "", []
        return part


def choice(index: int, part: Part, plan: Plan) -> dict[str, Any]:
    """Return a choice as OpenAI's API writes it.

    Args:
        index: Of the choice.
        part: Its text.
        plan: The completion.

    Returns:
        Values of JSON.
    """
    found: dict[str, Any] = {"index": index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}
    if plan.logprobs is not None and not plan.ranks_labels:
        found["logprobs"] = _log_probabilities(part.tokens, plan)
    if part.probabilities is not None:
        found["probabilities"] = part.probabilities
    return found


def _log_probabilities(tokens: Sequence[tuple[Token, int]], plan: Plan) -> dict[str, Any]:
    def piece(token_id: int) -> str:
        return str(plan.served.tokenizer.convert_ids_to_tokens(token_id))

    return {
        "tokens": [piece(token.id) for token, _ in tokens],
        "token_logprobs": [as_json_number(token.log_probability) for token, _ in tokens],
        "top_logprobs": [
            {piece(other): as_json_number(value) for other, value in token.alternatives.items()} for token, _ in tokens
        ],
        "text_offset": [offset for _, offset in tokens],
    }


async def _ranked(plan: Plan, context: Context) -> list[Part]:
    """Return the most probable label of each source, as ``t5peft predict`` does."""
    found: list[Part] = []
    for scores in await context.label_scores(plan.sources, plan.served):
        probabilities = label_probabilities(scores, plan.served)
        best = max(probabilities, key=lambda label: probabilities[label])
        found += [Part(best, finish_reason="stop", probabilities=probabilities)] * plan.answers_per_source
    return found


def _refuse_unsupported(body: CompletionBody) -> None:
    """Refuse fields of OpenAI's API that mean nothing here, unless they have their neutral value."""
    neutral = {
        "echo": False,
        "best_of": 1,
        "suffix": "",
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "logit_bias": {},
    }
    for name, value in neutral.items():
        if (given := getattr(body, name)) is not None and given != value:
            raise ApiError(
                f"Got {name}; expected none: T5 writes a new answer and has no {name}. Leave it out.",
                code="unsupported_field",
                param=name,
            )
    if body.temperature and body.num_beams and body.num_beams > 1:
        raise ApiError(
            f"Got num_beams={body.num_beams} with temperature={body.temperature}; expected one of them. Beam search returns the "
            "most probable answer.",
            param="num_beams",
        )
    if body.stream_options is not None and not body.stream:
        raise ApiError("Got stream_options without stream; expected both. Add stream.", param="stream_options")
