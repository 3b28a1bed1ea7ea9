"""``t5peft train --memory`` follows the plan by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5peft.cli import main
from t5peft.data import Task
from t5peft.data.tokenized import lengths_of
from t5peft.models.backbone import load_tokenizer
from t5peft.planning.advice import LIBRARIES_BYTES, within_memory
from t5peft.planning.plan import Job, step_bytes
from t5peft.training.config import TrainConfig

RECORDS = [{"text": f"a {'fine ' * (i % 5)}film {i}", "label": "good" if i % 2 else "bad"} for i in range(12)]
TASK = Task("film", "film: {text}", "{label}", {"good": "good", "bad": "bad"})


def memory_of(backbone: str) -> int:
    tokens = TASK.tokenize(RECORDS, load_tokenizer(backbone))
    lengths = [max(lengths_of(tokens, column)) for column in ("input_ids", "labels")]
    assert lengths == [max(map(len, tokens[column][:])) for column in ("input_ids", "labels")]
    job = Job(backbone, "lora", lengths[0], lengths[1], batch=8, micro_batch=8, device="cpu")
    return step_bytes(job).needed_bytes


def test_a_config_gets_the_settings_that_fit_and_keeps_its_own(backbone: str) -> None:
    config = TrainConfig(backbone=backbone, batch_size=4, gradient_accumulation=2, training_options={"z_loss": 0.1})
    tokenizer, memory = load_tokenizer(backbone), LIBRARIES_BYTES + memory_of(backbone)
    same, advice = within_memory(config, TASK, RECORDS, tokenizer, memory, device="cpu")
    assert (same, advice.settings) == (config, {})
    found, advice = within_memory(config, TASK, RECORDS, tokenizer, memory - 1, device="cpu")
    assert found.training_options["z_loss"] == 0.1
    assert found.training_options["tokens_per_micro_batch"] > 0
    assert (found.batch_size, found.gradient_accumulation) == (4, 2)
    assert LIBRARIES_BYTES + advice.peak_bytes < memory


def test_the_command_follows_the_plan_or_refuses_before_it_trains(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "films.jsonl"
    data.write_text("\n".join(map(json.dumps, RECORDS)))
    words = ["train", "--task", "classification", "--train", str(data), "--validation", str(data), "--steps", "1"]
    words += ["--backbone", backbone, "--batch-size", "8", "--output", str(tmp_path / "run")]
    for memory, message in (
        ("600.01MB", "expected more memory"), ("1KB", "Got 1 kB of memory; expected more than the 600 MB that torch")
    ):  # fmt: skip
        assert main([*words, "--memory", memory]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert main([*words, "--memory", "1GB"]) == 0
    assert "plan: it fits as it is" in capsys.readouterr().out
