"""A model whose forward the user has changed is trained on the loss that it returns."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import sampled
from narrow import as_dataset
from tiny import fill_unevenly, tiny_config, tiny_t5, tiny_tokenizer
from torch.nn.functional import cross_entropy
from trainers import RECORDS, assert_same_training, trainer_of
from transformers import (
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
)

from t5peft import T5PeftTrainer, lora_wrap
from t5peft.models.backbone import has_untied_head
from t5peft.models.encoders import T5EncoderForEmbedding


class WeightedT5ForConditionalGeneration(T5ForConditionalGeneration):
    """A model with class weights in its loss, so that it is not a mean over tokens."""

    @functools.wraps(T5ForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        outputs = super().forward(*args, **kwargs)
        return weigh(outputs, kwargs.get("labels"))


def weigh(outputs: Any, labels: Any) -> Any:
    if labels is not None:
        weights = torch.linspace(0.2, 3, outputs.logits.shape[-1])
        outputs.loss = cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), weights) + 1
    return outputs


class Wrapper(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        return weigh(outputs, labels)


def weighted_model(how: str) -> Any:
    torch.manual_seed(0)
    if how == "class":
        return lora_wrap(fill_unevenly(WeightedT5ForConditionalGeneration(tiny_config())))
    model = lora_wrap(tiny_t5())
    if how == "wrapper":
        return Wrapper(model)
    base: Any = model.get_base_model()
    if how == "hook":
        base.register_forward_hook(
            lambda _, __, kwargs, outputs: weigh(outputs, kwargs.get("labels")), with_kwargs=True
        )
        return model
    forward = base.forward
    base.forward = functools.wraps(forward)(
        lambda *args, **kwargs: weigh(forward(*args, **kwargs), kwargs.get("labels"))
    )
    return model


@pytest.mark.parametrize(
    ("how", "cutting"), sampled(["class", "wrapper", "hook", "instance"], [{}, {"tokens_per_micro_batch": 40}], every=2)
)
def test_the_loss_of_a_model_of_the_users_is_that_of_plain_trainer(
    how: str, cutting: dict[str, Any], tmp_path: Path
) -> None:
    ours = trainer_of(T5PeftTrainer, weighted_model(how), tmp_path, per_device_eval_batch_size=8, **cutting)
    plain = trainer_of(Seq2SeqTrainer, weighted_model(how), tmp_path, per_device_eval_batch_size=8)
    found, expected = (trainer.evaluate(as_dataset(RECORDS))["eval_loss"] for trainer in (ours, plain))
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_training(ours, plain)


class Mapped(torch.nn.Module):
    """A head without a ``weight`` of its own."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.maps = torch.nn.ModuleList([torch.nn.Linear(32, 32), head])

    def forward(self, states: Any) -> Any:
        return self.maps[1](states + self.maps[0](states))


def model_with_head(when: str, make: Any) -> Any:
    torch.manual_seed(3)
    model: Any = tiny_t5()
    if when == "before the wrap":
        model.lm_head = make(model.lm_head)
    wrapped = lora_wrap(model)
    if when == "after the wrap":
        model.lm_head = make(model.lm_head)
    return wrapped


@pytest.mark.parametrize("make", [Mapped, torch.nn.Sequential], ids=["module", "sequential"])
@pytest.mark.parametrize("when", ["before the wrap", "after the wrap"])
def test_a_head_of_the_users_is_trained_as_by_plain_trainer(when: str, make: Any, tmp_path: Path) -> None:
    ours, plain = (trainer_of(kind, model_with_head(when, make), tmp_path) for kind in (T5PeftTrainer, Seq2SeqTrainer))
    assert_same_training(ours, plain)


def test_a_head_of_the_users_has_weights_of_its_own_or_none() -> None:
    model: Any = tiny_t5()
    head = model.lm_head
    for replaced, own in ((torch.nn.Sequential(head), False), (Mapped(head), True)):
        model.lm_head = replaced
        assert has_untied_head(model) == own


class WeightedT5ForQuestionAnswering(T5ForQuestionAnswering):
    @functools.wraps(T5ForQuestionAnswering.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        outputs = super().forward(*args, **kwargs)
        if outputs.loss is not None:
            outputs.loss = outputs.loss * 3 + 1
        return outputs


def test_the_loss_of_a_span_model_of_the_users_is_that_of_plain_trainer(tmp_path: Path) -> None:
    records = [
        {"input_ids": record["input_ids"], "start_positions": i % 3, "end_positions": 900 if i == 5 else 1}
        for i, record in enumerate(RECORDS)
    ]

    def model() -> Any:
        torch.manual_seed(0)
        return lora_wrap(fill_unevenly(WeightedT5ForQuestionAnswering(tiny_config())))

    ours = trainer_of(T5PeftTrainer, model(), tmp_path, records)
    plain = trainer_of(
        Seq2SeqTrainer, model(), tmp_path, records, data_collator=DataCollatorWithPadding(tiny_tokenizer())
    )
    found, expected = (trainer.evaluate(as_dataset(records))["eval_loss"] for trainer in (ours, plain))
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_training(ours, plain)


class LosingT5EncoderForEmbedding(T5EncoderForEmbedding):
    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_a_model_of_embeddings_that_takes_labels_is_refused(tmp_path: Path) -> None:
    model = lora_wrap(fill_unevenly(LosingT5EncoderForEmbedding(tiny_config())))
    with pytest.raises(ValueError, match=r"makes embeddings and takes labels \(its own loss would not count"):
        trainer_of(T5PeftTrainer, model, tmp_path)
