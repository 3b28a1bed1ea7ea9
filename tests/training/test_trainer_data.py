"""Data that the trainer takes or refuses, and evaluation and prediction on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from narrow import array, as_dataset, model_of
from tiny import EOS, PAD, tiny_classifier, tiny_config, tiny_records, tiny_t5, tiny_tokenizer
from torch.utils.data import DataLoader, IterableDataset
from trainers import arguments, losses_of, seeded
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PrinterCallback,
    T5EncoderModel,
    TrainerCallback,
)

from t5peft import T5PeftTrainer, full_wrap, lora_wrap
from t5peft.adapters.checkpoints import newest_complete


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(tiny_records(6))


@pytest.mark.parametrize(
    "make", [Stream, lambda: Dataset.from_list(tiny_records(6)).to_iterable_dataset()], ids=["torch", "datasets"]
)
def test_streams_are_trained_and_evaluated_on(make: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=5, logging_steps=1, predict_with_generate=True)
    trainer = T5PeftTrainer(lora_wrap(seeded(tiny_t5)), args, train_dataset=make(), eval_dataset=make())
    assert len(losses_of(trainer)) == 5  # two steps an epoch
    of_list = T5PeftTrainer(trainer.model, args, eval_dataset=tiny_records(6))
    assert trainer.evaluate()["eval_loss"] == of_list.evaluate()["eval_loss"]
    assert array(trainer.predict(as_dataset(make())).predictions).shape[0] == 6


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stream_is_resumed_in_any_epoch(accumulation: int, tmp_path: Path) -> None:
    losses = []
    for checkpoint in (None, "checkpoint-1", "checkpoint-3", "checkpoint-4", "checkpoint-5"):
        args = arguments(
            tmp_path, max_steps=6, logging_steps=1, per_device_train_batch_size=2, save_strategy="steps", save_steps=1,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        model = seeded(lambda: tiny_t5(dropout_rate=0.1))
        trainer = T5PeftTrainer(lora_wrap(model), args, train_dataset=Stream())  # of three batches
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / checkpoint))
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 6
    assert losses[1:] == [losses[0]] * 4


def test_a_stream_in_several_processes_is_refused_with_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path, dataloader_num_workers=1)
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=Stream())
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match=r"Got a stream in 2 processes with dataloader_num_workers=1; expected 0"):
        trainer.get_train_dataloader()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "an empty train_dataset; expected at least one record"),
        ([{"input_ids": [3, EOS], "labels": [-100, -100]}], "targets that are all padding"),
        ([{"input_ids": [], "labels": [3, EOS]}], "sources of no tokens"),
        ([{"input_ids": [3, EOS], "target": [3, EOS]}], "expected `input_ids` and `labels`"),
        (
            [{"input_ids": [384, EOS], "labels": [3, EOS]}],
            "`input_ids` reach from 1 to 384; expected 0 to 383 .do the tok",
        ),
        (
            [{"input_ids": [3, EOS], "labels": [3, -100, 384]}],
            "`labels` reach from 3 to 384; expected 0 to 383, or -100 to ignore",
        ),
        ([{"input_ids": [3, EOS], "labels": [-1, EOS]}], "`labels` reach from -1 to 1; expected 0 to 383, or -100"),
        (
            [{"input_ids": [3, EOS]}, {"input_ids": [3, EOS], "labels": [3, EOS]}],
            "examples of which 1 of 2 have no `labels`; expected it in all",
        ),
        (
            (record for record in tiny_records(4)),
            "a generator as train_dataset, which can be read once; expected records",
        ),
        (Dataset.from_list(tiny_records(4)).with_format("arrow"), "train_dataset in the format of Arrow"),
        (["text"], r"Got 'text' \(str\) as an example; expected a mapping with `input_ids`"),
        ([{"input_ids": [3, EOS], "labels": 2}], "`labels` such as 2; expected a list of token ids"),
        ([{"input_ids": [3, EOS], "labels": None}], "`labels` such as None; expected a list of token ids"),
        ([{"input_ids": [3, EOS], "labels": [0.5]}], r"`labels` such as \[0.5\]; expected a list of token ids"),
        (
            [{"input_ids": torch.tensor([[3, EOS]]), "labels": [3]}],
            r"`input_ids` such as \[\[3, 1\]\]; expected a list",
        ),
        (
            DatasetDict(train=Dataset.from_list([{"input_ids": [3], "labels": [3]}])),
            r"train_dataset .*'train'\]; .* one",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_ends_in_one_clear_error(records: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path), train_dataset=records).train()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "`labels` reach from 3 to 3; expected 0 to 2, or -100"),
        (2.0, "`labels` such as 2.0; expected one class, a whole number"),
        ("2", "`labels` such as '2'; expected one class, a whole number"),
        ([2], r"`labels` such as \[2\]; expected a list of 3 labels from 0 to 1"),
        (None, "`labels` such as None; expected one class, a whole number"),
    ],
    ids=repr,
)
def test_a_label_that_is_no_class_ends_in_one_clear_error(label: Any, message: str, tmp_path: Path) -> None:
    records = [{"input_ids": [3, EOS], "labels": label}]
    trainer = T5PeftTrainer(tiny_classifier(), arguments(tmp_path), train_dataset=records, eval_dataset=records)
    for use in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=message):
            use()


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_data_that_cannot_be_evaluated_on_ends_in_one_clear_error(tmp_path: Path) -> None:
    args, misspelt = arguments(tmp_path), [{"input_ids": [3, EOS], "lables": [3, EOS]}]
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args)
    for data, message in (
        ({"a": tiny_records(2), "b": misspelt}, r"eval_dataset\['b'\] has a column 'lables' and none called 'labels'"),
        ({"a": tiny_records(2), "b": []}, r"an empty eval_dataset\['b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            T5PeftTrainer(lora_wrap(tiny_t5()), args, eval_dataset=data)
    for use in (trainer.evaluate, trainer.predict):
        nothing: list[Any] = [[], Nothing()]
        for empty in nothing:
            with pytest.raises(ValueError, match=r"Got an empty .*; expected at least one record"):
                use(as_dataset(empty))
        for wrong in (misspelt, Dataset.from_list(misspelt)):
            with pytest.raises(ValueError, match="has a column 'lables' and none called 'labels'"):
                use(as_dataset(wrong))
    with pytest.raises(ValueError, match="`labels` reach from 1 to 500; expected 0 to 383"):
        trainer.evaluate(as_dataset([{"input_ids": [3, EOS], "labels": [500, EOS]}]))


def test_predictions_and_labels_hold_no_minus_100_and_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    records = tiny_records(7)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions, prediction.label_ids))
        return {"rows": float(len(prediction.predictions))}

    model = lora_wrap(tiny_t5())
    args = arguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=3)
    trainer = T5PeftTrainer(
        model, args, eval_dataset=records, compute_metrics=metrics, processing_class=tiny_tokenizer()
    )
    scores = trainer.evaluate()
    predictions, labels = seen[0]
    assert scores["eval_rows"] == 7
    assert (predictions >= 0).all()
    assert [row[: len(r["labels"])].tolist() for row, r in zip(labels, records, strict=True)] == [
        r["labels"] for r in records
    ]
    limit = max(len(record["labels"]) for record in records)
    for row, record in zip(predictions, records, strict=True):
        alone = model.generate(input_ids=torch.tensor([record["input_ids"]]), max_new_tokens=limit)[0, 1:].tolist()
        assert [token for token in row.tolist() if token != PAD] == [token for token in alone if token != PAD]
    assert tiny_tokenizer().batch_decode(labels)
    ended = [EOS in row.tolist() for row in predictions]
    assert scores["eval_cut_share"] == pytest.approx(1 - sum(ended) / 7)


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["list", "datasets"])
def test_a_collator_of_the_users_evaluates_and_predicts_what_the_default_one_does(make: Any, tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    args = arguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=2)
    labelled = [{**record, "text": "as it was"} for record in tiny_records(5)]
    unlabelled = [{"input_ids": record["input_ids"], "text": "as it was"} for record in labelled]
    found = []
    for collator in (None, DataCollatorForSeq2Seq(tiny_tokenizer(), model=model)):
        trainer = T5PeftTrainer(model, args, data_collator=collator)
        predicted = trainer.predict(make(unlabelled), max_new_tokens=6)
        assert predicted.label_ids is None
        found.append((trainer.evaluate(as_dataset(make(labelled)))["eval_loss"], array(predicted.predictions).tolist()))
    assert found[1] == (pytest.approx(found[0][0], rel=1e-6), found[0][1])


def test_labels_that_begin_with_minus_100_come_back_padded(tmp_path: Path) -> None:
    records = [{"input_ids": [5, EOS], "labels": [-100, 7, -100, EOS]}, {"input_ids": [5, EOS], "labels": [7, EOS]}]
    args = arguments(tmp_path, predict_with_generate=True)
    output = T5PeftTrainer(lora_wrap(tiny_t5()), args).predict(as_dataset(records))
    assert array(output.label_ids).tolist() == [[PAD, 7, PAD, EOS], [7, EOS, PAD, PAD]]


def test_callbacks_see_the_data_of_an_evaluation_and_the_printer_goes_by_its_name(tmp_path: Path) -> None:
    class Watch(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(len(kwargs["eval_dataloader"]))

    seen: list[int] = []
    args = arguments(tmp_path, per_device_eval_batch_size=2)
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, eval_dataset=tiny_records(5), callbacks=[Watch()])
    trainer.evaluate()
    assert seen == [3, 3, 3]
    before = len(trainer.callback_handler.callbacks)
    trainer.remove_callback(PrinterCallback)
    assert len(trainer.callback_handler.callbacks) == before - 1


def test_prediction_works_without_labels(tmp_path: Path) -> None:
    records = [{"input_ids": record["input_ids"]} for record in tiny_records(5)]
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path, predict_with_generate=True))
    output = trainer.predict(as_dataset(records), max_new_tokens=6)
    assert array(output.predictions).shape[0] == 5
    assert output.label_ids is None


def test_a_model_is_left_without_dropout_by_evaluation(tmp_path: Path) -> None:
    trainer = T5PeftTrainer(lora_wrap(tiny_t5(dropout_rate=0.3)), arguments(tmp_path), train_dataset=tiny_records(4))
    for evaluation in (trainer.evaluate, trainer.predict):
        trainer.train()
        assert model_of(trainer).training
        evaluation(as_dataset(tiny_records(4)))
        assert not model_of(trainer).training


@pytest.mark.parametrize("wrap", [full_wrap, lora_wrap])
@pytest.mark.parametrize("by", ["arguments", "model"])
def test_a_generation_config_is_followed(by: str, wrap: Any, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=2, decoder_start_token_id=PAD, eos_token_id=EOS, pad_token_id=PAD)
    model = tiny_t5()
    if by == "model":
        model.generation_config = config
    args = arguments(tmp_path, predict_with_generate=True, generation_config=config if by == "arguments" else None)
    trainer = T5PeftTrainer(wrap(model), args)
    assert array(trainer.predict(as_dataset(tiny_records(3))).predictions).shape == (3, 2)
    assert array(trainer.predict(as_dataset(tiny_records(3)), max_new_tokens=4).predictions).shape == (3, 4)


@pytest.mark.parametrize("options", [{"max_new_tokens": 2}, {"max_length": 3}, {"max_new_tokens": 2, "num_beams": 2}])
def test_a_generation_config_of_one_prediction_is_followed(options: dict[str, Any], tmp_path: Path) -> None:
    config = GenerationConfig(
        decoder_start_token_id=PAD, eos_token_id=EOS, pad_token_id=PAD, return_dict_in_generate=True, **options
    )
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path, predict_with_generate=True))
    found = trainer.predict(as_dataset(tiny_records(3)), generation_config=config)
    assert array(found.predictions).shape == (3, 2)
    assert ("test_cut_share" in (found.metrics or {})) == ("max_new_tokens" in options)
    longer = trainer.predict(as_dataset(tiny_records(3)), generation_config=config, max_new_tokens=4)
    assert array(longer.predictions).shape == (3, 4)


def test_a_classification_head_is_trained_and_its_scores_reach_the_metrics(tmp_path: Path) -> None:
    records = [{"input_ids": record["input_ids"], "labels": i % 3} for i, record in enumerate(tiny_records(9))]
    model = lora_wrap(tiny_classifier())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = T5PeftTrainer(
        model,
        arguments(tmp_path, max_steps=40, learning_rate=3e-2),
        train_dataset=records,
        eval_dataset=records,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert any("classification_head" in name for name in before)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert trainer.evaluate()["eval_accuracy"] > 0.8


def test_eval_loss_is_the_mean_over_target_tokens_for_every_batch_size(tmp_path: Path) -> None:
    records = tiny_records(7)
    model = tiny_t5()
    summed, tokens = 0.0, 0
    with torch.no_grad():
        for record in records:
            labels = torch.tensor([record["labels"]])
            loss = model(input_ids=torch.tensor([record["input_ids"]]), labels=labels).loss
            summed, tokens = summed + float(loss) * labels.numel(), tokens + labels.numel()
    for size in (1, 3, 7):
        trainer = T5PeftTrainer(model, arguments(tmp_path, per_device_eval_batch_size=size), eval_dataset=records)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(summed / tokens, rel=1e-6)


@pytest.mark.parametrize("head", [False, True], ids=["text", "class head"])
def test_eval_loss_is_the_plain_cross_entropy_whatever_training_adds_to_it(head: bool, tmp_path: Path) -> None:
    records = [{**record, "labels": 1} for record in tiny_records(4)] if head else tiny_records(4)
    losses = []
    for added in ({}, {"label_smoothing_factor": 0.1, "z_loss": 0.0 if head else 0.01}):
        model = tiny_classifier() if head else tiny_t5()
        losses.append(T5PeftTrainer(model, arguments(tmp_path, **added), eval_dataset=records).evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_an_example_without_a_class_does_not_count_in_the_loss_of_a_class_head(tmp_path: Path) -> None:
    records = [{**record, "labels": i % 3} for i, record in enumerate(tiny_records(4))]
    trainer = T5PeftTrainer(tiny_classifier(), arguments(tmp_path))
    with_more = trainer.evaluate(as_dataset([*records, {**records[0], "labels": -100}]))
    assert with_more["eval_loss"] == pytest.approx(trainer.evaluate(as_dataset(records))["eval_loss"], rel=1e-6)


def test_a_model_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"T5EncoderModel .expected a T5 with a head for text, classes or spans"):
        T5PeftTrainer(T5EncoderModel(tiny_config()), arguments(tmp_path), train_dataset=tiny_records(4))


def test_z_loss_of_a_class_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="z_loss for a classification head"):
        T5PeftTrainer(tiny_classifier(), arguments(tmp_path, z_loss=1e-4))


def words_of(records: list[dict[str, list[int]]]) -> list[dict[str, Any]]:
    return [{"source": record["input_ids"], "target": record["labels"]} for record in records]


def collate_words(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def pad(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in lists], True, value)

    sources, labels = pad([row["source"] for row in rows], PAD), pad([row["target"] for row in rows], -100)
    return {"input_ids": sources, "labels": labels}


def test_a_collator_that_makes_the_tokens_evaluates_and_predicts(tmp_path: Path) -> None:
    records = tiny_records(8, shortest=5, longest=5)
    kept: dict[str, Any] = {}

    def keep(predictions: Any) -> dict[str, float]:
        kept[str(len(kept))] = predictions
        return {"n": len(predictions.label_ids)}

    found = []
    for data, collator in ((records, None), (words_of(records), collate_words)):
        args = arguments(tmp_path, remove_unused_columns=False, predict_with_generate=True, max_steps=1)
        options: dict[str, Any] = {
            "train_dataset": data,
            "eval_dataset": data,
            "data_collator": collator,
            "compute_metrics": keep,
        }
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, **options)
        found.append(trainer.evaluate(max_new_tokens=6))
        trainer.train()
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
    assert found[1]["eval_n"] == 8
    for part in ("predictions", "label_ids"):
        assert np.array_equal(getattr(kept["0"], part), getattr(kept["1"], part))


def test_a_loader_of_ones_own_is_trained_on_and_its_checkpoints_are_sealed(tmp_path: Path) -> None:
    class OwnLoader(T5PeftTrainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(
                DataLoader(as_dataset(tiny_records(16)), batch_size=4, collate_fn=self.data_collator)
            )

    OwnLoader(lora_wrap(tiny_t5()), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)).train()
    assert newest_complete(tmp_path) is not None
