"""Plan the memory of a training run, from the configuration only."""

from __future__ import annotations

import argparse

from t5peft.cli import names

EPILOG = """
Example: t5peft plan --backbone google/flan-t5-xl --method qlora --source 512 --target 64 --batch-size 16 --memory 24GB
The plan counts tensors. On CUDA the driver's context takes some hundred MB more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft plan``.

    Args:
        parser: The parser of the command.
    """
    parser.epilog = EPILOG
    methods = names.method_names()
    parser.add_argument("--backbone", default="mini", help="mini, a published checkpoint, or a folder with config.json")
    parser.add_argument("--method", default="lora", choices=methods, metavar="METHOD", help=", ".join(methods))
    parser.add_argument("--source", type=int, default=512, help="source tokens of an example")
    parser.add_argument("--target", type=int, default=128, help="target tokens of an example")
    parser.add_argument("--batch-size", "--batch", type=int, default=16, help="examples of one optimizer step")
    parser.add_argument("--micro-batch", type=int, help="examples at once; default: all of them")
    parser.add_argument("--memory", type=_parse_memory, help="the memory there is, such as 24GB")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="the device to plan for")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as load_backbone chooses")
    parser.add_argument("--quantize", choices=["int8", "nf4"], help="weights of 8 or 4 bits; default: int8 for qlora")


def _parse_memory(text: str) -> int:
    from t5peft.planning.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Print the plan.

    Args:
        args: The values of the command.

    Returns:
        The exit code; 1 where neither the run nor any change of it fits.
    """
    import torch

    from t5peft.planning.plan import Job, fits, plan_table

    job = Job(
        backbone=args.backbone,
        method=args.method,
        source_tokens=args.source,
        target_tokens=args.target,
        batch=args.batch_size,
        micro_batch=args.batch_size if args.micro_batch is None else args.micro_batch,
        device=args.device,
        quantize=args.quantize,
        dtype=None if args.dtype is None else getattr(torch, args.dtype),
    )
    print(plan_table(job, args.memory))
    return int(args.memory is not None and not fits(job, args.memory))
