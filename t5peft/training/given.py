"""Refuse what the user gives to the Trainer where it is not what the Trainer takes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from t5peft.compat.peft import adapter_state
from t5peft.data.features import check_dataset

logger = logging.getLogger("t5peft")

FUNCTIONS = ("data_collator", "model_init", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics")


def check_data(train_dataset: Any, eval_dataset: Any) -> None:
    """Check that data can be trained and evaluated on.

    Args:
        train_dataset: One data set or stream.
        eval_dataset: A data set, a stream, or a mapping of them.

    Raises:
        ValueError: It cannot.
    """
    if isinstance(train_dataset, Mapping):
        raise ValueError(
            f"Got a train_dataset that is a mapping with {list(train_dataset)}; expected one data set. Pass one of these."
        )
    check_dataset(train_dataset, "train_dataset")
    check_dataset(eval_dataset, "eval_dataset")


def check_parts(args: Any, callbacks: Any, optimizers: Any, functions: Sequence[Any]) -> None:
    """Check the types of what a Trainer is made of.

    Args:
        args: Its arguments, or None.
        callbacks: A list of callbacks, or None.
        optimizers: An optimizer and a scheduler, of which each may be None.
        functions: What it calls, in the order of ``FUNCTIONS``; each may be None.

    Raises:
        ValueError: One has another type; names all of them.
    """
    called = zip(FUNCTIONS, functions, strict=True)
    wrong = {name: (given, "a function") for name, given in called if not (given is None or callable(given))}
    if not (args is None or isinstance(args, TrainingArguments)):
        wrong["args"] = (args, "T5PeftTrainingArguments")
    if not (callbacks is None or (isinstance(callbacks, list | tuple) and all(map(_is_callback, callbacks)))):
        wrong["callbacks"] = (callbacks, "a list of TrainerCallback")
    pair = isinstance(optimizers, list | tuple) and len(optimizers) == 2
    if not (pair and _is_optimizer(optimizers[0]) and _is_scheduler(optimizers[1])):
        wrong["optimizers"] = (
            optimizers,
            "an optimizer whose step needs no closure and a scheduler, of which each may be None",
        )
    if wrong:
        given = "; ".join(
            f"{name}={' '.join(repr(value).split()):.60} ({type(value).__name__})" for name, (value, _) in wrong.items()
        )
        expected = "; ".join(f"{name} to be {kind}" for name, (_, kind) in wrong.items())
        raise ValueError(f"Got {given}; expected {expected}. Give these.")


def check_gradients(error: RuntimeError, optimizer: Any) -> None:
    """Raise a clear error where an optimizer has refused the gradients of a T5, which are dense.

    Args:
        error: What the training raised.
        optimizer: The optimizer.

    Raises:
        ValueError: It has.
    """
    if "dense gradients" in str(error):
        kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # inside of that of accelerate
        raise ValueError(
            f"Got the optimizer {kind}, which does not take dense gradients; expected one that does, as those of a T5 are dense. "
            "Use AdamW, or another optimizer of the arguments (optim)."
        ) from error


def _is_callback(given: Any) -> bool:
    """Return whether something is a callback, or a class of one."""
    return isinstance(given, TrainerCallback) or (isinstance(given, type) and issubclass(given, TrainerCallback))


def _is_optimizer(given: Any) -> bool:
    if given is None:
        return True
    if isinstance(given, type) or not callable(getattr(given, "step", None)):
        return False
    closure = inspect.signature(given.step).parameters.get("closure")
    return closure is None or closure.default is not inspect.Parameter.empty


def _is_scheduler(given: Any) -> bool:
    return given is None or (callable(getattr(given, "step", None)) and not isinstance(given, type))


def check_held(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that a user's optimizer updates the parameters that are trained.

    Args:
        model: The model, wrapped or not.
        optimizer: The user's.

    Raises:
        ValueError: It holds none of them, as one that was made of another model, or before the wrap.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, key in trained.items() if key not in held]
    if len(missing) == len(trained):
        raise ValueError(
            f"Got an optimizer that holds none of the {len(trained)} parameters that require a gradient; expected those of "
            "the model. Make it after the wrap, of [p for p in model.parameters() if p.requires_grad]."
        )
    if missing:
        logger.warning(
            "The optimizer does not hold %d of the %d parameters that require a gradient, such as %s: they stay as they are.",
            len(missing),
            len(trained),
            missing[0],
        )


def warn_of_unsaved(model: nn.Module) -> None:
    """Warn of weights that are trained beside an adapter and that its files do not hold, as those that a user has unfrozen.

    Args:
        model: The model, wrapped or not.
    """
    if not isinstance(model, PeftModel):
        return
    saved = {tensor.data_ptr() for name in model.active_adapters for tensor in adapter_state(model, name).values()}
    lost = [name for name, p in model.named_parameters() if p.requires_grad and p.data_ptr() not in saved]
    if lost:
        logger.warning(
            "%d trained weights are not part of the adapter, such as %s: its files and checkpoints do not hold them. Freeze them, "
            "name their modules in modules_to_save of the adapter's config, or train the whole model with full_wrap.",
            len(lost),
            lost[0],
        )
