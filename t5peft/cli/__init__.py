"""The command line: ``t5peft COMMAND --help``. Each command is one module, imported when it is called.

Modules of commands import torch and transformers inside of ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from t5peft.cli.output import console
from t5peft.cli.parser import Parser
from t5peft.compat import threads
from t5peft.compat.disk import as_disk_error
from t5peft.compat.lock import FolderInUseError
from t5peft.compat.suggestions import did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "auto": ("t5peft.cli.auto", "choose and tune a method on a file within a time limit, and write a report"),
    "train": ("t5peft.cli.train", "tune one method on a file or a named task"),
    "evaluate": ("t5peft.cli.evaluate", "score a tuned adapter on a file or a named task"),
    "predict": ("t5peft.cli.predict", "run a tuned adapter on the records of a file and write its answers"),
    "search": ("t5peft.cli.search", "search for hyper-parameters, resumable"),
    "continue": ("t5peft.cli.continue_training", "tune an adapter further on new data, and report what it forgot"),
    "export": ("t5peft.cli.export", "export an adapter to plain transformers, CTranslate2 or ONNX"),
    "merge": ("t5peft.cli.merge", "merge an adapter into its unquantized backbone"),
    "bench": ("t5peft.cli.bench", "compare methods with full fine-tuning: a table and a report"),
    "plan": ("t5peft.cli.plan", "estimate the memory of a training run, from the config only"),
    "lint": ("t5peft.cli.lint", "report what a tokenizer would lose from a data set, before training"),
    "pretrain": (
        "t5peft.cli.pretrain",
        "pretrain with span corruption on plain text, from scratch or from a checkpoint",
    ),
    "serve": ("t5peft.cli.serve", "serve a backbone and its adapters over HTTP, with an OpenAI-compatible API"),
    "completion": ("t5peft.cli.completion", "print the completion script for bash, zsh or fish"),
}
ALIASES = {"retune": "continue"}  # the name of version 0.1

DONE, FAILED, WRONG_INPUT, DISK, IN_USE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 130, 141
EXIT_CODES = {
    DONE: "done",
    FAILED: "the run failed or its result is negative: training diverged, lint found problems, nothing fits into memory",
    WRONG_INPUT: "invalid input or options; nothing was changed",
    DISK: "the output disk is full, read-only or failing",
    IN_USE: "another run is using the output folder",
    INTERRUPTED: "interrupted; saved files are intact",
    BROKEN_PIPE: "standard output was closed by its reader",
}
# Of errors that a user can cause.
_CODES: dict[Any, int] = {
    FolderInUseError: IN_USE,
    FloatingPointError: FAILED,
    (ValueError, OSError, ImportError): WRONG_INPUT,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can cause end in one line and an exit code.

    Args:
        arguments: The words after ``t5peft``; None takes those of the process.

    Returns:
        A key of ``EXIT_CODES``.
    """
    threads.prepare()  # before anything imports torch
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return DONE if arguments else WRONG_INPUT
    name, *rest = arguments
    if name in ("-V", "--version"):
        versions = import_module("t5peft.benchmark.environment").versions()
        print("\n".join(f"{package} {version}" for package, version in versions.items() if version is not None))
        return DONE
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(
            f"t5peft: Got the command {name!r}; expected one of {names}.{did_you_mean(name, COMMANDS)}", file=sys.stderr
        )
        return WRONG_INPUT
    return _run(name, rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    codes = "\n".join(f"  {code:>{width}}  {text}" for code, text in EXIT_CODES.items())
    return (
        f"usage: t5peft COMMAND ...\n\ncommands:\n{commands}\n\nexit codes:\n{codes}\n\n"
        "t5peft COMMAND --help shows the options of a command. t5peft --version shows the versions of t5peft and its dependencies."
    )


def _run(name: str, arguments: Sequence[str]) -> int:
    module = import_module(COMMANDS[name][0])
    given = parser_of(name).parse_args(arguments)
    try:
        with console(given):
            import_module("transformers.utils.logging").disable_progress_bar()
            code = int(module.run(given))
        sys.stdout.flush()  # so that a full disk behind it is told here
        return code
    except KeyboardInterrupt:
        return _fail(name, "Interrupted; saved files are intact.", INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except Exception as error:
        if (on_disk := as_disk_error(error)) is not None:
            _discard_output()
            return _fail(name, str(on_disk), DISK)
        for kinds, code in _CODES.items():
            if isinstance(error, kinds):
                return _fail(name, str(error), code)
        raise


def parser_of(name: str) -> Parser:
    """Return the parser of a command.

    Args:
        name: A key of ``COMMANDS``.

    Returns:
        The parser, with the options of all commands.
    """
    module = import_module(COMMANDS[name][0])
    parser = Parser(prog=f"t5peft {name}", description=module.__doc__, epilog=module.EPILOG)
    module.add_arguments(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file with options by name, such as the config.yaml of train; command-line options override it",
    )
    return parser


def _fail(name: str, message: str, code: int) -> int:
    print(f"t5peft {name}: {message}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Let what is left in the buffer of the standard output go nowhere: Python would fail once more at its exit."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is not a file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
