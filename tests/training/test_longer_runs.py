"""A run that resumes with more steps has the learning rates of its own schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_records, tiny_t5
from trainers import arguments
from transformers import TrainerCallback

from t5peft import T5PeftTrainer, lora_wrap


class Rates(TrainerCallback):
    """Keep the rate that the optimizer has at each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


def train(folder: Path, steps: int, kind: str, *, resume: bool = False) -> tuple[list[float], list[float]]:
    """Return the rates of the optimizer and of the logs, for the steps of one call."""
    args = arguments(
        folder, save_strategy="steps", save_steps=2, max_steps=steps, lr_scheduler_type=kind, logging_steps=1
    )
    seen = Rates()
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8), callbacks=[seen])
    trainer.train(resume_from_checkpoint=resume)
    logs = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    return seen.rates, logs[-len(seen.rates) :]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_longer_run_resumes_at_the_rate_of_its_own_schedule(kind: str, tmp_path: Path) -> None:
    train(tmp_path / "run", 2, kind)
    resumed = train(tmp_path / "run", 4, kind, resume=True)
    whole, _ = train(tmp_path / "whole", 4, kind)
    assert resumed == (whole[2:], whole[2:])
    assert resumed[0][0] > 0
