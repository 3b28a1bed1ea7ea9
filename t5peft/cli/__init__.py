"""The command line: ``t5peft COMMAND --help``. Each command is one module, imported when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from transformers.utils.logging import disable_progress_bar

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("t5peft.cli.train", "tune one method on a file or a named task"),
    "evaluate": ("t5peft.cli.evaluate", "score a tuned adapter on a file or a named task"),
    "predict": ("t5peft.cli.predict", "write a tuned adapter's answers to the records of a file"),
    "search": ("t5peft.cli.search", "search for hyper-parameters, resumable"),
    "retune": ("t5peft.cli.continue_training", "tune an adapter again on new data, and say what it forgot"),
    "merge": ("t5peft.cli.merge", "merge an adapter into its unquantised backbone"),
    "bench": ("t5peft.cli.bench", "compare methods with full fine-tuning: a table and a report"),
    "plan": ("t5peft.cli.plan", "what fits into the memory, from the config alone"),
    "lint": ("t5peft.cli.lint", "what a tokenizer loses of a data set, before training"),
    "pretrain": ("t5peft.cli.pretrain", "span corruption on plain text, from scratch or from a checkpoint"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors of the user's input end in one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: t5peft COMMAND ...\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        print("\nt5peft COMMAND --help says more; t5peft --version names what runs.")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        versions = import_module("t5peft.benchmark.environment").versions()
        print("\n".join(f"{package} {version}" for package, version in versions.items() if version is not None))
        return 0
    if name not in COMMANDS:
        print(f"t5peft: {name!r} is no command; expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    disable_progress_bar()
    module_name, text = COMMANDS[name]
    module = import_module(module_name)
    parser = argparse.ArgumentParser(prog=f"t5peft {name}", description=module.__doc__ or text)
    module.add_arguments(parser)
    try:
        return int(module.run(parser.parse_args(rest)))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"t5peft {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"t5peft {name}: interrupted; what was saved stays.", file=sys.stderr)
        return 130
