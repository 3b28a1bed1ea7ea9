"""Merge an adapter into its unquantized backbone, print the parity, and save one ordinary T5 checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.compat.filesystem import write_whole
from t5peft.compat.lock import hold_folder
from t5peft.training.config import TASK_FILE

EPILOG = "Example: t5peft merge runs/reviews/adapter --output models/reviews"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft merge``."""
    parser.add_argument("model", metavar="FOLDER", help="an adapter from `t5peft train`, or its name on the hub")
    group = parser.add_argument_group("output")
    add_option(group, "--output")
    add_option(group, "--overwrite")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and save."""
    from t5peft.adapters import local_adapter, merge, save_model
    from t5peft.models.folders import ensure_output

    args.model = str(local_adapter(args.model))
    output = Path(args.output)
    with hold_folder(output):
        ensure_output(output, "a model")
        if (output / "config.json").is_file() and not args.overwrite:
            raise ValueError(
                f"Got the output {output}, which holds a model; expected a folder without one. Choose another folder, or use "
                "--overwrite to replace it."
            )
        model, tokenizer, parity = merge(args.model)
        save_model(model, output, tokenizer=tokenizer)
        task = Path(args.model) / TASK_FILE
        if task.is_file():
            write_whole(output / TASK_FILE, task.read_text(encoding="utf-8"))
    results = {"output": args.output, "parity": asdict(parity)}
    print_results(args, results, f"{parity}\nsaved to {args.output}")
    return 0
