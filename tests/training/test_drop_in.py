"""T5PeftTrainer is a drop-in for Seq2SeqTrainer: same arguments, hooks and batches, and the user's own code means the same."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from grids import sampled
from narrow import array, as_dataset, model_of
from peft import PEFT_TYPE_TO_TUNER_MAPPING, AdaLoraConfig, AdaLoraModel, get_peft_model
from peft.utils import PeftType
from stacks import GradientRecorder, quiet_arguments, relative_difference
from tiny import EOS, PAD, tiny_classifier, tiny_t5, tiny_tokenizer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from trainers import RECORDS, assert_same_training, losses_and_gradients, trainer_of, with_loss
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, full_wrap, lora_wrap
from t5peft.adapters.manifest import MANIFEST

# Losses of the user's own


class Mean:
    """A mean over the target tokens of a batch, as most users write it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = 0.5 * outputs.loss + 1
        return (loss, outputs) if return_outputs else loss


class MeanWithKeywords:
    """The same, without a word of ``num_items_in_batch``."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())
        return (loss, outputs) if return_outputs else loss


class Sum:
    """A sum over target tokens, divided by those of the step."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        labels = inputs["labels"].flatten()
        loss = cross_entropy(outputs.logits.flatten(0, 1), labels, reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


OWN_LOSSES = [Mean, MeanWithKeywords, Sum]


@pytest.mark.parametrize(
    ("loss", "pack"),
    [
        (Mean, None),
        pytest.param(Sum, None, marks=pytest.mark.slow),
        pytest.param(MeanWithKeywords, None, marks=pytest.mark.slow),
        pytest.param(Mean, False, marks=pytest.mark.slow),
    ],
)
def test_an_overridden_loss_is_that_of_plain_trainer(loss: type, pack: bool | None, tmp_path: Path) -> None:
    long = [{**record, "input_ids": record["input_ids"][:-1] * 60 + [EOS]} for record in RECORDS]
    ours = trainer_of(
        with_loss(loss, T5PeftTrainer), tiny_t5(), tmp_path, long, pack=pack, per_device_train_batch_size=8
    )
    plain = trainer_of(with_loss(loss, Seq2SeqTrainer), tiny_t5(), tmp_path, long, per_device_train_batch_size=8)
    assert_same_training(ours, plain)
    assert ours.evaluate(as_dataset(RECORDS))["eval_loss"] == pytest.approx(
        plain.evaluate(as_dataset(RECORDS))["eval_loss"], rel=1e-5
    )


@pytest.mark.parametrize("loss", OWN_LOSSES)
def test_an_overridden_loss_of_accumulated_batches_is_a_mean_and_no_sum_of_means(loss: type, tmp_path: Path) -> None:
    ours = trainer_of(
        with_loss(loss, T5PeftTrainer),
        tiny_t5(),
        tmp_path,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
    )
    plain = trainer_of(
        with_loss(loss, Seq2SeqTrainer),
        tiny_t5(),
        tmp_path,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
    )
    if loss is not Sum:
        plain.loss_is_scaled_for_ga = False  # transformers' own way to say so
    assert_same_training(ours, plain)


def loss_function(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    return 2 * cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 2])
def test_compute_loss_func_is_that_of_plain_trainer(accumulation: int, tmp_path: Path) -> None:
    given = {"compute_loss_func": loss_function, "gradient_accumulation_steps": accumulation}
    ours, plain = (trainer_of(kind, tiny_t5(), tmp_path, **given) for kind in (T5PeftTrainer, Seq2SeqTrainer))
    assert_same_training(ours, plain)
    assert ours.evaluate(as_dataset(RECORDS))["eval_loss"] == pytest.approx(
        plain.evaluate(as_dataset(RECORDS))["eval_loss"], rel=1e-5
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_adds_to_ours_keeps_it(accumulation: int, tmp_path: Path) -> None:
    class Weighted(T5PeftTrainer):
        # Without a name for the number of items, as users write it.
        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
        ) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            assert outputs.logits.shape[:2] == inputs["labels"].shape
            return (3 * loss, outputs) if return_outputs else 3 * loss

    given = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    weighted, gradients = losses_and_gradients(trainer_of(Weighted, tiny_t5(), tmp_path, **given, learning_rate=0))
    losses, expected = losses_and_gradients(trainer_of(T5PeftTrainer, tiny_t5(), tmp_path, **given, learning_rate=0))
    assert weighted == pytest.approx([3 * loss for loss in losses], rel=1e-6)
    tripled = {name: 3 * gradient for name, gradient in expected[0].items()}
    assert relative_difference(gradients[0], tripled) < 1e-5


def ada_lora() -> Any:
    """AdaLoRA by the tuner of peft, which adds to the loss in every pass; ours does so in training only."""
    config = AdaLoraConfig(
        init_r=6, target_r=4, tinit=1, tfinal=1, deltaT=1, total_step=10, orth_reg_weight=0.7, target_modules=["q", "v"],
        task_type="SEQ_2_SEQ_LM",
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.ADALORA, AdaLoraModel)
        return get_peft_model(tiny_t5(), config)


@pytest.mark.parametrize("cutting", [{}, {"tokens_per_micro_batch": 40}, {"bucket_by_length": False}], ids=str)
def test_what_a_tuner_adds_to_the_loss_counts_once_a_step(cutting: dict[str, Any], tmp_path: Path) -> None:
    ours = trainer_of(T5PeftTrainer, ada_lora(), tmp_path, **cutting)
    plain = trainer_of(Seq2SeqTrainer, ada_lora(), tmp_path)
    batch = plain.data_collator(RECORDS[:4])
    own = ada_lora().train()(**batch).loss.item()
    assert own > ada_lora().base_model.model(**batch).loss.item() + 1  # the addition is not small
    assert losses_and_gradients(ours)[0][0] == pytest.approx(own, rel=1e-5)
    assert_same_training(
        trainer_of(T5PeftTrainer, ada_lora(), tmp_path, **cutting), trainer_of(Seq2SeqTrainer, ada_lora(), tmp_path)
    )


def test_what_a_tuner_adds_to_the_loss_is_part_of_the_evaluation_loss(tmp_path: Path) -> None:
    batch = DataCollatorForSeq2Seq(tiny_tokenizer(), model=tiny_t5())(RECORDS)
    with torch.no_grad():
        expected = ada_lora().eval()(**batch).loss.item()
    for size in (3, 8):
        trainer = trainer_of(T5PeftTrainer, ada_lora(), tmp_path, per_device_eval_batch_size=size)
        assert trainer.evaluate(as_dataset(RECORDS))["eval_loss"] == pytest.approx(expected, rel=1e-5)


# Arguments and data


def test_arguments_come_in_the_order_of_plain_trainer(tmp_path: Path) -> None:
    ours, plain = (list(inspect.signature(kind.__init__).parameters) for kind in (T5PeftTrainer, Seq2SeqTrainer))
    assert ours == plain
    args = T5PeftTrainingArguments(**quiet_arguments(tmp_path, {"max_steps": 1}))
    T5PeftTrainer(None, args, None, RECORDS, None, tiny_tokenizer(), lambda: lora_wrap(tiny_t5())).train()


@pytest.mark.parametrize("loader", ["train", "eval", "test"])
@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_batches_of_the_loaders_are_inputs_of_the_model(loader: str, kind: Any, tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    trainer = trainer_of(T5PeftTrainer, model, tmp_path, kind(RECORDS), eval_dataset=kind(RECORDS))
    batches = {
        "train": trainer.get_train_dataloader,
        "eval": trainer.get_eval_dataloader,
        "test": lambda: trainer.get_test_dataloader(kind(RECORDS)),
    }[loader]()
    assert isinstance(batches, DataLoader)
    plain = DataCollatorForSeq2Seq(tiny_tokenizer(), model=tiny_t5())
    for number, batch in enumerate(batches):
        size = len(batch["input_ids"])
        expected = plain(RECORDS[number * size : (number + 1) * size])
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            name: tensor.tolist() for name, tensor in expected.items()
        }
        assert model(**batch).loss > 0


@pytest.mark.parametrize(
    ("head", "name", "kind"), sampled([False, True], ["label", "label_ids"], [list, Dataset.from_list], every=2)
)
def test_a_column_label_is_trained_and_evaluated_on(head: bool, name: str, kind: Any, tmp_path: Path) -> None:
    records = [{"input_ids": r["input_ids"], "labels": i % 3 if head else r["labels"]} for i, r in enumerate(RECORDS)]
    found = []
    for column in ("labels", name):
        data = kind([{"input_ids": record["input_ids"], column: record["labels"]} for record in records])
        trainer = trainer_of(T5PeftTrainer, tiny_classifier() if head else tiny_t5(), tmp_path, data)
        found.append(
            (
                losses_and_gradients(trainer)[0],
                trainer.evaluate(as_dataset(data))["eval_loss"],
                trainer.predict(as_dataset(data)).label_ids,
            )
        )
    assert found[0][:2] == found[1][:2]
    assert np.array_equal(array(found[0][2]), array(found[1][2]))


PADDINGS = {
    "labels by -100": lambda r: {**r, "labels": r["labels"] + [-100] * 3},
    "labels by the padding token": lambda r: {**r, "labels": r["labels"] + [PAD] * 3},
    "labels by both": lambda r: {**r, "labels": r["labels"] + [PAD, -100, PAD]},
    "labels on the left": lambda r: {**r, "labels": [PAD] * 3 + r["labels"]},
    "sources without a mask": lambda r: {**r, "input_ids": r["input_ids"] + [PAD] * 3},
    "sources on the left without a mask": lambda r: {**r, "input_ids": [PAD] * 3 + r["input_ids"]},
    "sources with a mask": lambda r: {
        **r, "input_ids": [9, *r["input_ids"], 9], "attention_mask": [0] + [1] * len(r["input_ids"]) + [0]
    },
    "arrays": lambda r: {name: np.array(row + [PAD] * 2) for name, row in r.items()},
    "tensors": lambda r: {name: torch.tensor(row + [PAD] * 2) for name, row in r.items()},
}  # fmt: skip


@pytest.mark.parametrize("padding", sampled(PADDINGS, every=2))
def test_padding_of_the_users_counts_nowhere(padding: str, tmp_path: Path) -> None:
    padded = [PADDINGS[padding](record) for record in RECORDS]
    found = []
    for data in (RECORDS, padded):
        trainer = trainer_of(T5PeftTrainer, tiny_t5(), tmp_path, data, predict_with_generate=True)
        losses = losses_and_gradients(trainer)[0]
        predicted = trainer.predict(as_dataset(data))
        found.append(
            (
                losses,
                (predicted.metrics or {})["test_loss"],
                array(predicted.predictions).tolist(),
                array(predicted.label_ids).tolist(),
            )
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("wrap", [full_wrap, lora_wrap])
def test_weights_in_float16_are_refused_whenever_they_came_to_be(wrap: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Got weights in float16, such as .*; expected float32 or bfloat16"):
        trainer_of(T5PeftTrainer, wrap(tiny_t5()).half(), tmp_path)
    trainer = trainer_of(T5PeftTrainer, wrap(tiny_t5()), tmp_path)
    model_of(trainer).half()
    with pytest.raises(ValueError, match="Got weights in float16"):
        trainer.train()
    made = trainer_of(T5PeftTrainer, wrap(tiny_t5()), tmp_path)
    model_of(made).get_submodule("shared").half()
    with pytest.raises(ValueError, match=r"Got weights in float16, such as .*shared"):
        made.evaluate(as_dataset(RECORDS))


@pytest.mark.parametrize(
    ("wrap", "damage"), sampled([full_wrap, lora_wrap], [None, "model", "state", "optimizer.pt"], every=2)
)
def test_a_whole_checkpoint_of_plain_trainer_is_resumed_from(wrap: Any, damage: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saving = {"save_strategy": "steps", "save_steps": 1}
    plain = trainer_of(Seq2SeqTrainer, wrap(tiny_t5()), tmp_path, max_steps=2, **saving)
    plain.train()
    newest = tmp_path / "checkpoint-2"
    assert not (newest / MANIFEST).exists()
    if damage is not None:
        name = {"model": next(newest.glob("*.safetensors")).name, "state": "trainer_state.json"}.get(damage, damage)
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[: len(content) // 2])
    torch.manual_seed(0)
    ours = trainer_of(T5PeftTrainer, wrap(tiny_t5()), tmp_path, max_steps=3)
    steps = []

    class Watch(GradientRecorder):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    ours.add_callback(Watch())
    ours.train(resume_from_checkpoint=True)
    assert steps == ([2] if damage is None else [1, 2])


# NaN


class Poisoned(T5ForConditionalGeneration):
    """A T5 whose loss is NaN for sources with the token 99."""

    def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids=input_ids, labels=labels, **kwargs)
        if input_ids is not None and (input_ids == 99).any():
            outputs["logits"] = outputs["logits"] * float("nan")
        return outputs


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_a_loss_that_is_nan_names_the_examples_it_came_from(kind: Any, tmp_path: Path) -> None:
    records = [{**record, "input_ids": [token for token in record["input_ids"] if token != 99]} for record in RECORDS]
    records[6] = {**records[6], "input_ids": [99, EOS]}
    model = tiny_t5()
    model.__class__ = Poisoned
    with pytest.raises(
        FloatingPointError, match=r"at step 2; all weights .*with such a loss, by .* in train_dataset: 6\. "
    ):
        trainer_of(T5PeftTrainer, model, tmp_path, kind(records)).train()


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_nan_is_told_at_its_own_step(clip: float, tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    name, weight = next((name, p) for name, p in model.named_parameters() if p.requires_grad)
    seen = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(gradient)
        return gradient * float("nan") if len(seen) == 2 else gradient

    weight.register_hook(spoil)
    trainer = trainer_of(
        T5PeftTrainer, model, tmp_path, max_steps=4, max_grad_norm=clip, pack=False, bucket_by_length=False
    )
    with pytest.raises(
        FloatingPointError, match=rf"NaN or infinity at step 2, whose loss is finite: \['{name}'\]; .*: 4, 5, 6, 7"
    ):
        trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_an_evaluation_leaves_the_random_numbers_of_the_next_epoch_as_plain_trainer_does(
    strategy: str, tmp_path: Path
) -> None:
    """Of torch's own generator: grouping by length draws the order of an epoch from it, and an evaluation's loader a seed."""

    class State(TrainerCallback):
        def __init__(self) -> None:
            self.states: list[torch.Tensor] = []

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.states.append(torch.get_rng_state())

        on_evaluate = on_epoch_begin

    found = []
    for kind in (T5PeftTrainer, Seq2SeqTrainer):
        state = State()
        more: dict[str, Any] = {"bucket_by_length": False} if kind is T5PeftTrainer else {}
        trainer = trainer_of(
            kind, tiny_t5(), tmp_path, max_steps=-1, num_train_epochs=3, eval_strategy="epoch", eval_dataset=RECORDS,
            per_device_train_batch_size=2, train_sampling_strategy=strategy, callbacks=[state], **more,
        )  # fmt: skip
        found.append((losses_and_gradients(trainer)[0], state.states))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.equal(ours, plain) for ours, plain in zip(found[0][1], found[1][1], strict=True))
