"""One run: its process, its record, its memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic
from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.benchmark.data import describe_data, load_data
from t5peft.benchmark.process import RunProcesses
from t5peft.benchmark.runner import run
from t5peft.benchmark.suites import SuiteTask
from t5peft.evaluation import evaluate_task, loss_and_perplexity


@pytest.mark.parametrize(
    ("how", "outcome", "reason"),
    [
        ("killed", "out_of_memory", "the system killed the process (signal 9)"),
        ("exits", "failed", "the process ended with exit code 7 and no record"),
    ],
)
def test_a_run_that_dies_is_an_outcome_with_a_reason(tmp_path: Path, how: str, outcome: str, reason: str) -> None:
    from fake_worker import WORKERS

    record = RunProcesses(WORKERS[how], log=tmp_path / "log.txt", threads=1)(synthetic.config())
    assert record["outcome"] == outcome
    assert reason in record["reason"]


# --- a run


def run_in_its_process(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A run of four steps of the embedded task support_intent by the real worker."""
    fields: dict[str, Any] = {"steps": 4, "evaluations": 2, "limits": {"validation": 10, "test": 20}}
    fields["data"] = describe_data(SuiteTask("support_intent"))
    made = synthetic.config(task="support_intent", **(fields | changes))
    return RunProcesses(run, log=tmp_path / "log.txt", threads=1)(made)


@pytest.mark.processes
def test_a_run_records_what_the_trainer_and_the_evaluation_give_by_hand(tmp_path: Path) -> None:
    record = run_in_its_process(tmp_path, rate=1e-2)
    assert record["outcome"] == "finished", record
    task, data = load_data(describe_data(SuiteTask("support_intent")), {"validation": 10, "test": 20})
    set_seed(0)
    base, tokenizer = load_backbone("mini")
    train = task.tokenize(random.Random(0).sample(data["train"], 4 * 16), tokenizer)
    set_seed(0)
    model = lora_wrap(base)
    arguments = T5PeftTrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=16, learning_rate=1e-2, lr_scheduler_type="linear",
        warmup_steps=1, report_to="none", save_strategy="no", use_cpu=True, dataloader_drop_last=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()
    scores = evaluate_task(model, tokenizer, task, data["test"])
    assert record["scores"]["test"]["accuracy"] == scores["accuracy"]
    assert sum(record["test_score_by_example"]) == pytest.approx(20 * scores["accuracy"])
    loss = loss_and_perplexity(model, task.tokenize(data["validation"], tokenizer).to_list())["loss"]
    assert record["validation_loss"] == pytest.approx(loss, abs=1e-4)
    assert [point["step"] for point in record["curve"]] == [2, 4]
    assert record["parameters"]["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < record["seconds"]["test_scoring"] < record["seconds"]["total"] - record["curve"][-1]["seconds"]


def test_files_of_ones_own_are_looked_through_before_the_first_run(tmp_path: Path) -> None:
    splits: dict[str, list[dict[str, Any]]] = {
        "train": [{"text": f"t{i}", "label": "a"} for i in range(20)],
        "test": [{"text": "t", "label": "a"}],
        "empty": [{"text": "t", "label": None}],
    }
    for name, rows in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = {"name": "t", "template": "{text}", "target": "{label}", "metrics": ["accuracy"]}
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    assert describe_data(SuiteTask("t", own={**own, "files": files}))["fingerprint"]
    for changes, message in (
        ({"references": "labels", "files": files}, "references are in the column 'labels', which is in none"),
        ({"files": {"train": files["train"]}}, "Got no test records for task"),
        ({"files": {**files, "test": str(tmp_path / "empty.jsonl")}}, "The column 'label' holds NoneType in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            describe_data(SuiteTask("t", own={**own, **changes}))


def test_a_metric_of_which_less_is_better_does_not_lead() -> None:
    own = {"name": "t", "template": "{text}", "target": "{label}", "metrics": ["perplexity"], "files": {}}
    with pytest.raises(
        ValueError, match="with perplexity as its first metric; expected one that is better when higher"
    ):
        describe_data(SuiteTask("t", own=own))


@pytest.mark.processes
def test_a_run_whose_loss_is_no_number_has_diverged(tmp_path: Path) -> None:
    record = run_in_its_process(tmp_path, method="full", rate=1e30)
    assert record["outcome"] == "diverged"
    assert "gradients of these weights contain NaN or infinity at step 3" in record["reason"]


# --- memory


HOLDING = """
from t5peft.benchmark.memory import MemoryMeter
held = []
def hold():
    held.append(bytearray(b"x") * (1 << 26))
with MemoryMeter("cpu") as meter:
    before = meter.peak_bytes
    hold()
    meter.pause()
    hold()
    hold()
    meter.resume()
    hold()
print(meter.left_bytes, meter.peak_bytes - before)
"""


def test_the_meter_leaves_out_what_a_paused_span_left_held() -> None:
    """In a process of its own: this one hands memory back when it likes."""
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=True)
    left, taken = map(int, done.stdout.split())
    assert left == pytest.approx(2 << 26, rel=0.05)
    assert taken == pytest.approx(2 << 26, rel=0.05)
