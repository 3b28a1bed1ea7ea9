"""The options of a command in a YAML file: ``--config`` reads one, and ``t5peft train`` writes what it ran with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from t5peft.compat.suggestions import did_you_mean

CONFIG_FILE = "config.yaml"
_ON, _OFF = ("true", "yes", "on"), ("false", "no", "off")
_OF_ONE_RUN = ("resume", "overwrite", "quiet", "json")  # options that say nothing of what is made


def read_config_file(path: str | Path, names: Collection[str]) -> dict[str, Any]:
    """Return the values of a config file by the names of options.

    Args:
        path: A YAML file, a mapping whose keys are names of options; ``batch_size`` is ``batch-size``.
        names: The names that there are.

    Returns:
        The values, every scalar as the text that the file has; empty ones are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a mapping in YAML, or has names that are unknown or stand twice.
    """
    import yaml

    from t5peft.compat.yaml_files import parse_yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"Got no config file {path}; expected a YAML file with options by name.")
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), as_texts=True)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Got {path}, which is not YAML in UTF-8 ({reason}); expected options by name.") from None
    if not isinstance(values, dict):
        raise ValueError(f"Got {path}, which is not a mapping; expected options by name, such as 'batch-size: 16'.")
    renamed = [str(key).replace("_", "-") for key in values]
    if unknown := [name for name in renamed if name not in names]:
        suggestions = "".join(did_you_mean(name, names) for name in unknown)
        raise ValueError(f"Got {path} with {', '.join(unknown)}; expected names of options.{suggestions}")
    if twice := sorted({name for name in renamed if renamed.count(name) > 1}):
        raise ValueError(f"Got {path} with {', '.join(twice)} more than once; expected each once.")
    return {name: value for name, value in zip(renamed, values.values(), strict=True) if value not in ("", "null", "~")}


def words_of(name: str, value: Any, action: argparse.Action) -> list[str]:
    """Return the words of a command for the value of a config file.

    Args:
        name: Of the option.
        value: A text, a list of them, or a mapping for an option NAME=VALUE.
        action: The option.

    Returns:
        For a switch the option itself, or nothing where it is off; for others the values.

    Raises:
        ValueError: The option takes no such value.
    """
    if action.nargs == 0:
        if str(value).lower() not in (*_ON, *_OFF):
            raise ValueError(f"Got {name}: {value}; expected true or false.")
        return [action.option_strings[0]] if str(value).lower() in _ON else []
    pairs = isinstance(action, argparse._AppendAction)
    if isinstance(value, Mapping) and pairs:
        return [f"{key}={_text(one)}" for key, one in value.items()]
    texts = value if isinstance(value, list) else [value]
    several = pairs or action.nargs not in (None, "?")
    if not texts or not all(isinstance(text, str) for text in texts) or (len(texts) > 1 and not several):
        expected = "a list or a mapping" if pairs else "a list" if several else "one value"
        raise ValueError(f"Got {name}: {json.dumps(value)}; expected {expected}.")
    return texts


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_config_file(path: str | Path, args: argparse.Namespace, named: Mapping[str, argparse.Action]) -> None:
    """Write the options that a command ran with, in the form that ``read_config_file`` reads.

    Args:
        path: The file.
        args: The values of the command.
        named: Its arguments by name, as ``Parser.named`` returns them.
    """
    import yaml

    values = {name: getattr(args, action.dest, None) for name, action in named.items() if name not in _OF_ONE_RUN}
    given = {
        name: value if isinstance(value, (bool, int, float, str, list)) else str(value)
        for name, value in values.items()
        if value is not None and value != [] and value is not False
    }
    text = yaml.safe_dump(given, sort_keys=False)
    Path(path).write_text(text, encoding="utf-8")
