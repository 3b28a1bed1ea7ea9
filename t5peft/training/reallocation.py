"""Reallocate the ranks of AdaLoRA after each step of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from t5peft.methods.adalora import reallocation_of
from t5peft.training.checkpoints import ALLOCATOR_STATE, CheckpointTrainer


class Reallocating(TrainerCallback):
    """Calls the allocator of the adapter that ``trainer`` trains; without AdaLoRA it does nothing."""

    def __init__(self, trainer: CheckpointTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Make the allocator, and let it go on from the checkpoint where there is one.

        Args:
            args: Arguments of the trainer.
            state: Its state, with the step.
            control: Not used.
            kwargs: Not used.
        """
        trainer = self.trainer
        trainer.reallocation = reallocation_of(trainer.wrapped_model, state.max_steps)
        if trainer.reallocation is not None and trainer.resumed_from is not None:
            path: Path = trainer.resumed_from / ALLOCATOR_STATE
            # Several processes on a CPU have the device cpu:0, which torch.load does not know.
            device = "cpu" if args.device.type == "cpu" else args.device
            trainer.reallocation.load_state(torch.load(path, map_location=device, weights_only=True))

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Reallocate while the gradients of the step are there.

        Args:
            args: Arguments of the trainer.
            state: Its state, with the step.
            control: Not used.
            kwargs: Not used.
        """
        if self.trainer.reallocation is not None:
            self.trainer.reallocation.step(state.global_step + 1)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Let the adapter be saved with the ranks that it ended with.

        Args:
            args: Arguments of the trainer.
            state: Its state, with the step.
            control: Not used.
            kwargs: Not used.
        """
        if self.trainer.reallocation is not None:
            self.trainer.reallocation.finish()
