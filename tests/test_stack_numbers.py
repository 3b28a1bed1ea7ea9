"""Faults of transformers and peft with NaN, padded labels and quantization, on the plain stack and on ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pytest
import torch
from narrow import array, as_dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from stacks import (
    OURS,
    PLAIN,
    DidNotRaise,
    Stack,
    both_stacks,
    logits_of,
    needs_bitsandbytes,
    plain_fault,
    save_backbone,
)
from tiny import (
    EOS,
    Geometry,
    tiny_batch,
    tiny_records,
    tiny_t5,
    tiny_tokenizer,
)
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    EvalPrediction,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from t5peft import load_backbone, merge, qlora_wrap, save_adapter

# D9: NaN and bad batches


@both_stacks(DidNotRaise)
def test_d9_a_loss_that_is_not_a_number_stops_the_run(stack: Stack, tmp_path: Path) -> None:
    model = tiny_t5()
    with torch.no_grad():
        model.get_parameter("decoder.block.0.layer.2.DenseReluDense.wo.weight")[0, 0] = torch.nan
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
        labels, answers = array(prediction.label_ids), array(prediction.predictions)
        decoded.extend(tiny_tokenizer().batch_decode(labels, skip_special_tokens=True))
        tiny_tokenizer().batch_decode(answers, skip_special_tokens=True)
        return {"lowest": float(min(labels.min(), answers.min()))}

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
    assert len(trainer.predict(as_dataset(records)).predictions) == 4


# D10: 8 and 4 bit


def quantizable_t5(geometry: Geometry = "v1.1") -> T5ForConditionalGeneration:
    """A T5 whose rows are long enough for the blocks of 4-bit quantization."""
    return tiny_t5(geometry, d_model=64, d_kv=16, d_ff=128)


@needs_bitsandbytes
@plain_fault()
def test_d10_preparing_for_training_keeps_the_dtype_of_what_is_not_quantised_plain(tmp_path: Path) -> None:
    folder = save_backbone(quantizable_t5().bfloat16(), tmp_path)
    model = prepare_model_for_kbit_training(PLAIN.load(folder, quantize="nf4"))
    assert model.shared.weight.dtype == torch.bfloat16


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_d10_wrapping_keeps_the_dtype_of_what_is_not_quantised_ours(
    quantize: Literal["int8", "nf4"], tmp_path: Path
) -> None:
    folder = save_backbone(quantizable_t5().bfloat16(), tmp_path)
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
    assert model.get_parameter("lm_head.weight") is model.get_parameter("shared.weight")
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
def test_d10_merging_keeps_the_effect_of_the_adapter_plain(quantize: Literal["int8", "nf4"], tmp_path: Path) -> None:
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
