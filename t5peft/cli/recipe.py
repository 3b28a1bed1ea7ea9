"""The arguments that say how a model is tuned; shared by the commands that tune."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from t5peft.methods import METHODS
from t5peft.methods.registry import numeric_options
from t5peft.training.train import TrainConfig


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument a field of :class:`~t5peft.training.train.Recipe`, with its default."""
    default = TrainConfig()
    parser.add_argument(
        "--backbone", default=default.backbone, help="mini, a hub name such as google/flan-t5-base, or a folder"
    )
    parser.add_argument("--method", choices=sorted(METHODS), default=default.method)
    for option, number in numeric_options().items():
        parser.add_argument(f"--{option}", type=number, help=f"{option} of the method, where it has one")
    parser.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="linear maps of LoRA, such as q v, or all-linear, where the method has them",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of the method's wrap: dora=true, sites=[encoder,decoder]; may be given again",
    )
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that say how it is trained, whatever the model."""
    default = TrainConfig()
    parser.add_argument("--learning-rate", type=float, help="the method's own by default")
    parser.add_argument(
        "--batch-size", type=int, default=default.batch_size, help="examples of one optimizer step on one device"
    )
    parser.add_argument("--epochs", type=float, default=default.epochs, help="rounds over the training records")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of epochs")
    parser.add_argument("--patience", type=int, help="stop after so many evaluations without a lower validation loss")
    parser.add_argument(
        "--evaluations", type=int, default=default.evaluations, help="evaluations and checkpoints in training"
    )
    parser.add_argument("--weight-decay", type=float, help="default: 0")
    parser.add_argument("--label-smoothing", type=float, help="default: 0")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--seed", type=int, default=default.seed)


def read_recipe(args: argparse.Namespace) -> TrainConfig:
    """The recipe that ``args`` say."""
    given = (*numeric_options(), "target_modules")
    options = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    if args.target_modules == ["all-linear"]:
        options["target_modules"] = "all-linear"
    named = read_options(args.option)
    if twice := sorted(options.keys() & named.keys()):
        raise ValueError(f"{', '.join(twice)} came twice, by --option and as an argument of its own; expected it once.")
    options |= named
    return replace(read_training(args), method=args.method, backbone=args.backbone, options=options)


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of a wrap by name from ``NAME=VALUE``, the value as YAML has it: a number, true, a word, ``[q, v]``."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text) or name in options:
            raise ValueError(f"--option {pair!r} came; expected NAME=VALUE, such as dropout=0.1, and each name once.")
        options[name] = _value(text)
    return options


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--option came with {text!r}, which is no value in YAML: {error}") from error
    try:
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a word
    except ValueError:
        return value


def read_training(args: argparse.Namespace) -> TrainConfig:
    """A recipe of no other fields than ``add_training_arguments`` adds."""
    return TrainConfig(
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        epochs=args.epochs,
        steps=args.steps,
        patience=args.patience,
        evaluations=args.evaluations,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        bf16=args.bf16,
        seed=args.seed,
    )
