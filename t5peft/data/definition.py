"""YAML files that define tasks: the package's own, by name, and a user's, by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from t5peft.compat.suggestions import did_you_mean
from t5peft.compat.yaml_files import parse_yaml
from t5peft.data.fields import kind_of

DEFINITIONS = files("t5peft.data") / "definitions"


def definition_names() -> tuple[str, ...]:
    """Return the names of the tasks that the package defines."""
    return tuple(sorted(entry.name[:-5] for entry in DEFINITIONS.iterdir() if entry.name.endswith(".yaml")))


def read_definition(path_or_name: str | Path) -> dict[str, Any]:
    """Return the fields of a task's YAML file, every scalar as text: labels such as 0, no or true stay as the file has them.

    Raises:
        FileNotFoundError: Neither a file nor a name of the package.
        ValueError: The file is not a YAML mapping.
    """
    path = Path(path_or_name)
    if path.is_file():
        content = path.read_bytes()
    elif str(path_or_name) in definition_names():
        content = (DEFINITIONS / f"{path_or_name}.yaml").read_bytes()
    else:
        names = definition_names()
        meant = did_you_mean(str(path_or_name), names)
        expected = "a task of the package" if meant else f"one of {', '.join(names)}"
        raise FileNotFoundError(f"Got no task {str(path_or_name)!r}; expected a YAML file or {expected}.{meant}")
    try:
        values = parse_yaml(content.decode("utf-8"), as_texts=True)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"Got {path_or_name}, which is not YAML in UTF-8: {error}; expected a task's fields."
        ) from None
    if not isinstance(values, dict):
        raise ValueError(
            f"Got {path_or_name}, which holds {kind_of(values)}; expected the fields of a task, such as 'name: ...'."
        )
    return values
