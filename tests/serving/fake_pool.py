"""A pool and a model of mixed batches with the methods of the true ones, over a plain tiny T5."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import ANY

import torch
from tiny import EOS, PAD, Geometry, tiny_t5
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from t5peft.evaluation.inference import padded
from t5peft.models.backbone import correct_config
from t5peft.nn.attention import use_attention
from t5peft.serving.mixed import calling
from t5peft.serving.requests import UnknownAdapterError
from t5peft.serving.weights import AdapterWeights


@torch.no_grad()
def engine_t5(geometry: Geometry = "v1.1", *, ends: bool = True) -> PreTrainedModel:
    """A tiny T5 about half of whose answers end by themselves within some ten tokens, or one whose answers never do."""
    t5 = tiny_t5(geometry)
    correct_config(t5)
    t5.lm_head.weight[EOS] *= 3 if ends else 0
    return t5


class FakeModel:
    """Rows of any adapter get the plain model. ``on_call`` may raise, wait or count."""

    packs = False

    def __init__(self, t5: PreTrainedModel) -> None:
        self.t5 = t5
        use_attention(t5)
        self.on_call: Callable[[str, Sequence[AdapterWeights | None]], None] = lambda name, adapters: None

    def encode(
        self, sources: Sequence[Sequence[int]], adapters: Sequence[AdapterWeights | None]
    ) -> tuple[Tensor, Tensor]:
        self.on_call("encode", adapters)
        ids, mask = padded(sources, PAD, self.t5.device)
        return self.t5.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    @contextmanager
    def rows(self, adapters: Sequence[AdapterWeights | None], lengths: Sequence[int] = ()) -> Iterator[None]:
        self.on_call("rows", adapters)
        yield

    @contextmanager
    def encoded(
        self, separate: None, sources: Sequence[Sequence[int]], adapters: Sequence[AdapterWeights | None]
    ) -> Iterator[tuple[PreTrainedModel, BaseModelOutput, Tensor]]:
        states, mask = self.encode(sources, adapters)
        with self.rows(adapters):
            yield self.t5, BaseModelOutput(last_hidden_state=cast(Any, states)), mask

    def rank(self, sources: Any, candidate_ids_by_row: Any, adapters: Any) -> list[list[float]]:
        self.on_call("rank", adapters)
        return [
            [
                float(target_log_probabilities(self.t5, source, ids).gather(1, torch.tensor(ids)[:, None]).sum())
                for ids in candidates
            ]
            for source, candidates in zip(sources, candidate_ids_by_row, strict=True)
        ]

    def classify(self, sources: Any, adapters: Any) -> list[list[float]]:
        self.on_call("classify", adapters)
        return [[-float(len(source)), 0.0] for source in sources]

    def generate(
        self, sources: Any, adapters: Any, *, max_new_tokens: int, num_beams: int = 1, between: Callable[[], None]
    ) -> Tensor:
        self.on_call("generate", adapters)
        return generate(self.t5, sources, max_new_tokens, num_beams, stopping_criteria=calling(between))


class FakePool:
    """Knows adapters "a" to "h"; "classes" has a classification head, "damaged" cannot be loaded."""

    def __init__(self, t5: PreTrainedModel) -> None:
        self.model = FakeModel(t5)
        self.adapters = {name: AdapterWeights(name, "fake") for name in "abcdefgh"}
        self.adapters["classes"] = AdapterWeights("classes", "fake", head=ANY)
        self.held: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.on_acquire: Callable[[str | None], None] = lambda name: None

    def acquire(self, name: str | None) -> AdapterWeights | None:
        self.on_acquire(name)
        if name is None:
            return None
        if name not in self.adapters:
            raise UnknownAdapterError(name)
        with self.lock:
            self.held[name] += 1
        return self.adapters[name]

    def release(self, adapter: AdapterWeights | None) -> None:
        if adapter is not None:
            with self.lock:
                self.held[adapter.name] -= 1


def generate(
    t5: PreTrainedModel, sources: Sequence[Sequence[int]], max_new_tokens: int, num_beams: int = 1, **options: Any
) -> Tensor:
    ids, mask = padded(sources, PAD, t5.device)
    generator: Any = t5
    found: Tensor = generator.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        **options,
    )
    return found


def alone(t5: PreTrainedModel, source: Sequence[int], max_new_tokens: int, num_beams: int = 1) -> list[int]:
    """The answer to one source, without the start token."""
    return generate(t5, [source], max_new_tokens, num_beams)[0, 1:].tolist()


@torch.no_grad()
def target_log_probabilities(t5: PreTrainedModel, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """The log-probabilities [T, V] of every token at the positions of a target, by teacher forcing without a cache."""
    start = t5.config.decoder_start_token_id
    return (
        t5(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *target[:-1]]]), use_cache=False)
        .logits[0]
        .log_softmax(dim=-1)
    )
