"""Weights that are trained beside an adapter, and that its files do not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from cases import ADAPTERS, Case
from peft import LoraConfig, get_peft_model
from tiny import GEOMETRIES, tiny_records, tiny_t5, tiny_tokenizer
from torch import nn
from trainers import arguments

from t5peft import METHODS, T5PeftTrainer, lora_wrap
from t5peft.models.tokens import add_tokens
from t5peft.training.given import warn_of_unsaved

WARNING = "are not part of the adapter"


@pytest.mark.parametrize("case", [case for case in ADAPTERS if METHODS[case.method].quantize is None], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES[:2])
def test_every_method_saves_what_it_trains(case: Case, geometry: Any, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unsaved(METHODS[case.method].wrap(tiny_t5(geometry), **case.options))
    assert WARNING not in caplog.text


def test_modules_to_save_and_new_tokens_are_saved(caplog: pytest.LogCaptureFixture) -> None:
    config = LoraConfig(r=2, target_modules=["q"], modules_to_save=["final_layer_norm"])
    warn_of_unsaved(get_peft_model(tiny_t5(), config))
    model, tokenizer = tiny_t5(), tiny_tokenizer()
    add_tokens(model, tokenizer, ["<new>"])
    warn_of_unsaved(lora_wrap(model))
    assert WARNING not in caplog.text


@pytest.mark.parametrize("part", ["final_layer_norm", "q.base_layer", "relative_attention_bias"])
def test_weights_that_a_user_has_unfrozen_are_told(part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model: nn.Module = lora_wrap(tiny_t5())
    unfrozen = {name: p.requires_grad_() for name, p in model.named_parameters() if part in name}
    T5PeftTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=tiny_records(4)).train()
    told = [record.getMessage() for record in caplog.records if WARNING in record.getMessage()]
    assert told == [told[0]]
    assert f"{len(unfrozen)} trained weights {WARNING}, such as {next(iter(unfrozen))}" in told[0]


def test_two_adapters_that_are_trained_together_are_both_saved(caplog: pytest.LogCaptureFixture) -> None:
    model = lora_wrap(tiny_t5())
    model.add_adapter("second", LoraConfig(r=2, target_modules=["o"]))
    cast(Any, model.base_model).set_adapter(["default", "second"])
    assert sum(p.requires_grad for p in model.parameters()) > 24
    warn_of_unsaved(model)
    assert WARNING not in caplog.text
