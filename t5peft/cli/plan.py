"""Estimate the memory of a training run, from the config only."""

from __future__ import annotations

import argparse

from t5peft.cli.options import add_hidden, add_method, add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.cli.train_config import add_field

EPILOG = """
Example: t5peft plan --backbone google/flan-t5-xl --method qlora --max-source-length 512 --max-target-length 64 --memory 24GB
The plan counts tensors. A run fits if the memory is at least 10 % above its planned peak, because measured peaks are up to 9 %
above the plan. On CUDA, the context of the driver takes a few hundred MB more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft plan``."""
    model = parser.add_argument_group("model and method")
    add_option(model, "--backbone")
    add_field(model, "dtype")
    add_field(model, "quantize")
    add_method(model)
    step = parser.add_argument_group("optimizer step")
    add_option(step, "--max-source-length", default=512, help="tokens of a source")
    add_option(step, "--max-target-length", default=128, help="tokens of a target")
    add_field(step, "batch_size")
    step.add_argument("--micro-batch", type=int, help="examples per micro-batch; default: the whole batch")
    device = parser.add_argument_group("device")
    add_option(device, "--device", default="cuda", help="the device to plan for")
    add_option(device, "--memory")
    add_output_options(parser)
    add_hidden(parser, "--source", "max_source_length", type=int)
    add_hidden(parser, "--target", "max_target_length", type=int)
    add_hidden(parser, "--batch", "batch_size", type=int)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    import torch

    from t5peft.planning.job import Job
    from t5peft.planning.plan import changes, fits, plan_lines, step_bytes
    from t5peft.planning.settings import command

    job = Job(
        backbone=args.backbone,
        method=args.method,
        source_tokens=args.max_source_length,
        target_tokens=args.max_target_length,
        batch=args.batch_size,
        micro_batch=args.batch_size if args.micro_batch is None else args.micro_batch,
        device=args.device,
        quantize=args.quantize,
        dtype=None if args.dtype is None else getattr(torch, args.dtype),
    )
    if not args.json:
        for line in plan_lines(job, args.memory):  # each as soon as it is found
            print(line, file=getattr(args, "results", None), flush=True)
    fitting = None if args.memory is None else fits(job, args.memory)
    if args.json:
        proposed = [] if args.memory is None else changes(job, args.memory)
        texts = [change.text for change in proposed]
        commands = [command(job, change.job) for change in proposed]
        print_results(args, {**vars(step_bytes(job)), "fits": fitting, "changes": texts, "commands": commands}, "")
    return int(fitting is False)
