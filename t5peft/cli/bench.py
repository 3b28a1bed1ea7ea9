"""`t5peft bench`: the methods against full fine-tuning, on a suite or on files of your own."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from t5peft.benchmark.schedule import Progress, describe
from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask, load_suite, suite_names

EPILOG = """
Examples:
  t5peft bench --suite quick
  t5peft bench --task classification --train train.tsv --test test.tsv --source-column sentence --label-column label
A suite that was interrupted goes on when the same command is given again. Runs that are recorded are not run again: delete
their records to repeat them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("--suite", help=f"{', '.join(suite_names())}, or a YAML file (default: quick)")
    parser.add_argument("--backbone", help="hub name or folder, in place of the suite's")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these methods of the suite")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks of the suite")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run")
    parser.add_argument("--data", help="folder of the public data sets (else the variable T5PEFT_DATA)")
    parser.add_argument("--output", type=Path, help="folder of records and report (default: t5peft-bench/SUITE)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of a run (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--report-only", action="store_true", help="write the report of the records there are")
    own = parser.add_argument_group("your own files, in place of a suite's tasks")
    own.add_argument("--task", choices=["classification", "generation"])
    own.add_argument("--train", metavar="FILE", help="CSV, TSV, JSONL or Parquet")
    own.add_argument("--validation", metavar="FILE", help="default: a tenth of the training file")
    own.add_argument("--test", metavar="FILE")
    own.add_argument("--source-column", nargs="+", metavar="COLUMN")
    own.add_argument("--label-column", metavar="COLUMN", help="for classification: labels, which are the target words")
    own.add_argument("--target-column", metavar="COLUMN", help="for generation: the target text")
    own.add_argument("--template", help='the source over the columns, such as "intent: {text}"')
    own.add_argument("--metric", nargs="+", metavar="METRIC", help="default: accuracy f1, or rouge bleu")


def run(args: argparse.Namespace) -> int:
    """Runs what is not recorded yet, prints the table and writes the report."""
    if args.data:
        os.environ["T5PEFT_DATA"] = args.data
    suite = suite_of(args)
    output = args.output or Path("t5peft-bench") / suite.name
    records_folder = output / "records"
    if not args.report_only:
        _run_suite(suite, records_folder, args)
    from t5peft.benchmark.report import write_report

    title = f"Tuning methods for T5 on {suite.backbone}: {suite.name}"
    text, paths = write_report(records_folder, output, title=title, about=suite.about, command=_command())
    print(f"\n{text}\n")
    print("\n".join(f"{what}: {path}" for what, path in paths.items()))
    return 0


def _command() -> str:
    return "t5peft " + " ".join(sys.argv[1:] if Path(sys.argv[0]).stem == "t5peft" else ["bench", "..."])


def suite_of(args: argparse.Namespace) -> Suite:
    """The suite that the arguments ask for.

    Raises:
        ValueError: everything that is missing or contradicts itself, in one error.
    """
    own = [args.train, args.validation, args.test, args.task, args.source_column, args.label_column, args.target_column]
    if not any(own):
        suite = load_suite(args.suite or "quick")
    else:
        suite = _own_suite(args)
    return suite.narrowed(
        tasks=args.tasks, methods=args.methods, backbone=args.backbone, seeds=args.seeds, steps=args.steps
    )


def _own_suite(args: argparse.Namespace) -> Suite:
    classification = args.task == "classification"
    target = args.label_column if classification else args.target_column
    needed = {"--task": args.task, "--train": args.train, "--test": args.test, "--source-column": args.source_column}
    needed["--label-column" if classification else "--target-column"] = target
    missing = [name for name, value in needed.items() if not value]
    problems = [f"{', '.join(missing)} missing: your own files need {', '.join(needed)}"] if missing else []
    if args.suite:
        problems.append("--suite came with files of your own; give one of them")
    if problems:
        raise ValueError("\n".join(problems))
    files = {"train": args.train, "validation": args.validation, "test": args.test}
    own: dict[str, Any] = {
        "name": Path(args.train).resolve().parent.name if Path(args.train).stem == "train" else Path(args.train).stem,
        "files": {split: path for split, path in files.items() if path},
        "template": args.template or _template(args.source_column),
        "target": f"{{{target}}}",
        "metrics": args.metric or (["accuracy", "f1"] if classification else ["rouge", "bleu"]),
    }
    if classification:
        own["target_words"] = _labels(own["files"], target)
    quick = load_suite("quick")
    methods = quick.methods if args.backbone in (None, "mini") else _grids(quick.methods)
    return replace(
        quick, name=own["name"], about="files of one's own", tasks=(SuiteTask(own["name"], own=own),), methods=methods
    )


def _template(columns: list[str]) -> str:
    if len(columns) == 1:
        return f"{{{columns[0]}}}"
    return " ".join(f"{column}: {{{column}}}" for column in columns)


def _labels(files: dict[str, str], column: str) -> dict[str, str]:
    """Every label of the files as its own target word."""
    from t5peft.tasks import load_records

    found = {str(record[column]) for path in files.values() for record in load_records(path, required=[column])}
    return {label: label for label in sorted(found)}


def _grids(methods: tuple[SuiteMethod, ...]) -> tuple[SuiteMethod, ...]:
    """Three learning rates around each method's own, as the quick suite's were tuned on "mini"."""
    from t5peft.methods import METHODS

    rates = {name: METHODS[name].learning_rate for name in METHODS}
    return tuple(
        replace(entry, learning_rates=tuple(float(f"{rates[entry.method] * factor:.3g}") for factor in (1 / 3, 1, 3)))
        for entry in methods
    )


def _run_suite(suite: Suite, folder: Path, args: argparse.Namespace) -> None:
    """Imports of the libraries wait until the arguments are known to be right."""
    from t5peft.benchmark.configs import base_configs
    from t5peft.benchmark.process import RunProcesses
    from t5peft.benchmark.runner import run as worker
    from t5peft.benchmark.schedule import plans, run_suite

    device = args.device or _device()
    cells = plans(suite, base_configs(suite, device))
    least = sum(cell.least_runs for cell in cells)
    print(
        f"suite {suite.name}: {len(suite.methods)} methods on {len(suite.tasks)} tasks with {suite.backbone} on {device}, "
        f"{least} runs of {suite.steps} steps or as the task says; records in {folder}",
        flush=True,
    )
    line = _Line(sys.stderr.isatty())
    execute = RunProcesses(
        worker,
        log=folder.parent / "log.txt",
        threads=args.threads,
        on_step=line.step,
        preload=("t5peft.benchmark.runner",),
    )
    try:
        run_suite(cells, folder, execute, say=line.say, begin=line.begin)
    except KeyboardInterrupt:
        line.say("interrupted: the same command goes on with the run that was cut off")
        raise SystemExit(130) from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class _Line:
    """One line on the terminal that tells where the suite is; without a terminal, one line a run."""

    def __init__(self, live: bool) -> None:
        self.live = live
        self.head = ""

    def begin(self, config: Any, progress: Progress) -> None:
        self.head = f"[{progress.line()}] {describe(config)}"
        self.step(0, config.steps)

    def step(self, step: int, steps: int) -> None:
        if self.live:
            print(f"\r\x1b[K{self.head}: step {step}/{steps}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr)
        print(text, flush=True)
