"""Checks of requests before they wait for the engine. A wrong one would fail the batch that it shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from t5peft.serving.requests import (
    ClassifyRequest,
    GenerateRequest,
    RankRequest,
    Request,
    TooLongError,
    UnusableAdapterError,
)
from t5peft.serving.scheduler import Limits
from t5peft.serving.weights import AdapterWeights


def check_request(request: Request, limits: Limits, vocabulary_size: int) -> None:
    """Refuse a request that is wrong in itself or above the limits.

    Args:
        request: The request.
        limits: How much is taken on at once.
        vocabulary_size: Token ids are below it.

    Raises:
        TooLongError: It is above the limits.
        ValueError: It is wrong in itself.
    """
    problems = [*_wrong_ids("source_ids", request.source_ids, vocabulary_size)]
    if isinstance(request, GenerateRequest):
        problems += _wrong_generation(request, vocabulary_size)
    elif isinstance(request, RankRequest):
        problems += _wrong_candidates(request, vocabulary_size)
    if problems:
        raise ValueError(" ".join(problems))
    if too_long := [*_too_long(request, limits)]:
        raise TooLongError(" ".join(too_long))


def check_adapter(request: Request, adapter: AdapterWeights | None) -> None:
    """Refuse an adapter that cannot answer a request of this kind.

    Args:
        request: The request.
        adapter: Its adapter.

    Raises:
        UnusableAdapterError: The request wants classes of an adapter without a classification head, or text of one with it, or
            samples of one that is computed separately.
    """
    if adapter is not None and adapter.separate is not None and getattr(request, "temperature", 0) > 0:
        raise UnusableAdapterError(
            f"Got a temperature for the adapter {request.adapter!r} of the method {adapter.kind}, whose rows are run "
            "separately; expected temperature 0."
        )
    has_classes = adapter is not None and adapter.head is not None
    if has_classes == isinstance(request, ClassifyRequest):
        return
    if has_classes:
        raise UnusableAdapterError(
            f"Got the adapter {request.adapter!r}, which has a classification head; expected one that generates. Classify with it."
        )
    raise UnusableAdapterError(
        f"Got the adapter {request.adapter!r}, which has no classification head; expected one, to classify. Rank target words."
    )


def _wrong_ids(name: str, ids: Sequence[int], vocabulary_size: int) -> Iterator[str]:
    if not ids:
        yield f"Got no {name}; expected at least one token."
    elif min(ids) < 0 or max(ids) >= vocabulary_size:
        yield f"Got {name} from {min(ids)} to {max(ids)}; expected ids from 0 to {vocabulary_size - 1}."


def _wrong_generation(request: GenerateRequest, vocabulary_size: int) -> Iterator[str]:
    for name in ("max_new_tokens", "num_beams"):
        if (value := getattr(request, name)) < 1:
            yield f"Got {name}={value}; expected at least 1."
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        yield f"Got temperature={request.temperature}; expected a number from 0."
    if not 0 < request.top_p <= 1:
        yield f"Got top_p={request.top_p}; expected a number above 0, at most 1."
    if not 0 <= request.top_log_probabilities <= vocabulary_size:
        yield f"Got top_log_probabilities={request.top_log_probabilities}; expected a number from 0 to {vocabulary_size}."
    if request.num_beams > 1 and request.temperature > 0:
        yield f"Got num_beams={request.num_beams} with temperature={request.temperature}; expected one of them."


def _wrong_candidates(request: RankRequest, vocabulary_size: int) -> Iterator[str]:
    if not request.candidate_ids:
        yield "Got no candidates; expected at least one."
    for number, ids in enumerate(request.candidate_ids):
        yield from _wrong_ids(f"candidate_ids[{number}]", ids, vocabulary_size)


def _too_long(request: Request, limits: Limits) -> Iterator[str]:
    source, targets, rows = len(request.source_ids), [1], 1
    if isinstance(request, GenerateRequest):
        targets, rows = [request.max_new_tokens], request.num_beams
    elif isinstance(request, RankRequest):
        targets = [len(ids) for ids in request.candidate_ids]
    if source > limits.max_source_tokens:
        yield f"Got a source of {source} tokens; expected at most {limits.max_source_tokens}. Shorten it."
    if max(targets) > limits.max_new_tokens:
        yield f"Got an answer of up to {max(targets)} tokens; expected at most {limits.max_new_tokens}. Request fewer."
    if rows > limits.max_rows:
        yield f"Got {rows} beams; expected at most {limits.max_rows}. Request fewer."
    if (tokens := rows * (source + sum(targets))) > limits.max_tokens:
        yield f"Got a request of {tokens} tokens in all; expected at most {limits.max_tokens}. Request fewer."
