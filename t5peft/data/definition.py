"""YAML files that define tasks: the package's own, by name, and a user's, by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

DEFINITIONS = files("t5peft.data") / "definitions"


def definition_names() -> tuple[str, ...]:
    """Names of the tasks that the package defines."""
    return tuple(sorted(entry.name[:-5] for entry in DEFINITIONS.iterdir() if entry.name.endswith(".yaml")))


def read_definition(path_or_name: str | Path) -> dict[str, Any]:
    """The fields of a task's YAML file, every scalar as text: labels such as 0, no or true stay what the file says.

    Raises:
        FileNotFoundError: neither a file nor a name of the package.
        ValueError: the file is not a YAML mapping.
    """
    path = Path(path_or_name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(path_or_name) in definition_names():
        text = (DEFINITIONS / f"{path_or_name}.yaml").read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"no task {str(path_or_name)!r}: neither a YAML file nor one of {', '.join(definition_names())}"
        )
    try:
        values = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path_or_name} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path_or_name} holds {type(values).__name__}; expected the fields of a task, 'name: ...'")
    return values
