"""Random small runs of plain Seq2SeqTrainer and of ours have the same losses, gradients, predictions, files and logs.

Plain Trainer's known faults are kept out of the drawn runs, and not tolerated: accumulated batches are compared with one batch
of as many examples, whose batches of evaluation are of one length, and there is no dropout.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from narrow import as_dataset
from paths import ROOT
from stacks import GradientRecorder, relative_difference
from tiny import EOS, fill_unevenly, tiny_config, tiny_t5, tiny_tokenizer
from trainers import trainer_of
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    TrainerCallback,
)

from t5peft import METHODS, T5PeftTrainer

SEED = 20261128
RECORD = ROOT / "benchmarks" / "records" / "differential.json"
# what ours logs and saves beside plain Trainer's
OURS_TOO = {"tokens_per_second", "padding_share", "peak_memory_bytes", "eval_cut_share", "test_cut_share"}
PLAIN_TOO = {"eval_model_preparation_time", "test_model_preparation_time"}
FILES_TOO = {"t5peft.json", "epoch_order.pt"}  # the manifest, and the start of the order of an epoch


class Stop(TrainerCallback):
    """Stops after a step, and asks for an evaluation there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            control.should_evaluate = control.should_training_stop = True


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """One drawn run: a model, data, arguments and callbacks."""
    task = draw(st.sampled_from(["text", "text", "class", "tokens"]))
    batch, accumulation = draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]))
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": draw(st.sampled_from([1e-3, 1e-2])),
        "optim": draw(st.sampled_from(["sgd", "adamw_torch", "adafactor"])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "lr_scheduler_type": draw(st.sampled_from(["constant", "linear", "cosine"])),
        "warmup_steps": draw(st.sampled_from([0, 2])),
        "max_grad_norm": draw(st.sampled_from([0.0, 1.0])),
        "seed": draw(st.integers(0, 9)),
        "train_sampling_strategy": draw(st.sampled_from(["random", "sequential", "group_by_length"])),
        # dropped batches of accumulated ones are other examples than those of one large batch
        "dataloader_drop_last": accumulation == 1 and draw(st.booleans()),
        "per_device_eval_batch_size": draw(st.sampled_from([1, 2, 4])),
        "logging_steps": draw(st.sampled_from([1, 2])),
        "logging_first_step": draw(st.booleans()),
        "include_num_input_tokens_seen": draw(st.sampled_from(["no", "non_padding"])),
        "gradient_checkpointing": draw(st.booleans()),
    }
    length = {"max_steps": draw(st.integers(1, 4))} if draw(st.booleans()) else {"max_steps": -1, "num_train_epochs": 1}
    arguments |= length
    saved: list[dict[str, Any]] = [{}, {"save_strategy": "steps", "save_steps": 1}, {"save_strategy": "epoch"}]
    saving = draw(st.sampled_from(saved))
    if saving.get("save_strategy") == "steps" and draw(st.booleans()):
        saving = saving | {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    if task == "text":
        arguments["predict_with_generate"] = draw(st.booleans())
        arguments["label_smoothing_factor"] = 0.0
    return {
        "task": task,
        "method": draw(st.sampled_from(["full", "lora", "ia3", "pfeiffer"])),
        "examples": draw(st.integers(4, 9)),
        "data": draw(st.integers(0, 99)),
        "arguments": arguments | saving,
        "callbacks": draw(st.sampled_from(["none", "stop", "early"])),
        "own": {"bucket_by_length": draw(st.booleans()), "pack": draw(st.sampled_from([None, False]))},
    }


def data_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of any source length; targets of one length, so that plain Trainer's mean of means is a mean."""
    rng = np.random.default_rng(run["data"])
    records = []
    for index in range(run["examples"]):
        # of one length where plain Trainer's mean over the batches of an evaluation needs as many items in each
        source = [*map(int, rng.integers(3, 300, 5 if run["task"] == "tokens" else int(rng.integers(2, 9)))), EOS]
        labels: Any = [*map(int, rng.integers(3, 300, 4)), EOS]
        if run["task"] == "class":
            labels = index % 3
        elif run["task"] == "tokens":
            labels = [int(label) for label in rng.integers(0, 3, len(source))]
        records.append({"input_ids": source, "labels": labels})
    return records


def model_of(run: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    kinds = {"class": T5ForSequenceClassification, "tokens": T5ForTokenClassification}
    base = tiny_t5() if run["task"] == "text" else fill_unevenly(kinds[run["task"]](tiny_config(num_labels=3)))
    return METHODS[run["method"]].wrap(base)


class Scores(TrainerCallback):
    """Keeps the keys of each log."""

    def __init__(self) -> None:
        self.keys: list[set[str]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.keys.append(set(logs) - OURS_TOO - PLAIN_TOO)


def outcome(kind: type[Seq2SeqTrainer], run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The results of a run: losses, gradients of each step, evaluation, predictions, files, keys of logs."""
    records, arguments = data_of(run), dict(run["arguments"])
    recorder, scores = GradientRecorder(), Scores()
    callbacks: list[Any] = [recorder, scores]
    if run["callbacks"] == "stop":
        callbacks.append(Stop())
    if run["callbacks"] == "early" and arguments.get("load_best_model_at_end"):
        callbacks.append(EarlyStoppingCallback(1))
    options: dict[str, Any] = {"eval_dataset": records[:4], "callbacks": callbacks}
    if kind is T5PeftTrainer:
        arguments |= run["own"]
    else:
        # the same examples a step, without the fault of accumulated batches
        arguments["per_device_train_batch_size"] *= arguments["gradient_accumulation_steps"]
        arguments["gradient_accumulation_steps"] = 1
        collators = {"class": DataCollatorWithPadding, "tokens": DataCollatorForTokenClassification}
        if run["task"] in collators:
            options["data_collator"] = collators[run["task"]](tiny_tokenizer())
    trainer: Seq2SeqTrainer = trainer_of(kind, model_of(run), folder, records, **options, **arguments)
    trainer.train()
    more: dict[str, Any] = {"max_new_tokens": 4} if arguments.get("predict_with_generate") else {}
    predicted = trainer.predict(as_dataset(records[:4]), **more)
    return {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "norms": [line.get("grad_norm") for line in trainer.state.log_history if "loss" in line],
        "evaluations": [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line],
        "gradients": recorder.steps,
        "prediction": predicted,
        "tokens": trainer.state.num_input_tokens_seen,
        "files": {
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in FILES_TOO
        },
        "keys": scores.keys,
        "steps": trainer.state.global_step,
    }


def assert_same(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    assert ours["steps"] == plain["steps"]
    assert ours["losses"] == pytest.approx(plain["losses"], rel=2e-5)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    assert ours["evaluations"] == pytest.approx(plain["evaluations"], rel=2e-4)
    for got, expected in zip(ours["gradients"], plain["gradients"], strict=True):
        assert relative_difference(got, expected) < 2e-3
    assert ours["tokens"] == plain["tokens"]
    assert ours["files"] == plain["files"]
    assert ours["keys"] == plain["keys"]
    assert ours["prediction"].metrics["test_loss"] == pytest.approx(plain["prediction"].metrics["test_loss"], rel=2e-4)


def assert_same_predictions(run: dict[str, Any], ours: Any, plain: Any) -> None:
    scores, expected = ours.predictions, plain.predictions
    if run["arguments"]["train_sampling_strategy"] == "group_by_length":
        return  # plain's then come in another order than the data
    if run["arguments"].get("predict_with_generate"):
        # plain keeps the start token, and pads to the longest answer that the config allows
        width = min(scores.shape[1], expected.shape[1] - 1)
        assert (scores[:, :width] == expected[:, 1 : width + 1]).all()
        return
    first = expected[0] if isinstance(expected, tuple) else expected  # the states of the encoder are not scores
    first_ours = scores[0] if isinstance(scores, tuple) else scores
    assert first_ours.shape == first.shape
    assert np.allclose(first_ours, first, atol=2e-2)
    assert np.array_equal(ours.label_ids, plain.label_ids)


def compare(run: dict[str, Any]) -> None:
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        ours, plain = outcome(T5PeftTrainer, run, Path(one)), outcome(Seq2SeqTrainer, run, Path(other))
        assert_same(ours, plain)
        assert_same_predictions(run, ours["prediction"], plain["prediction"])


QUIET = {"deadline": None, "database": None, "phases": [Phase.generate], "print_blob": False}
QUIET["suppress_health_check"] = list(HealthCheck)


@seed(SEED)
@settings(max_examples=8, **QUIET)  # type: ignore[arg-type]
@given(run=runs())
def test_a_drawn_run_is_that_of_plain_trainer(run: dict[str, Any]) -> None:
    compare(run)


@pytest.mark.slow
def test_many_drawn_runs_are_those_of_plain_trainer() -> None:
    counted = {"runs": 0}

    @seed(SEED + 1)
    @settings(max_examples=int(os.environ.get("T5PEFT_DIFFERENTIAL", "500")), **QUIET)  # type: ignore[arg-type]
    @given(run=runs())
    def check(run: dict[str, Any]) -> None:
        compare(run)
        counted["runs"] += 1

    check()
    record = {"seed": SEED + 1, "runs": counted["runs"], "differing": 0, "torch": torch.__version__}
    RECORD.write_text(json.dumps(record | {"python": platform.python_version()}, indent=1) + "\n")
