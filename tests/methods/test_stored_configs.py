"""Configs of adapters that version 0.1 saved are read under their old names, and written under the new ones."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import ready_t5, stir
from peft import PeftConfig, PeftModel
from tiny import tiny_batch

from t5peft import load_adapter, prefix_wrap, save_adapter
from t5peft.methods.prefix import PrefixConfig, collapse


def rename_back(folder: Path) -> None:
    """Write the config as 0.1 wrote it."""
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["reparametrise"] = content.pop("projection_size")
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("size", [6, None])
def test_a_prefix_of_version_0_1_is_loaded_without_a_warning_and_saved_under_the_new_name(
    size: int | None, tmp_path: Path
) -> None:
    model = stir(prefix_wrap(ready_t5("v1.0"), length=3, projection_size=size)).eval()
    model.save_pretrained(str(tmp_path / "old"))
    rename_back(tmp_path / "old")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(ready_t5("v1.0"), tmp_path / "old").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)
    loaded.save_pretrained(str(tmp_path / "new"))
    content = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert content["projection_size"] == size
    assert "reparametrise" not in content


def test_a_collapsed_prefix_of_version_0_1_is_saved_as_one(tmp_path: Path) -> None:
    model = stir(prefix_wrap(ready_t5("v1.0"), length=3, projection_size=6)).eval()
    model.save_pretrained(str(tmp_path / "old"))
    rename_back(tmp_path / "old")
    loaded = collapse(PeftModel.from_pretrained(ready_t5("v1.0"), tmp_path / "old").eval())
    save_adapter(loaded, tmp_path / "new")
    again, _ = load_adapter(tmp_path / "new", model=ready_t5("v1.0"))
    with torch.no_grad():
        assert torch.equal(again.eval()(**tiny_batch()).logits, loaded(**tiny_batch()).logits)


def test_a_config_of_either_name_is_copied_and_compared_as_it_is() -> None:
    old, new = PrefixConfig(length=3, reparametrise=6), PrefixConfig(length=3, projection_size=6)
    assert old == new == replace(old) == PeftConfig.from_peft_type(**old.to_dict())
    assert replace(old, projection_size=None).projection_size is None
