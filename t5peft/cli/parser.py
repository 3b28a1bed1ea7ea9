"""The argument parser of every command: errors of one line, the nearest name for a wrong one, defaults in the help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from t5peft.compat.suggestions import did_you_mean


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks of the epilog and shows defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        without = (None, False, argparse.SUPPRESS)
        if not action.option_strings or action.default == [] or any(action.default is value for value in without):
            return text
        if text is not None and ("default" in text or text is argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)" if text else "default: %(default)s"


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line that suggests the nearest name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2.

        Args:
            message: What is wrong.
        """
        text = message[:1].upper() + message[1:]
        self.exit(2, f"{self.prog}: {text}{'' if text.endswith(('.', '?')) else '.'} See {self.prog} --help.\n")

    # argparse has overloads for namespaces of other classes, which no command has.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse ``args``; unknown options are an error that suggests known ones.

        Args:
            args: The words of the command.
            namespace: Where the values go; None makes a new one.

        Returns:
            The values by the names of the options.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            suggestions = "".join(did_you_mean(word, known) for word in words)
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{suggestions}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            suggestion = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"got {value!r}; expected one of {', '.join(names)}.{suggestion}")
