"""Faults of the plain stack on T5, each with the proof that t5peft does not have it.

Each test asserts the right behavior. ``both_stacks`` runs it on the plain stack, where it must fail in the named way
(a strict expected failure: if a later release mends the fault, the test says so), and on ours, where it must pass.
Where the two cannot be asked in the same words, a pair of tests stands side by side.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from cases import trained
from narrow import generate, gradient
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from stacks import (
    OURS,
    PREFIX_LENGTH,
    PROMPT_LENGTH,
    Stack,
    both_stacks,
    encoder_of,
    inputs_of,
    logits_of,
    one_step,
    plain_fault,
    relative_difference,
)
from tiny import (
    EOS,
    tiny_batch,
    tiny_records,
    tiny_t5,
    tiny_tokenizer,
)
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from t5peft import prompt_wrap

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

    def attend(t5: nn.Module) -> Tensor:
        attention = t5.get_submodule("decoder.block.0.layer.1.EncDecAttention")
        with torch.no_grad():
            return attention(states, key_value_states=memory)[0]

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
    model.save_pretrained(str(tmp_path))

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
    generate(tiny_t5("wide"), **inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache)


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
    expected = generate(base, **inputs, max_new_tokens=8, do_sample=False)
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
    rows = get_peft_model(base, config).prompt_encoder["default"].get_parameter("embedding.weight")
    assert not bool(rows.eq(base.shared.weight[EOS]).all(dim=-1).any())


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


def assert_prefix_in_every_attention(model: PeftModel, *, attentions: int, heads: int, size: int) -> None:
    """Check the number of trained weights, and that every key and value of every attention has a gradient."""
    model(**tiny_batch()).loss.backward()
    gradients = [gradient(parameter) for parameter in trained(model).values()]
    assert sum(found.numel() for found in gradients) == attentions * 2 * heads * PREFIX_LENGTH * size
    assert all(bool((found.reshape(-1, size).abs().amax(dim=-1) > 0).all()) for found in gradients)
