"""Adding tokens: old rows and heads stay bit for bit, only new rows are trained and stored, what is saved comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narrow
import pytest
import torch
from peft import AutoPeftModelForSeq2SeqLM, LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny import Geometry, tiny_classifier, tiny_t5, tiny_tokenizer
from token_cases import NEW, SHAPES, batch_with, logits, small_t5, step, trained
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Tokenizer
from vocabulary import small_tokenizer

from t5peft.adapters import load_adapter, load_with_tokens, merge, save_adapter
from t5peft.adapters.checkpoints import of_another_model
from t5peft.cli.evaluate import load_tuned
from t5peft.data import Task
from t5peft.methods import lora_wrap
from t5peft.models.backbone import has_untied_head, load_backbone
from t5peft.models.tokens import NOT_FOR_PEFT, add_tokens, train_tokens
from t5peft.training.continue_training import continue_training
from t5peft.training.train import TrainConfig


@pytest.mark.xfail(strict=True, reason="transformers ties an untied head when the table is resized")
def test_the_plain_stack_keeps_an_untied_head_when_tokens_are_added() -> None:
    model, tokenizer = small_t5("v1.1")
    head = model.get_parameter("lm_head.weight").detach().clone()
    tokenizer.add_tokens(NEW)
    model.resize_token_embeddings(len(tokenizer))
    assert torch.equal(model.get_parameter("lm_head.weight")[: len(head)], head)


@pytest.mark.parametrize("shape", SHAPES)
def test_old_rows_head_and_outputs_stay_bit_for_bit(shape: Geometry) -> None:
    model, tokenizer = small_t5(shape)
    embeddings, head = (
        model.get_parameter("shared.weight").detach().clone(),
        model.get_parameter("lm_head.weight").detach().clone(),
    )
    size = len(embeddings)
    batch = batch_with([7, 9])
    before = logits(model, batch)
    ids = add_tokens(model, tokenizer, NEW)
    assert ids == [size, size + 1, size + 2]
    assert torch.equal(model.get_parameter("shared.weight")[:size], embeddings)
    assert torch.equal(model.get_parameter("lm_head.weight")[:size], head)
    assert has_untied_head(model) == (shape == "v1.1")
    for stack in ("encoder", "decoder"):
        assert model.get_parameter(f"{stack}.embed_tokens.weight") is model.get_parameter("shared.weight")
    assert (
        model.config.vocab_size == model.lm_head.out_features == len(model.get_parameter("lm_head.weight")) == size + 3
    )
    torch.testing.assert_close(logits(model, batch)[..., :size], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_row_is_the_mean_of_the_pieces_that_spelled_it(shape: Geometry) -> None:
    model, tokenizer = small_t5(shape)
    pieces = tokenizer("positively", add_special_tokens=False)["input_ids"]
    size = len(tokenizer)
    tables = {
        "embeddings": model.get_parameter("shared.weight").detach().clone(),
        "head": model.get_parameter("lm_head.weight").detach().clone(),
    }
    brace, _, word = add_tokens(model, tokenizer, NEW)
    for old, new in (
        (tables["embeddings"], model.get_parameter("shared.weight")),
        (tables["head"], model.get_parameter("lm_head.weight")),
    ):
        torch.testing.assert_close(new[word], old[pieces].mean(0))
        torch.testing.assert_close(new[brace], old[:size].mean(0))


def test_spare_rows_are_used_before_the_table_grows() -> None:
    tokenizer = T5Tokenizer(vocab=small_tokenizer()._vocab_scores)
    model = tiny_t5("v1.0", vocab_size=len(tokenizer) + 2)
    size = len(tokenizer)
    assert add_tokens(model, tokenizer, ["<br>", "<hr>"]) == [size, size + 1]
    assert model.config.vocab_size == size + 2
    add_tokens(model, tokenizer, NEW[2:])
    assert model.config.vocab_size == size + 3


def test_the_tokenizer_reads_the_new_tokens_and_writes_a_space_after_them() -> None:
    model, tokenizer = small_t5("v1.0")
    ids = add_tokens(model, tokenizer, ["{", "}", "\n"])
    encoded = tokenizer("a {b}\nc")["input_ids"]
    assert [i for i in encoded if i in ids] == [ids[0], ids[1], ids[2]]
    assert tokenizer.unk_token_id not in encoded
    assert narrow.text(tokenizer.decode(encoded, skip_special_tokens=True)).replace(" ", "") == "a{b}\nc"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_byte_tokenizer_takes_tokens_too(shape: Geometry) -> None:
    model, tokenizer = tiny_t5(shape), tiny_tokenizer()
    (index,) = add_tokens(model, tokenizer, ["<sep>"])
    assert tokenizer("a<sep>b")["input_ids"].count(index) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_training_tokens_changes_nothing_before_the_first_step(shape: Geometry) -> None:
    model, tokenizer = small_t5(shape)
    ids = add_tokens(model, tokenizer, NEW)
    batch = batch_with(ids)
    before = logits(model, batch)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    assert torch.equal(logits(wrapped, batch), before)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_get_the_gradient_that_full_tuning_gives_them(shape: Geometry) -> None:
    wrapped, _, ids = trained(shape)
    plain, tokenizer = small_t5(shape)
    add_tokens(plain, tokenizer, NEW)
    batch = batch_with(ids)
    plain.train().requires_grad_(True)
    plain(**batch).loss.backward()
    wrapped(**batch).loss.backward()
    rows = {name: p.grad for name, p in wrapped.named_parameters() if "trainable_tokens_delta" in name}
    assert len(rows) == (1 if shape == "v1.0" else 2)
    for name, found in rows.items():
        table = plain.get_parameter("lm_head.weight") if "lm_head" in name else plain.get_parameter("shared.weight")
        assert found is not None
        torch.testing.assert_close(found, narrow.gradient(table)[ids])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_moves_the_new_rows_and_no_tensor_of_the_base(shape: Geometry) -> None:
    wrapped, _, ids = trained(shape)
    before = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    step(wrapped, batch_with(ids))
    for name, parameter in wrapped.named_parameters():
        moved = not torch.equal(parameter, before[name])
        expected = "trainable_tokens_delta" in name or "lora_B" in name
        assert moved == expected, name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_stores_the_new_rows_alone_and_comes_back_exactly(shape: Geometry, tmp_path: Path) -> None:
    base, plain = small_t5(shape)
    base.save_pretrained(tmp_path / "base")
    plain.save_pretrained(tmp_path / "base")
    model, tokenizer = load_backbone(tmp_path / "base")
    ids = add_tokens(model, tokenizer, NEW)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    batch = batch_with(ids)
    step(wrapped, batch)
    expected = logits(wrapped, batch)
    save_adapter(wrapped, tmp_path / "adapter", tokenizer=tokenizer)
    tables = [t for n, t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items() if "lora" not in n]
    assert tables
    assert all(table.shape == (3, model.config.d_model) for table in tables)
    loaded, its_tokenizer = load_with_tokens(tmp_path / "adapter", trainable=True)
    assert torch.equal(logits(loaded.eval(), batch), expected)
    text = "positively { <br> a"
    assert its_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    step(wrapped.eval(), batch)
    step(loaded.eval(), batch)
    assert torch.equal(logits(loaded, batch), logits(wrapped, batch))


def saved_with_tokens(shape: Geometry, spare: int, folder: Path) -> tuple[Path, Tensor, dict[str, Tensor]]:
    """An adapter with tokens beside its backbone, its logits and their batch."""
    _, plain = small_t5(shape)
    tiny_t5(shape, vocab_size=len(plain) + spare).save_pretrained(folder / "base")
    plain.save_pretrained(folder / "base")
    model, tokenizer = load_backbone(folder / "base")
    ids = add_tokens(model, tokenizer, NEW)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    batch = batch_with(ids)
    step(wrapped, batch)
    save_adapter(wrapped, folder / "adapter", tokenizer=tokenizer)
    return folder / "adapter", logits(wrapped, batch), batch


def by_peft(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(folder.parent / "base"), str(folder))


def by_peft_after_resizing(folder: Path) -> PeftModel:
    base = AutoModelForSeq2SeqLM.from_pretrained(folder.parent / "base")
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)))
    return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.parametrize("spare", [0, 28])
@pytest.mark.parametrize(
    "load", [lambda folder: AutoPeftModelForSeq2SeqLM.from_pretrained(str(folder)), by_peft, by_peft_after_resizing]
)
def test_loaders_of_peft_give_what_was_saved_or_stop(
    load: Callable[[Path], PeftModel], spare: int, tmp_path: Path
) -> None:
    folder, _, _ = saved_with_tokens("v1.1", spare, tmp_path)
    with pytest.raises(ValueError, match="load this adapter by load_adapter or load_with_tokens of t5peft"):
        load(folder)
    tied, expected, batch = saved_with_tokens("v1.0", spare, tmp_path / "tied")
    if load is not by_peft or spare:
        rows = min(expected.shape[-1], (got := logits(load(tied).eval(), batch)).shape[-1])
        torch.testing.assert_close(got[..., :rows], expected[..., :rows])


@pytest.mark.parametrize("spare", [0, 28])
def test_an_adapter_with_tokens_is_saved_loaded_and_saved_again(spare: int, tmp_path: Path) -> None:
    folder, expected, batch = saved_with_tokens("v1.1", spare, tmp_path)
    for name in ("again", "and again"):
        loaded, tokenizer = load_with_tokens(folder, trainable=True)
        assert torch.equal(logits(loaded.eval(), batch), expected)
        folder = save_adapter(loaded, tmp_path / name, tokenizer=tokenizer)
        with pytest.raises(ValueError, match="load_with_tokens of t5peft"):
            by_peft(folder.rename(tmp_path / "moved"))
        folder = (tmp_path / "moved").rename(folder)
    fresh, tokenizer = load_backbone(tmp_path / "base")
    add_tokens(fresh, tokenizer, NEW)
    assert torch.equal(logits(load_adapter(folder, model=fresh)[0].eval(), batch), expected)


def test_training_goes_on_from_a_checkpoint_of_0_1_with_tokens(tmp_path: Path) -> None:
    folder, _, _ = saved_with_tokens("v1.1", 0, tmp_path)
    wrapped, _ = load_with_tokens(folder)
    assert of_another_model(folder, wrapped) == []
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["trainable_token_indices"][NOT_FOR_PEFT]  # which 0.1.0 did not write
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert of_another_model(folder, wrapped) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_adapter_and_merged(shape: Geometry) -> None:
    wrapped, _, ids = trained(shape)
    batch = batch_with(ids)
    plain = logits(wrapped, batch)
    step(wrapped, batch)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped, batch), plain)
    expected = logits(wrapped, batch)
    merged = wrapped.merge_and_unload()
    assert merged.encoder.embed_tokens.weight is merged.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(merged, batch), expected, rtol=0, atol=2e-5)
    assert has_untied_head(merged) == (shape == "v1.1")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_merged_model_is_saved_and_loaded_with_its_rows(shape: Geometry, tmp_path: Path) -> None:
    wrapped, tokenizer, ids = trained(shape)
    batch = batch_with(ids)
    step(wrapped, batch)
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_backbone(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(merged, batch))


@pytest.mark.parametrize("spare", [0, 28])
def test_an_adapter_brings_its_tokens_from_its_folder_beside_its_backbone_and_merged(
    spare: int, tmp_path: Path
) -> None:
    _, plain = small_t5("v1.0")
    tiny_t5(vocab_size=len(plain) + spare).save_pretrained(tmp_path / "base")
    plain.save_pretrained(tmp_path / "base")
    model, tokenizer = load_backbone(tmp_path / "base")
    ids = add_tokens(model, tokenizer, NEW)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    step(wrapped, batch_with(ids))
    save_adapter(wrapped, tmp_path / "adapter", tokenizer=tokenizer)
    for loaded, its_tokenizer in (merge(tmp_path / "adapter")[:2], load_tuned(tmp_path / "adapter")):
        assert its_tokenizer("positively { <br> a")["input_ids"] == tokenizer("positively { <br> a")["input_ids"]
        torch.testing.assert_close(logits(loaded, batch_with(ids)), logits(wrapped, batch_with(ids)), rtol=0, atol=2e-5)
    task = Task("t", "say: {text}", "{label}", metrics=("accuracy",), max_source_length=16, max_target_length=4)
    records = [{"text": f"a {i} <br>", "label": "a"} for i in range(8)]
    tests: dict[str, Any] = {"new_test": records[:2], "old_test": records[:2]}
    config = TrainConfig(steps=1, batch_size=4, evaluations=1)
    continue_training(tmp_path / "adapter", task, records, records, **tests, config=config, output=tmp_path / "again")
    _, its_tokenizer = load_tuned(tmp_path / "again")
    assert its_tokenizer("positively { <br> a")["input_ids"] == tokenizer("positively { <br> a")["input_ids"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_classifier_takes_tokens_too(shape: Geometry, tmp_path: Path) -> None:
    tokenizer = T5Tokenizer(vocab=small_tokenizer()._vocab_scores)
    model = tiny_classifier(shape, vocab_size=len(tokenizer))
    ids = add_tokens(model, tokenizer, NEW)
    batch = {**batch_with(ids), "labels": torch.tensor([0, 1, 2, 0])}
    plain = logits(model, batch)
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    assert torch.equal(logits(wrapped, batch), plain)
    wrapped(**batch).loss.backward()
    (rows,) = [p for name, p in wrapped.named_parameters() if "trainable_tokens_delta" in name]
    assert rows.grad is not None
    assert rows.grad[:2].abs().sum() > 0
    step(wrapped, batch)
    save_adapter(wrapped, tmp_path / "adapter")
    fresh = tiny_classifier(shape, vocab_size=len(small_tokenizer()))
    add_tokens(fresh, T5Tokenizer(vocab=small_tokenizer()._vocab_scores), NEW)
    loaded, _ = load_adapter(tmp_path / "adapter", model=fresh)
    assert torch.equal(logits(loaded.eval(), batch), logits(wrapped, batch))


def test_a_classifier_with_tokens_comes_back_by_its_folder_alone(tmp_path: Path) -> None:
    model, tokenizer = load_backbone("mini", num_labels=3)
    ids = add_tokens(model, tokenizer, ["<br>", "<hr>"])
    wrapped = lora_wrap(model, rank=2)
    train_tokens(wrapped, ids)
    save_adapter(wrapped, tmp_path, tokenizer=tokenizer)
    loaded, its_tokenizer = load_with_tokens(tmp_path)
    batch = its_tokenizer(["a <hr> b <br> c"], return_tensors="pt")
    assert torch.equal(logits(loaded, batch), logits(wrapped.eval(), batch))


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_of_a_second_adapter_are_trained(shape: Geometry) -> None:
    model, _, ids = trained(shape)
    model.add_adapter("b", LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    model.set_adapter("b")
    train_tokens(model, ids)
    rows = {name: parameter for name, parameter in model.named_parameters() if "delta.b" in name}
    assert rows
    assert all(parameter.requires_grad for parameter in rows.values())
    before = {name: parameter.detach().clone() for name, parameter in rows.items()}
    step(model, batch_with(ids))
    assert not any(torch.equal(parameter, before[name]) for name, parameter in rows.items())
