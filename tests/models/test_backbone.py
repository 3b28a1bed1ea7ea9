"""Loading: every checkpoint shape from a local folder, clear errors, a head that stays its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cases import stir, trained
from narrow import gradient
from tiny import tiny_batch, tiny_classifier, tiny_config, tiny_t5, tiny_tokenizer
from tiny_families import OTHERS, other_config
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BitsAndBytesConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import METHODS, load_adapter, load_backbone, lora_wrap, prefix_wrap, prompt_wrap, qlora_wrap, save_adapter
from t5peft.data import Task
from t5peft.models.backbone import MINI, Quantization, ensure_trainable_dtype, has_untied_head
from t5peft.models.embedded import backbone_name, is_embedded, resolve_backbone
from t5peft.models.families import FAMILIES, Family, family_of
from t5peft.models.unwrap import unwrap_t5
from t5peft.planning.geometry import config_of
from t5peft.training.train import TrainConfig, train_and_evaluate

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
SHAPE = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    tiny_t5("v1.1").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_an_untied_head_survives_all_that_would_tie_it(untied: Path) -> None:
    expected = tiny_t5("v1.1").lm_head.weight
    model, _ = load_backbone(untied)
    assert has_untied_head(model)
    model.tie_weights()
    model.resize_token_embeddings(model.config.vocab_size)
    model.post_init()
    model.resize_token_embeddings(model.config.vocab_size + 8)
    assert torch.equal(model.get_parameter("lm_head.weight")[: len(expected)], expected)
    model.save_pretrained(untied)
    again, _ = load_backbone(untied)
    assert torch.equal(again.lm_head.weight, model.get_parameter("lm_head.weight"))
    assert again.config.tie_word_embeddings is False
    assert again.config.is_gated_act


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    tiny_t5().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_backbone(tmp_path)
    assert not has_untied_head(model)
    assert not model.config.is_gated_act
    assert tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    assert not model.training


@pytest.mark.parametrize(
    ("config", "kind"), [(MT5Config, MT5ForConditionalGeneration), (UMT5Config, UMT5ForConditionalGeneration)]
)
@pytest.mark.parametrize("wrap", [lora_wrap, prefix_wrap, prompt_wrap])
def test_mt5_and_umt5_load_and_take_every_kind_of_adapter(config: type, kind: type, wrap: type, tmp_path: Path) -> None:
    shape = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    kind(config(**shape)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(tmp_path)
    model, _ = load_backbone(tmp_path)
    assert type(model) is kind
    untouched = {name: parameter.clone() for name, parameter in model.named_parameters()}
    wrapped = stir(wrap(model))
    assert unwrap_t5(wrapped) is model
    wrapped(**tiny_batch()).loss.backward()
    gradients = [gradient(parameter) for parameter in trained(wrapped).values()]
    assert gradients
    assert all(found.abs().max() > 0 for found in gradients)
    given = kind.from_pretrained(tmp_path)
    assert all(torch.equal(parameter, untouched[name]) for name, parameter in given.named_parameters())
    assert (wrapped.eval()(**tiny_batch()).logits - given(**tiny_batch()).logits).abs().max() > 1e-3


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"overflow to inf and NaN; expected torch\.bfloat16"):
        load_backbone("mini", dtype=torch.float16)


def in_bits(compute: torch.dtype) -> torch.nn.Module:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=["lm_head", "wo"]
    )
    return T5ForConditionalGeneration.from_pretrained(MINI, quantization_config=config, dtype=torch.float32)


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_t5().half(),
        lambda: tiny_classifier().half(),
        lambda: tiny_t5().half().requires_grad_(False),
        lambda: (model := tiny_t5(), model.decoder.block[1].half())[0],
        pytest.param(lambda: in_bits(torch.float16), marks=needs_bitsandbytes),
    ],
    ids=["half", "classifier", "frozen", "one layer", "4 bits"],
)
@pytest.mark.parametrize("method", METHODS)
def test_float16_is_refused_by_every_wrap(method: str, model: Callable[[], torch.nn.Module]) -> None:
    given = model()
    is_quantized = getattr(given, "is_quantized", False)
    if (method == "full" and is_quantized) or (METHODS[method].quantize and not is_quantized):
        pytest.skip("refused for another reason")
    with pytest.raises(ValueError, match=r"Got a model with .*float16.*; expected float32 or bfloat16.*NaN"):
        METHODS[method].wrap(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_dtypes_can_be_trained(dtype: torch.dtype) -> None:
    ensure_trainable_dtype(lora_wrap(cast(Any, tiny_t5()).to(dtype)))


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantized_backbones_can_be_trained(quantize: Quantization) -> None:
    ensure_trainable_dtype(load_backbone("mini", quantize=quantize)[0])


def test_an_adapter_is_not_trained_on_beside_a_backbone_in_float16(tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    with pytest.raises(ValueError, match="float16"):
        load_adapter(folder, model=tiny_t5().half(), trainable=True)


def test_embedded_backbones_are_known_by_name_and_by_folder() -> None:
    assert is_embedded("mini")
    assert not is_embedded("google/flan-t5-base")
    assert resolve_backbone("mini") == str(MINI)
    assert resolve_backbone("google/flan-t5-base") == "google/flan-t5-base"
    assert backbone_name(MINI) == backbone_name("/elsewhere/site-packages/t5peft/mini") == "mini"
    assert backbone_name("runs/mini") == "runs/mini"


@pytest.mark.parametrize(
    ("kind", "activation"),
    [(kind, name) for kind in FAMILIES.values() for name in ("relu", "gated-gelu") if kind.ungated or "gated" in name],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_the_table_of_families_names_what_the_models_have(kind: Family, activation: str) -> None:
    chosen = {"feed_forward_proj": activation} if kind.ungated else {}  # the others are always gated
    configs = [other_config(name, **chosen) for name in OTHERS if name.split("-")[0] == kind.model_type]
    maps: dict[str, set[str]] = {}
    norms = set()
    for config in configs or [AutoConfig.for_model(kind.model_type, **chosen, **SHAPE)]:
        assert family_of(config) is kind
        with torch.device("meta"):
            model = AutoModelForSeq2SeqLM.from_config(config)
        assert type(model).__name__ == f"{kind.class_prefix}ForConditionalGeneration"
        assert model.get_output_embeddings() is model.get_submodule(kind.head)
        for path, module in model.named_modules():
            if kind.is_tuned(path) and path and not kind.head.startswith(path):
                name = path.rpartition(".")[2]
                norms |= {name} if type(module).__name__.endswith("Norm") else set()
                linear = {child for child, part in module.named_children() if isinstance(part, torch.nn.Linear)}
                maps |= {name: linear} if linear else {}
    attentions = {name: set(kind.attention) for name in (*kind.self_attention, *kind.cross_attention)}
    assert maps == attentions | {kind.feed_forward: set(kind.feed_forward_maps(config))}
    assert norms == {*kind.norms, kind.final_norm}


def test_the_folder_of_an_adapter_or_of_a_run_is_no_backbone(tmp_path: Path) -> None:
    save_adapter(lora_wrap(tiny_t5()), tmp_path / "run" / "adapter")
    (tmp_path / "empty").mkdir()
    for name, found in (
        ("run/adapter", "which holds an adapter"),
        ("run", "the folder of a run"),
        ("empty", "config.json"),
    ):
        for load in (load_backbone, config_of):
            with pytest.raises(FileNotFoundError, match=f"Got .*/{name}, .*{found}.*; expected a whole model"):
                load(str(tmp_path / name))


def test_a_head_of_no_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="Got num_labels=0; expected at least 1"):
        load_backbone("mini", num_labels=0)


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="Got quantize='int4'; expected None, 'int8' or 'nf4'"):
        load_backbone("mini", quantize="int4")  # type: ignore[arg-type]


def test_a_name_that_is_nowhere_names_the_embedded_backbone_and_local_folders() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Got 'google/flan-t5-base', from which no T5 could be loaded.*'mini' .*a local folder"
    ):
        load_backbone("google/flan-t5-base")


@pytest.mark.parametrize(
    ("config", "kind"), [(T5Config, T5ForConditionalGeneration), (UMT5Config, UMT5ForConditionalGeneration)]
)
def test_a_checkpoint_without_a_tokenizer_is_refused(config: type, kind: type, tmp_path: Path) -> None:
    shape = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    kind(config(**shape)).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Got no tokenizer that can be read from.*; expected tokenizer\.json"):
        load_backbone(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a .bert. checkpoint"):
        load_backbone(tmp_path)


def test_a_trained_classification_head_is_loaded_without_saying_how_many_classes_it_has(tmp_path: Path) -> None:
    trained = tiny_classifier(num_labels=4)
    trained.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    head = load_backbone(tmp_path)[0].get_parameter("classification_head.out_proj.weight")
    assert torch.equal(head, trained.classification_head.out_proj.weight)
    with pytest.raises(ValueError, match="has a classification head; expected a T5 with a language model head"):
        train_and_evaluate(
            Task("t", "{a}", "{b}"),
            {"train": [{}], "validation": [{}]},
            TrainConfig(backbone=str(tmp_path)),
            tmp_path / "run",
        )


def test_another_number_of_classes_than_the_checkpoints_gets_a_new_head(tmp_path: Path) -> None:
    tiny_classifier(num_labels=4).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(load_backbone(tmp_path, num_labels=3)[0].get_parameter("classification_head.out_proj.weight")) == 3


def test_an_encoder_alone_is_refused_as_its_decoder_would_be_random(tmp_path: Path) -> None:
    T5EncoderModel(tiny_config()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"only an encoder.*Load it with head=, one of sequence, tokens, embedding, states"
    ):
        load_backbone(tmp_path)


@pytest.mark.skipif(not (MINI / "model.safetensors").is_file(), reason="the embedded backbone is not in this tree")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_backbone_keeps_head_embeddings_and_wo_as_they_were(quantize: str) -> None:
    plain, _ = load_backbone("mini")
    model, _ = load_backbone("mini", quantize=quantize, dtype=torch.float32, num_labels=3)  # type: ignore[arg-type]
    kinds = {
        type(module).__name__
        for name, module in model.named_modules()
        if name.endswith((".q", ".k", ".v", ".o", ".wi"))
    }
    assert kinds == {"Linear8bitLt" if quantize == "int8" else "Linear4bit"}
    for name, module in model.named_modules():
        if name.endswith(".wo") or "classification_head." in name:
            assert not name.endswith(".wo") or torch.equal(
                module.weight, plain.get_parameter(f"{name.removeprefix('transformer.')}.weight")
            )
            assert type(module).__name__ in ("Linear", "Dropout")


@pytest.mark.skipif(not (MINI / "model.safetensors").is_file(), reason="the embedded backbone is not in this tree")
def test_wo_in_nf4_is_trained_beside_and_costs_little_on_the_logits() -> None:
    plain, tokenizer = load_backbone("mini")
    batch = tokenizer(["where is my parcel?"], return_tensors="pt")
    expected = plain(**batch, labels=batch.input_ids).logits
    model, _ = load_backbone("mini", quantize="nf4", quantize_wo=True, dtype=torch.float32)
    bytes_of = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in (plain, model)]
    assert bytes_of[1] < 0.6 * bytes_of[0]
    assert (model(**batch, labels=batch.input_ids).logits - expected).norm() < 0.3 * expected.norm()
    wrapped = qlora_wrap(model)
    wrapped(**batch, labels=batch.input_ids).loss.backward()
    assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)


@pytest.mark.skipif(not (MINI / "model.safetensors").is_file(), reason="the embedded backbone is not in this tree")
@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
def test_a_head_is_trained_in_float32_beside_bfloat16(quantize: Quantization | None, tmp_path: Path) -> None:
    if quantize is not None:
        pytest.importorskip("bitsandbytes")
    model, tokenizer = load_backbone("mini", num_labels=3, quantize=quantize, dtype=torch.bfloat16)
    wrapped = lora_wrap(model, rank=2)
    batch = tokenizer(["where is my parcel?"], return_tensors="pt")
    wrapped(**batch, labels=torch.tensor([1])).loss.backward()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert sum("classification_head" in name for name in trained) == 4
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(torch.isfinite(gradient(p)).all() for p in trained.values())
    with torch.no_grad():
        for p in trained.values():
            p.add_(1e-4 * torch.randn_like(p))  # less than bfloat16 tells apart
    save_adapter(wrapped, tmp_path)
    fresh, _ = load_backbone("mini", num_labels=3, quantize=quantize, dtype=torch.bfloat16)
    loaded, _ = load_adapter(tmp_path, model=fresh)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, wrapped.eval()(**batch).logits)


def test_wo_is_not_quantised_to_8_bits() -> None:
    with pytest.raises(ValueError, match="expected 'nf4', as wo breaks in 8 bits"):
        load_backbone("mini", quantize="int8", quantize_wo=True)
