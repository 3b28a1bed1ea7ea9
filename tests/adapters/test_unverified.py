"""Adapters without a manifest, and arguments of a wrong type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_t5

from t5peft import export, load_adapter, load_backbone, load_exported, lora_wrap, merge, push_adapter, save_adapter
from t5peft.adapters import (
    base_of,
    brings_tokens,
    is_adapter,
    load_saved,
    load_with_tokens,
    manifest_sha256,
    quantization_of,
    save_model,
    write_card,
)
from t5peft.adapters.manifest import WEIGHTS
from t5peft.models.backbone import load_tokenizer


def plain(folder: Path) -> Path:
    """An adapter that peft itself saved."""
    model = get_peft_model(tiny_t5(), LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.bool])
def test_tensors_that_hold_no_real_numbers_are_refused_without_a_manifest(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = plain(tmp_path)
    save_file({name: t.to(dtype) for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"tensors hold {dtype}, not numbers like the model's"):
        load_adapter(folder, model=tiny_t5())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64])
def test_every_real_dtype_loads_without_a_manifest_and_a_log_names_what_is_not_verified(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plain(tmp_path)
    save_file({name: t.to(dtype) for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    with caplog.at_level("INFO", logger="t5peft"):
        load_adapter(folder, model=tiny_t5())
    (record,) = caplog.records
    assert (record.levelname, "lora_alpha and use_rslora, were not" in record.getMessage()) == ("INFO", True)
    nan = {name: torch.full(t.shape, float("nan")).to(dtype) for name, t in load_file(folder / WEIGHTS).items()}
    save_file(nan, folder / WEIGHTS)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        load_adapter(folder, model=tiny_t5())


@pytest.mark.parametrize("given", [None, 3, b"folder", ["folder"], True])
def test_what_is_no_path_is_one_clear_error_everywhere(given: Any) -> None:
    model, message = (
        lora_wrap(tiny_t5()),
        r"Got \w+=.* \(\w+\); expected a path, as text or as a pathlib\.Path\. Give one\.",
    )
    for call in (
        load_adapter,
        load_saved,
        load_with_tokens,
        merge,
        manifest_sha256,
        is_adapter,
        brings_tokens,
        base_of,
        quantization_of,
        write_card,
        load_exported,
        load_backbone,
        load_tokenizer,
        lambda given: export(given, "output", to="transformers"),
        lambda given: export("adapter", given, to="transformers"),
        lambda given: push_adapter(given, "user/reviews"),
        lambda given: save_adapter(model, given),
        lambda given: save_model(tiny_t5(), given),
    ):
        with pytest.raises(ValueError, match=message):
            call(given)


@pytest.mark.parametrize("given", [None, 3, "model"])
def test_other_arguments_of_a_wrong_type_are_one_clear_error(given: Any, tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    with pytest.raises(ValueError, match="expected a T5"):
        save_model(given, tmp_path / "model")
    with pytest.raises(ValueError, match="expected a name such as 'user/reviews'"):
        push_adapter(folder, given)
    if given is None:
        return
    with pytest.raises(ValueError, match=f"expected {given}. It is not the adapter that was pinned"):
        load_adapter(folder, model=tiny_t5(), sha256=given)
    for save in (
        lambda: save_adapter(lora_wrap(tiny_t5()), folder, tokenizer=given),
        lambda: save_model(tiny_t5(), tmp_path / "model", tokenizer=given),
    ):
        with pytest.raises(ValueError, match="expected a tokenizer of transformers"):
            save()
