"""The arguments that say how a model is tuned, one for each field of ``TrainConfig``; shared by the commands that train."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from inspect import getdoc
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from t5peft.cli import names
from t5peft.cli.options import Group, add_hidden, add_method, add_option, option_of
from t5peft.training.config import TrainConfig

_MODEL = ("dtype", "quantize")
_OWN = ("method", "backbone", "options", "training_options")  # with arguments of their own
TRAINING = tuple(field.name for field in fields(TrainConfig) if field.name not in (*_MODEL, *_OWN))


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument per field of ``TrainConfig``, with its default.

    Args:
        parser: The parser of a command.
    """
    group = parser.add_argument_group("model and method")
    add_option(group, "--backbone")
    for name in _MODEL:
        add_field(group, name)
    add_method(group)
    for option, number in names.NUMERIC_OPTIONS.items():
        group.add_argument(
            option_of(option), type=number, help=f"{option} of the method, if it has one; default: the method's"
        )
    group.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="linear layers for LoRA, such as q v, or all-linear; default: the method's",
    )
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of the method's wrap function: dora=true, sites=[encoder,decoder]; can be repeated",
    )
    add_hidden(parser, "--reparametrise", "projection_size", type=int)
    add_hidden(parser, "--targets", "target_modules", nargs="+")
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how to train, whatever the model.

    Args:
        parser: The parser of a command.
    """
    group = parser.add_argument_group("training")
    for name in TRAINING:
        add_field(group, name)
    group.add_argument(
        "--training-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of T5PeftTrainingArguments: lora_plus_ratio=8, report_to=tensorboard; can be repeated",
    )


def add_field(group: Group, name: str) -> None:
    """Add the argument of one field of ``TrainConfig``: its type and default, and its text of the docstring as help.

    Args:
        group: A parser, or a group of its help.
        name: The field.
    """
    flag, text = option_of(name), _texts()[name]
    kind, default = _kind(get_type_hints(TrainConfig)[name]), getattr(TrainConfig(), name)
    if kind is bool:
        group.add_argument(flag, action="store_true", help=text)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), default=default, help=text)
    else:
        group.add_argument(flag, type=kind, default=default, help=text)


def _kind(hint: Any) -> Any:
    """Return a type without None."""
    return next((one for one in get_args(hint) if one is not NoneType), hint) if NoneType in get_args(hint) else hint


def _texts() -> dict[str, str]:
    """Return the text of each attribute in the docstring of ``TrainConfig``, as help is written."""
    found = re.findall(r"^    (\w+): (.+?)$", getdoc(TrainConfig) or "", flags=re.MULTILINE)
    texts = {name: text.replace("``", "").rstrip(".").replace("by default", "default:") for name, text in found}
    return {name: text[:1].lower() + text[1:] for name, text in texts.items()}


def read_config(args: argparse.Namespace) -> TrainConfig:
    """Return the config that the arguments of ``add_config_arguments`` describe.

    Args:
        args: The values of the command.

    Returns:
        The config.

    Raises:
        ValueError: An option came twice or is not NAME=VALUE, or a number is out of range.
    """
    known = (*names.NUMERIC_OPTIONS, "target_modules")
    options = {name: getattr(args, name) for name in known if getattr(args, name) is not None}
    if args.target_modules == ["all-linear"]:
        options["target_modules"] = "all-linear"
    named = read_options(args.option, "--option")
    if twice := sorted(options.keys() & named.keys()):
        raise ValueError(f"Got {', '.join(twice)} twice, with --option and with its own argument; expected it once.")
    given = {name: getattr(args, name) for name in ("method", "backbone", *_MODEL)}
    return replace(read_training(args), **given, options=options | named)


def read_options(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Return options by name; values are YAML: a number, true, a word, ``[q, v]``.

    Args:
        pairs: Words ``NAME=VALUE``.
        option: The option that they came by.

    Returns:
        The values by name.

    Raises:
        ValueError: A word is not NAME=VALUE, a name came twice, or a value is not YAML.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text) or name in options:
            raise ValueError(f"Got {option} {pair!r}; expected NAME=VALUE, such as dropout=0.1, and each name once.")
        options[name] = _parse_value(text, option)
    return options


def _parse_value(text: str, option: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Got {option} with {text!r}; expected a value in YAML ({error}).") from error
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
    values = {name: getattr(args, name) for name in TRAINING}
    return TrainConfig(**values, training_options=read_options(args.training_option, "--training-option"))
