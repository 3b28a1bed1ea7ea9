"""Requests for the tests of the engine, their answers, and the pool that they are asked of."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from fake_pool import alone, engine_t5, target_log_probabilities
from tiny import EOS, VOCABULARY

from t5peft.serving.requests import (
    GenerateRequest,
)

SECONDS = 30


MODELS = {ends: engine_t5(ends=ends) for ends in (True, False)}


def source(seed: int, length: int = 6) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(3, VOCABULARY, (length - 1,), generator=generator).tolist(), EOS]


def request(number: int = 0, length: int = 6, max_new_tokens: int = 8, **options: Any) -> GenerateRequest:
    return GenerateRequest(options.pop("adapter", None), source(number, length), max_new_tokens, **options)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def get(ticket: Any) -> Any:
    return ticket.result.result(SECONDS)


@cache
def expected(
    seed: int, length: int, max_new_tokens: int, num_beams: int = 1, ends: bool = False
) -> tuple[list[int], list[float]]:
    t5 = MODELS[ends]
    ids = alone(t5, source(seed, length), max_new_tokens, num_beams)
    return ids, target_log_probabilities(t5, source(seed, length), ids)[range(len(ids)), ids].tolist()


def check(answer: Any, *key: Any) -> None:
    ids, log_probabilities = expected(*key)
    assert answer.ids == ids
    assert answer.finish_reason == ("stop" if ids[-1] == EOS else "length")
    assert [token.log_probability for token in answer.tokens] == pytest.approx(log_probabilities, abs=1e-5)
