"""One tuning run from a recipe: load, wrap, train, keep the best, score. What `t5peft train`, search and retuning share."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from t5peft.data import Task, checks
from t5peft.evaluation import evaluate_task
from t5peft.evaluation.scores import check_metrics
from t5peft.methods import METHODS
from t5peft.models.backbone import load_backbone
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments

logger = logging.getLogger(__name__)

Records = Sequence[Mapping[str, Any]]
Splits = Mapping[str, Records]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is tuned."""

    method: str = "lora"
    backbone: str = "mini"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the method's wrap, such as ``rank`` or ``length``."""
    learning_rate: float | None = None
    """None: the method's own."""
    batch_size: int = 16
    """Examples of one optimizer step on one device."""
    epochs: float = 3.0
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    evaluations: int = 5
    """How often at most validation is scored, and the model saved, in training; the best is kept."""
    patience: int | None = None
    """Stop after so many evaluations without a lower validation loss."""
    weight_decay: float | None = None
    """None: 0, but for a search, which looks for it; so too with ``label_smoothing``."""
    label_smoothing: float | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise one ValueError for all numbers that are too small or too large."""
        numbers = ("learning_rate", "batch_size", "epochs", "steps", "evaluations", "patience")
        values = {name: getattr(self, name) for name in numbers}
        wrong = [f"{name}={value}" for name, value in values.items() if value is not None and value <= 0]
        problems = (
            [f"{', '.join(wrong)} came; expected numbers above 0 (learning_rate, steps and patience may be None)"]
            if wrong
            else []
        )
        if (self.weight_decay or 0) < 0:
            problems.append(f"weight_decay={self.weight_decay} came; expected at least 0")
        if not 0 <= (self.label_smoothing or 0) < 1:
            problems.append(f"label_smoothing={self.label_smoothing} came; expected at least 0 and less than 1")
        if problems:
            raise ValueError(f"Recipe: {'; '.join(problems)}.")


@dataclass(frozen=True)
class TrainResult:
    """A tuned model, and its scores by split and metric."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scores: dict[str, dict[str, float]]


def train_and_evaluate(
    task: Task,
    splits: Splits,
    recipe: TrainConfig,
    output: str | Path,
    *,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Tune by ``recipe`` on ``splits["train"]``, keep the lowest loss on validation, score validation and test.

    Args and errors are those of :func:`train`, which tunes without scoring.
    """
    wrapped, tokenizer = train(task, splits, recipe, output, model=model, resume=resume, callbacks=callbacks)
    return TrainResult(wrapped, tokenizer, score_splits(wrapped, tokenizer, task, splits))


def train(
    task: Task,
    splits: Splits,
    recipe: TrainConfig,
    output: str | Path,
    *,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The tuned model and its tokenizer; what would stop the scoring afterwards stops it before the training.

    Args:
        task: the task of all splits.
        splits: records of train, validation, and test if there are any.
        recipe: how.
        output: folder of the checkpoints.
        model: a wrapped model to train on, and its tokenizer; None: a new one by the recipe.
        resume: go on from the newest complete checkpoint in ``output``.
        callbacks: beside early stopping.

    Raises:
        ValueError: no training or validation records, an unknown method or metric, an option that the method does not have,
            a column of references that no record has, or what ``Task.encode`` says of the records of any split.
    """
    check_splits(task, splits)
    check_metrics(task)
    test = splits.get("test", ())
    if not _is_empty(test):
        checks.raise_all(task.name, checks.missing_references([*splits["validation"], *test], task.references))
    set_seed(recipe.seed)
    wrapped, tokenizer = _backbone(recipe) if model is None else model
    if not _is_empty(test):
        task.encode(test, tokenizer)
    train, validation = (task.tokenize(splits[split], tokenizer) for split in ("train", "validation"))
    if model is None:
        wrapped = _wrap(wrapped, recipe, train[0]["input_ids"][:-1])
    watching = [_AtTheEnd(), *([EarlyStoppingCallback(recipe.patience)] if recipe.patience else [])]
    T5PeftTrainer(
        model=wrapped,
        args=_arguments(recipe, len(train), output),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[*watching, *callbacks],
    ).train(resume_from_checkpoint=resume)
    return wrapped, tokenizer


def check_splits(task: Task, splits: Splits) -> None:
    """Raise ValueError where there are no records to train on, or none to validate by."""
    missing = [split for split in ("train", "validation") if _is_empty(splits.get(split))]
    if missing:
        raise ValueError(
            f"The task {task.name!r} has no {' and no '.join(missing)} records; expected at least one of each."
        )


def _is_empty(records: Any) -> bool:
    """Asked of the length, as a DataFrame has no truth; what it is instead of records is told when they are tokenised."""
    return records is None or (isinstance(records, Sized) and len(records) == 0)


class _AtTheEnd(TrainerCallback):
    """Scores and saves the last step too, which is else left out where the number of evaluations does not divide that of steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def score_splits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, splits: Splits
) -> dict[str, dict[str, float]]:
    """The scores of validation and test, by split and metric."""
    return {
        split: evaluate_task(model, tokenizer, _of_split(task, splits[split]), splits[split])
        for split in ("validation", "test")
        if not _is_empty(splits.get(split))
    }


def _of_split(task: Task, records: Records) -> Task:
    """``task``, but by the one target where no record has references, as in a validation split held out from train."""
    if not checks.missing_references(records, task.references):
        return task
    logger.warning("task %s: no record of a split has %r; it is scored by its one target", task.name, task.references)
    return replace(task, references=None)


def _backbone(recipe: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if recipe.method not in METHODS:
        raise ValueError(f"There is no method {recipe.method!r}; expected one of {', '.join(METHODS)}.")
    model, tokenizer = load_backbone(recipe.backbone, quantize=METHODS[recipe.method].quantize)
    if not model.can_generate():
        raise ValueError(f"{recipe.backbone} has a classification head; expected a T5 with a language model head.")
    return model, tokenizer


def _wrap(backbone: PreTrainedModel, recipe: TrainConfig, example: Sequence[int]) -> PreTrainedModel:
    try:
        return METHODS[recipe.method].wrap_for(backbone, example, recipe.options)
    except TypeError as error:
        taken = METHODS[recipe.method].options
        raise ValueError(
            f"The method {recipe.method!r} takes no such option ({error}); it takes {', '.join(taken) or 'none'}."
        ) from error


def _arguments(recipe: TrainConfig, examples: int, output: str | Path) -> T5PeftTrainingArguments:
    batch = recipe.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    steps = recipe.steps or max(1, round(recipe.epochs * max(1, -(-examples // batch))))
    every = -(-steps // recipe.evaluations)
    return T5PeftTrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate or METHODS[recipe.method].learning_rate,
        weight_decay=recipe.weight_decay or 0.0,
        label_smoothing_factor=recipe.label_smoothing or 0.0,
        bf16=recipe.bf16,
        logging_steps=max(1, every // 4),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        seed=recipe.seed,
    )
