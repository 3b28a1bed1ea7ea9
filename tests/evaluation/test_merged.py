"""Adapters are merged within an evaluation and come out of it bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from scored import SOURCES, TOKENIZER, WORDS, by_hand, ids_of, v1_0, wide, wrapped
from torch import nn

from t5peft.evaluation import (
    merged,
    predict,
    rank,
)
from t5peft.evaluation.inference import evaluating
from t5peft.methods import METHODS, lora_wrap, qlora_wrap
from t5peft.models.backbone import load_backbone
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import fast_kernels
from t5peft.nn.kernels.linear import FastLinear


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merging_changes_the_weights_inside_and_no_bit_outside(method: str) -> None:
    model = wrapped(method)().eval()
    before, addresses = snapshot(model), {name: value.data_ptr() for name, value in model.state_dict().items()}
    inputs = {"input_ids": torch.tensor([ids_of(SOURCES[1])]), "labels": torch.tensor([ids_of(WORDS[4])])}
    with torch.no_grad():
        unmerged = model(**inputs).logits
        with merged(model):
            assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
            torch.testing.assert_close(model(**inputs).logits, unmerged, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(**inputs).logits, unmerged)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert addresses == {name: value.data_ptr() for name, value in model.state_dict().items()}


def test_evaluation_runs_on_the_kernels_and_merges_within_those_of_a_trainer_too() -> None:
    model = wrapped("lora")()
    plain = [type(module) for module in model.modules()]
    with evaluating(model) as t5:
        assert any(isinstance(module, FastLinear) for module in t5.modules())
    assert [type(module) for module in model.modules()] == plain
    with fast_kernels(model):
        inside = [type(module) for module in model.modules()]
        with evaluating(model) as t5:
            assert all(module.merged for module in t5.modules() if isinstance(module, LoraLayer))
        assert [type(module) for module in model.modules()] == inside
    assert [type(module) for module in model.modules()] == plain


def test_weights_and_training_flags_come_back_after_an_error() -> None:
    model = wrapped("lora")()
    unwrap_t5(model).get_submodule("encoder").eval()
    before, flags = snapshot(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop here"), merged(model):
        raise RuntimeError("stop here")
    with pytest.raises(ValueError, match="Got the token id"):
        predict(model, TOKENIZER, [[10**6, 1]], max_new_tokens=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    assert torch.is_grad_enabled()


def test_what_is_no_change_of_a_linear_map_is_told_as_not_merged() -> None:
    for method, merges in (("lora", True), ("norm", False), ("prefix", False)):
        with torch.no_grad(), merged(METHODS[method].wrap(v1_0())) as any_merged:
            assert any_merged is merges


def test_a_disabled_adapter_is_not_merged() -> None:
    model = wrapped("lora")()
    base = by_hand(wide(), SOURCES, WORDS)
    with model.disable_adapter():
        torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, base, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_bfloat16_weights_is_left_unmerged() -> None:
    model = lora_wrap(v1_0().bfloat16())
    before = snapshot(model)
    with merged(model):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dora_is_merged_and_put_back() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(v1_0(), LoraConfig(target_modules=["q", "v"], use_dora=True, task_type="SEQ_2_SEQ_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    before, expected = snapshot(model), by_hand(model, SOURCES, WORDS)
    torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_quantised_weights_are_left_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    v1_0().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model = qlora_wrap(load_backbone(tmp_path, quantize="int8")[0])
    before = snapshot(model)
    found = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    texts = predict(model, TOKENIZER, SOURCES, max_new_tokens=5)
    assert len(texts) == len(SOURCES)
    assert torch.isfinite(found).all()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
