"""Every head that transformers has for T5 is trained, evaluated, saved and loaded, and has the loss that transformers gives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow import as_dataset
from stacks import quiet_arguments
from tiny import EOS, fill_unevenly, tiny_config, tiny_records, tiny_t5
from trainers import losses_and_gradients, trainer_of
from transformers import EvalPrediction, T5ForQuestionAnswering, T5ForSequenceClassification, T5ForTokenClassification

from t5peft import METHODS, T5PeftTrainer, load_adapter, lora_wrap, save_adapter
from t5peft.models.encoders import T5EncoderForSequenceClassification
from t5peft.training.heads import head_of

SOURCES = [record["input_ids"] for record in tiny_records(8)]


def model_of(kind: Any, **config: Any) -> Any:
    return fill_unevenly(kind(tiny_config(**config))).eval()


def records_of(labels: Any) -> list[dict[str, Any]]:
    return [{"input_ids": source, "labels": labels(i, source)} for i, source in enumerate(SOURCES)]


def spans(i: int, source: list[int]) -> dict[str, int]:
    return {"start_positions": i % len(source), "end_positions": len(source) - 1}


# name: the class, its config, the labels, and the type of labels that the model takes
HEADS: dict[str, tuple[Any, dict[str, Any], Any, Any]] = {
    "one class": (T5ForSequenceClassification, {"num_labels": 3}, lambda i, s: i % 3, torch.long),
    "bools of one class": (T5ForSequenceClassification, {"num_labels": 2}, lambda i, s: i % 2 == 0, torch.long),
    "one number": (T5ForSequenceClassification, {"num_labels": 1}, lambda i, s: 0.25 * i, torch.float),
    "whole numbers": (T5ForSequenceClassification, {"num_labels": 1}, lambda i, s: i, torch.float),
    "minus one hundred": (T5ForSequenceClassification, {"num_labels": 1}, lambda i, s: -100.0 - i, torch.float),
    "numbers": (
        T5ForSequenceClassification,
        {"num_labels": 2, "problem_type": "regression"},
        lambda i, s: [0.5 * i, -1.0],
        torch.float,
    ),
    "labels": (T5ForSequenceClassification, {"num_labels": 3}, lambda i, s: [0, i % 2, 1], torch.float),
    "bools of labels": (T5ForSequenceClassification, {"num_labels": 3}, lambda i, s: [False, i % 2 == 0, True], torch.float),
    "named labels": (
        T5ForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda i, s: np.array([1.0, 0.0, i % 2]),
        torch.float,
    ),
    "tokens": (
        T5ForTokenClassification,
        {"num_labels": 4},
        lambda i, s: [-100 if j == 1 else (i + j) % 4 for j in range(len(s))],
        torch.long,
    ),
    "class of an encoder": (T5EncoderForSequenceClassification, {"num_labels": 3}, lambda i, s: i % 3, torch.long),
    "number of an encoder": (T5EncoderForSequenceClassification, {"num_labels": 1}, lambda i, s: 0.25 * i, torch.float),
    "named labels of an encoder": (
        T5EncoderForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda i, s: [1.0, 0.0, i % 2],
        torch.float,
    ),
}  # fmt: skip
SPANS = [{"input_ids": source, **spans(i, source)} for i, source in enumerate(SOURCES)]


def case(name: str) -> tuple[Any, list[dict[str, Any]]]:
    if name == "spans":
        return model_of(T5ForQuestionAnswering, num_labels=2), SPANS
    kind, config, labels, _ = HEADS[name]
    return model_of(kind, **config), records_of(labels)


every_head = pytest.mark.parametrize("name", [*HEADS, "spans"])


def loss_of_model(name: str, model: Any, record: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """The loss that transformers gives one example, without padding, and its number of items."""
    inputs = {"input_ids": torch.tensor([record["input_ids"]])}
    if name == "spans":
        positions = {key: torch.tensor([record[key]]) for key in ("start_positions", "end_positions")}
        return model(**inputs, **positions).loss, 1
    labels = torch.tensor(np.array([record["labels"]])).to(HEADS[name][3])
    if name == "labels" or "bools of labels" in name:
        labels = labels.float()
    items = int((labels != -100).sum()) if name == "tokens" else 1
    return model(**inputs, labels=labels).loss, items


@every_head
@pytest.mark.parametrize("cutting", [{"tokens_per_micro_batch": 30}, {"bucket_by_length": False}], ids=str)
def test_a_step_has_the_loss_and_gradient_of_transformers_on_each_example(
    name: str, cutting: dict[str, Any], tmp_path: Path
) -> None:
    model, records = case(name)
    found = [loss_of_model(name, model, record) for record in records]
    expected = sum(loss * items for loss, items in found) / sum(items for _, items in found)
    assert isinstance(expected, torch.Tensor)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    gradients = {n: g for (n, _), g in zip(model.named_parameters(), wanted, strict=True) if g is not None}
    fresh, _ = case(name)
    trainer = trainer_of(T5PeftTrainer, fresh, tmp_path, records, max_steps=1, per_device_train_batch_size=8, **cutting)
    losses, steps = losses_and_gradients(trainer)
    expected = expected.detach()
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    for parameter, gradient in gradients.items():
        assert torch.allclose(steps[0][parameter], gradient, rtol=1e-3, atol=1e-5 * float(expected)), parameter


@every_head
def test_an_evaluation_is_exact_and_scores_come_in_the_order_of_the_data(name: str, tmp_path: Path) -> None:
    model, records = case(name)
    with torch.no_grad():
        found = [loss_of_model(name, model, record) for record in records]
    expected = sum(float(loss) * items for loss, items in found) / sum(items for _, items in found)
    for size in (3, 8):
        trainer = trainer_of(T5PeftTrainer, model, tmp_path, records, per_device_eval_batch_size=size)
        output = trainer.predict(as_dataset(records))
        labels_of: Any = output.label_ids
        assert output.metrics is not None
        assert output.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
        for row, record in enumerate(records):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([record["input_ids"]]))
            if name == "spans":
                length = len(record["input_ids"])
                for scores, one in zip(output.predictions, (alone.start_logits, alone.end_logits), strict=True):
                    assert np.allclose(scores[row, :length], one[0].numpy(), atol=1e-4)
                    assert (scores[row, length:] == -100).all()
                assert labels_of[0][row] == record["start_positions"]
                assert labels_of[1][row] == record["end_positions"]
            else:
                scores = alone.logits[0].numpy()
                assert np.allclose(output.predictions[row][: len(scores)], scores, atol=1e-4)
                labels = np.atleast_1d(np.array(record["labels"], dtype=float))
                assert np.atleast_1d(labels_of[row])[: len(labels)].tolist() == pytest.approx(labels.tolist())


@every_head
def test_data_without_labels_are_predicted(name: str, tmp_path: Path) -> None:
    model, records = case(name)
    trainer = trainer_of(T5PeftTrainer, model, tmp_path, records)
    output = trainer.predict(as_dataset([{"input_ids": record["input_ids"]} for record in records]))
    assert output.label_ids is None
    assert output.metrics is not None
    assert "test_loss" not in output.metrics


FITTING = [method for method in METHODS if METHODS[method].quantize is None and method not in ("full", "ladder")]


TRAINED = ["one class", "one number", "labels", "tokens", "spans", "class of an encoder"]


def pairs_of_head_and_method() -> Iterator[Any]:
    """Every head with every method; two heads of each method and four methods of each head are not slow."""
    for place, name in enumerate(TRAINED):
        for index, method in enumerate(FITTING):
            yield pytest.param(name, method, marks=[] if (place + index) % 3 == 0 else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "method"), list(pairs_of_head_and_method()))
def test_every_method_trains_saves_and_loads_every_head(name: str, method: str, tmp_path: Path) -> None:
    base, records = case(name)
    torch.manual_seed(0)
    try:
        model = METHODS[method].wrap(base)
    except ValueError as error:
        pytest.skip(f"{method} does not fit this model: {error}")
    trainer = trainer_of(T5PeftTrainer, model, tmp_path / "run", records, learning_rate=1e-2, max_steps=3)
    before = trainer.evaluate(as_dataset(records))["eval_loss"]
    trainer.train()
    after = trainer.evaluate(as_dataset(records))["eval_loss"]
    assert after != before
    save_adapter(model, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter", model=case(name)[0])
    again = trainer_of(T5PeftTrainer, loaded, tmp_path / "again", records).evaluate(as_dataset(records))["eval_loss"]
    assert again == pytest.approx(after, rel=1e-6)


def test_a_model_keeps_the_problem_type_that_its_labels_decided(tmp_path: Path) -> None:
    for name, problem in (
        ("one class", "single_label_classification"), ("one number", "regression"), ("labels", "multi_label_classification")
    ):  # fmt: skip
        model, records = case(name)
        trainer_of(T5PeftTrainer, model, tmp_path, records, max_steps=1).train()
        assert model.config.problem_type == problem


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("one number", "x", "`labels` such as 'x'; expected one number"),
        ("one number", float("nan"), "`labels` such as nan; expected one number"),
        ("numbers", [1.0], r"`labels` such as \[1.0\]; expected a list of 2 numbers"),
        ("named labels", [0, 1, 2], r"`labels` such as \[0, 1, 2\]; expected a list of 3 labels from 0 to 1"),
        ("tokens", [1, 2], r"such as \(\[1, 2\], .*expected a list with one class for each of so many source tokens"),
        ("tokens", [9] * len(SOURCES[0]), "`labels` reach from 9 to 9; expected 0 to 3, or -100"),
    ],
)
def test_labels_that_a_head_cannot_learn_end_in_one_clear_error(
    name: str, label: Any, message: str, tmp_path: Path
) -> None:
    model, _ = case(name)
    with pytest.raises(ValueError, match=message):
        trainer_of(T5PeftTrainer, model, tmp_path, [{"input_ids": SOURCES[0], "labels": label}]).train()


def test_a_span_outside_its_source_does_not_count(tmp_path: Path) -> None:
    model, records = case("spans")
    outside = [*records, {"input_ids": [5, EOS], "start_positions": 7, "end_positions": -1}]
    trainer = trainer_of(T5PeftTrainer, model, tmp_path, records)
    assert trainer.evaluate(as_dataset(outside))["eval_loss"] == pytest.approx(
        trainer.evaluate(as_dataset(records))["eval_loss"], rel=1e-6
    )


@pytest.mark.parametrize("name", ["one number", "spans"])
def test_label_smoothing_of_what_is_no_class_is_refused(name: str, tmp_path: Path) -> None:
    model, records = case(name)
    with pytest.raises(ValueError, match="label_smoothing_factor for numbers, spans or pairs"):
        trainer_of(T5PeftTrainer, model, tmp_path, records, label_smoothing_factor=0.1)


@pytest.mark.parametrize("name", ["text", *HEADS, "spans"])
def test_a_batch_without_labels_has_a_loss_and_a_gradient_of_zero(name: str) -> None:
    """As of a process that has no example left in the last step of an epoch."""
    model, records = (tiny_t5(), tiny_records(3)) if name == "text" else case(name)
    head = head_of(model)
    assert head is not None
    batch = head.collate([head.unpad(record) for record in records[:2]])
    again = head.collate(head.split(head.without_labels(batch)))
    loss, items = head.loss(model.train(), again)
    loss.backward()
    assert (loss.item(), items) == (0, 0)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 5
    assert not any(gradient.any() for gradient in gradients)


def test_scores_of_a_head_reach_the_metrics(tmp_path: Path) -> None:
    model, records = case("one class")
    found: list[Any] = []
    arguments = quiet_arguments(tmp_path, {})
    assert arguments["use_cpu"]

    def keep(prediction: EvalPrediction) -> dict[str, float]:
        found.append(prediction)
        return {"n": 1}

    trainer = trainer_of(T5PeftTrainer, lora_wrap(model), tmp_path, records, compute_metrics=keep)
    assert trainer.evaluate(as_dataset(records))["eval_n"] == 1
    assert found[0].predictions.shape == (8, 3)
    assert found[0].label_ids.tolist() == [i % 3 for i in range(8)]
