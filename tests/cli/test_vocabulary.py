"""One vocabulary over all commands: an option has the same meaning, type and default wherever it stands."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import pytest

from t5peft.cli import COMMANDS, parser_of

# What a command has otherwise, with the reason.
DIFFERENT = {
    ("auto", "--memory"): "the free memory",
    ("auto", "--methods"): "there is no suite",
    ("auto", "--task"): "inferred from the data",
    ("auto", "train"): "the first word",
    ("bench", "--backbone"): "the suite has one",
    ("bench", "--output"): "named after the suite",
    ("bench", "--steps"): "the suite has them",
    ("bench", "--task"): "the suite has them",
    ("continue", "--test"): "both are compared",
    ("continue", "--train"): "without new records there is nothing to train on",
    ("evaluate", "--task"): "saved with the model",
    ("export", "--data"): "the export is compared on them",
    ("export", "--output"): "the words of the export",
    ("export", "--overwrite"): "the words of the export",
    ("export", "--quantize"): "of another engine",
    ("export", "--to"): "the words of the export",
    ("merge", "model"): "only an adapter can be merged",
    ("continue", "model"): "only an adapter can be trained again",
    ("plan", "--device"): "the device may be another machine's",
    ("plan", "--max-source-length"): "there is no task",
    ("plan", "--max-target-length"): "there is no task",
    ("predict", "--data"): "there are no records by default",
    ("predict", "--output"): "a file, or the standard output",
    ("predict", "--task"): "saved with the model",
    ("train", "--memory"): "the settings follow it",
    ("pretrain", "--backbone"): "a new model by default",
    ("pretrain", "--learning-rate"): "of the optimizer",
    ("pretrain", "--optimizer"): "muon is for new weights",
    ("pretrain", "--output"): "a path",
    ("pretrain", "--text"): "files without records",
    ("pretrain", "--steps"): "there are no epochs",
    ("pretrain", "--warmup"): "there are only steps",
    ("serve", "--backbone"): "the one that all adapters share",
    ("serve", "--memory"): "of adapters, not of the device",
    ("serve", "--quantize"): "a server has no method",
}


class Meaning(NamedTuple):
    """The text of an option and the values that it takes."""

    help: str | None
    type: Any
    default: Any
    metavar: Any
    nargs: Any
    choices: tuple[Any, ...]


def shown(command: str) -> dict[str, argparse.Action]:
    """The arguments of a command that its help shows, by name."""
    actions = (action for action in parser_of(command)._actions if action.help is not argparse.SUPPRESS)
    return {name: action for action in actions for name in action.option_strings or [action.dest]}


ALL = {command: shown(command) for command in COMMANDS}


def test_the_same_option_means_the_same_in_every_command() -> None:
    meanings: dict[str, dict[Meaning, list[str]]] = {}
    for command, actions in ALL.items():
        for name, action in actions.items():
            if (command, name) not in DIFFERENT:
                default = str(action.default)
                meaning = Meaning(
                    action.help, action.type, default, action.metavar, action.nargs, tuple(action.choices or ())
                )
                meanings.setdefault(name, {}).setdefault(meaning, []).append(command)
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


def test_what_is_listed_as_different_is_there_and_differs() -> None:
    assert {key for key in DIFFERENT if key[1] not in ALL[key[0]]} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_help_in_one_style_that_shows_its_default_or_choices(command: str) -> None:
    for name, action in ALL[command].items():
        text = action.help or ""
        assert text, f"{command} {name} has no help"
        assert not text.endswith("."), f"{command} {name}: {text}"
        assert "``" not in text
        shows = action.default in (None, False, True, [], argparse.SUPPRESS) or action.required
        expanded = parser_of(command)._get_formatter()._expand_help(action)
        assert shows or "default" in expanded, f"{command} {name} does not show its default {action.default!r}"
        assert command == "serve" or "_" not in name, f"{command} {name} is not written with dashes"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_a_config_file(command: str) -> None:
    parser = parser_of(command)
    assert "--config" in ALL[command]
    assert command in ("export", "serve") or f"t5peft {command} " in (parser.epilog or "")


@pytest.mark.parametrize(
    ("command", "words", "dest", "value"),
    [
        ("plan", ["--source", "64", "--target", "8", "--batch", "4"], "max_source_length", 64),
        ("bench", ["--source-column", "a", "b"], "source_column", ["a", "b"]),
        ("bench", ["--target-column", "b"], "label_column", "b"),
        ("bench", ["--data", "folder"], "data_folder", "folder"),
        ("train", ["--task", "a", "--output", "b", "--targets", "q"], "target_modules", ["q"]),
        ("pretrain", ["--text", "a", "--output", "b", "--precision", "bf16"], "precision", "bf16"),
    ],
)
def test_the_spellings_of_0_1_still_work(command: str, words: list[str], dest: str, value: object) -> None:
    assert getattr(parser_of(command).parse_args(words), dest) == value
