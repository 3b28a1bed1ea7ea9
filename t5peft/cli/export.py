"""Export an adapter to plain transformers, CTranslate2, ONNX or diffusers, and compare the export with the adapter."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5peft.cli.data import TASK_FILE, add_format_arguments, read_file
from t5peft.cli.evaluate import own_test_records
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results

if TYPE_CHECKING:
    from t5peft.data import Task

EPILOG = """
Examples:
  t5peft export runs/reviews/adapter --to transformers --output exported/reviews
  t5peft export runs/reviews/adapter --to ct2 --quantize int8 --output exported/reviews-int8
If the export differs from the adapter by more than the tolerance, nothing is written and the exit code is 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft export``."""
    add = parser.add_argument
    add_option(parser, "model")
    add("--to", required=True, choices=("transformers", "ct2", "onnx", "diffusers"), help="the engine to export to")
    add("--output", required=True, metavar="DIR", help="the folder to write the export to")
    add("--quantize", choices=("int8",), help="store linear layers in 8 bits (ct2, onnx)")
    add(
        "--data",
        metavar="FILE",
        help="records to compare the export with the adapter on; default: the test records of a built-in task, else built-in texts",
    )
    add_format_arguments(parser)
    add(
        "--text-encoder",
        default="text_encoder_2",
        choices=("text_encoder", "text_encoder_2", "text_encoder_3"),
        help="the component of the pipeline to which the adapter belongs (diffusers): text_encoder_2 in FLUX, text_encoder_3 in "
        "Stable Diffusion 3",
    )
    add("--overwrite", action="store_true", help="replace an earlier export in --output")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Export, and print the comparison."""
    from t5peft.adapters import local_adapter
    from t5peft.data import Task
    from t5peft.serving.export import export
    from t5peft.serving.export_diffusers import export_diffusers

    args.model = str(local_adapter(args.model))
    if args.to == "diffusers":
        file = export_diffusers(args.model, args.output, text_encoder=args.text_encoder)
        print_results(args, {"output": str(file)}, f"saved to {file}")
        return 0
    path = Path(args.model) / TASK_FILE
    records = None
    if path.is_file():
        task = Task.from_yaml(path)
        records = read_file(args, args.data, "test") if args.data else _package_records(task)
    elif args.data:
        raise ValueError(
            f"Got --data for {args.model} without {TASK_FILE}; expected it, because it says how to read the records."
        )
    parity = export(
        args.model, args.output, to=args.to, quantize=args.quantize, overwrite=args.overwrite, records=records
    )
    print_results(args, {"output": args.output, "parity": vars(parity)}, f"{parity}\nsaved to {args.output}")
    return 0


def _package_records(task: Task) -> Sequence[Mapping[str, Any]] | None:
    """Return the test records that the package has for a task; None where it has none, or where they are not on this machine."""
    try:
        return own_test_records(task, None)
    except (ValueError, FileNotFoundError):
        return None
