"""Under continuous batching, requests of adapters of all methods get what each adapter answers by itself in float64."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fake_pool import alone, engine_t5, target_log_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mixed import SERVED, SOURCES, in_dtype, saved
from tiny import EOS, tiny_classifier, tiny_tokenizer
from transformers import PreTrainedModel

from t5peft.adapters import load_adapter
from t5peft.methods import METHODS
from t5peft.models.backbone import correct_config
from t5peft.serving.engine import Engine
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import ClassifyRequest, GenerateRequest, RankRequest, UnusableAdapterError
from t5peft.serving.scheduler import Limits

NAMES = [None, *SERVED, "ladder"]
OPTIONS: dict[str, dict[str, Any]] = {"lora": {"rank": 4}, "prefix": {"length": 3}, "dora": {"rank": 4}}
CLASSIFIERS = ["lora-classes", "prompt-classes"]
CANDIDATES = [[5, EOS], [9, 7, EOS], [5, 6, EOS]]


def backbone() -> PreTrainedModel:
    return engine_t5("v1.1")


def classifier() -> PreTrainedModel:
    model = tiny_classifier("v1.1")
    model.transformer.load_state_dict(backbone().state_dict(), strict=False)
    return model


class Served:
    """A pool of an adapter of every method, and the same adapters by themselves."""

    def __init__(self, folder: Path) -> None:
        self.alone: dict[str | None, Any] = {None: backbone()}
        for name in filter(None, NAMES):
            path = saved(METHODS[name].wrap(backbone(), **OPTIONS.get(name, {})), folder / name)
            self.alone[name] = load_adapter(path, model=backbone())[0].eval()
        self.classifiers: dict[str, Any] = {}
        for name in CLASSIFIERS:
            path = saved(METHODS[name.removesuffix("-classes")].wrap(classifier()), folder / name)
            self.classifiers[name] = load_adapter(path, model=classifier())[0].eval()
        for model in self.alone.values():
            correct_config(model.get_base_model() if hasattr(model, "get_base_model") else model)
        for model in (*self.alone.values(), *self.classifiers.values()):  # so that only our own rounding counts
            in_dtype(model, torch.float64)
        self.pool = AdapterPool(backbone(), folder, tokenizer=tiny_tokenizer())
        self.generated = cache(self._generated)

    def _generated(self, name: str | None, i: int, max_new_tokens: int, num_beams: int) -> tuple[list[int], Any]:
        model = self.alone[name]
        ids = alone(model, SOURCES[i], max_new_tokens, num_beams)
        return ids, target_log_probabilities(model, SOURCES[i], ids)[range(len(ids)), ids].tolist()

    def check(self, request: Any, answer: Any, i: int) -> None:
        if isinstance(request, GenerateRequest):
            ids, scores = self.generated(request.adapter, i, request.max_new_tokens, request.num_beams)
            assert answer.ids == ids, request.adapter
            assert [token.log_probability for token in answer.tokens] == pytest.approx(scores, abs=1e-5)
        elif isinstance(request, RankRequest):
            model = self.alone[request.adapter]
            found = [target_log_probabilities(model, SOURCES[i], ids)[range(len(ids)), ids].sum() for ids in CANDIDATES]
            assert answer.log_probabilities == pytest.approx([float(score) for score in found], abs=1e-5)
        else:
            with torch.no_grad():
                logits = self.classifiers[request.adapter](input_ids=torch.tensor([SOURCES[i]])).logits
            assert answer.log_probabilities == pytest.approx(logits.log_softmax(-1)[0].tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("adapters"))
    yield found
    found.pool.model.close()


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["row"] * 6 + ["beams", "rank", "classify"]),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, 5),  # the source
        st.sampled_from([1, 4, 11]),  # most new tokens
        st.integers(0, 4),  # so many tokens later it comes
    ),
    min_size=4,
    max_size=24,
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(REQUESTS, st.sampled_from([3, 8, 32]))
def test_answers_are_those_of_each_adapter_by_itself(served: Served, drawn: Any, max_rows: int) -> None:
    told = threading.Semaphore(0)
    tickets = []
    with Engine(served.pool, Limits(max_rows=max_rows)) as engine:
        for kind, adapter, i, max_new_tokens, pause in drawn:
            for _ in range(pause):
                told.acquire(timeout=0.001)
            request: Any = GenerateRequest(NAMES[adapter], SOURCES[i], max_new_tokens)
            if kind == "beams":
                request = GenerateRequest(NAMES[adapter], SOURCES[i], 6, num_beams=3)
            elif kind == "rank":
                request = RankRequest(NAMES[adapter], SOURCES[i], CANDIDATES)
            elif kind == "classify":
                request = ClassifyRequest(CLASSIFIERS[adapter % 2], SOURCES[i])
            tickets.append((request, engine.submit(request, on_token=lambda _: told.release()), i))
        for request, ticket, i in tickets:
            served.check(request, ticket.result.result(30), i)
    assert not any(entry.holders for entry in served.pool._entries.values())


@pytest.mark.parametrize("kernels", ["compiled", "plain"])
def test_a_batch_of_every_method(served: Served, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "plain":
        monkeypatch.setenv("T5PEFT_KERNELS", kernels)
    requests = [(GenerateRequest(name, SOURCES[i], 11), i) for i in range(4) for name in NAMES]
    with Engine(served.pool) as engine:
        tickets = [engine.submit(request) for request, _ in requests]
        for (request, i), ticket in zip(requests, tickets, strict=True):
            served.check(request, ticket.result.result(30), i)
    answers = {tuple(cast(Any, ticket.result.result()).ids) for ticket in tickets}
    assert len(answers) > 2 * len(NAMES), "adapters do not all say the same"


def test_a_ladder_tells_its_tokens_and_takes_no_samples(served: Served) -> None:
    told: list[int] = []
    request = GenerateRequest("ladder", SOURCES[0], 11, top_log_probabilities=2)
    with Engine(served.pool) as engine:
        answer = engine.submit(request, on_token=lambda token: told.append(token.id)).result.result(30)
        served.check(request, answer, 0)
        assert told == cast(Any, answer).ids
        assert all(len(token.alternatives) == 2 for token in cast(Any, answer).tokens)
        with pytest.raises(UnusableAdapterError, match="separately; expected temperature 0"):
            engine.submit(GenerateRequest("ladder", SOURCES[0], 11, temperature=1.0)).result.result(30)
