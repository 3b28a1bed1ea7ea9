"""The fingerprint of a backbone does not see its adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import Geometry, tiny_batch, tiny_classifier, tiny_t5
from torch import nn
from transformers import PreTrainedModel

from t5peft import (
    METHODS,
    load_adapter,
    save_adapter,
)
from t5peft.adapters import fingerprint, fingerprint_of_maps
from t5peft.adapters.fingerprint import fingerprints_of_parts
from t5peft.adapters.manifest import MANIFEST

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


def replaced_head(model: Any) -> None:
    model.lm_head = nn.Linear(32, 384, bias=False).requires_grad_(False)


def other_head(model: Any) -> None:
    model.lm_head.weight.data.mul_(2)


def head_of_two_maps(model: Any) -> None:
    model.lm_head = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 384, bias=False)).requires_grad_(False)


def other_positions(model: Any) -> None:
    model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data[3] += 1


def other_norm(model: Any) -> None:
    model.encoder.block[1].layer[1].layer_norm.weight.data.mul_(2)


def other_decoder_table(model: Any) -> None:
    model.decoder.embed_tokens.weight = nn.Parameter(model.decoder.embed_tokens.weight.detach() * 2)


@pytest.mark.parametrize("geometry", ["v1.0", "v1.1"])
@pytest.mark.parametrize(
    "change", [replaced_head, other_head, head_of_two_maps, other_positions, other_norm, other_decoder_table]
)
def test_an_adapter_is_refused_beside_other_weights_than_in_training(
    change: Callable[[PreTrainedModel], None], geometry: Geometry, tmp_path: Path
) -> None:
    if (change, geometry) == (other_head, "v1.0"):
        pytest.skip("a tied head is the table")
    changed = tiny_t5(geometry)
    change(changed)
    folder = save_adapter(METHODS["lora"].wrap(deepcopy(changed)), tmp_path / "adapter")
    load_adapter(folder, model=changed)
    with pytest.raises(ValueError, match=r"trained beside other weights of (lm_head|encoder\.|decoder\.)"):
        load_adapter(folder, model=tiny_t5(geometry))


@pytest.mark.parametrize(
    ("geometry", "options"),
    [
        ("v1.1", {"modules_to_save": ["lm_head"]}),
        ("v1.0", {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
        ("v1.0", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("v1.0", {"modules_to_save": ["shared"], "ensure_weight_tying": True}),
        ("v1.1", {"modules_to_save": ["layer_norm", "relative_attention_bias"]}),
        ("v1.1", {"target_modules": ["q", "lm_head"]}),
        ("v1.1", {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}),
        ("v1.1", {"trainable_token_indices": [3, 5]}),
        ("v1.0", {"trainable_token_indices": [3, 5], "ensure_weight_tying": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.filterwarnings("ignore")  # peft on tied weights
def test_parts_that_an_adapter_brings_or_changes_are_not_compared(
    geometry: Geometry, options: dict[str, Any], merged: bool
) -> None:
    model = get_peft_model(
        tiny_t5(geometry), LoraConfig(**{"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q"]} | options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    if merged:
        model.merge_adapter()
    own = fingerprints_of_parts(tiny_t5(geometry))
    found = fingerprints_of_parts(model)
    assert found.items() <= own.items()
    assert len(found) > 2


@pytest.mark.parametrize("method", ADAPTERS)
def test_no_adapter_changes_the_fingerprints_of_the_parts(method: str) -> None:
    parts = fingerprints_of_parts(tiny_t5("wide"))
    assert fingerprints_of_parts(METHODS[method].wrap(tiny_t5("wide").bfloat16())) == parts
    assert {"lm_head", "decoder.block.layer.layer_norm"} < parts.keys()


def test_a_head_of_classes_is_not_compared_where_the_adapter_brings_it() -> None:
    model = METHODS["lora"].wrap(tiny_classifier())
    assert fingerprints_of_parts(tiny_classifier()).keys() - fingerprints_of_parts(model).keys() == {
        "classification_head.dense",
        "classification_head.out_proj",
    }


def test_an_adapter_of_an_older_version_is_not_compared_by_parts(tmp_path: Path) -> None:
    changed = tiny_t5("v1.1")
    other_norm(changed)
    folder = save_adapter(METHODS["lora"].wrap(changed), tmp_path / "adapter")
    content = json.loads((folder / MANIFEST).read_text())
    del content["parts"], content["checksum"]
    (folder / MANIFEST).write_text(json.dumps(content))
    load_adapter(folder, model=tiny_t5("v1.1"))
