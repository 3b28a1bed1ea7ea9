"""Choose the best checkpoint by a score of the task, beside the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers.trainer_utils import EvalLoopOutput

from t5peft.compat.suggestions import did_you_mean
from t5peft.data import Task
from t5peft.evaluation import METRICS
from t5peft.training import T5PeftTrainer


def best_score(task: Task, metric: str) -> tuple[str, bool] | None:
    """Return the name of the score that the best checkpoint is chosen by, and whether it is better when it is greater.

    Args:
        task: The task, with its metrics.
        metric: ``"loss"``, a metric of the task, or a score of one.

    Returns:
        The name and the direction; None for the loss.

    Raises:
        ValueError: The task does not have the metric.
    """
    if metric == "loss":
        return None
    if metric in task.metrics:
        return METRICS[metric].lead, METRICS[metric].greater_is_better
    names = ("loss", *task.metrics)
    raise ValueError(
        f"Got best_metric={metric!r}; expected one of {', '.join(names)}, the metrics of the task {task.name!r}."
        f"{did_you_mean(metric, names)}"
    )


class ScoringTrainer(T5PeftTrainer):
    """A trainer whose evaluations have the scores of the task too, where ``score`` computes them."""

    score: Callable[[Any], Mapping[str, Mapping[str, float]]] | None = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and score the model on validation.

        Args:
            args: Those of the trainer.
            kwargs: Those of the trainer.

        Returns:
            What the trainer returns, with the scores among its metrics.
        """
        output = super().evaluation_loop(*args, **kwargs)
        if self.score is not None:
            scores = self.score(self.accelerator.unwrap_model(self.model))["validation"]
            scored = {f"eval_{name}": value for name, value in scores.items()}
            output = output._replace(metrics={**(output.metrics or {}), **scored})
        return output
