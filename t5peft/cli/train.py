"""Tune one method on a file or a named task, and save the adapter with its task and scores."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from t5peft.cli.config_file import CONFIG_FILE, write_config_file
from t5peft.cli.data import add_data_arguments, read_data, save_task
from t5peft.cli.options import add_option
from t5peft.cli.output import add_output_options, print_results
from t5peft.cli.parser import Parser
from t5peft.cli.train_config import add_config_arguments, read_config
from t5peft.compat.filesystem import write_whole
from t5peft.compat.lock import hold_folder
from t5peft.training.config import TrainConfig
from t5peft.training.run_folder import check_run_folder

if TYPE_CHECKING:
    from t5peft.data import Task
    from t5peft.training.train import Splits

EPILOG = """
Examples:
  t5peft train --task classification --train train.csv --column text=review --column label=stars --output runs/reviews
  t5peft train --config runs/reviews/config.yaml --method ia3 --output runs/ia3
The output contains adapter/ (with task.yaml and scores.json), checkpoints, and config.yaml, which can repeat the run.
"""


_MEMORY_HELP = (
    "stay within this memory, such as 8GB, with smaller micro-batches, checkpointing or bfloat16; default: no limit"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft train``."""
    add_data_arguments(parser)
    add_config_arguments(parser)
    group = parser.add_argument_group("output")
    for name in ("--output", "--resume", "--overwrite"):
        add_option(group, name)
    group.add_argument(
        "--push-to-hub",
        metavar="REPO",
        help="push the adapter to user/name on the hub, or write the files for the hub to folder:PATH",
    )
    add_option(parser.add_argument_group("memory"), "--memory", help=_MEMORY_HELP)
    add_output_options(parser)
    parser.set_defaults(named=parser.named() if isinstance(parser, Parser) else {})


def run(args: argparse.Namespace) -> int:
    """Train, save, score."""
    with hold_folder(args.output):
        check_run_folder(args.output, resume=args.resume, overwrite=args.overwrite)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from t5peft import adapters
    from t5peft.methods import METHODS
    from t5peft.training.card import score_run, write_run_card
    from t5peft.training.train import train

    folder = Path(args.output)
    # ``train`` tells of a method of an installed package that cannot be imported.
    has_adapter = args.method not in METHODS or METHODS[args.method].has_adapter
    adapters.check_output(folder / "adapter") if has_adapter else adapters.ensure_no_adapter(folder)
    config = read_config(args)
    if args.push_to_hub:
        adapters.check_push(args.push_to_hub, config.backbone, has_adapter=has_adapter)
    task, splits = read_data(args)
    if args.memory is not None:
        config = _within_memory(config, task, splits, args.memory)
    started = time.monotonic()
    model, tokenizer = train(task, splits, config, folder, resume=args.resume, overwrite=args.overwrite)
    if not has_adapter:
        adapters.save_model(cast(PreTrainedModel, model), folder, tokenizer=tokenizer)
    else:
        folder = adapters.save_adapter(cast(PeftModel, model), folder / "adapter")  # as its method has an adapter
    save_task(task, folder)
    write_config_file(Path(args.output) / CONFIG_FILE, args, args.named)
    sha256 = adapters.manifest_sha256(folder)
    print(f"saved to {folder}\nsha256 {sha256}  (of its manifest, for `t5peft serve --pins` and load_adapter(sha256=))")
    scored = score_run(model, tokenizer, task, splits)
    write_whole(folder / "scores.json", json.dumps(scored.scores, indent=1))
    results = {"output": str(folder), "sha256": sha256, "scores": scored.scores}
    if has_adapter:
        write_run_card(folder, task, splits, config, scored.card)
    if args.push_to_hub:
        results["pushed"] = adapters.push_adapter(folder, args.push_to_hub)
        print(f"pushed to {results['pushed']}")
    print_results(args, results | {"seconds": time.monotonic() - started}, scores_text(scored.scores))
    return 0


def _within_memory(config: TrainConfig, task: Task, splits: Splits, memory_bytes: int) -> TrainConfig:
    """Return the config that a plan advises, and print what it changes."""
    from t5peft.benchmark.memory import return_freed_memory
    from t5peft.models.backbone import load_tokenizer
    from t5peft.planning.advice import within_memory
    from t5peft.planning.settings import options_text
    from t5peft.planning.units import bytes_text

    return_freed_memory()  # what glibc keeps in holes is not in the plan
    tokenizer = load_tokenizer(config.backbone)
    config, advice = within_memory(config, task, splits["train"], tokenizer, memory_bytes)
    print(f"plan: {advice.text} ({bytes_text(advice.peak_bytes)}) {options_text(advice.settings)}".rstrip(), flush=True)
    return config


def scores_text(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return one line per split.

    Args:
        scores: Scores by split and metric.

    Returns:
        The lines.
    """
    return "\n".join(
        f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        for split, values in scores.items()
    )
