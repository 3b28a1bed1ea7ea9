"""Merge an adapter into its unquantised backbone, print the parity, and save one ordinary T5 checkpoint."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from t5peft.adapters import ensure_no_adapter, merge, save_model
from t5peft.cli.data import TASK_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft merge``."""
    parser.add_argument("adapter", metavar="FOLDER", help="an adapter, as `t5peft train` saves it")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the merged model is saved")


def run(args: argparse.Namespace) -> int:
    """Merge and save."""
    ensure_no_adapter(args.output)
    model, tokenizer, parity = merge(args.adapter)
    save_model(model, args.output, tokenizer=tokenizer)
    task = Path(args.adapter) / TASK_FILE
    if task.is_file():
        shutil.copy(task, Path(args.output) / TASK_FILE)
    print(parity)
    print(f"saved to {args.output}")
    return 0
