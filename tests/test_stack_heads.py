"""Faults of transformers and peft with heads, on the plain stack and on ours (D3 and D6 of the README's table)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cases import trained
from narrow import array, as_dataset, gradient
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stacks import (
    OURS,
    PLAIN,
    PREFIX_LENGTH,
    PROMPT_LENGTH,
    Stack,
    both_stacks,
    inputs_of,
    logits_of,
    needs_bitsandbytes,
    one_step,
    plain_fault,
    save_backbone,
)
from tiny import (
    EOS,
    tiny_batch,
    tiny_classifier,
    tiny_classifier_batch,
    tiny_t5,
    tiny_tokenizer,
)
from torch import nn
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import load_backbone, lora_wrap, save_adapter
from t5peft.models.backbone import MINI
from t5peft.models.tokens import train_tokens

# D3: a classification head is frozen and not saved


@both_stacks()
def test_d3_the_head_of_a_classifier_is_trained(stack: Stack) -> None:
    model = stack.lora(tiny_classifier())
    head = [p for name, p in model.named_parameters() if "classification_head" in name and p.requires_grad]
    assert head
    model(**tiny_classifier_batch()).loss.backward()
    assert all(gradient(parameter).abs().max() > 0 for parameter in head)


@both_stacks()
def test_d3_the_trained_head_of_a_classifier_is_saved(stack: Stack, tmp_path: Path) -> None:
    model, batch = stack.lora(tiny_classifier()).eval(), tiny_classifier_batch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name:
                parameter.mul_(-1.5)
    expected = logits_of(model, batch)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_classifier(), tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded, batch), expected, rtol=0, atol=0)


@both_stacks(NotImplementedError)
def test_d3_a_classifier_takes_a_prompt(stack: Stack) -> None:
    model = stack.prompt(tiny_classifier())
    assert_trained_beside_the_head(model, weights=PROMPT_LENGTH * 32)


@both_stacks(RuntimeError)
def test_d3_a_classifier_takes_a_prefix(stack: Stack) -> None:
    model = stack.prefix(tiny_classifier())
    assert_trained_beside_the_head(model, weights=(2 + 2 * 2) * 2 * PREFIX_LENGTH * 32)


@plain_fault(ValueError)
def test_d3_a_batch_may_hold_unequal_numbers_of_end_tokens_plain() -> None:
    batch = tiny_classifier_batch()
    batch["input_ids"][0, 0] = EOS
    logits_of(tiny_classifier(), batch)


def test_d3_a_batch_may_hold_unequal_numbers_of_end_tokens_ours(tmp_path: Path) -> None:
    records = [{"input_ids": ids, "labels": label} for ids, label in (([5, 6, EOS], 0), ([EOS, 7, EOS], 2), ([8], 1))]
    trainer = OURS.trainer(OURS.lora(tiny_classifier()), tmp_path, records, max_steps=1)
    assert one_step(trainer)[0] > 0
    assert array(trainer.predict(as_dataset(records)).predictions).shape == (3, 3)


@plain_fault()
def test_d3_an_end_token_in_the_text_of_a_user_is_text_plain() -> None:
    assert tiny_tokenizer()("a</s>b").input_ids.count(EOS) == 1


def test_d3_an_end_token_in_the_text_of_a_user_is_text_ours() -> None:
    from t5peft import Task

    rows = Task("echo", "{text}").tokenize([{"text": "a</s>b", "target": "no</s>ne"}], tiny_tokenizer())
    assert [ids.count(EOS) for ids in (rows[0]["input_ids"], rows[0]["labels"])] == [1, 1]
    assert rows[0]["input_ids"][-1] == EOS


@plain_fault()
def test_d3_a_classifier_does_not_mind_the_side_of_the_padding_plain() -> None:
    model, right, left = tiny_classifier(), tiny_batch(extra_pads=2), tiny_batch(side="left", extra_pads=2)
    torch.testing.assert_close(logits_of(model, inputs_of(left)), logits_of(model, inputs_of(right)), rtol=0, atol=1e-5)


def test_d3_a_classifier_does_not_mind_the_side_of_the_padding_ours(tmp_path: Path) -> None:
    def padded(side: str) -> list[dict[str, object]]:
        pads = (3, 0) if side == "left" else (0, 3)
        return [
            {
                "input_ids": [0] * pads[0] + ids + [0] * pads[1],
                "attention_mask": [0] * pads[0] + [1] * len(ids) + [0] * pads[1],
                "labels": label,
            }
            for ids, label in (([5, 6, 7, EOS], 0), ([4, 8, EOS], 2))
        ]

    trainer = OURS.trainer(tiny_classifier(), tmp_path, padded("right"), max_steps=1)
    right, left = (trainer.predict(as_dataset(padded(side))) for side in ("right", "left"))
    assert array(right.predictions).shape == (2, 3)
    torch.testing.assert_close(left.predictions, right.predictions, rtol=0, atol=1e-6)
    assert left.metrics is not None
    assert right.metrics is not None
    assert left.metrics["test_loss"] == pytest.approx(right.metrics["test_loss"], rel=1e-6)


@plain_fault()
def test_d3_the_head_of_a_classifier_is_not_quantised_plain(tmp_path: Path) -> None:
    folder = save_backbone(tiny_classifier(), tmp_path)
    model = T5ForSequenceClassification.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    assert model.classification_head.dense.weight.dtype != torch.int8


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_d3_the_head_of_a_classifier_is_not_quantised_ours(quantize: Literal["int8", "nf4"], tmp_path: Path) -> None:
    folder = save_backbone(tiny_classifier(d_model=64, d_kv=16, d_ff=128), tmp_path)
    model = load_backbone(folder, quantize=quantize, num_labels=3, dtype=torch.float32)[0]
    for expected, got in zip(
        tiny_classifier(d_model=64, d_kv=16, d_ff=128).classification_head.parameters(),
        model.get_submodule("classification_head").parameters(),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


# D6: untied heads


@both_stacks()
@pytest.mark.parametrize("action", ["tie_weights", "resize_token_embeddings", "post_init", "load_state_dict"])
def test_d6_an_untied_head_stays_untied(stack: Stack, action: str, tmp_path: Path) -> None:
    model = stack.load(save_backbone(tiny_t5("v1.1"), tmp_path)).eval()
    batch = tiny_batch()
    expected = logits_of(model, batch)
    if action == "tie_weights":
        model.tie_weights()
    elif action == "resize_token_embeddings":
        model.resize_token_embeddings(model.config.vocab_size)
    elif action == "post_init":
        model.post_init()
    else:
        fresh = T5ForConditionalGeneration(copy.deepcopy(model.config))
        fresh.load_state_dict(model.state_dict())
        model = fresh.eval()
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=0, atol=1e-6)


@both_stacks()
def test_d6_an_untied_umt5_is_not_scaled_as_a_tied_one(stack: Stack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    made = UMT5ForConditionalGeneration(UMT5Config(**shape))
    made.lm_head.weight = nn.Parameter(torch.randn(384, 32))
    made.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(tmp_path)
    model, batch = stack.load(tmp_path).eval(), tiny_batch()
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).decoder_hidden_states[-1]
    torch.testing.assert_close(logits_of(model, batch), states @ made.lm_head.weight.detach().T)


@plain_fault()
def test_d6_a_saved_config_says_that_the_head_is_untied_plain(tmp_path: Path) -> None:
    tiny_t5("v1.1").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


def test_d6_a_saved_config_says_that_the_head_is_untied_ours(tmp_path: Path) -> None:
    model, batch = load_backbone(save_backbone(tiny_t5("v1.1"), tmp_path / "first"))[0], tiny_batch()
    save_backbone(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    for loaded in (load_backbone(tmp_path / "again")[0], PLAIN.load(tmp_path / "again").eval()):
        torch.testing.assert_close(logits_of(loaded, batch), logits_of(tiny_t5("v1.1"), batch), rtol=0, atol=0)


@plain_fault()
@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings:UserWarning")
def test_d6_lora_on_a_tied_head_merges_to_what_it_was_plain() -> None:
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["lm_head"], init_lora_weights=False)
    model, batch = get_peft_model(tiny_t5(), config).eval(), tiny_batch()
    expected = logits_of(model, batch)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), batch), expected, rtol=0, atol=1e-4)


def test_d6_lora_on_a_tied_head_is_refused_with_the_reason_ours() -> None:
    with pytest.raises(ValueError, match="output head is its table of embeddings"):
        lora_wrap(tiny_t5(), target_modules=["q", "lm_head"])


def test_d6_lora_on_an_untied_head_merges_to_what_it_was_ours() -> None:
    model, batch = lora_wrap(tiny_t5("v1.1"), rank=4, target_modules=["q", "lm_head"]).eval(), tiny_batch()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = logits_of(model, batch)
    torch.testing.assert_close(logits_of(model.merge_and_unload(), batch), expected, rtol=0, atol=1e-5)


@plain_fault()
@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings:UserWarning")
def test_d6_saving_the_embeddings_trains_them_plain() -> None:
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q"], modules_to_save=["shared"])
    model = get_peft_model(tiny_t5(), config)
    model(**tiny_batch()).loss.backward()
    copies = [p for name, p in model.named_parameters() if "shared" in name and p.requires_grad]
    assert copies
    assert all(parameter.grad is not None for parameter in copies)


def test_d6_new_rows_of_the_embeddings_are_trained_and_saved_alone_ours(tmp_path: Path) -> None:
    ids = [6, 9]
    model = lora_wrap(tiny_t5(), target_modules=["q"])
    train_tokens(model, ids)
    before = model.get_input_embeddings()(torch.arange(20)).detach().clone()
    batch = tiny_batch()
    batch["input_ids"][:, :2] = torch.tensor(ids)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    model(**batch).loss.backward()
    optimizer.step()
    moved = (model.get_input_embeddings()(torch.arange(20)) - before).abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == ids
    save_adapter(model, tmp_path)
    rows = {
        name: tensor for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items() if "token" in name
    }
    assert [tensor.shape[0] for tensor in rows.values()] == [len(ids)]


def assert_trained_beside_the_head(model: PeftModel, *, weights: int) -> None:
    """Check that so many weights and the head get gradients, and change the scores."""
    batch = tiny_classifier_batch()
    before = logits_of(model.eval(), batch)
    model(**batch).loss.backward()
    adapter: dict[str, nn.Parameter] = {}
    head: dict[str, nn.Parameter] = {}
    for name, parameter in trained(model).items():
        (head if "classification_head" in name else adapter)[name] = parameter
    assert sum(parameter.numel() for parameter in adapter.values()) == weights
    assert len(head) == 4
    assert all(gradient(parameter).abs().max() > 0 for parameter in (*adapter.values(), *head.values()))
    with torch.no_grad():
        for parameter in adapter.values():
            parameter.mul_(-1)
    assert (logits_of(model, batch) - before).abs().max() > 1e-3
