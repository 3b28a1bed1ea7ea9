"""Adapters on disk: whole or not there, and of the backbone that they say (D7, D8)."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from cases import stir
from damaged_adapters import (
    drop_a_tensor,
    edit_manifest,
    flip_a_bit,
    lose_the_weights,
    put_nan,
    rename_every_tensor,
    scale_alpha,
    train,
)
from narrow import rank_of
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_config, tiny_t5, tiny_tokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    T5EncoderModel,
    T5ForQuestionAnswering,
    T5ForTokenClassification,
)

from t5peft import (
    METHODS,
    load_adapter,
    load_backbone,
    lora_wrap,
    merge,
    qlora_wrap,
    save_adapter,
)
from t5peft.adapters import load, quantization_of
from t5peft.adapters.manifest import CONFIG, MANIFEST, WEIGHTS
from t5peft.cli.data import TASK_FILE
from t5peft.models.manifest import verify
from t5peft.models.unwrap import unwrap_t5
from t5peft.training.continue_training import REPORT

ADAPTERS = [name for name, method in METHODS.items() if name != "full" and method.quantize is None]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = lora_wrap(tiny_t5())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return save_adapter(model, tmp_path / "adapter")


def assert_loaded(loaded: PeftModel, model: torch.nn.Module) -> None:
    """Check that ``loaded`` computes as ``model``, and that this is not what the plain backbone computes."""
    expected = logits_of(model)
    assert torch.equal(logits_of(loaded), expected)
    with loaded.disable_adapter():
        assert (logits_of(loaded) - expected).abs().max() > 1e-3


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_batch()).logits


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_comes_back_as_it_was(method: str, tmp_path: Path) -> None:
    model = stir(METHODS[method].wrap(tiny_t5()))
    folder = save_adapter(model, tmp_path / "adapter")
    loaded, _ = load_adapter(folder, model=tiny_t5(), trainable=True)
    assert_loaded(loaded, model)
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


def with_a_second_adapter(value: float) -> PeftModel:
    model = lora_wrap(tiny_t5())
    model.add_adapter("second", LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"], r=2))
    model.set_adapter("second")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(value)
    return model


def test_the_active_adapter_is_saved_to_the_folder_itself_whatever_its_name(tmp_path: Path) -> None:
    model = with_a_second_adapter(0.1)
    folder = save_adapter(model, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS, MANIFEST]
    loaded, _ = load_adapter(folder, model=tiny_t5())
    assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)
    model.delete_adapter("default")
    save_adapter(model, folder)
    with pytest.raises(ValueError, match=r"holds? NaN or infinity"):
        save_adapter(with_a_second_adapter(float("nan")), folder)


def test_saving_again_replaces_the_old_adapter_and_leaves_nothing_behind(saved: Path) -> None:
    before = load_file(saved / WEIGHTS)
    save_adapter(lora_wrap(tiny_t5()), saved)
    after = load_file(saved / WEIGHTS)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_saving_again_replaces_what_the_commands_wrote_beside_the_old_adapter(saved: Path) -> None:
    for name in (TASK_FILE, "scores.json", REPORT):
        (saved / name).write_text("of the old adapter")
    save_adapter(lora_wrap(tiny_t5()), saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG, WEIGHTS, MANIFEST]


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "checkpoint-2/optimizer.pt", "trainer_state.json"])
def test_saving_never_deletes_a_file_of_another(name: str, tmp_path: Path) -> None:
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"would be lost: \[.*'{name}'\].*Choose a separate one"):
        save_adapter(lora_wrap(tiny_t5()), tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_saving_over_a_checkpoint_or_a_file_is_refused(tmp_path: Path) -> None:
    trainer = train(tmp_path, steps=2)
    trainer.train()
    wrapped = trainer.model
    assert isinstance(wrapped, PeftModel)
    (tmp_path / "file").write_text("mine")
    for name, message in (("checkpoint-2", "trainer_state.json"), ("file", "file")):
        with pytest.raises(ValueError, match=message):
            save_adapter(wrapped, tmp_path / name)


def test_an_adapter_is_saved_to_a_folder_that_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume of a container, say."""
    folder, move = tmp_path / "volume", Path.replace
    folder.mkdir()

    def busy(path: Path, target: Path) -> Path:
        if folder in (path, Path(target)):
            raise OSError(16, "Device or resource busy")
        return move(path, target)

    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    monkeypatch.setattr(Path, "replace", busy)
    save_adapter(lora_wrap(tiny_t5()), folder, tokenizer=tiny_tokenizer())
    second = lora_wrap(tiny_t5(), rank=2)
    save_adapter(second, folder)
    assert not (folder / "tokenizer_config.json").exists()
    assert not list(folder.glob(".volume-*"))
    assert verify(folder) == []
    assert rank_of(load_adapter(folder, model=tiny_t5())[0]) == 2


def test_an_adapter_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "adapter_model.safetensors was changed or damaged since it was saved"),
        (put_nan, "these tensors hold NaN or infinity"),
        (scale_alpha, "adapter_config.json was changed or damaged since it was saved"),
        (
            drop_a_tensor,
            r"1 of \d+ tensors of the model are missing from it",
        ),
        (rename_every_tensor, "do not belong to the model"),
        (lose_the_weights, "adapter_model.safetensors is missing"),
    ],
)
def test_a_damaged_adapter_is_not_loaded(damage: Callable[[Path], None], message: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message):
        load_adapter(saved, model=tiny_t5())


def test_an_adapter_whose_readme_was_written_in_is_loaded(saved: Path) -> None:
    model, _ = load_adapter(saved, model=tiny_t5())
    (saved / "README.md").write_text("What this adapter is for.")
    assert_loaded(load_adapter(saved, model=tiny_t5())[0], model)


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny_t5(seed=1),
        lambda: tiny_t5("v1.1"),
        lambda: tiny_t5(num_layers=3),
        lambda: tiny_t5(num_layers=1),
    ],
    ids=["other weights of the same shape", "v1.1", "deeper", "shallower"],
)
def test_an_adapter_of_another_backbone_is_not_loaded(other: Callable[[], PreTrainedModel], saved: Path) -> None:
    with pytest.raises(ValueError, match="it was trained on another backbone"):
        load_adapter(saved, model=other())


def test_an_adapter_of_a_backbone_with_another_merged_in_is_not_loaded_on_the_plain_one(
    saved: Path, tmp_path: Path
) -> None:
    def second() -> PreTrainedModel:
        return load_adapter(saved, model=tiny_t5())[0].merge_and_unload()

    folder = save_adapter(lora_wrap(second()), tmp_path / "on_second")
    load_adapter(folder, model=second().bfloat16())
    with pytest.raises(ValueError, match="it was trained on another backbone"):
        load_adapter(folder, model=tiny_t5())
    edit_manifest(folder, maps=None)
    load_adapter(folder, model=tiny_t5())


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_takes_its_start_out_of_the_weights_comes_back(
    start: Literal["pissa", "olora"], tmp_path: Path
) -> None:
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"], init_lora_weights=start)
    model = stir(get_peft_model(tiny_t5(), config))
    loaded, _ = load_adapter(save_adapter(model, tmp_path / "adapter"), model=tiny_t5())
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    assert (logits_of(tiny_t5()) - logits_of(model)).abs().max() > 1e-3


def test_a_second_adapter_is_not_loaded_in_the_place_of_the_first(saved: Path) -> None:
    base = tiny_t5()
    first, _ = load_adapter(saved, model=base)
    before = first(**tiny_batch()).logits
    with pytest.raises(ValueError, match=r"already wrapped with the adapter\(s\) \['default'\]"):
        load_adapter(saved, model=base)
    assert torch.equal(first(**tiny_batch()).logits, before)


def test_several_active_adapters_are_not_saved_as_one(tmp_path: Path) -> None:
    model = with_a_second_adapter(0.1)
    cast(BaseTuner, model.base_model).set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\['default', 'second'\] are active at once"):
        save_adapter(model, tmp_path / "adapter")


def test_rows_that_resizing_added_and_no_adapter_holds_are_told(tmp_path: Path) -> None:
    model = tiny_t5()
    model.resize_token_embeddings(model.config.vocab_size + 2)
    folder = save_adapter(lora_wrap(model), tmp_path / "adapter")
    rows = tiny_t5().config.vocab_size
    with pytest.raises(ValueError, match=f"with an embedding table of {rows + 2} tokens and the given one has {rows}"):
        load_adapter(folder, model=tiny_t5())


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForTokenClassification, T5ForQuestionAnswering])
def test_an_adapter_of_another_kind_of_model_loads_or_names_it(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    kind(tiny_config()).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    folder = save_adapter(lora_wrap(kind.from_pretrained(tmp_path / "base")), tmp_path / "adapter")
    if kind is T5ForQuestionAnswering:
        with pytest.raises(ValueError, match=rf"Give model={kind.__name__}\.from_pretrained\('.*base'\)"):
            load_adapter(folder)
    else:
        assert isinstance(unwrap_t5(load_adapter(folder)[0]), kind)
    load_adapter(folder, model=kind.from_pretrained(tmp_path / "base"))


def test_an_adapter_of_an_early_peft_loads(tmp_path: Path) -> None:
    model = stir(lora_wrap(tiny_t5()))
    model.save_pretrained(str(tmp_path), safe_serialization=False)
    assert not (tmp_path / WEIGHTS).exists()
    assert_loaded(load_adapter(tmp_path, model=tiny_t5())[0], model)


def test_merging_what_was_trained_in_8_bits_does_not_need_bitsandbytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_t5().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    folder = save_adapter(lora_wrap(load_backbone(tmp_path / "base")[0]), tmp_path / "adapter")
    edit_manifest(folder, quantized="int8")

    def without(name: str, *, quantize: str | None, **options: Any) -> Any:
        if quantize is not None:
            raise ImportError("Using bitsandbytes 8-bit quantization requires bitsandbytes")
        return load_backbone(name, **options)

    monkeypatch.setattr(load, "load_backbone", without)
    merged, _, parity = merge(folder)
    assert (type(merged).__name__, parity.quantized) == ("T5ForConditionalGeneration", None)


def test_an_adapter_with_nan_is_not_saved(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"holds? NaN or infinity"):
        save_adapter(model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantize_wo", [False, True])
def test_an_adapter_comes_back_beside_the_backbone_as_it_was_quantised(quantize_wo: bool, tmp_path: Path) -> None:
    model, tokenizer = load_backbone("mini", quantize="nf4", quantize_wo=quantize_wo)
    adapted = stir(qlora_wrap(model)).eval()
    save_adapter(adapted, tmp_path)
    batch = tokenizer(["some words"], return_tensors="pt")
    loaded, _ = load_adapter(tmp_path, quantize=quantization_of(tmp_path))
    with torch.no_grad():
        got, expected = (m(**batch, labels=batch.input_ids).logits for m in (loaded, adapted))
        with adapted.disable_adapter():
            without = adapted(**batch, labels=batch.input_ids).logits
    assert torch.equal(got, expected)
    assert (without - expected).abs().max() > 1e-3
    layers = [loaded.get_submodule(f"base_model.model.encoder.block.0.layer.{name}") for name in (
        "0.SelfAttention.q.base_layer", "1.DenseReluDense.wo")]  # fmt: skip
    assert [type(layer).__name__ for layer in layers] == ["Linear4bit", "Linear4bit" if quantize_wo else "Linear"]


def test_a_folder_without_an_adapter_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no adapter; expected adapter_config.json"):
        load_adapter(tmp_path)


def test_nan_in_the_weights_of_an_early_peft_is_told(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    model.save_pretrained(str(tmp_path), safe_serialization=False)
    with pytest.raises(ValueError, match="these tensors hold NaN or infinity"):
        load_adapter(tmp_path, model=tiny_t5())


def test_an_adapter_saved_by_peft_itself_loads(tmp_path: Path) -> None:
    model = stir(lora_wrap(tiny_t5()))
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded, _ = load_adapter(tmp_path, model=tiny_t5())
    assert_loaded(loaded, model)


def test_a_backbone_that_is_given_keeps_its_untied_head_and_generates(tmp_path: Path) -> None:
    tiny_t5("wide").save_pretrained(tmp_path / "base")
    model = stir(lora_wrap(tiny_t5("wide")))
    save_adapter(model, tmp_path / "adapter")
    given = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    loaded, _ = load_adapter(tmp_path / "adapter", model=given)
    assert not given.config.tie_word_embeddings
    assert_loaded(loaded, model)
    options = {"input_ids": tiny_batch()["input_ids"], "max_new_tokens": 4}
    assert loaded.generate(**options).tolist() == model.generate(**options).tolist()
