"""Faults of the plain stack on T5, each with the proof that t5peft does not have it.

Each test asserts the right behavior. ``both_stacks`` runs it on the plain stack, where it must fail in the named way
(a strict expected failure: if a later release mends the fault, the test says so), and on ours, where it must pass.
Where the two cannot be asked in the same words, a pair of tests stands side by side.
"""

from __future__ import annotations

import copy
import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import reference
import torch
from cases import trained
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from stacks import (
    OURS,
    PLAIN,
    PREFIX_LENGTH,
    PROMPT_LENGTH,
    Stack,
    both_stacks,
    one_step,
    plain_fault,
    relative_difference,
)
from tiny import (
    EOS,
    Geometry,
    tiny_batch,
    tiny_classifier,
    tiny_classifier_batch,
    tiny_records,
    tiny_t5,
    tiny_tokenizer,
)
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import load_backbone, lora_wrap, merge, prompt_wrap, qlora_wrap, save_adapter
from t5peft.models.backbone import MINI
from t5peft.models.tokens import train_tokens

DidNotRaise = pytest.fail.Exception
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


@torch.no_grad()
def encoder_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).encoder_last_hidden_state


def save_backbone(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# D1: loss and gradients are scaled wrongly


@both_stacks()
@pytest.mark.parametrize("method", ["full", "lora"])
def test_d1_loss_and_gradient_do_not_depend_on_accumulation(stack: Stack, method: str, tmp_path: Path) -> None:
    results = []
    for accumulation, batch_size in ((1, 4), (4, 1)):
        torch.manual_seed(0)
        model = tiny_t5() if method == "full" else stack.lora(tiny_t5())
        trainer = stack.trainer(
            model,
            tmp_path,
            tiny_records(4),
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=batch_size,
            max_steps=1,
        )
        results.append(one_step(trainer))
    (loss, gradient), (loss_in_parts, gradient_in_parts) = results
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)  # the log rounds
    assert relative_difference(gradient_in_parts, gradient) < 1e-6


@both_stacks()
def test_d1_the_evaluation_loss_is_the_mean_over_target_tokens(stack: Stack, tmp_path: Path) -> None:
    model, records = tiny_t5(), tiny_records(7)
    total, count = 0.0, 0
    for record in records:
        source, target = torch.tensor([record["input_ids"]]), torch.tensor([record["labels"]])
        decoder_input_ids = reference.shift_right(target, model.config)
        scores = reference.logits(model.state_dict(), model.config, source, torch.ones_like(source), decoder_input_ids)
        summed, tokens = reference.summed_cross_entropy(scores, target)
        total, count = total + float(summed), count + tokens
    trainer = stack.trainer(model, tmp_path, records, per_device_eval_batch_size=3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-6)


@plain_fault(ValueError)
def test_d1_label_smoothing_needs_no_hint_for_the_collator_plain(tmp_path: Path) -> None:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=1, label_smoothing_factor=0.1, disable_tqdm=True
    )
    collator = DataCollatorForSeq2Seq(tiny_tokenizer())
    Seq2SeqTrainer(model=tiny_t5(), args=arguments, train_dataset=tiny_records(), data_collator=collator).train()


@both_stacks(AttributeError)
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_d1_label_smoothing_works_with_every_method(stack: Stack, method: str, tmp_path: Path) -> None:
    model = getattr(stack, method)(tiny_t5())
    trainer = stack.trainer(model, tmp_path, tiny_records(), label_smoothing_factor=0.1, max_steps=1)
    loss, gradient = one_step(trainer)
    assert gradient.keys() == trained(model).keys()
    assert all(tensor.abs().max() > 0 for tensor in gradient.values())
    without = getattr(stack, method)(tiny_t5())
    without.load_state_dict(model.state_dict())
    plain_loss, plain_gradient = one_step(stack.trainer(without, tmp_path, tiny_records(), max_steps=1))
    assert plain_loss != loss
    assert relative_difference(gradient, plain_gradient) > 0.05


@pytest.mark.parametrize("method", ["full", "lora", "prompt", "prefix"])
def test_d1_label_smoothing_is_what_it_is_by_definition_ours(method: str, tmp_path: Path) -> None:
    model = tiny_t5() if method == "full" else getattr(OURS, method)(tiny_t5())
    records = tiny_records(4)
    total, count = torch.zeros(()), 0
    for record in records:
        labels = torch.tensor([record["labels"]])
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([record["input_ids"]]), labels=labels).logits
        summed, tokens = reference.summed_cross_entropy(scores, labels, label_smoothing=0.2)
        total, count = total + summed, count + tokens
    trainer = OURS.trainer(model, tmp_path, records, label_smoothing_factor=0.2, max_steps=1)
    assert one_step(trainer)[0] == pytest.approx(float(total) / count, rel=1e-6)


# D2: peft's prefix tuning is not prefix tuning on T5


@both_stacks()
def test_d2_the_encoder_gets_a_prefix(stack: Stack) -> None:
    model, batch = tiny_t5(), tiny_batch()
    before = encoder_of(model, batch)
    assert (encoder_of(stack.prefix(model).eval(), batch) - before).abs().max() > 1e-3


@both_stacks()
def test_d2_cross_attention_gets_a_prefix(stack: Stack) -> None:
    model = tiny_t5()
    states, memory = torch.randn(2, 3, 32), torch.randn(2, 4, 32)

    def attend(t5: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return t5.decoder.block[0].layer[1].EncDecAttention(states, key_value_states=memory)[0]

    before = attend(model)
    assert (attend(stack.prefix(model).eval().get_base_model()) - before).abs().max() > 1e-3


@both_stacks()
def test_d2_every_parameter_of_the_prefix_gets_a_gradient(stack: Stack) -> None:
    model = stack.prefix(tiny_t5())
    model(**tiny_batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            blocks = parameter.grad.reshape(-1, 32).abs().amax(dim=-1)
            assert bool((blocks > 0).all()), name


@both_stacks((RuntimeError, IndexError))
def test_d2_any_geometry_takes_a_prefix(stack: Stack) -> None:
    assert_prefix_in_every_attention(stack.prefix(tiny_t5("wide")), attentions=2 + 2 * 3, heads=3, size=10)


@both_stacks(IndexError)
def test_d2_a_decoder_deeper_than_the_encoder_takes_a_prefix(stack: Stack) -> None:
    assert_prefix_in_every_attention(
        stack.prefix(tiny_t5("v1.1", num_decoder_layers=3)), attentions=2 + 2 * 3, heads=4, size=8
    )


def assert_prefix_in_every_attention(model: PeftModel, *, attentions: int, heads: int, size: int) -> None:
    """Check the number of trained weights, and that every key and value of every attention has a gradient."""
    model(**tiny_batch()).loss.backward()
    gradients = [parameter.grad for parameter in trained(model).values()]
    assert sum(gradient.numel() for gradient in gradients) == attentions * 2 * heads * PREFIX_LENGTH * size
    assert all(bool((gradient.reshape(-1, size).abs().amax(dim=-1) > 0).all()) for gradient in gradients)


@both_stacks((RuntimeError, ValueError))
def test_d2_a_prefix_trains_with_gradient_checkpointing(stack: Stack) -> None:
    model = stack.prefix(tiny_t5())
    model.train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model(**tiny_batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@both_stacks()
def test_d2_a_projected_prefix_can_be_loaded_to_train_on(stack: Stack, tmp_path: Path) -> None:
    """The network that makes the prefix is in the file, so that training can go on from it."""
    model = stack.prefix(tiny_t5(), projection=True)
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    saved = sum(tensor.numel() for tensor in load_file(tmp_path / "adapter_model.safetensors").values())
    trained = sum(parameter.numel() for name, parameter in model.named_parameters() if name in expected)
    assert saved >= trained


@both_stacks()
def test_d2_generation_without_a_cache_keeps_the_prefix(stack: Stack) -> None:
    model, inputs = big_prefix(stack), inputs_of(tiny_batch())
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    uncached = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False)
    assert cached.tolist() == uncached.tolist()


@both_stacks((RuntimeError, ValueError, AttributeError, TypeError, IndexError))
def test_d2_generation_with_a_static_cache_keeps_the_prefix(stack: Stack) -> None:
    model, inputs = big_prefix(stack), inputs_of(tiny_batch())
    dynamic = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    static = model.generate(**inputs, max_new_tokens=8, do_sample=False, cache_implementation="static")
    assert dynamic.tolist() == static.tolist()


def big_prefix(stack: Stack) -> PeftModel:
    """A prefix so large that leaving it out changes the tokens."""
    torch.manual_seed(1)
    model = stack.prefix(tiny_t5()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=3.0)
    return model


@plain_fault(IndexError)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_d2_a_decoder_deeper_than_the_encoder_generates_with_a_cache_plain(cache: str) -> None:
    inputs = inputs_of(tiny_batch())
    tiny_t5("wide").generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_d2_a_decoder_deeper_than_the_encoder_generates_with_a_cache_ours(method: str, cache: str) -> None:
    inputs, model = inputs_of(tiny_batch()), getattr(OURS, method)(tiny_t5("wide")).eval()
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    got = model.generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache)
    assert got.tolist() == expected.tolist()


def test_d2_a_prefix_of_zeros_is_not_the_identity_by_the_method_itself() -> None:
    """A key of zeros takes its share of the softmax; whoever expects otherwise is told here."""
    batch, model = tiny_batch(), OURS.prefix(tiny_t5()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert (logits_of(model, batch) - logits_of(tiny_t5(), batch)).abs().max() > 1e-2


# D3: a classification head is frozen and not saved


@both_stacks()
def test_d3_the_head_of_a_classifier_is_trained(stack: Stack) -> None:
    model = stack.lora(tiny_classifier())
    head = [p for name, p in model.named_parameters() if "classification_head" in name and p.requires_grad]
    assert head
    model(**tiny_classifier_batch()).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in head)


@both_stacks()
def test_d3_the_trained_head_of_a_classifier_is_saved(stack: Stack, tmp_path: Path) -> None:
    model, batch = stack.lora(tiny_classifier()).eval(), tiny_classifier_batch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classification_head" in name:
                parameter.mul_(-1.5)
    expected = logits_of(model, batch)
    model.save_pretrained(tmp_path)
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


def assert_trained_beside_the_head(model: PeftModel, *, weights: int) -> None:
    """Check that so many weights and the head get gradients, and change the scores."""
    batch = tiny_classifier_batch()
    before = logits_of(model.eval(), batch)
    model(**batch).loss.backward()
    adapter, head = {}, {}
    for name, parameter in trained(model).items():
        (head if "classification_head" in name else adapter)[name] = parameter
    assert sum(parameter.numel() for parameter in adapter.values()) == weights
    assert len(head) == 4
    assert all(parameter.grad.abs().max() > 0 for parameter in (*adapter.values(), *head.values()))
    with torch.no_grad():
        for parameter in adapter.values():
            parameter.mul_(-1)
    assert (logits_of(model, batch) - before).abs().max() > 1e-3


@plain_fault(ValueError)
def test_d3_a_batch_may_hold_unequal_numbers_of_end_tokens_plain() -> None:
    batch = tiny_classifier_batch()
    batch["input_ids"][0, 0] = EOS
    logits_of(tiny_classifier(), batch)


def test_d3_a_batch_may_hold_unequal_numbers_of_end_tokens_ours(tmp_path: Path) -> None:
    records = [{"input_ids": ids, "labels": label} for ids, label in (([5, 6, EOS], 0), ([EOS, 7, EOS], 2), ([8], 1))]
    trainer = OURS.trainer(OURS.lora(tiny_classifier()), tmp_path, records, max_steps=1)
    assert one_step(trainer)[0] > 0
    assert trainer.predict(records).predictions.shape == (3, 3)


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
    right, left = (trainer.predict(padded(side)) for side in ("right", "left"))
    assert right.predictions.shape == (2, 3)
    torch.testing.assert_close(left.predictions, right.predictions, rtol=0, atol=1e-6)
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
        model.classification_head.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


# D4: prompt tuning


@both_stacks()
def test_d4_a_prompt_has_as_many_rows_as_asked_for(stack: Stack, tmp_path: Path) -> None:
    model = stack.prompt(tiny_t5())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == PROMPT_LENGTH * 32


@both_stacks()
def test_d4_a_prompt_does_not_mind_the_side_of_the_padding(stack: Stack) -> None:
    model = stack.prompt(tiny_t5()).eval()
    right, left = tiny_batch(extra_pads=2), tiny_batch(side="left", extra_pads=2)
    torch.testing.assert_close(logits_of(model, left), logits_of(model, right), rtol=0, atol=1e-5)


@both_stacks()
def test_d4_generation_with_the_adapter_disabled_is_that_of_the_base(stack: Stack) -> None:
    base, inputs = tiny_t5(), inputs_of(tiny_batch())
    expected = base.generate(**inputs, max_new_tokens=8, do_sample=False)
    model = stack.prompt(base).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=10.0)
    with model.disable_adapter():
        got = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert got.tolist() == expected.tolist()


@both_stacks()
def test_d4_generation_leaves_the_base_model_as_it_was(stack: Stack) -> None:
    base = tiny_t5()
    before = set(vars(base))
    model = stack.prompt(base).eval()
    model.generate(**inputs_of(tiny_batch()), max_new_tokens=3, do_sample=False)
    patched = {name for name in set(vars(base)) - before if callable(getattr(base, name))}
    assert patched == set()


@plain_fault()
def test_d4_a_prompt_made_from_text_has_no_end_token_plain(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    base = tiny_t5()
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=5,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="abc",
        tokenizer_name_or_path=str(tmp_path),
    )
    rows = get_peft_model(base, config).prompt_encoder["default"].embedding.weight
    assert not bool((rows == base.shared.weight[EOS]).all(dim=-1).any())


def test_d4_a_prompt_made_from_text_has_no_end_token_ours() -> None:
    from t5peft.methods.prompt import from_text

    base = tiny_t5()
    model = prompt_wrap(base, length=5, initialize=from_text(tiny_tokenizer(), "abc"))
    (rows,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    ids = [3 + byte for byte in b"abcab"]
    torch.testing.assert_close(rows.detach(), base.shared.weight[ids].detach(), rtol=0, atol=0)


# D5: reload for further training


@both_stacks(ValueError)
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_d5_an_adapter_can_be_loaded_to_train_on(stack: Stack, method: str, tmp_path: Path) -> None:
    getattr(stack, method)(tiny_t5()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_t5(), tmp_path, is_trainable=True)
    model(**tiny_batch()).loss.backward()
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())


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
    shape = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
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


# D9: NaN and bad batches


@both_stacks(DidNotRaise)
def test_d9_a_loss_that_is_not_a_number_stops_the_run(stack: Stack, tmp_path: Path) -> None:
    model = tiny_t5()
    with torch.no_grad():
        model.decoder.block[0].layer[2].DenseReluDense.wo.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1; these weights .*wo.weight"):
        stack.trainer(model, tmp_path, tiny_records(), max_steps=2).train()


@both_stacks(DidNotRaise)
def test_d9_targets_that_are_all_padding_are_an_error(stack: Stack, tmp_path: Path) -> None:
    records = [{"input_ids": [5, 6, EOS], "labels": [-100, -100]}] * 4
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)target|label"):
        stack.trainer(tiny_t5(), tmp_path, records, max_steps=1).train()


@plain_fault(RuntimeError)
def test_d9_an_empty_batch_is_told_as_such_plain() -> None:
    with pytest.raises(ValueError, match="empty"):
        tiny_t5()(input_ids=torch.zeros(0, 4, dtype=torch.long), labels=torch.zeros(0, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([], "no records|empty"),
        ([{"input_ids": [], "labels": [4, EOS]}], "sources of no tokens"),
        ([{"input_ids": [4, EOS], "labels": []}], "targets that are all padding"),
    ],
)
def test_d9_data_that_is_empty_is_told_as_such_ours(
    records: list[dict[str, list[int]]], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        OURS.trainer(tiny_t5(), tmp_path, records, max_steps=1).train()


@plain_fault(DidNotRaise)
def test_d9_a_misspelt_argument_of_forward_is_an_error_plain() -> None:
    batch = tiny_batch()
    with pytest.raises((TypeError, ValueError)):
        tiny_t5()(input_ids=batch["input_ids"], labels=batch["labels"], atention_mask=batch["attention_mask"])


@pytest.mark.parametrize(("column", "meant"), [("atention_mask", "attention_mask"), ("lables", "labels")])
def test_d9_a_misspelt_column_is_an_error_ours(column: str, meant: str, tmp_path: Path) -> None:
    records = [{column if name == meant else name: value for name, value in record.items()} for record in _masked()]
    with pytest.raises(ValueError, match=rf"train_dataset has a column '{column}' and none called '{meant}'"):
        OURS.trainer(tiny_t5(), tmp_path, records, max_steps=1)


def _masked() -> list[dict[str, list[int]]]:
    return [{**record, "attention_mask": [1] * len(record["input_ids"])} for record in tiny_records()]


@plain_fault(OverflowError)
def test_d9_labels_with_ignored_positions_can_be_decoded_plain() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), pad_token="a")
    tokenizer.batch_decode(torch.tensor([[0, -100]]))


def test_d9_labels_that_metrics_get_can_be_decoded_ours(tmp_path: Path) -> None:
    decoded = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        decoded.extend(tiny_tokenizer().batch_decode(prediction.label_ids, skip_special_tokens=True))
        tiny_tokenizer().batch_decode(prediction.predictions, skip_special_tokens=True)
        return {"lowest": float(min(prediction.label_ids.min(), prediction.predictions.min()))}

    texts = ["one", "twenty-two", "3"]
    records = [{"input_ids": [5, EOS], "labels": tiny_tokenizer()(text).input_ids} for text in texts]
    trainer = OURS.trainer(tiny_t5(), tmp_path, records, predict_with_generate=True)
    trainer.compute_metrics = compute_metrics
    assert trainer.evaluate()["eval_lowest"] >= 0
    assert decoded == texts


@both_stacks(ValueError)
def test_d9_records_without_labels_can_be_predicted(stack: Stack, tmp_path: Path) -> None:
    records = [{"input_ids": record["input_ids"]} for record in tiny_records(4)]
    trainer = stack.trainer(tiny_t5(), tmp_path, records, predict_with_generate=True, generation_max_length=5)
    assert len(trainer.predict(records).predictions) == 4


# D10: 8 and 4 bit


def quantizable_t5(geometry: Geometry = "v1.1") -> T5ForConditionalGeneration:
    """A T5 whose rows are long enough for the blocks of 4-bit quantization."""
    return tiny_t5(geometry, d_model=64, d_kv=16, d_ff=128)


@needs_bitsandbytes
@plain_fault()
def test_d10_preparing_for_training_keeps_the_dtype_of_what_is_not_quantised_plain(tmp_path: Path) -> None:
    folder = save_backbone(quantizable_t5().to(torch.bfloat16), tmp_path)
    model = prepare_model_for_kbit_training(PLAIN.load(folder, quantize="nf4"))
    assert model.shared.weight.dtype == torch.bfloat16


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_d10_wrapping_keeps_the_dtype_of_what_is_not_quantised_ours(
    quantize: Literal["int8", "nf4"], tmp_path: Path
) -> None:
    folder = save_backbone(quantizable_t5().to(torch.bfloat16), tmp_path)
    model = qlora_wrap(load_backbone(folder, quantize=quantize, dtype=torch.bfloat16)[0], rank=4)
    base = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    plain = {name: parameter for name, parameter in base.items() if parameter.is_floating_point()}
    assert {parameter.dtype for parameter in plain.values()} == {torch.bfloat16}
    for part in ("shared", "lm_head", "wo.base_layer", "layer_norm", "relative_attention_bias"):
        assert any(part in name for name in plain), part
    assert len(base) > len(plain)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


@needs_bitsandbytes
@plain_fault(AttributeError)
def test_d10_modules_can_be_kept_out_of_quantization_plain(tmp_path: Path) -> None:
    folder = save_backbone(quantizable_t5("v1.0"), tmp_path)
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["wo"])
    model = T5ForConditionalGeneration.from_pretrained(folder, quantization_config=quantization)
    logits_of(model, tiny_batch())


@needs_bitsandbytes
def test_d10_a_tied_head_and_wo_are_kept_out_of_quantization_ours(tmp_path: Path) -> None:
    folder, batch = save_backbone(quantizable_t5("v1.0"), tmp_path), tiny_batch()
    model = load_backbone(folder, quantize="int8", dtype=torch.float32)[0]
    expected = logits_of(quantizable_t5("v1.0"), batch)
    assert model.lm_head.weight is model.shared.weight
    assert (logits_of(model, batch) - expected).norm() < 0.05 * expected.norm()


@needs_bitsandbytes
@plain_fault()
def test_d10_a_forward_writes_no_line_to_the_log_plain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # load_backbone, which another test may have called, leaves a filter there for good
    monkeypatch.setattr(logging.getLogger("bitsandbytes.autograd._functions"), "filters", [])
    model = PLAIN.load(save_backbone(quantizable_t5(), tmp_path), quantize="int8").eval()
    with caplog.at_level(logging.WARNING):
        logits_of(model, tiny_batch())
    assert caplog.records == []


@needs_bitsandbytes
def test_d10_a_forward_writes_no_line_to_the_log_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_backbone(save_backbone(quantizable_t5(), tmp_path), quantize="int8")[0]
    with caplog.at_level(logging.WARNING):
        logits_of(model, tiny_batch())
        logits_of(qlora_wrap(model, rank=4).eval(), tiny_batch())
    assert caplog.records == []


def logits_before_and_after_evaluation(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the model in training, with nothing dropped."""
    batch = tiny_batch()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = model.train()(**batch).logits.detach()
    for _ in range(2):
        logits_of(model.eval(), batch)
    return before, model.train()(**batch).logits.detach()


@needs_bitsandbytes
@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="bitsandbytes repacks on CPUs that compute in bfloat16 alone"
)
@plain_fault()
def test_d10_evaluation_leaves_weights_of_4_bits_as_they_are_plain(tmp_path: Path) -> None:
    folder = save_backbone(quantizable_t5(), tmp_path)
    before, after = logits_before_and_after_evaluation(PLAIN.load(folder, quantize="nf4"))
    assert torch.equal(before, after)


@needs_bitsandbytes
@pytest.mark.parametrize("quantize_wo", [False, True])
def test_d10_evaluation_leaves_weights_of_4_bits_as_they_are_ours(quantize_wo: bool, tmp_path: Path) -> None:
    folder = save_backbone(quantizable_t5(), tmp_path)
    model = load_backbone(folder, quantize="nf4", quantize_wo=quantize_wo, dtype=torch.float32)[0]
    before, after = logits_before_and_after_evaluation(model)
    assert torch.equal(before, after)


@needs_bitsandbytes
@plain_fault()
@pytest.mark.filterwarnings("ignore:Merge lora module to:UserWarning", "ignore:Input and output embeddings:UserWarning")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_d10_merging_keeps_the_effect_of_the_adapter_plain(quantize: str, tmp_path: Path) -> None:
    folder, batch = save_backbone(quantizable_t5(), tmp_path), tiny_batch()
    without = logits_of(PLAIN.load(folder, quantize=quantize).eval(), batch)
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q", "v"], init_lora_weights=False)
    model = get_peft_model(PLAIN.load(folder, quantize=quantize), config).eval()
    with torch.no_grad():  # as large as after a short training
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.1)
    effect = logits_of(model, batch) - without
    merged_effect = logits_of(model.merge_and_unload(), batch) - without
    assert (merged_effect - effect).norm() < 0.01 * effect.norm()


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_d10_merging_keeps_the_effect_of_the_adapter_ours(quantize: Literal["int8", "nf4"], tmp_path: Path) -> None:
    """Merged into the unquantized backbone, the adapter has the effect that it has beside it."""
    folder, batch = save_backbone(quantizable_t5(), tmp_path / "backbone"), tiny_batch()
    torch.manual_seed(0)
    model = qlora_wrap(load_backbone(folder, quantize=quantize, dtype=torch.float32)[0], rank=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    save_adapter(model, tmp_path / "adapter")
    merged, _, parity = merge(tmp_path / "adapter")
    assert type(merged) is T5ForConditionalGeneration
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    without = logits_of(quantizable_t5(), batch)
    beside = PeftModel.from_pretrained(quantizable_t5(), tmp_path / "adapter").eval()
    effect, merged_effect = logits_of(beside, batch) - without, logits_of(merged, batch) - without
    assert effect.norm() > 1e-2 * without.norm()
    assert (merged_effect - effect).norm() < 1e-4 * effect.norm()
    assert parity.unmerged < 1e-5
    assert parity.quantised is not None
