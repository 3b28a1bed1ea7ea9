"""Start what belongs to a training once its model is there."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from t5peft.training.checkpoints import restore_callbacks


class OnOurKernels(TrainerCallback):
    """Starts the kernels when the model of the training is there, which ``model_init`` may make in ``train``.

    Args:
        trainer: The ``T5PeftTrainer`` of the training.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on with the callbacks of a checkpoint, and start the kernels."""
        if self.trainer.resumed_from is not None:
            restore_callbacks(self.trainer.callback_handler.callbacks, state)
        self.trainer.start_kernels()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time of an evaluation out of that of training."""
        self.trainer.throughput.restart()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Leave the time of a prediction out of that of training."""
        self.trainer.throughput.restart()
