"""The argument parser of every command: errors of one line, the nearest name for a wrong one, defaults in the help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from t5peft.cli.config_file import read_config_file, words_of
from t5peft.compat.suggestions import did_you_mean

_NAMES = ("FOLDER", "FILE", "NAME", "REPO", "COLUMN")  # metavars; an empty path would be the current folder


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the line breaks of the epilog and shows defaults."""

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None
    ) -> str:
        """Show what must be given; the groups below show the rest."""
        needed = [action for action in actions if action.required or not action.option_strings]
        return f"{super()._format_usage(usage, needed, [], prefix).rstrip()} [options]\n\n"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        without = (None, False, argparse.SUPPRESS)
        if not action.option_strings or action.default == [] or any(action.default is value for value in without):
            return text
        if text is not None and ("default" in text or text is argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)" if text else "default: %(default)s"


class _Store(argparse._StoreAction):
    """Stores the value of an option. argparse keeps the last of several, in silence; here that is said.

    It is not refused, because scripts add options after their defaults. Lists are, because both could be meant.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value."""
        if isinstance(parser, Parser) and option_string is not None:
            before = parser.given.setdefault(self.dest, values)
            if before != values and self.nargs is not None:
                raise argparse.ArgumentError(
                    self, f"got {values} after {before}; expected one list. Write all after it"
                )
            if before != values:
                parser.notices[self.dest] = f"Got {option_string} {before} and {values}; the last one is used."
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line that suggests the nearest name.

    Options are named in full: an abbreviation of today would be ambiguous with an option of tomorrow.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})
        self.register("action", None, _Store)
        self.given: dict[str, Any] = {}  # the first value of each option of the words that are parsed
        self.notices: dict[str, str] = {}

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
        self.given.clear()
        self.notices.clear()
        if args is not None and (path := self._config_of(args)) is not None:
            args = [*self._read_config(path, args), *args]
        parsed, unknown = self.parse_known_args(args, namespace)
        for action in self._actions:
            if action.metavar in _NAMES and getattr(parsed, action.dest, None) == "":
                name = action.option_strings[-1] if action.option_strings else action.metavar
                self.error(f"got an empty {name}; expected a name. Is a variable of the shell unset?")
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            suggestions = "".join(did_you_mean(word, known) for word in words)
            self.error(f"unrecognized arguments: {' '.join(unknown)}.{suggestions}")
        for notice in self.notices.values():
            print(f"{self.prog}: {notice}", file=sys.stderr)
        return parsed

    def named(self) -> dict[str, argparse.Action]:
        """Return the arguments that a config file may hold, by the names that the help shows.

        Returns:
            Options by their first long name without its dashes, positional arguments by their own.
        """
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        names = {
            next((word[2:] for word in action.option_strings if word.startswith("--")), action.dest): action
            for action in shown
        }
        return {name: action for name, action in names.items() if name not in ("help", "config")}

    def _config_of(self, args: Sequence[str]) -> str | None:
        if "--config" not in self._option_string_actions:
            return None
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        finder.add_argument("--config", action="append", default=[])
        try:
            found = list(dict.fromkeys(finder.parse_known_args(args)[0].config))
        except argparse.ArgumentError as error:
            self.error(str(error))
        if len(found) > 1:
            self.error(
                f"got --config {' and --config '.join(found)}; expected one file. Write the options into one of them"
            )
        return found[0] if found else None

    def _read_config(self, path: str, args: Sequence[str]) -> list[str]:
        """Return the words of a config file for what ``args`` does not give."""
        named = self.named()
        try:
            values = read_config_file(path, named)
        except (OSError, ValueError) as error:
            self.error(str(error))
        given = {self._option_string_actions[word].dest for word in _options_in(args, self._option_string_actions)}
        words: list[str] = []
        for name, value in values.items():
            action = named[name]
            if action.dest in given:
                continue
            try:
                texts = words_of(name, value, action)
                if action.nargs != 0:
                    self._get_values(action, texts[:1] if isinstance(action, argparse._AppendAction) else list(texts))
            except (argparse.ArgumentError, ValueError) as error:
                self.error(f"in {path}: {error}")
            if not action.option_strings:  # for the command line to replace
                action.nargs, action.default, action.required = "?", texts[0], False
            elif action.nargs == 0:
                words += texts
            elif isinstance(action, argparse._AppendAction):
                words += [f"{action.option_strings[0]}={text}" for text in texts]
            elif action.nargs is None:
                words.append(f"{action.option_strings[0]}={texts[0]}")
            else:
                words += [action.option_strings[0], *texts]
        return words

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            suggestion = did_you_mean(str(value), names)
            raise argparse.ArgumentError(action, f"got {value!r}; expected one of {', '.join(names)}.{suggestion}")


def _options_in(args: Sequence[str], known: dict[str, argparse.Action]) -> list[str]:
    return [option for word in args if (option := word.partition("=")[0]) in known]
