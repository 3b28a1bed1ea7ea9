"""Tokens are drawn with the probabilities that the request asks for, and greedy ones are the most probable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from t5peft.serving import sampling
from t5peft.serving.requests import GenerateRequest
from t5peft.serving.sampling import Sampler, choose

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0, -3.0])
DRAWS = 4000


def sampler(**options: Any) -> Sampler:
    return Sampler(GenerateRequest(None, [5, 1], 4, **options))


def shares(one: Sampler, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    counts = Counter(one.draw(logits) for _ in range(DRAWS))
    return torch.tensor([counts[i] / DRAWS for i in range(len(logits))])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_their_probabilities(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    # four standard deviations of a share
    error = 4 * (expected * (1 - expected) / DRAWS).sqrt()
    assert ((shares(sampler(temperature=temperature, seed=3)) - expected).abs() <= error).all()


@pytest.mark.parametrize("looked_at", [2, 256])
@pytest.mark.parametrize(("top_p", "kept"), [(0.1, [1]), (0.6, [1, 3]), (0.8, [0, 1, 3]), (0.999, [0, 1, 2, 3, 4, 5])])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(
    monkeypatch: pytest.MonkeyPatch, top_p: float, kept: list[int], looked_at: int
) -> None:
    monkeypatch.setattr(sampling, "_FIRST_TOKENS", looked_at)
    expected = torch.zeros(6)
    expected[kept] = LOGITS.softmax(-1)[kept]
    expected /= expected.sum()
    error = 4 * (expected * (1 - expected) / DRAWS).sqrt()
    found = shares(sampler(temperature=1.0, top_p=top_p))
    assert ((found - expected).abs() <= error + 1e-9).all()


def test_a_seed_gives_the_same_tokens_and_another_one_others() -> None:
    draws = [[one.draw(LOGITS) for _ in range(30)] for one in (sampler(temperature=1.0, seed=s) for s in (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


def test_rows_are_chosen_by_themselves() -> None:
    rows = [sampler(), sampler(temperature=1.0, seed=1), sampler(top_log_probabilities=2), sampler()]
    logits = torch.stack([LOGITS, LOGITS, LOGITS.flip(0), LOGITS * 2])
    first, drawn, other, last = choose(logits, rows)
    assert (first.id, other.id, last.id) == (1, 4, 1)
    assert drawn.id == sampler(temperature=1.0, seed=1).draw(LOGITS)
    for token, own in zip((first, drawn, other, last), logits.log_softmax(-1), strict=True):
        assert token.log_probability == pytest.approx(float(own[token.id]), abs=1e-6)
    assert other.alternatives == pytest.approx(
        {4: other.log_probability, 2: float(LOGITS.log_softmax(-1)[3])}, abs=1e-6
    )
    assert first.alternatives == {}


def test_logits_of_bfloat16_are_scored_in_float32() -> None:
    logits = LOGITS.bfloat16()[None]
    assert choose(logits, [sampler()])[0].log_probability == pytest.approx(
        float(logits.float().log_softmax(-1)[0, 1]), abs=1e-6
    )
