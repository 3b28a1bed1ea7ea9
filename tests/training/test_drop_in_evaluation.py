"""The user's own code of evaluation and prediction means the same in both trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow import array, as_dataset, generate
from tiny import tiny_t5, tiny_tokenizer
from trainers import RECORDS, trainer_of, with_loss
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
)

from t5peft import T5PeftTrainer

# Evaluation by the user's own code


class Recorder:
    """Counts what prediction_step gets."""

    seen: list[int]

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        self.seen = [*getattr(self, "seen", []), len(inputs["input_ids"])]
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)  # type: ignore[misc]
        return 2 * loss, logits, labels


def test_an_overridden_prediction_step_is_called_for_every_batch(tmp_path: Path) -> None:
    found = []
    for kind in (T5PeftTrainer, Seq2SeqTrainer):
        trainer = trainer_of(with_loss(Recorder, kind), tiny_t5(), tmp_path, per_device_eval_batch_size=4)
        found.append((trainer.evaluate(as_dataset(RECORDS))["eval_loss"], trainer.seen))  # type: ignore[attr-defined]
    assert found[0][1] == found[1][1] == [4, 4]
    # plain takes the mean of the batches' means; ours are exact, and then doubled by the user
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)


def keep(found: dict[str, Any]) -> Any:
    def compute_metrics(prediction: Any) -> dict[str, float]:
        found["prediction"] = prediction
        return {"rows": len(prediction.label_ids)}

    return compute_metrics


def best_tokens(logits: Any, labels: Any) -> torch.Tensor:
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


@pytest.mark.parametrize("preprocess", [None, best_tokens])
@pytest.mark.parametrize("concatenate", [True, False])
def test_metrics_get_logits_labels_inputs_and_losses_as_from_plain_trainer(
    preprocess: Any, concatenate: bool, tmp_path: Path
) -> None:
    predictions = []
    for kind in (T5PeftTrainer, Seq2SeqTrainer):
        found: dict[str, Any] = {}
        trainer = trainer_of(
            kind, tiny_t5(), tmp_path, compute_metrics=keep(found), preprocess_logits_for_metrics=preprocess,
            include_for_metrics=["inputs", "loss"], per_device_eval_batch_size=2, eval_do_concat_batches=concatenate,
        )  # fmt: skip
        assert trainer.evaluate(as_dataset(RECORDS))["eval_rows"] == (8 if concatenate else 4)
        predictions.append(found["prediction"])
    ours, plain = predictions
    assert_same_arrays(ours.predictions, plain.predictions)
    assert_same_arrays(ours.label_ids, plain.label_ids)
    assert_same_arrays(ours.inputs, plain.inputs)
    assert np.allclose(np.ravel(ours.losses), np.ravel(plain.losses), rtol=1e-5)


def assert_same_arrays(ours: Any, plain: Any) -> None:
    if isinstance(plain, tuple | list):
        assert len(ours) == len(plain)
        for one, other in zip(ours, plain, strict=True):
            assert_same_arrays(one, other)
    else:
        assert ours.shape == plain.shape
        assert np.allclose(ours, plain, atol=1e-5)


def test_logits_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    predicted = [
        trainer_of(kind, tiny_t5(), tmp_path, per_device_eval_batch_size=3).predict(as_dataset(RECORDS))
        for kind in (T5PeftTrainer, Seq2SeqTrainer)
    ]
    longest = max(len(record["labels"]) for record in RECORDS)
    assert predicted[0].predictions[0].shape[:2] == (8, longest)
    assert_same_arrays(predicted[0].label_ids, predicted[1].label_ids)
    for row, record in enumerate(RECORDS):
        length = len(record["labels"])
        assert np.allclose(
            predicted[0].predictions[0][row, :length], predicted[1].predictions[0][row, :length], atol=1e-4
        )


@pytest.mark.parametrize("collator", [None, DataCollatorForSeq2Seq(tiny_tokenizer(), model=tiny_t5())])
def test_several_answers_an_example_are_predicted(collator: Any, tmp_path: Path) -> None:
    model = tiny_t5()
    trainer = trainer_of(
        T5PeftTrainer, model, tmp_path, data_collator=collator, predict_with_generate=True, per_device_eval_batch_size=3
    )
    output = trainer.predict(as_dataset(RECORDS[:4]), num_beams=3, num_return_sequences=3, max_new_tokens=5)
    assert array(output.predictions).shape[0] == 12
    assert array(output.label_ids).shape[0] == 4
    for index, record in enumerate(RECORDS[:4]):
        alone = generate(
            model, input_ids=torch.tensor([record["input_ids"]]), num_beams=3, num_return_sequences=3, max_new_tokens=5
        )[:, 1:]
        got = array(output.predictions)[3 * index : 3 * index + 3, : alone.shape[1]]
        assert got.tolist() == alone.tolist()
