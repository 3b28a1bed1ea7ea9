"""An adapter says which backbone it belongs to, and how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import stir
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from tiny import tiny_t5
from transformers import AutoModelForSeq2SeqLM

from t5peft import (
    load_adapter,
    load_backbone,
    lora_wrap,
    prefix_wrap,
    save_adapter,
)
from t5peft.adapters import base_of
from t5peft.adapters.manifest import CONFIG, MANIFEST
from t5peft.models.embedded import EMBEDDED


def adapter_of(base: Path) -> Path:
    """An adapter of the T5 in a folder."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    return save_adapter(lora_wrap(model, rank=1), base.with_name("of_base"))


@pytest.mark.parametrize("name", ["mini", None])
def test_an_adapter_names_the_embedded_backbone_and_not_its_path(name: str | None, tmp_path: Path) -> None:
    backbone, tokenizer = load_backbone("mini")
    model = stir(prefix_wrap(backbone, length=2)).eval()
    folder = save_adapter(model, tmp_path / "adapter")
    config = json.loads((folder / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "mini"
    if name is None:  # as 0.1.0 saved it, on another machine
        config["base_model_name_or_path"] = "/home/someone/venv/lib/python3.12/site-packages/t5peft/mini"
        (folder / CONFIG).write_text(json.dumps(config))
        (folder / MANIFEST).unlink()
    assert base_of(folder) == "mini"
    loaded, _ = load_adapter(folder)
    by_peft = PeftModel.from_pretrained(load_backbone("mini")[0], str(folder))
    batch = tokenizer(["some words"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch, labels=batch.input_ids).logits
        for got in (loaded, by_peft, AutoPeftModelForSeq2SeqLM.from_pretrained(str(folder), dtype=torch.float32)):
            assert torch.equal(got.eval()(**batch, labels=batch.input_ids).logits, expected)


@pytest.mark.parametrize(
    ("base", "has_metadata"), [("mini", False), ("google/flan-t5-base", True), ("", False), (None, False)]
)
def test_the_readme_says_what_the_adapter_is_and_how_to_load_it(
    base: str | None, has_metadata: bool, tmp_path: Path
) -> None:
    model = lora_wrap(tiny_t5(), rank=1)
    model.peft_config["default"].base_model_name_or_path = base
    card = ModelCard.load(save_adapter(model, tmp_path / "adapter") / "README.md")
    assert card.data.base_model == (base if has_metadata else None)
    assert card.data.tags == ["t5peft", "lora"]
    assert f"An adapter for {base or 'a T5'}" in card.text
    assert f"lora ({sum(p.numel() for p in model.parameters() if p.requires_grad):,} weights)" in card.text
    assert "load_adapter" in card.text
    assert "[More Information Needed]" not in card.text


def test_an_adapter_that_pefts_own_loader_loaded_is_saved_under_the_name_of_its_backbone(tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(load_backbone("mini")[0], rank=1), tmp_path / "adapter")
    loaded = AutoPeftModelForSeq2SeqLM.from_pretrained(str(folder))
    assert Path(loaded.peft_config["default"].base_model_name_or_path) == EMBEDDED["mini"]
    again = save_adapter(loaded, tmp_path / "again")
    assert base_of(again) == "mini"
    tiny_t5().save_pretrained(tmp_path / "base")
    other = adapter_of(tmp_path / "base")
    assert AutoPeftModelForSeq2SeqLM.from_pretrained(str(other)).peft_config["default"].base_model_name_or_path == str(
        tmp_path / "base"
    )
