"""Say where a loss or a gradient that is NaN or infinite came from: the weights, the step, and the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from t5peft.training.head import Feature

if TYPE_CHECKING:
    from t5peft.training.evaluation_loop import EvaluatingTrainer

NAMED = 5  # as many weights or examples are named at most
REMEDY = "Training stops, and the last checkpoint is kept. "


def non_finite_loss(trainer: EvaluatingTrainer, loss: float, features: Sequence[Feature]) -> str:
    """Return the error for a loss that is NaN or infinite, of a step of some examples."""
    broken = [name for name, p in trainer.wrapped_model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        cause = f"these weights contained NaN or infinity before the step: {broken[:NAMED]}"
    else:
        rate = trainer.lr_scheduler.get_last_lr()[0] if trainer.lr_scheduler is not None else trainer.args.learning_rate
        cause = f"all weights were finite, so the step itself overflowed (learning rate {rate:.2e})"
    return (
        f"The loss is {loss} at step {trainer.state.global_step + 1}; {cause}{_examples(trainer, features, bool(broken))}. "
        f"{REMEDY}Lower the learning rate, clip gradients (max_grad_norm), or check the loaded weights."
    )


def non_finite_gradients(trainer: EvaluatingTrainer, features: Callable[[], Sequence[Feature]]) -> str | None:
    """Return the error for gradients that are NaN or infinite; None where only their norm overflows."""
    parameters = trainer.wrapped_model.named_parameters()
    broken = [name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
    if not broken:
        return None
    return (
        f"The gradients of these weights contain NaN or infinity at step {trainer.state.global_step + 1}, whose loss is finite: "
        f"{broken[:NAMED]}{_examples(trainer, features(), True)}. {REMEDY}Lower the learning rate, or check these examples."
    )


def _examples(trainer: EvaluatingTrainer, features: Sequence[Feature], weights: bool) -> str:
    """Name the examples by their indices in the data set: those with such a loss, or else all of the step."""
    suspects = [] if weights else [f for f in features if not _has_finite_loss(trainer, f)]
    of_step = suspects or features
    if not of_step:
        return ""
    found = _indices(trainer, of_step)
    shown = ", ".join(map(str, sorted(found)[:NAMED])) + (", ..." if len(found) > NAMED else "")
    kind = "examples with such a loss" if suspects else "examples of the step"
    if found:
        return f"; {kind}, by their indices in train_dataset: {shown}"
    return f"; the first of the {kind} has the input_ids {of_step[0]['input_ids'][:20]}"


@torch.no_grad()
def _has_finite_loss(trainer: EvaluatingTrainer, feature: Feature) -> bool:
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer._prepare_inputs(trainer.head.collate([feature]))
    with trainer.compute_loss_context_manager():
        return bool(torch.isfinite(trainer.head.loss(model, batch)[0]))


def _indices(trainer: EvaluatingTrainer, features: Sequence[Feature]) -> list[int]:
    """Return the indices of features in the training data; empty for a stream, or for data that change when they are read."""
    dataset: Any = trainer.train_dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return []
    head = trainer.head
    wanted = {repr(sorted(feature.items())) for feature in features}
    collated = (head.split(head.collate([head.unpad(dataset[index])]))[0] for index in range(len(dataset)))
    return [index for index, feature in enumerate(collated) if repr(sorted(feature.items())) in wanted]
