"""The scores on a card have intervals, and those of a simple answer beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_t5, tiny_tokenizer

from t5peft import Task, lora_wrap, save_adapter
from t5peft.training.card import interval, score_run, simple_answer_of, write_run_card
from t5peft.training.config import TrainConfig

LABELS = Task("mood", "mood: {text}", "{mood}", {"0": "bad", "1": "good"}, ("accuracy", "f1"))
FREE = Task("copy", "copy: {text}", "{text}", metrics=("bleu",), max_target_length=32)
RECORDS = [{"text": f"one two three four {i}", "mood": str(int(i % 4 > 0))} for i in range(8)]
SPLITS = {"train": RECORDS, "validation": RECORDS[:4], "test": RECORDS}


def test_intervals_cover_right_and_wrong_answers_and_other_scores() -> None:
    low, high = interval([1.0] * 8)
    assert low == pytest.approx(0.676, abs=1e-3)  # Wilson's, where the bootstrap would say [1, 1]
    assert high == 1.0
    low, high = interval([1.0] * 50 + [0.0] * 50)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
    low, high = interval([0.2, 0.4] * 50)
    assert 0.27 < low < 0.3 < high < 0.33


def test_the_card_has_the_most_frequent_label_beside_the_scores(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5(), rank=1)
    model.peft_config["default"].base_model_name_or_path = "google/flan-t5-base"
    folder = save_adapter(model, tmp_path / "adapter")
    run = score_run(model, tiny_tokenizer(), LABELS, SPLITS)
    test = next(score for score in run.card if score.split == "test")
    assert (test.metric, test.baseline, test.records) == ("accuracy", 0.75, 8)  # six of eight are good
    assert test.value == run.scores["test"]["accuracy"]
    assert test.interval is not None
    assert test.interval[0] <= test.value <= test.interval[1]
    config = TrainConfig(method="lora", options={"rank": 1}, learning_rate=1e-3, steps=20, batch_size=4)
    card = write_run_card(folder, LABELS, SPLITS, config, run.card).read_text()
    for line in (
        "base_model: google/flan-t5-base",
        "- Trained on: 8 records, 20 steps of 4, seed 0",
        "- Options: rank=1",
        "| split | score | value | 95 % interval | most frequent label | records |",
        "- Labels: 0 (bad), 1 (good)",
    ):
        assert line in card
    assert "Describe here" not in card


def test_a_free_answer_is_compared_with_a_copy_and_a_score_of_a_corpus_has_no_interval(tmp_path: Path) -> None:
    run = score_run(tiny_t5(), tiny_tokenizer(), FREE, {"train": RECORDS, "test": RECORDS[:2]})
    assert simple_answer_of(FREE) == "copy of the source"
    assert [(score.split, score.baseline, score.interval) for score in run.card] == [
        ("test", pytest.approx(100.0), None)
    ]
