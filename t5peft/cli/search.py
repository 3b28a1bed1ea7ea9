"""Search for hyper-parameters with Optuna, and print the command of the best run. The search is resumable."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict

from t5peft.cli.data import SPLITS, add_data_arguments, read_data
from t5peft.cli.options import add_option, option_of
from t5peft.cli.output import add_output_options, print_results
from t5peft.cli.train_config import add_config_arguments, read_config

EPILOG = """
Example: t5peft search --task classification --train train.csv --method lora --trials 20 --output studies/reviews
The search varies the learning rate, from a tenth to ten times --learning-rate. It also varies --weight-decay,
--label-smoothing and the method's --rank or --length, unless they are given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft search``."""
    add_data_arguments(parser)
    add_config_arguments(parser)
    group = parser.add_argument_group("search")
    group.add_argument("--trials", type=int, default=20, help="total trials, including those of an interrupted search")
    add_option(group, "--workers")
    add_option(parser.add_argument_group("output"), "--output")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Search, and print the best run's command."""
    from t5peft.compat.ray import open_workers
    from t5peft.training.search import search

    config = read_config(args)
    task, splits = read_data(args)
    with contextlib.ExitStack() as opened:
        executor = opened.enter_context(open_workers(args.workers)) if args.workers else None
        found = search(
            task, splits, config, args.output, trials=args.trials, executor=executor, workers=args.workers or 1
        )
    lines = [
        f"{found.trials} trials, {found.pruned} of them pruned; best {task.metrics[0]} on validation {found.value:.4f}"
    ]
    if found.picture:
        lines.append(f"picture: {found.picture}")
    command = found.command(args.task, f"{args.output}/best", data_words(args))
    results = {**vars(found), "config": asdict(found.config), "metric": task.metrics[0], "command": command}
    print_results(args, results, "\n".join([*lines, command]))
    return 0


def data_words(args: argparse.Namespace) -> list[str]:
    """Return the words of a command that name the same files and columns.

    Args:
        args: The values of a command with data.

    Returns:
        Options and values, without ``--task``.
    """
    options = ("encoding", "delimiter", "template", "references", "max_source_length", "max_target_length")
    given = {name: [str(value)] for name in (*SPLITS, *options) if (value := getattr(args, name))}
    given |= {"column": args.column, "target_word": args.target_word}
    words: list[str] = []
    for name, values in given.items():
        for value in values:
            words += [option_of(name), value]
    return words
