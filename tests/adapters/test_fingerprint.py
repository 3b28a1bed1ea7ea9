"""The fingerprint of a backbone does not see its adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_batch, tiny_t5

from t5peft import (
    METHODS,
    load_adapter,
    save_adapter,
)
from t5peft.adapters import fingerprint, fingerprint_of_maps

ADAPTERS = [name for name, method in METHODS.items() if name != "full" and method.quantize is None]


def test_the_fingerprint_is_the_same_in_bfloat16() -> None:
    assert fingerprint(tiny_t5()) == fingerprint(tiny_t5().bfloat16())


@pytest.mark.parametrize("trained_whole", ["shared", "final_layer_norm"])
def test_a_module_that_is_trained_whole_does_not_change_the_fingerprint(trained_whole: str, tmp_path: Path) -> None:
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"], modules_to_save=[trained_whole])
    model = get_peft_model(tiny_t5(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    loaded, _ = load_adapter(save_adapter(model, tmp_path / "adapter"), model=tiny_t5())
    assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


@pytest.mark.parametrize("method", ["lora", "ia3", "norm"])
def test_an_adapter_that_is_merged_at_saving_loads_on_its_backbone(method: str, tmp_path: Path) -> None:
    model = METHODS[method].wrap(tiny_t5())
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.merge_adapter()
    load_adapter(save_adapter(model, tmp_path / "adapter"), model=tiny_t5())


@pytest.mark.parametrize("method", ADAPTERS)
def test_no_adapter_changes_the_fingerprint_of_the_maps(method: str) -> None:
    assert fingerprint_of_maps(METHODS[method].wrap(tiny_t5("wide"))) == fingerprint_of_maps(tiny_t5("wide"))
