"""Tune one method on a file or a named task, and save the adapter with its task and scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from t5peft.adapters.checkpoint import check_output, ensure_no_adapter, newest_complete, save_adapter
from t5peft.cli.data import add_data_arguments, read_data, save_task
from t5peft.cli.recipe import add_recipe_arguments, read_recipe
from t5peft.methods import METHODS
from t5peft.training.train import score_splits, train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft train``."""
    add_data_arguments(parser)
    add_recipe_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the adapter is saved")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in --output")


def run(args: argparse.Namespace) -> int:
    """Tune, save, score."""
    if not args.resume:
        _refuse_interrupted(Path(args.output))
    if not METHODS[args.method].has_adapter:
        ensure_no_adapter(args.output)
    else:
        check_output(Path(args.output) / "adapter")
    task, splits = read_data(args)
    model, tokenizer = train(task, splits, read_recipe(args), args.output, resume=args.resume)
    folder = Path(args.output)
    if not METHODS[args.method].has_adapter:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        folder = save_adapter(model, folder / "adapter")
    save_task(task, folder)
    print(f"saved to {folder}")
    scores = score_splits(model, tokenizer, task, splits)
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
    print_scores(scores)
    return 0


def _refuse_interrupted(output: Path) -> None:
    """Raise ValueError where ``output`` holds checkpoints of a run that saved no model, which a new run would delete."""
    ended = any((output / name).is_file() for name in ("scores.json", "adapter/adapter_config.json", "config.json"))
    newest = None if ended else newest_complete(output)
    if newest is not None:
        raise ValueError(
            f"{output} holds {newest.name} of a run that was interrupted; give --resume to go on from it, or another --output."
        )


def print_scores(scores: dict[str, dict[str, float]]) -> None:
    """One line a split."""
    for split, values in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
