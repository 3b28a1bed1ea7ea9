"""The engine answers each request as if it were on its own, never hangs, and gives back what it holds."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from fake_pool import FakePool, alone, target_log_probabilities
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import EOS, VOCABULARY, tiny_t5

from t5peft.serving.engine import Engine
from t5peft.serving.requests import GenerateRequest
from t5peft.serving.scheduler import Limits

SECONDS = 30


@pytest.fixture(scope="module")
def t5():
    return tiny_t5("v1.1")


@pytest.fixture
def pool(t5):
    pool = FakePool(t5)
    yield pool
    assert not +pool.held, "adapters are still held"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("t5peft-")]


def source(seed: int, length: int = 6) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(3, VOCABULARY, (length - 1,), generator=generator).tolist(), EOS]


def greedy(seed: int, length: int = 6, max_new_tokens: int = 8, **options) -> GenerateRequest:
    return GenerateRequest(options.pop("adapter", None), source(seed, length), max_new_tokens, **options)


def check(t5, request: GenerateRequest, answer) -> None:
    expected = alone(t5, request.source_ids, request.max_new_tokens, request.num_beams)
    assert answer.ids == expected
    assert answer.finish_reason == ("stop" if expected[-1] == EOS else "length")
    scores = target_log_probabilities(t5, request.source_ids, expected)
    got = torch.tensor([token.log_probability for token in answer.tokens])
    torch.testing.assert_close(got, scores[range(len(expected)), expected], atol=1e-5, rtol=0)


def test_answers_equal_those_of_each_source_on_its_own(t5, pool):
    requests = [greedy(i, 3 + i % 7, 1 + i % 11, adapter="abcd"[i % 4]) for i in range(40)]
    with Engine(pool, Limits(max_rows=8)) as engine:
        tickets = [engine.submit(request) for request in requests]
        for request, ticket in zip(requests, tickets, strict=True):
            check(t5, request, ticket.result.result(SECONDS))
    stats = engine.stats()
    assert (stats.finished, stats.running, stats.waiting, stats.failed) == (40, 0, 0, 0)
