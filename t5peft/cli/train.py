"""Tune one method on a file or a named task, and save the adapter with its task and scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from t5peft.backbone import load_backbone
from t5peft.checkpoint import save_adapter
from t5peft.cli.data import Splits, add_data_arguments, read_data, save_task
from t5peft.evaluation import evaluate_task
from t5peft.methods import METHODS
from t5peft.tasks import Task
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments

# Options of a wrap that the command line offers, by the name of the wrap's argument.
WRAP_OPTIONS = ("rank", "alpha", "length", "reparametrise")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft train``."""
    add_data_arguments(parser)
    parser.add_argument("--backbone", default="mini", help="mini, a hub name such as google/flan-t5-base, or a folder")
    parser.add_argument("--method", choices=sorted(METHODS), default="lora")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the adapter is saved")
    parser.add_argument("--learning-rate", type=float, help="the method's own by default")
    parser.add_argument("--batch-size", type=int, default=16, help="examples of one optimizer step on one device")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of epochs")
    parser.add_argument("--patience", type=int, help="stop after so many evaluations without a lower validation loss")
    parser.add_argument("--evaluations", type=int, default=5, help="evaluations and checkpoints during training")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in --output")
    for option in WRAP_OPTIONS:
        parser.add_argument(f"--{option}", type=int, help=f"{option} of the method, where it has one")


def run(args: argparse.Namespace) -> int:
    """Tune, score, save."""
    task, splits = read_data(args)
    if "train" not in splits:
        raise ValueError(f"The task {task.name!r} has no training records; give a file by --train.")
    set_seed(args.seed)
    method = METHODS[args.method]
    model, tokenizer = load_backbone(args.backbone, quantize=method.quantize)
    options = {name: getattr(args, name) for name in WRAP_OPTIONS if getattr(args, name) is not None}
    try:
        model = method.wrap(model, **options)
    except TypeError as error:
        raise ValueError(f"The method {args.method!r} takes no such option: {error}") from error
    trainer = _trainer(args, model, tokenizer, task, splits)
    trainer.train(resume_from_checkpoint=args.resume)
    scores = {
        split: evaluate_task(model, tokenizer, task, splits[split])
        for split in ("validation", "test")
        if split in splits
    }
    folder = Path(args.output)
    if args.method == "full":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        save_adapter(model, folder / "adapter")
        folder = folder / "adapter"
    save_task(task, folder)
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
    print_scores(scores)
    print(f"saved to {folder}")
    return 0


def print_scores(scores: dict[str, dict[str, float]]) -> None:
    """One line a split."""
    for split, values in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))


def _trainer(
    args: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    splits: Splits,
) -> T5PeftTrainer:
    train, validation = (task.tokenize(splits[split], tokenizer) for split in ("train", "validation"))
    steps_per_epoch = max(1, -(-len(train) // args.batch_size))
    steps = args.steps or max(1, round(args.epochs * steps_per_epoch))
    every = max(1, steps // max(1, args.evaluations))
    schedule: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
    }
    arguments = T5PeftTrainingArguments(
        output_dir=args.output,
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate or METHODS[args.method].learning_rate,
        weight_decay=args.weight_decay,
        label_smoothing_factor=args.label_smoothing,
        bf16=args.bf16,
        logging_steps=max(1, every // 4),
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        save_total_limit=2,
        seed=args.seed,
        **schedule,
    )
    return T5PeftTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(args.patience)] if args.patience else None,
    )
