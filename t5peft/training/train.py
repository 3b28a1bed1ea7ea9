"""One training run from a config: load, wrap, train, keep the best checkpoint, score.

``t5peft train``, the search and continued training share it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import get_available_reporting_integrations

from t5peft.compat.lock import hold_folder
from t5peft.compat.suggestions import did_you_mean
from t5peft.data import Task, checks
from t5peft.data.leaks import leak_of
from t5peft.data.tokenized import tokenize
from t5peft.deprecated import renamed_arguments
from t5peft.evaluation import evaluate_task
from t5peft.evaluation.scores import check_metrics
from t5peft.methods import METHODS
from t5peft.models.backbone import load_backbone
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments
from t5peft.training.arguments import is_of
from t5peft.training.best_checkpoint import ScoringTrainer, best_score
from t5peft.training.checkpoints import newest_resumable
from t5peft.training.config import TrainConfig
from t5peft.training.run_folder import check_run_folder, delete_checkpoints

logger = logging.getLogger(__name__)

Records = Sequence[Mapping[str, Any]]
Splits = Mapping[str, Records]
ModelAndTokenizer = tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class TrainResult:
    """A tuned model, its tokenizer, and its scores by split and metric."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    scores: dict[str, dict[str, float]]


@renamed_arguments(recipe="config")
def train_and_evaluate(
    task: Task,
    splits: Splits,
    config: TrainConfig,
    output: str | Path,
    *,
    model: ModelAndTokenizer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train as ``train`` does, then score validation and test.

    Args:
        task: The task of all splits.
        splits: Records of train, validation, and test if there are any.
        config: How to train.
        output: Folder of the checkpoints.
        model: A wrapped model to train, and its tokenizer; None creates one from the config.
        resume: Whether to resume from the newest complete checkpoint in ``output``.
        overwrite: Whether to replace an earlier run in ``output``.
        callbacks: Callbacks of the trainer, in addition to early stopping.

    Returns:
        The model, the tokenizer and the scores.

    Raises:
        FolderInUseError: Another run is using ``output``.
        ValueError: As for ``train``.
    """
    wrapped, tokenizer = train(
        task, splits, config, output, model=model, resume=resume, overwrite=overwrite, callbacks=callbacks
    )
    return TrainResult(wrapped, tokenizer, score_splits(wrapped, tokenizer, task, splits))


@renamed_arguments(recipe="config")
def train(
    task: Task,
    splits: Splits,
    config: TrainConfig,
    output: str | Path,
    *,
    model: ModelAndTokenizer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> ModelAndTokenizer:
    """Train on ``splits["train"]`` and keep the checkpoint that is best on validation, by ``config.best_metric``.

    Problems that would stop the scoring afterwards are raised before training.

    Args:
        task: The task of all splits.
        splits: Records of train, validation, and test if there are any.
        config: How to train.
        output: Folder of the checkpoints.
        model: A wrapped model to train, and its tokenizer; None creates one from the config.
        resume: Whether to resume from the newest complete checkpoint in ``output``, if there is one.
        overwrite: Whether to replace an earlier run in ``output``, whose checkpoints are deleted.
        callbacks: Callbacks of the trainer, in addition to early stopping.

    Returns:
        The tuned model and its tokenizer.

    Raises:
        FolderInUseError: Another run is using ``output``.
        ValueError: ``output`` holds an earlier run; training or validation records are missing; the method, an option of it
            or a metric is unknown; no record has the column of references; or a record cannot be encoded.
    """
    with hold_folder(output):
        check_run_folder(output, resume=resume, overwrite=overwrite)
        check_splits(task, splits)
        check_metrics(task)
        best = best_score(task, config.best_metric)
        test = splits.get("test", ())
        if not _is_empty(test):
            checks.raise_all(task.name, checks.missing_references([*splits["validation"], *test], task.references))
        if leak := leak_of(task, splits["train"]):
            logger.warning("Task %s: %s.", task.name, leak)
        set_seed(config.seed)
        given, tokenizer = _load_backbone(config) if model is None else model
        if not _is_empty(test):
            tokenize(task, test, tokenizer)  # an error in the test records comes before the training
        training, validation = (task.tokenize(splits[split], tokenizer) for split in ("train", "validation"))
        wrapped = given if model is not None else _wrap(cast(PreTrainedModel, given), config, training)
        stopping = [EarlyStoppingCallback(config.patience)] if config.patience else []
        arguments = training_arguments(config, len(training), output)
        if best is not None:
            arguments.metric_for_best_model, arguments.greater_is_better = best
        trainer = (T5PeftTrainer if best is None else ScoringTrainer)(
            model=wrapped,
            args=arguments,
            train_dataset=training,
            eval_dataset=validation,
            processing_class=tokenizer,
            callbacks=[EvaluateLastStep(), *stopping, *callbacks],
        )
        if isinstance(trainer, ScoringTrainer):
            trainer.score = lambda model: score_splits(model, tokenizer, task, {"validation": splits["validation"]})
        if overwrite and arguments.should_save:
            delete_checkpoints(output)
        newest = newest_resumable(Path(output)) if resume else None
        if resume and newest is None:
            logger.warning("%s has no complete checkpoint; training starts from the beginning.", output)
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    return wrapped, tokenizer


def check_splits(task: Task, splits: Splits) -> None:
    """Raise an error where the records to train on or to validate with are missing.

    Args:
        task: The task, for its name.
        splits: Records by split.

    Raises:
        ValueError: Training or validation records are missing.
    """
    missing = [split for split in ("train", "validation") if _is_empty(splits.get(split))]
    if missing:
        raise ValueError(
            f"Got no {' and no '.join(missing)} records for the task {task.name!r}; expected at least one of each."
        )


def _is_empty(records: Any) -> bool:
    """Return whether records are missing; by their length, as a DataFrame has no truth value."""
    return records is None or (isinstance(records, Sized) and len(records) == 0)


class EvaluateLastStep(TrainerCallback):
    """Evaluate and save after the last step too, also where the number of evaluations does not divide that of steps."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for an evaluation and a checkpoint at the last step.

        Args:
            args: Arguments of the trainer.
            state: Its state, with the step.
            control: What the trainer does next; changed here.
            kwargs: Not used.
        """
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def score_splits(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, task: Task, splits: Splits
) -> dict[str, dict[str, float]]:
    """Score validation and test.

    Args:
        model: The tuned model.
        tokenizer: Its tokenizer.
        task: The task of the splits.
        splits: Records by split.

    Returns:
        The scores by split and metric, of the splits that have records.
    """
    return {
        split: evaluate_task(model, tokenizer, evaluated_task(task, splits[split]), splits[split])
        for split in scored_splits(splits)
    }


def scored_splits(splits: Splits) -> list[str]:
    """Return the splits that a run is scored on: validation and test, where they have records."""
    return [split for split in ("validation", "test") if not _is_empty(splits.get(split))]


def evaluated_task(task: Task, records: Records) -> Task:
    """Return ``task``, scored by its one target where no record has references, as in validation held out from train."""
    if not checks.missing_references(records, task.references):
        return task
    logger.warning(
        "No record of a split of the task %s has the references %r; the split is scored with its single target.",
        task.name,
        task.references,
    )
    return replace(task, references=None)


def _load_backbone(config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if config.method not in METHODS:
        suggestion = did_you_mean(config.method, METHODS)
        raise ValueError(f"Got method={config.method!r}; expected one of {', '.join(METHODS)}.{suggestion}")
    model, tokenizer = load_backbone(
        config.backbone,
        quantize=config.quantize or METHODS[config.method].quantize,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
    )
    if not model.can_generate():
        raise ValueError(
            f"Got {config.backbone}, which has a classification head; expected a T5 with a language model head."
        )
    return model, tokenizer


def _wrap(backbone: PreTrainedModel, config: TrainConfig, records: Records) -> PreTrainedModel | PeftModel:
    method = METHODS[config.method]
    try:
        return method.wrap_for(backbone, records, config.options)
    except TypeError as error:
        taken = method.options
        suggestions = "".join(did_you_mean(name, taken) for name in config.options if name not in taken)
        raise ValueError(
            f"Got options that the method {config.method!r} does not take ({error}); expected {', '.join(taken) or 'none'}."
            f"{suggestions}"
        ) from error


def training_arguments(config: TrainConfig, examples: int, output: str | Path) -> T5PeftTrainingArguments:
    """Return the trainer's arguments of a config.

    Args:
        config: How to train.
        examples: Number of training examples.
        output: Folder of the checkpoints.

    Returns:
        The arguments, with as many evaluations as the config says at most.

    Raises:
        ValueError: A training option is unknown, or set by another field.
    """
    batch = config.batch_size * config.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    steps = config.steps or max(1, round(config.epochs * max(1, -(-examples // batch))))
    every = -(-steps // config.evaluations)
    given: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "activation_checkpointing": config.gradient_checkpointing,
        "learning_rate": config.learning_rate or METHODS[config.method].learning_rate,
        "lr_scheduler_type": config.scheduler,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay or 0.0,
        "label_smoothing_factor": config.label_smoothing or 0.0,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.bf16,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "seed": config.seed,
    }
    if config.optimizer != "adamw":  # of which transformers chooses the fastest
        given["optim"] = config.optimizer
    if config.training_options:
        _check_training_options(config.training_options, given)
    defaults = {
        "logging_steps": max(1, every // 4),
        "save_total_limit": 2,
        "disable_tqdm": not sys.stderr.isatty(),
    }
    return T5PeftTrainingArguments(**given, **{**defaults, **config.training_options})


# Steps are counted from ``epochs``, and transformers leaves these to scripts.
_WITHOUT_EFFECT = {"num_train_epochs", "resume_from_checkpoint", "do_train", "do_eval", "do_predict"}


def _check_training_options(options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise one error for all arguments that do not exist, or that the config has fields for."""
    known = (
        {field.name for field in dataclasses.fields(T5PeftTrainingArguments) if field.init}
        - given.keys()
        - _WITHOUT_EFFECT
    )
    if wrong := [name for name in options if name not in known]:
        suggestions = "".join(did_you_mean(name, known) for name in wrong if name not in given)
        raise ValueError(
            f"Got training_options {', '.join(wrong)}; expected arguments of T5PeftTrainingArguments that no other option "
            f"sets.{suggestions}"
        )
    hints = get_type_hints(T5PeftTrainingArguments)
    problems = [f"{name}={value!r}" for name, value in options.items() if not is_of(value, hints[name])]
    reporters = options.get("report_to") or []
    known = {"all", "none", *get_available_reporting_integrations()}
    missing = {*([reporters] if isinstance(reporters, str) else reporters)} - known
    if missing:
        problems.append(f"report_to={', '.join(sorted(missing))}, which is not installed")
    if problems:
        expected = ", ".join(f"{name} of {getattr(hints[name], '__name__', hints[name])}" for name in options)
        raise ValueError(f"Got training_options {'; '.join(problems)}; expected {expected}. Correct or install them.")
