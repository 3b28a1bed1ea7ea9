"""A run that follows the advice of a plan stays within the memory; ``t5peft train`` takes the advice as options."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t5peft import METHODS
from t5peft.planning.advice import advise
from t5peft.planning.job import Job
from t5peft.planning.plan import Change, changes, plan_lines, step_bytes
from t5peft.planning.settings import command, options_text, settings_of
from t5peft.planning.units import bytes_text


def job(backbone: str, **changed: object) -> Job:
    fields = {"source_tokens": 64, "target_tokens": 16, "batch": 8, "micro_batch": 8, "device": "cpu"} | changed
    return Job(backbone, "lora", **fields)  # type: ignore[arg-type]


def test_what_fits_needs_no_settings(backbone: str) -> None:
    planned = job(backbone)
    found = advise(planned, step_bytes(planned).needed_bytes)
    assert (found.settings, found.peak_bytes) == ({}, step_bytes(planned).peak_bytes)


def test_the_least_change_is_taken_and_fits(backbone: str) -> None:
    planned = job(backbone)
    memory = step_bytes(planned).needed_bytes - 1
    found = advise(planned, memory)
    assert found.settings == {"training_options": {"tokens_per_micro_batch": 4 * (64 + 16)}}
    assert found.peak_bytes <= memory
    assert options_text(found.settings) == "--training-option tokens_per_micro_batch=320"


def test_every_change_has_a_command_with_its_settings(backbone: str) -> None:
    planned = job(backbone)
    changed = Job(backbone, "qlora", 64, 16, 8, 2, "cpu", quantize="nf4", dtype=torch.bfloat16, checkpointing=True)
    words = shlex.split(command(planned, changed))
    assert words[:2] == ["t5peft", "train"]
    assert "--gradient-checkpointing" in words
    for flag, value in {
        "--backbone": backbone,
        "--batch-size": "8",
        "--max-source-length": "64",
        "--max-target-length": "16",
        "--quantize": "nf4",
        "--dtype": "bfloat16",
        "--method": "qlora",
        "--training-option": "tokens_per_micro_batch=160",
    }.items():
        assert words.count(flag) == 1
        assert words[words.index(flag) + 1] == value


def test_the_plan_prints_each_change_with_its_command(backbone: str) -> None:
    planned = job(backbone)
    memory = step_bytes(planned).needed_bytes - 1
    lines = list(plan_lines(planned, memory))
    for change in changes(planned, memory):
        assert isinstance(change, Change)
        assert f"  - {change.text} ({bytes_text(change.bytes.peak_bytes)})" in lines
        assert f"      {command(planned, change.job)}" in lines


def test_the_first_line_comes_before_anything_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("t5peft.planning.plan.simulate_step", fail)
    planned = job("t5-small", source_tokens=77)
    assert next(iter(plan_lines(planned, None))) == planned.describe()


def test_a_memory_that_nothing_fits_into_is_an_error(backbone: str) -> None:
    with pytest.raises(ValueError, match=r"Got 10 kB for .*; expected more memory\. Take a smaller backbone"):
        advise(job(backbone), 10_000)


def test_settings_of_the_same_job_are_none() -> None:
    assert settings_of(job("mini"), job("mini")) == {}


RUN = """
import json, sys, torch
from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments
from t5peft.benchmark.memory import MemoryMeter, return_freed_memory
from t5peft.models.backbone import MINI, load_backbone
from t5peft.planning.geometry import config_of
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
given = json.loads(sys.argv[1])
return_freed_memory()
rows = [{"input_ids": [3 + i % 90] * (given["source"] - 1) + [1], "labels": [5] * (given["target"] - 1) + [1]} for i in range(32)]
def save(name):  # to be loaded: a model that is made by its class holds its embedding four times for a moment
    config = config_of(name)
    if name == "mini":
        config.num_layers = config.num_decoder_layers = 1
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(f"{sys.argv[2]}/{name}")
    AutoTokenizer.from_pretrained(MINI).save_pretrained(f"{sys.argv[2]}/{name}")
def train(name, settings, steps):
    torch.manual_seed(0)
    options = settings.get("training_options", {})
    arguments = T5PeftTrainingArguments(
        f"{sys.argv[2]}/run", max_steps=steps, per_device_train_batch_size=16, use_cpu=True, save_strategy="no", report_to=[],
        gradient_checkpointing=settings.get("gradient_checkpointing", False), **options,
    )
    model = METHODS["lora"].wrap(load_backbone(f"{sys.argv[2]}/{name}")[0])
    T5PeftTrainer(model=model, args=arguments, train_dataset=rows).train()
for name in ("mini", "t5-small"):
    save(name)
train("mini", {"training_options": {"tokens_per_micro_batch": 64}}, 1)
meter = MemoryMeter("cpu")
before = meter.now_bytes()
with meter:
    train("t5-small", given["settings"], 2)
print(json.dumps(meter.peak_bytes - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_a_run_that_follows_the_advice_stays_within_the_memory(share: float, tmp_path: Path) -> None:
    """Its peak above the imports is measured; the one without the advice takes more."""
    planned = Job("t5-small", "lora", 128, 32, 16, 16, "cpu")
    memory = round(share * step_bytes(planned).peak_bytes)
    peaks = {}
    plain = {"training_options": {"tokens_per_micro_batch": 16 * 160}}
    for name, settings in {"advised": advise(planned, memory).settings, "plain": plain}.items():
        given = json.dumps({"settings": settings, "source": 128, "target": 32})
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", RUN, given, str(tmp_path / name)],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    assert peaks["advised"] <= memory < peaks["plain"]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "adalora" else [pytest.mark.slow]) for name in METHODS]
)
def test_rows_that_the_kernels_fill_up_are_planned(method: str) -> None:
    assert step_bytes(Job("t5-small", method, 35, 9, 2, 2, device="cpu")).peak_bytes > 0
