"""A run that resumes with other training data than it began with says so."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_records, tiny_t5
from trainers import arguments

from t5peft import T5PeftTrainer, lora_wrap
from t5peft.data.content import content_of


@pytest.mark.parametrize(
    ("examples", "seed", "message"),
    [
        (8, 0, None),
        (9, 0, "(examples 9, not 8)"),
        (8, 3, "(seed 3, not 0)"),
        (9, 3, "(examples 9, not 8, seed 3, not 0)"),
    ],
)
def test_resuming_with_other_data_says_so(
    examples: int, seed: int, message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for records, order, steps in ((8, 0, 1), (examples, seed, 2)):
        args = arguments(tmp_path, save_strategy="steps", max_steps=steps, seed=order)
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(records))
        trainer.train(resume_from_checkpoint=steps == 2)
    said = [text for text in caplog.messages if "from a run with other training data" in text]
    assert len(said) == (message is not None)
    assert message is None or message in said[0]


class Drawn(list[Any]):
    """Records of which each is another one at every reading."""

    def __getitem__(self, place: Any) -> Any:
        record = super().__getitem__(place)
        return record | {
            "input_ids": [*torch.randint(3, 99, (4,)).tolist(), np.random.randint(3, 99), random.randint(3, 99), 1]
        }


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (tiny_records(8), tiny_records(8, seed=1), 1),
        (tiny_records(8), tiny_records(8)[::-1], 1),
        (tiny_records(600), [*tiny_records(600)[:-1], {"input_ids": [5, 1], "labels": [6, 1]}], 1),
        (tiny_records(8), Dataset.from_list(tiny_records(8)), 0),
        (tiny_records(8), [{name: torch.tensor(ids) for name, ids in row.items()} for row in tiny_records(8)], 0),
        (Drawn(tiny_records(8)), Drawn(tiny_records(8)), 0),
    ],
    ids=["others", "reversed", "the last one", "as arrow", "as tensors", "drawn"],
)
def test_resuming_with_other_records_of_the_same_number_says_so(
    first: Any, second: Any, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for records, steps in ((first, 1), (second, 2)):
        args = arguments(tmp_path, save_strategy="steps", max_steps=steps)
        T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=records).train(resume_from_checkpoint=steps == 2)
    assert caplog.text.count("from a run with other training data (content ") == said


def test_a_checkpoint_without_a_hash_of_the_data_resumes_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.training.checkpoints.content_of", lambda _: None)
    T5PeftTrainer(
        lora_wrap(tiny_t5()), arguments(tmp_path, save_strategy="steps", max_steps=1), train_dataset=tiny_records(8)
    ).train()
    monkeypatch.undo()
    args = arguments(tmp_path, save_strategy="steps", max_steps=2)
    T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8, seed=1)).train(resume_from_checkpoint=True)
    assert "other training data" not in caplog.text


def test_the_hash_of_the_data_draws_no_random_number() -> None:
    records = Drawn(tiny_records(8))
    for generator in (torch.get_rng_state, random.getstate, np.random.get_state):
        before = generator()
        assert content_of(records) is None
        assert str(generator()) == str(before)


@pytest.mark.parametrize(
    ("second", "metric", "said"),
    [
        (tiny_records(4, seed=1), "eval_loss", 1),
        (tiny_records(4), "eval_loss", 0),
        (tiny_records(4, seed=1), None, 0),
        ({"one": tiny_records(4)}, "eval_loss", 1),
        (None, "eval_loss", 0),
    ],
    ids=["others", "the same", "nothing is compared", "several", "none"],
)
def test_resuming_with_other_validation_data_says_so(
    second: Any, metric: str | None, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for records, steps in ((tiny_records(4), 1), (second, 2)):
        args = arguments(tmp_path, save_strategy="steps", max_steps=steps, metric_for_best_model=metric)
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8), eval_dataset=records)
        trainer.train(resume_from_checkpoint=steps == 2)
    assert caplog.text.count("from a run with other validation data") == said
    assert "other training data" not in caplog.text
