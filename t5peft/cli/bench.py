"""Compare the methods with full fine-tuning, on a suite or on your own files."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5peft.cli import names
from t5peft.cli.data import SPLITS, pairs_of
from t5peft.cli.options import OPTIONS, add_hidden, add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.compat.lock import hold_folder

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from t5peft.benchmark.records import RunConfig, RunRecord
    from t5peft.benchmark.schedule import Execute, Progress
    from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask

EPILOG = """
Examples:
  t5peft bench --suite quick
  t5peft bench --task classification --train train.tsv --test test.tsv --column text=sentence --column label=label
Run the same command again to resume an interrupted suite. Runs with a record are not repeated; to repeat them, delete their
records.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft bench``."""
    add = parser.add_argument
    add("--suite", help=f"{', '.join(names.suite_names())}, or a YAML file (default: quick)")
    backbone = f"{OPTIONS['--backbone']['help']}; default: the suite's"
    add_option(parser, "--backbone", default=None, help=backbone)
    add("--methods", nargs="+", metavar="METHOD", help="only these methods of the suite")
    add("--tasks", nargs="+", metavar="TASK", help="only these tasks of the suite")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="seeds of the runs; default: the suite's")
    add("--steps", type=int, help="optimizer steps of a run; default: the suite's")
    add_hidden(parser, "--data", "data_folder")
    add(
        "--data-folder",
        metavar="FOLDER",
        help="folder of the public data sets; default: the environment variable T5PEFT_DATA",
    )
    output = "the folder to write results to; default: t5peft-bench/SUITE, or the name of the folder of train.*"
    add_option(parser, "--output", type=Path, required=False, help=output)
    add("--threads", type=int, help="CPU threads per run; default: all, split evenly among the workers")
    add_option(parser, "--workers")
    add_option(parser, "--device")
    add(
        "--report-only",
        action="store_true",
        help="run nothing, and write the report of the existing records; --tasks and --methods limit them",
    )
    add(
        "--readme",
        type=Path,
        metavar="FILE",
        help="write the tables into this file between <!-- table:SUITE --> and <!-- /table -->, and one table of all tasks "
        "between <!-- table:SUITE-overview --> and <!-- /table -->",
    )
    add_output_options(parser)
    own = parser.add_argument_group("another task or your own files, instead of the tasks of a suite")
    own.add_argument(
        "--task", help="a preset with --train, a built-in task, or a YAML file; default: the suite's tasks"
    )
    for split, text in SPLITS.items():
        own.add_argument(f"--{split}", metavar="FILE", help=text)
    for name in ("--column", "--template"):
        add_option(own, name)
    add_hidden(parser, "--source-column", "source_column", nargs="+")  # with --label-column of version 0.1
    add_hidden(parser, "--label-column", "label_column")
    add_hidden(parser, "--target-column", "label_column")
    parser.set_defaults(source_column=None, label_column=None)


def run(args: argparse.Namespace) -> int:
    """Run what is not recorded yet, print the table and write the report."""
    from t5peft.benchmark.suites import suite_parts

    if args.data_folder:
        os.environ["T5PEFT_DATA"] = args.data_folder
    parts = suite_parts(args.suite) if args.suite else []
    if len(parts) < 2:
        return _run(args)
    for part in parts:
        folder = (args.output or Path("t5peft-bench") / args.suite) / Path(part).stem
        _run(argparse.Namespace(**vars(args) | {"suite": part, "output": folder}))
    return 0


def _run(args: argparse.Namespace) -> int:
    from t5peft.benchmark.report import write_report
    from t5peft.benchmark.tables import fill_markers

    suite = suite_of(args)
    output = args.output or Path("t5peft-bench") / suite.name
    asked = [] if args.report_only else _run_suite(suite, output, args)
    title = f"Tuning methods for T5 on {suite.backbone}: {suite.name}"
    report = write_report(
        output,
        output,
        title=title,
        about=suite.about,
        command=_command(),
        tasks=args.tasks if args.report_only else None,
        methods=args.methods if args.report_only else None,
        asked=asked,
        expected=suite.expected,
    )
    paths = "\n".join(f"{kind}: {path}" for kind, path in report.paths.items())
    print_results(args, {"suite": suite.name, "paths": report.paths}, f"\n{report.text}\n\n{paths}")
    if args.readme:
        fill_markers(args.readme, {suite.name: report.text, f"{suite.name}-overview": report.overview})
    return 0


def _command() -> str:
    return shlex.join(["t5peft", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "t5peft" else "t5peft bench ..."


def suite_of(args: argparse.Namespace) -> Suite:
    """Return the suite that the arguments ask for.

    Args:
        args: The values of the command.

    Returns:
        The suite.

    Raises:
        ValueError: Something is missing or contradicts itself; one error names all of it.
    """
    from t5peft.benchmark.suites import load_suite

    for_files = {"--validation": args.validation, "--column": args.column, "--source-column": args.source_column,
                 "--label-column": args.label_column, "--template": args.template}  # fmt: skip
    unused = [option for option, value in for_files.items() if value]
    if unused and not (args.train or args.test):
        raise ValueError(f"Got {', '.join(unused)}, which need your own files; expected --train and --test too.")
    if args.task is None and not any((args.train, args.validation, args.test)):
        suite = load_suite(args.suite or "quick")
        if suite.name == "quick" and args.backbone not in (None, suite.backbone):
            suite = replace(suite, methods=_grids(suite.methods))
    else:
        suite = _own_suite(args)
    return _with_methods(suite, args.methods or ()).narrowed(
        tasks=args.tasks, methods=args.methods, backbone=args.backbone, seeds=args.seeds, steps=args.steps
    )


def _with_methods(suite: Suite, asked: Sequence[str]) -> Suite:
    """Return the suite with the methods that are asked for and that it does not list, at rates around their own."""
    from t5peft.benchmark.suites import SuiteMethod
    from t5peft.methods import METHODS

    listed = {entry.method for entry in suite.methods}
    added = tuple(
        SuiteMethod(name, (METHODS[name].learning_rate,)) for name in asked if name in METHODS.keys() - listed
    )
    return replace(suite, methods=(*suite.methods, *_grids(added)))


def _own_suite(args: argparse.Namespace) -> Suite:
    """Return a suite with its methods on another task."""
    from t5peft.benchmark.suites import SuiteTask, load_suite

    task = SuiteTask(args.task) if args.train is None and args.test is None and args.task else _own_task(args)
    suite = load_suite(args.suite or "quick")
    methods = suite.methods if args.backbone in (None, suite.backbone) else _grids(suite.methods)
    return replace(suite, name=Path(task.name).stem, about="", tasks=(task,), methods=methods)


def _own_task(args: argparse.Namespace) -> SuiteTask:
    from t5peft.benchmark.suites import SuiteTask
    from t5peft.data import PRESETS, load_records, preset_task
    from t5peft.deprecated import current_preset

    args.task = args.task and current_preset(args.task)
    needed = {"--task": args.task in PRESETS, "--train": args.train, "--test": args.test}
    missing = [name for name, given in needed.items() if not given]
    if missing:
        raise ValueError(
            f"Got your own files without {', '.join(missing)}; expected {', '.join(needed)}, because --task is one of the "
            f"presets {', '.join(PRESETS)} (it is {args.task!r})."
        )
    files = {"train": args.train, "validation": args.validation, "test": args.test}
    files = {split: path for split, path in files.items() if path}
    records = [record for split, path in files.items() for record in load_records(path, split)]
    *sources, target = PRESETS[args.task].roles
    if args.source_column and len(args.source_column) != len(sources):
        raise ValueError(
            f"Got --source-column {' '.join(args.source_column)}; expected a column for each of {', '.join(sources)}."
        )
    columns = dict(zip(sources, args.source_column or (), strict=False)) | pairs_of(args.column, "--column")
    if args.label_column:
        columns[target] = args.label_column
    path = Path(args.train).resolve() if Path(args.train).is_dir() else Path(args.train)
    name = path.resolve().parent.name if path.stem.startswith("train") else path.stem
    task = preset_task(args.task, records, name=name, columns=columns, template=args.template)
    fields = {field: value for field, value in asdict(task).items() if value is not None}
    return SuiteTask(name, own=fields | {"metrics": list(task.metrics), "files": files})


def _grids(methods: tuple[SuiteMethod, ...]) -> tuple[SuiteMethod, ...]:
    """Return the methods with three learning rates around each one's own, as the quick suite's were tuned on "mini"."""
    from t5peft.methods import METHODS

    def around(entry: SuiteMethod) -> SuiteMethod:
        known = METHODS.get(entry.method.removeprefix("peft-"))  # a baseline's rate is that of the same method here
        if known is None:
            return entry
        rates = tuple(float(f"{known.learning_rate * factor:.3g}") for factor in (1 / 3, 1, 3))
        return replace(entry, learning_rates=rates)

    return tuple(map(around, methods))


def _run_suite(suite: Suite, folder: Path, args: argparse.Namespace) -> list[RunRecord]:
    """Return the records of the suite, after the runs that are not recorded yet."""
    from t5peft.benchmark.configs import base_configs, baseline_runs
    from t5peft.benchmark.process import RunProcesses, run_in_process
    from t5peft.benchmark.records import RunRecords
    from t5peft.benchmark.runner import run as worker
    from t5peft.benchmark.schedule import run_suite, sweeps
    from t5peft.compat.ray import RayExecutor, has_cluster
    from t5peft.compat.workers import threads_of_each
    from t5peft.models.folders import ensure_output

    ensure_output(folder)
    device = _device(args.device)
    base = base_configs(suite, device)
    grid = baseline_runs(suite, base) + sweeps(suite, base)
    records = RunRecords(folder)
    least = sum(sweep.least_runs for sweep in grid)
    print(
        f"suite {suite.name}: {least} runs, {len(suite.methods)} methods and the baselines on {len(suite.tasks)} task(s), with "
        f"{suite.backbone} on {device}; records in {records.path}",
        flush=True,
    )
    line = _ProgressLine(sys.stderr.isatty() and not args.workers)
    settings: dict[str, Any] = {"log": (folder / "log.txt").resolve(), "preload": ("t5peft.benchmark.runner",)}
    try:
        with hold_folder(folder), contextlib.ExitStack() as opened:
            executor: Executor | None = None
            execute: Execute
            if args.workers and (device == "cuda" or has_cluster()):  # Ray deals out the GPUs of a machine as well
                ray = RayExecutor(args.workers, threads=args.threads, gpus=int(device == "cuda"))
                executor = opened.enter_context(ray)
                execute = partial(run_in_process, worker, threads=ray.threads, **settings)
            else:
                threads = args.threads or threads_of_each(args.workers or 1)
                execute = RunProcesses(worker, threads=threads, on_progress=line.show_step, **settings)
                if args.workers:
                    executor = opened.enter_context(ThreadPoolExecutor(args.workers))
                    opened.callback(execute.stop)
            return run_suite(
                grid,
                records,
                execute,
                log=line.log,
                on_start=line.on_start,
                executor=executor,
                workers=args.workers or 1,
            )
    except KeyboardInterrupt:
        line.log("Interrupted. Run the same command again to resume.")
        raise SystemExit(130) from None


def _device(asked: str | None) -> str:
    """Return the device asked for, or the fastest there is."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and found == "cpu":
        raise ValueError(
            "Got --device cuda, but torch finds no CUDA device; expected one. Omit the option to use the CPU, or install a torch "
            "for CUDA."
        )
    return asked or found


class _ProgressLine:
    """One line on the terminal with the progress of the suite; without a terminal, one line per run."""

    def __init__(self, live: bool) -> None:
        self.live = live
        self.head = ""

    def on_start(self, config: RunConfig, progress: Progress) -> None:
        from t5peft.benchmark.schedule import describe

        self.head = f"[{progress.line()}] {describe(config)}"
        self.show_step(0, config.steps)

    def show_step(self, step: int, steps: int) -> None:
        if self.live:
            print(f"\r\x1b[K{self.head}: step {step}/{steps}", end="", file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr)
        print(text, flush=True)
