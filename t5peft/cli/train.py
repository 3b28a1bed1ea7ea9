"""Tune one method on a file or a named task, and save the adapter with its task and scores."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from t5peft.cli.data import add_data_arguments, read_data, save_task
from t5peft.cli.train_config import add_config_arguments, read_config
from t5peft.compat.filesystem import write_whole
from t5peft.compat.lock import hold_folder
from t5peft.training.run_folder import check_run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft train``.

    Args:
        parser: The parser of the command.
    """
    add_data_arguments(parser)
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the adapter is saved")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint in --output")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in --output")


def run(args: argparse.Namespace) -> int:
    """Train, save, score.

    Args:
        args: The values of the command.

    Returns:
        The exit code.
    """
    with hold_folder(args.output):
        check_run_folder(args.output, resume=args.resume, overwrite=args.overwrite)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from t5peft.adapters import check_output, ensure_no_adapter, manifest_sha256, save_adapter, save_model
    from t5peft.methods import METHODS
    from t5peft.training.train import score_splits, train

    folder = Path(args.output)
    # ``train`` tells of a method of an installed package that cannot be imported.
    has_adapter = args.method not in METHODS or METHODS[args.method].has_adapter
    if not has_adapter:
        ensure_no_adapter(folder)
    else:
        check_output(folder / "adapter")
    config = read_config(args)
    task, splits = read_data(args)
    model, tokenizer = train(task, splits, config, folder, resume=args.resume, overwrite=args.overwrite)
    if not has_adapter:
        save_model(cast(PreTrainedModel, model), folder, tokenizer=tokenizer)
    else:
        folder = save_adapter(cast(PeftModel, model), folder / "adapter")  # as its method has an adapter
    save_task(task, folder)
    print(f"saved to {folder}")
    print(
        f"sha256 {manifest_sha256(folder)}  (of its manifest; `t5peft serve --pins` and load_adapter(sha256=) take it)"
    )
    scores = score_splits(model, tokenizer, task, splits)
    write_whole(folder / "scores.json", json.dumps(scores, indent=1))
    print_scores(scores)
    return 0


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per split.

    Args:
        scores: Scores by split and metric.
    """
    for split, values in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
