"""Models whose answers and scores are compared with those of one example at a time, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import narrow
import pytest
import torch
from narrow import as_peft, generate
from peft import PeftModel
from tiny import fill_unevenly, tiny_classifier, tiny_config, tiny_t5
from torch import nn
from transformers import (
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft.methods import METHODS
from t5peft.models.backbone import MINI, correct_config, has_untied_head

TOKENIZER = AutoTokenizer.from_pretrained(MINI)
SOURCES = [
    "no",
    "I am not happy with the service at all, so please help me to send back what came on Monday",
    "the cat sat on the mat",
    "",
    "Where is my order? It was due a week ago and nobody answers the telephone.",
    "thanks",
]
WORDS = ["positive", "negative", "positive and negative", "very positive", "the refund was late", "the refund", "a"]


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """The model with uneven weights, under which some answers end by themselves and some do not."""
    fill_unevenly(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[TOKENIZER.eos_token_id] *= 8 if has_untied_head(model) else 5
    correct_config(model)
    return model.eval()


def v1_0() -> PreTrainedModel:
    return ready(tiny_t5("v1.0", vocab_size=len(TOKENIZER)))


def wide() -> PreTrainedModel:
    return ready(tiny_t5("wide", vocab_size=len(TOKENIZER)))


def eager() -> PreTrainedModel:
    model = v1_0()
    model.set_attn_implementation("eager")
    return model


def mt5() -> PreTrainedModel:
    return ready(MT5ForConditionalGeneration(MT5Config(**foreign())))


def umt5() -> PreTrainedModel:
    return ready(UMT5ForConditionalGeneration(UMT5Config(**foreign())))


def foreign() -> dict[str, Any]:
    values = tiny_config("wide", vocab_size=len(TOKENIZER), eos_token_id=1, pad_token_id=0).to_dict()
    return {key: value for key, value in values.items() if key not in ("model_type", "architectures")}


MakeModel = Callable[[], nn.Module]


def wrapped(method: str, **options: Any) -> Callable[[], PeftModel]:
    """A T5 wrapped by a method, its adapter moved away from where it starts."""

    def make() -> PeftModel:
        torch.manual_seed(0)
        model = as_peft(METHODS[method].wrap(wide(), **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.train()

    make.__name__ = method
    return make


PLAIN: list[MakeModel] = [v1_0, wide, eager, mt5, umt5]
MODELS = [*PLAIN, *map(wrapped, ("lora", "ia3", "prompt", "ladder")), wrapped("prefix", length=1)]
each_model = pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])


def ids_of(text: str) -> list[int]:
    ids = TOKENIZER(text)["input_ids"]
    assert ids[-1] == TOKENIZER.eos_token_id
    return ids


def teacher_forced(model: nn.Module, source: str, target: str) -> float:
    """Summed log-probability of one target after one source, nothing padded, nothing shared."""
    ids = ids_of(target)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids_of(source)]), decoder_input_ids=torch.tensor([[0, *ids[:-1]]])
        ).logits
    model.train(training)
    return float(logits[0].double().log_softmax(-1)[range(len(ids)), ids].sum())


def by_hand(model: nn.Module, sources: list[str], words: list[str]) -> torch.Tensor:
    return torch.tensor([[teacher_forced(model, source, word) for word in words] for source in sources])


def generated_alone(model: nn.Module, source: str, max_new_tokens: int, num_beams: int) -> tuple[str, bool]:
    """The answer to one source by plain generate without a cache, and whether it was cut."""
    training = model.training
    model.eval()
    with torch.no_grad():
        (ids,) = generate(
            model,
            input_ids=torch.tensor([ids_of(source)]),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            use_cache=False,
        )
    model.train(training)
    return narrow.text(TOKENIZER.decode(ids, skip_special_tokens=True)), 1 not in ids.tolist()


def headed(labels: int) -> PreTrainedModel:
    return tiny_classifier(num_labels=labels, vocab_size=len(TOKENIZER))
