"""The arguments that say how a model is tuned; shared by the commands that train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from t5peft.cli import names
from t5peft.training.config import TrainConfig


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument per field of ``TrainConfig``, with its default.

    Args:
        parser: The parser of a command.
    """
    default, methods = TrainConfig(), names.method_names()
    parser.add_argument(
        "--backbone", default=default.backbone, help="mini, a hub name such as google/flan-t5-base, or a folder"
    )
    parser.add_argument("--method", choices=methods, default=default.method, metavar="METHOD", help=", ".join(methods))
    for option, number in names.NUMERIC_OPTIONS.items():
        flag = f"--{option.replace('_', '-')}"
        parser.add_argument(flag, type=number, help=f"{option} of the method, where it has one")
    parser.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="linear maps of LoRA, such as q v, or all-linear, where the method has them",
    )
    for old, dest, settings in (
        ("--reparametrise", "projection_size", {"type": int}),
        ("--targets", "target_modules", {"nargs": "+"}),
    ):
        parser.add_argument(old, dest=dest, default=None, help=argparse.SUPPRESS, **settings)  # of version 0.1
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of the method's wrap: dora=true, sites=[encoder,decoder]; may be given again",
    )
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how to train, whatever the model.

    Args:
        parser: The parser of a command.
    """
    default = TrainConfig()
    parser.add_argument("--learning-rate", type=float, help="default: the method's own")
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
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of weights, data order and dropout")


def read_config(args: argparse.Namespace) -> TrainConfig:
    """Return the config that the arguments of ``add_config_arguments`` describe.

    Args:
        args: The values of the command.

    Returns:
        The config.

    Raises:
        ValueError: An option came twice or is not NAME=VALUE, or a number is out of range.
    """
    given = (*names.NUMERIC_OPTIONS, "target_modules")
    options = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    if args.target_modules == ["all-linear"]:
        options["target_modules"] = "all-linear"
    named = read_options(args.option)
    if twice := sorted(options.keys() & named.keys()):
        raise ValueError(f"Got {', '.join(twice)} twice, by --option and by an argument of its own; expected it once.")
    return replace(read_training(args), method=args.method, backbone=args.backbone, options=options | named)


def read_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the options of a wrap by name; values are YAML: a number, true, a word, ``[q, v]``.

    Args:
        pairs: Words ``NAME=VALUE``.

    Returns:
        The values by name.

    Raises:
        ValueError: A word is not NAME=VALUE, a name came twice, or a value is not YAML.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text) or name in options:
            raise ValueError(f"Got --option {pair!r}; expected NAME=VALUE, such as dropout=0.1, and each name once.")
        options[name] = _parse_value(text)
    return options


def _parse_value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Got --option with {text!r}; expected a value in YAML ({error}).") from error
    try:
        return float(value) if isinstance(value, str) else value  # YAML reads 1e-3 as a word
    except ValueError:
        return value


def read_training(args: argparse.Namespace) -> TrainConfig:
    """Return a config of the fields that ``add_training_arguments`` adds.

    Args:
        args: The values of the command.

    Returns:
        The config.

    Raises:
        ValueError: A number is out of range.
    """
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
