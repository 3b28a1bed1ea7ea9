"""Print the results of a command on the standard output, as text or as one JSON object; bars only on terminals."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def add_output_options(parser: argparse.ArgumentParser, *, results: bool = True) -> None:
    """Add ``--quiet``, and ``--json`` for a command with results.

    Args:
        parser: The parser of a command.
        results: Whether the command calls ``print_results``.
    """
    group = parser.add_argument_group("printed output")
    group.add_argument("--quiet", action="store_true", help="print only results, warnings and errors, not progress")
    if results:
        group.add_argument(
            "--json",
            action="store_true",
            help="print the results as one JSON object, and everything else to standard error",
        )


def print_results(args: argparse.Namespace, results: Mapping[str, Any], text: str) -> None:
    """Print the results of a command, once.

    Args:
        args: The values of the command.
        results: What ``--json`` prints.
        text: What is printed otherwise.
    """
    stream = getattr(args, "results", None) or sys.stdout
    print(json_line(results) if getattr(args, "json", False) else text, file=stream, flush=True)


def json_line(value: object) -> str:
    """Return a value as one line of JSON: dates are text, and numbers that JSON does not have, such as NaN, are null.

    Args:
        value: Columns by name.

    Returns:
        The line, without its end.
    """
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda constant: None)
    return json.dumps(plain, ensure_ascii=False)


@contextlib.contextmanager
def console(args: argparse.Namespace) -> Iterator[None]:
    """Let only results reach the standard output where the options ask for that, and bars only a terminal.

    Args:
        args: The values of the command; ``results``, the stream that results go to, is added.
    """
    args.results = sys.stdout
    quiet, as_json = getattr(args, "quiet", False), getattr(args, "json", None)
    with contextlib.ExitStack() as stack:
        if (quiet or not sys.stderr.isatty()) and "TQDM_DISABLE" not in os.environ:
            os.environ["TQDM_DISABLE"] = "1"  # all libraries below draw their bars by tqdm, which reads it
            stack.callback(os.environ.pop, "TQDM_DISABLE", None)
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        elif quiet and as_json is not None:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield
