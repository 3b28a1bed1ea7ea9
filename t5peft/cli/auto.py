"""Tune a model on a file: infer the task, try methods and learning rates within a time limit, compare with baselines, report."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from t5peft.cli.data import SPLITS, add_column_arguments, check_references, pairs_of, read_data, read_splits
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.cli.train_config import add_field
from t5peft.training.config import TrainConfig

if TYPE_CHECKING:
    from t5peft.cli.auto_run import AutoResult
    from t5peft.data import Task
    from t5peft.data.splits import Splits

EPILOG = """
Examples:
  t5peft auto train.csv --minutes 30 --output runs/reviews
  t5peft auto train.csv --test test.csv --column text=review --column label=stars --memory 8GB --output runs/reviews
  t5peft auto train.csv --template 'mood of: {review}' --target-word 1=bad --target-word 2=good --output runs/mood
The output contains adapter/ (or model/, if full fine-tuning is best) with task.yaml and a model card, report.md, results.json
and test.jsonl. Run the same command again to resume an interrupted search.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft auto``."""
    parser.add_argument("train", nargs="?", metavar="FILE", help=f"{SPLITS['train']}; default: the records of --task")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--task", help="a preset for your own files, a built-in task, or a YAML file; default: inferred from the data"
    )
    for split in ("validation", "test"):
        data.add_argument(f"--{split}", metavar="FILE", help=SPLITS[split])
    add_column_arguments(data)
    model = parser.add_argument_group("model and method")
    add_option(model, "--backbone")
    model.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="the methods to try; default: the methods that are often best"
    )
    search = parser.add_argument_group("search")
    search.add_argument("--minutes", type=float, default=30.0, help="time limit for all trials, in minutes")
    add_option(search, "--memory", help="the memory of the device, such as 8GB; default: the free memory")
    for name in ("batch_size", "bf16", "seed"):
        add_field(search, name)
    output = parser.add_argument_group("output")
    add_option(output, "--output")
    add_option(output, "--overwrite")
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Search, report, and print what to do next."""
    if args.minutes <= 0:
        raise ValueError(f"Got --minutes {args.minutes:g}; expected more than 0.")
    result = _search(args, *_read(args))
    test = result.results["test"]
    lines = [f"{result.method} at {result.learning_rate:g} in {result.folder}"]
    lines.append(
        f"test, {test['records']} records: " + ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
    )
    lines += [
        f"{name}: {found['score']['mean']:.4f}, {found['difference']['mean']:+.4f} "
        f"[{found['difference']['low']:+.4f}, {found['difference']['high']:+.4f}] for the tuned model"
        for name, found in result.results["baselines"].items()
    ]
    lines += [f"report: {result.report}", *result.commands]
    print_results(args, result.results, "\n".join(lines))
    return 0


def _read(args: argparse.Namespace) -> tuple[Task | None, Splits]:
    """Return the task, if it is given, and the records."""
    if args.task is not None:
        return read_data(args)
    if args.train is None:
        raise ValueError("Got neither a file nor --task; expected one: t5peft auto train.csv --output runs/first.")
    given = {split: path for split in SPLITS if (path := getattr(args, split)) is not None}
    splits = read_splits(args, given)
    if args.references:
        check_references(args.references, splits)
    return None, splits


def _search(args: argparse.Namespace, task: Task | None, splits: Splits) -> AutoResult:
    from t5peft.cli.auto_run import auto
    from t5peft.cli.auto_task import UnclearTaskError, Wording

    words = pairs_of(args.target_word, "--target-word") or None
    wording = Wording(args.template, words, args.references, args.max_source_length, args.max_target_length)
    columns = {} if task is not None else pairs_of(args.column, "--column")

    def call(target: str | None) -> AutoResult:
        return auto(
            splits["train"],
            args.output,
            test=splits.get("test"),
            validation=splits.get("validation"),
            task=task,
            columns=columns,
            target=target,
            wording=wording,
            backbone=args.backbone,
            methods=args.methods,
            minutes=args.minutes,
            memory_bytes=args.memory,
            config=TrainConfig(batch_size=args.batch_size, bf16=args.bf16, seed=args.seed),
            overwrite=args.overwrite,
            tell=_tell,
        )

    try:
        return call(None)
    except UnclearTaskError as error:
        if not (error.choices and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        return call(_ask(error.choices, splits["train"][0]))


def _tell(line: str) -> None:
    print(line, flush=True)


def _ask(choices: tuple[str, ...], record: Any) -> str:
    """Ask on the terminal which column is predicted."""
    for number, name in enumerate(choices, 1):
        print(f"  {number}  {name}, such as {str(record.get(name))[:60]!r}", file=sys.stderr)
    while True:
        print("Which column should be predicted? ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise ValueError("Got no answer; expected a column. Give --column label=NAME.")
        answer = answer.strip()
        if answer in choices:
            return answer
        if answer.isdigit() and 1 <= int(answer) <= len(choices):
            return choices[int(answer) - 1]
