"""The life of a model of another family: loaded from a folder, wrapped, saved, loaded, merged, quantized, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import stir, trained
from laws import assert_same, logits_of
from stacks import needs_bitsandbytes
from tiny import tiny_tokenizer
from tiny_families import GEMMAS, OTHERS, Other, case_of, other_batch, tiny_other

from t5peft import METHODS, load_backbone, lora_wrap, qlora_wrap
from t5peft.adapters import fingerprint, fingerprint_of_maps, load_adapter, merge, save_adapter, save_model
from t5peft.models.tokens import add_tokens
from t5peft.nn.fast import fast_kernels
from t5peft.serving.export import export


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for family in OTHERS:
        found[family] = tmp_path_factory.mktemp(family)
        tiny_other(family).save_pretrained(found[family])
        tiny_tokenizer().save_pretrained(found[family])
    return found


@pytest.mark.parametrize(
    ("family", "method"),
    [
        case_of(family, method)
        for family in OTHERS
        for method in ("lora", "norm", "prompt", "prefix")
        if not (family.startswith("longt5") and method == "prefix")
    ],
)
def test_an_adapter_is_saved_loaded_and_merged(
    family: Other, method: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base, _ = load_backbone(folders[family])
    assert_same(logits_of(base, other_batch()), logits_of(tiny_other(family), other_batch()), 0.0)
    marks = fingerprint(base), fingerprint_of_maps(base)
    model = stir(METHODS[method].wrap(base)).eval()
    assert (fingerprint(model), fingerprint_of_maps(model)) == marks
    save_adapter(model, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter")
    expected = logits_of(model, other_batch())
    assert_same(logits_of(loaded.eval(), other_batch()), expected, 0.0)
    if METHODS[method].merges:
        merged, tokenizer, parity = merge(tmp_path / "adapter")
        assert parity.unmerged < 1e-5
        save_model(merged, tmp_path / "merged", tokenizer=tokenizer)
        again, _ = load_backbone(tmp_path / "merged")
        assert_same(logits_of(again, other_batch()), logits_of(merged, other_batch()), 0.0)
        assert_same(logits_of(again, other_batch()), expected, 1e-3)


@pytest.mark.parametrize("family", OTHERS)
def test_an_adapter_of_other_weights_is_refused(family: Other, folders: dict[str, Path], tmp_path: Path) -> None:
    model = lora_wrap(load_backbone(folders[family])[0])
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="which is not loaded"):
        load_adapter(tmp_path / "adapter", model=tiny_other(family, seed=1))


@pytest.mark.parametrize("family", GEMMAS)
def test_a_head_of_classes_comes_with_its_adapter(family: Other, folders: dict[str, Path], tmp_path: Path) -> None:
    base, _ = load_backbone(folders[family], num_labels=3)
    model = stir(lora_wrap(base)).eval()
    save_adapter(model, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter")
    batch = {name: value for name, value in other_batch(extra_pads=1).items() if name != "labels"}
    assert logits_of(loaded, batch).shape == (4, 3)
    assert_same(logits_of(loaded, batch), logits_of(model, batch), 0.0)
    saved = load_backbone(folders[family], num_labels=3, dtype=torch.bfloat16)[0]
    assert saved.get_submodule("score.out_proj").weight.dtype == torch.float32
    assert logits_of(saved, batch).isfinite().all()


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("family", OTHERS)
def test_lora_trains_beside_quantized_weights(family: Other, quantize: str, folders: dict[str, Path]) -> None:
    base, _ = load_backbone(folders[family], quantize=quantize, dtype=torch.float32)  # type: ignore[arg-type]
    kinds = {type(module).__name__ for name, module in base.named_modules() if name.endswith((".q_proj", ".q"))}
    assert kinds & {"Linear8bitLt", "Linear4bit", "_Linear4bit"} or "8bit" in str(kinds) or "4bit" in str(kinds)
    model = stir(qlora_wrap(base, rank=2)).train()
    loss = model(**other_batch()).loss
    plain = tiny_other(family)(**other_batch()).loss
    assert loss.item() == pytest.approx(plain.item(), rel=0.3)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in trained(model).values())


@pytest.mark.parametrize("family", OTHERS)
def test_what_only_t5_has_is_refused_with_the_reason(family: Other, folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which it cannot have, as .*Export to onnx or transformers"):
        export(folders[family], tmp_path / "ct2", to="ct2")
    for head in ("tokens", "sequence", "embedding", "states"):
        with pytest.raises(
            ValueError, match=rf"for an encoder with head='{head}', which it cannot have, as .*expected one of T5"
        ):
            load_backbone(folders[family], head=head)
    if family in GEMMAS:
        with pytest.raises(ValueError, match="for new tokens, which it cannot have"):
            add_tokens(tiny_other(family), tiny_tokenizer(), ["<new>"])


@pytest.mark.parametrize("family", OTHERS)
def test_without_kernels_of_its_own_a_family_keeps_the_attention_of_transformers(family: Other) -> None:
    model = tiny_other(family)
    before, batch = model.config._attn_implementation, other_batch()
    expected = logits_of(model, batch)
    with fast_kernels(model):
        assert model.config._attn_implementation == before
        assert_same(logits_of(model, batch), expected, 1e-5)
