"""A model whose forward the user has changed is trained on the loss that it returns."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import sampled
from narrow import as_dataset
from tiny import fill_unevenly, tiny_config, tiny_t5
from torch.nn.functional import cross_entropy
from trainers import RECORDS, assert_same_training, trainer_of
from transformers import Seq2SeqTrainer, T5ForConditionalGeneration

from t5peft import T5PeftTrainer, lora_wrap


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
