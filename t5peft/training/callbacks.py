"""Start the parts of a training once its model is there, and follow its steps."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from t5peft.methods.adalora import reallocation_of
from t5peft.training.checkpoints import ALLOCATOR_STATE, restore_callbacks


class DuringTraining(TrainerCallback):
    """Starts the kernels and the reallocation of AdaLoRA when the model is there, which ``model_init`` may make in ``train``.

    Args:
        trainer: The ``T5PeftTrainer`` of the training.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Go on with what a checkpoint holds of the callbacks and of the reallocation, and start the kernels."""
        trainer = self.trainer
        if trainer.resumed_from is not None:
            restore_callbacks(trainer.callback_handler.callbacks, state)
        trainer.start_kernels()
        trainer.reallocation = reallocation_of(trainer.wrapped_model, state.max_steps)
        if trainer.reallocation is not None and trainer.resumed_from is not None:
            # Several processes on a CPU have the device cpu:0, which torch.load does not know.
            device = "cpu" if args.device.type == "cpu" else args.device
            path = trainer.resumed_from / ALLOCATOR_STATE
            trainer.reallocation.load_state(torch.load(path, map_location=device, weights_only=True))

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Reallocate while the gradients of the step are there."""
        if self.trainer.reallocation is not None:
            self.trainer.reallocation.step(state.global_step + 1)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Let the adapter be saved with the ranks that it ended with."""
        if self.trainer.reallocation is not None:
            self.trainer.reallocation.finish()

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the time of an evaluation out of that of training."""
        self.trainer.throughput.restart()

    def on_predict(self, args: Any, state: TrainerState, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Leave the time of a prediction out of that of training."""
        self.trainer.throughput.restart()
