"""Tasks together with their records: by the name of one of the package's definitions, or by a YAML file.

``data`` in a definition says where records come from, by exactly one of ``embedded`` (a folder of the package), ``benchmark``
(a public data set, see ``public.py``), ``hub`` (with ``config``, ``splits`` and ``first``, a new column with the first of a
list) or ``files`` (split to path, relative to the YAML file; for texts whose lines belong together, split to a mapping from
column to path).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from t5peft.compat.suggestions import did_you_mean
from t5peft.data import checks
from t5peft.data.definition import definition_names, read_definition
from t5peft.data.fields import kind_of
from t5peft.data.files import load_aligned, load_records
from t5peft.data.public import load_benchmark
from t5peft.data.sources import Records, part_of
from t5peft.data.splits import Splits, hold_out
from t5peft.data.task import Task

SPLITS = ("train", "validation", "test")
KINDS_OF_DATA = ("embedded", "benchmark", "hub", "files")


def load_task(path_or_name: str | Path) -> tuple[Task, Splits]:
    """Load a task and its records by split. Validation records are held out from train if the definition has none.

    Args:
        path_or_name: A YAML file, or the name of a built-in task.

    Raises:
        FileNotFoundError: The definition does not exist, its data are missing, or the hub cannot be reached.
        ValueError: The definition is invalid, or has no data.
    """
    definition = read_definition(path_or_name)
    task = Task.from_yaml(path_or_name)
    data = definition.get("data", {})
    checks.raise_all(task.name, _problems_with_data(data))
    splits = with_validation(task, _read_splits(data, Path(path_or_name).parent))
    return task, {split: splits[split] for split in SPLITS if split in splits}


def with_validation(task: Task, splits: Splits) -> Splits:
    """Return the splits with validation held out from train where there is none.

    Raises:
        ValueError: Train records without text in the source's columns, all at once, or fewer than two different sources.
    """
    if "train" not in splits or "validation" in splits:
        return splits
    task.check_sources(splits["train"])
    train, validation = hold_out(splits["train"], task.source)
    return splits | {"train": train, "validation": validation}


def real_task(name: str, folder: str | Path | None = None) -> tuple[Task, Splits]:
    """Load one of ``task_names("benchmark")``.

    Args:
        name: Its name.
        folder: The folder of the public data sets; by default that of ``T5PEFT_DATA``.

    Raises:
        ValueError: There is no such name.
        FileNotFoundError: The data are missing.
    """
    _check_name(name, "benchmark")
    return Task.from_yaml(name), load_benchmark(read_definition(name)["data"]["benchmark"], folder)


def embedded_task(name: str) -> tuple[Task, Splits]:
    """Load one of ``task_names("embedded")``, from data in the package.

    Raises:
        ValueError: There is no such name.
    """
    _check_name(name, "embedded")
    return load_task(name)


def task_names(kind: str) -> tuple[str, ...]:
    """Return the names of built-in tasks with data of a kind: ``embedded``, ``benchmark`` or ``hub``."""
    return tuple(name for name in definition_names() if kind in read_definition(name).get("data", {}))


def _check_name(name: str, kind: str) -> None:
    if name not in task_names(kind):
        names = task_names(kind)
        raise ValueError(
            f"Got no task {name!r} with {kind} data; expected one of {', '.join(names)}.{did_you_mean(name, names)}"
        )


def _problems_with_data(data: Any) -> list[str]:
    """Return problems with the types of ``data`` in a definition, whose scalars are all text."""
    given = [kind for kind in KINDS_OF_DATA if isinstance(data, Mapping) and kind in data]
    if len(given) != 1:
        return [
            f"Its definition must name the source of its records under 'data', as one of {', '.join(KINDS_OF_DATA)}; it has "
            f"{', '.join(given) or 'none of them'}."
        ]
    problems = [
        f"{key} under 'data' is {data[key]!r:.60}; a name was expected."
        for key in ("embedded", "benchmark", "hub", "config")
        if not isinstance(data.get(key, ""), str)
    ]
    splits = "files" if given == ["files"] else "splits" if given == ["hub"] else None
    for key in filter(None, (splits, "first" if given == ["hub"] else None)):
        value = data.get(key, {} if key == "first" else None)
        if not isinstance(value, Mapping):
            problems.append(f"{key} under 'data' is {value!r:.60}; a mapping was expected.")
            continue
        if key == splits and (unknown := [split for split in value if split not in SPLITS]):
            problems.append(f"Its data name the splits {unknown}; expected {', '.join(SPLITS)}: rename them.")
        problems += [
            f"{key} under 'data' has {kind_of(path)} for {name!r}; "
            + ("a path, or a mapping from column to path, was expected." if key == "files" else "a name was expected.")
            for name, path in value.items()
            if not isinstance(path, str) and not (key == "files" and _is_aligned(path))
        ]
    return problems


def _is_aligned(path: Any) -> bool:
    return isinstance(path, Mapping) and bool(path) and all(isinstance(of_column, str) for of_column in path.values())


def _read_splits(data: Mapping[str, Any], folder: Path) -> Splits:
    if "embedded" in data:
        return _read_embedded(data["embedded"])
    if "benchmark" in data:
        return load_benchmark(data["benchmark"])
    if "files" in data:
        return {split: _read_file(folder, path, split) for split, path in data["files"].items()}
    return {split: _read_hub(data, of_hub) for split, of_hub in data["splits"].items()}


def _read_file(folder: Path, path: str | Mapping[str, str], split: str) -> Records:
    if isinstance(path, str):
        return load_records(folder / path, split)
    return load_aligned({column: folder / of_column for column, of_column in path.items()})


def _read_embedded(name: str) -> Splits:
    with as_file(files("t5peft.data") / "embedded" / name) as folder:
        return {split: load_records(folder, split) for split in SPLITS}


def _read_hub(data: Mapping[str, Any], split: str) -> Records:
    records: Records = load_records(data["hub"], split, config=data.get("config"))
    for column, of_list in data.get("first", {}).items():
        rows = [record | {column: record[of_list][0]} for record in records if record[of_list]]
        records = part_of(records, rows)
    return records
