"""Exports of the other families answer as the adapter does, whatever the length of a source is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import stir
from tiny import tiny_tokenizer
from tiny_families import GEMMAS, OTHERS, Other, tiny_other

from t5peft import METHODS, load_backbone, lora_wrap
from t5peft.adapters import save_adapter
from t5peft.methods.served import is_served
from t5peft.models.backbone import correct_config
from t5peft.serving.export import export, load_exported
from t5peft.serving.exported import Target
from t5peft.serving.traced import traceable

_REFUSED = {("t5gemma2", "prompt", "onnx")}
_FAST = {("longt5-tglobal", "prompt", "onnx"), ("t5gemma", "lora", "transformers")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for family in OTHERS:
        found[family] = tmp_path_factory.mktemp(family)
        tiny_other(family).save_pretrained(found[family])
        tiny_tokenizer().save_pretrained(found[family])
    return found


def cases() -> list[Any]:
    found: list[Any] = []
    for family in OTHERS:
        for method in ("lora", "dora", "ia3", "norm", "houlsby", "prompt", "prefix"):
            targets: list[Target] = ["onnx", "transformers"] if METHODS[method].merges else ["onnx"]
            for to in targets:
                if is_served(family.partition("-")[0], method) and (family, method, to) not in _REFUSED:
                    marks = [] if (family, method, to) in _FAST else [pytest.mark.slow]
                    found.append(pytest.param(family, method, to, id=f"{family}-{method}-{to}", marks=marks))
    return found


@pytest.mark.parametrize(("family", "method", "to"), cases())
def test_an_export_answers_as_its_adapter(
    family: Other, method: str, to: Target, folders: dict[str, Path], tmp_path: Path
) -> None:
    save_adapter(stir(METHODS[method].wrap(load_backbone(folders[family])[0])), tmp_path / "adapter")
    parity = export(tmp_path / "adapter", tmp_path / "exported", to=to)
    assert parity.passes
    assert max(check.difference for check in parity.checks) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("family", "to"), [("t5gemma", "onnx"), *((family, "transformers") for family in GEMMAS)])
def test_a_head_of_classes_is_exported(family: Other, to: Target, folders: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(stir(lora_wrap(load_backbone(folders[family], num_labels=3)[0])), tmp_path / "adapter")
    assert export(tmp_path / "adapter", tmp_path / "exported", to=to).passes
    assert load_exported(tmp_path / "exported").classify(["a text"]).log_probabilities.shape == (1, 3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [("prompt", {}, "a prompt in ONNX, which it cannot have, as its table"),
     ("lora", {"num_labels": 3}, "a class head in ONNX, which it cannot have, as the mask")],
)  # fmt: skip
def test_what_a_graph_of_t5gemma2_cannot_hold_is_refused(
    method: str, options: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    save_adapter(METHODS[method].wrap(load_backbone(folders["t5gemma2"], **options)[0]), tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"Got a T5Gemma 2 for {message}"):
        export(tmp_path / "adapter", tmp_path / "exported", to="onnx")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("family", ["t5gemma2", "longt5-local", "longt5-tglobal"])
def test_an_encoder_made_traceable_computes_the_same_states(family: Other) -> None:
    t5 = tiny_other(family)
    correct_config(t5)
    for length in (1, 3, 4, 5, 17, 24):  # below a block, at its edge, and several
        ids = torch.arange(3, 3 + length)[None]
        mask = torch.ones_like(ids)
        mask[:, max(1, length - 2) :] = 0
        with torch.no_grad():
            expected = t5.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            with traceable(t5):
                got = t5.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(got[:, mask[0].bool()], expected[:, mask[0].bool()], rtol=0, atol=1e-5)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in t5.modules())
