"""Baselines: what a task gives away without training."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny

from t5peft.benchmark.baselines import BASELINES, baselines_of
from t5peft.benchmark.configs import base_configs, baseline_runs
from t5peft.benchmark.runner import run
from t5peft.benchmark.suites import load_suite
from t5peft.data import Task
from t5peft.evaluation import EvaluationSet
from t5peft.evaluation.baselines import constant_answer, copied_answers

LABELS = Task("t", "say: {text}", "{label}", {"0": "no", "1": "yes"}, metrics=("accuracy",))
FREE = Task("t", "say: {text}", "{answer}", metrics=("rouge",), max_target_length=16)


def test_the_constant_answer_of_a_classification_is_its_most_frequent_label() -> None:
    records = [{"text": "a", "label": label} for label in ("0", "1", "1")]
    assert constant_answer(LABELS, records, tiny.tiny_tokenizer()) == "1"


def test_the_constant_free_answer_is_the_one_most_like_the_others() -> None:
    answers = ["thank you", "we ship the parcel today", "we ship the parcel soon", "the parcel is lost soon"]
    records = [{"text": "a", "answer": answer} for answer in answers]
    task = replace(FREE, max_target_length=64, references="references")  # a column that training records need not have
    assert constant_answer(task, records, tiny.tiny_tokenizer()) == "we ship the parcel soon"


def test_the_copy_is_the_source_without_the_template_cut_to_the_longest_answer() -> None:
    records = [{"text": text, "answer": "x"} for text in ("short", "a text of more than fifteen bytes")]
    found = copied_answers(EvaluationSet(FREE, records, tiny.tiny_tokenizer()))
    assert found == ["short", "a text of more "]


def test_a_classification_has_no_copy() -> None:
    assert baselines_of(LABELS) == ("constant", "untuned")
    assert baselines_of(FREE) == BASELINES


@pytest.mark.parametrize("method", ["constant", "untuned"])
def test_a_baseline_has_a_run_of_its_own_without_training(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 2)  # many records, whose scores come in a file
    suite = load_suite("quick")
    suite = replace(suite, limits={"test": 4})
    sweeps = baseline_runs(suite, base_configs(suite, "cpu"))
    assert [sweep.base.method for sweep in sweeps] == ["constant", "untuned"]
    config = next(next(sweep.runs()) for sweep in sweeps if sweep.base.method == method)
    record = run(config, lambda step, steps: None)
    assert record["outcome"] == "finished", record.get("reason")
    assert set(record["scores"]) == {"test"}
    assert len(json.loads(json.dumps(record))["test_score_by_example"]) == 4
    assert "curve" not in record
