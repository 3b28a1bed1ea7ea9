"""Tasks together with their records: by the name of one of the package's definitions, or by a YAML file.

``data`` in a definition says where records come from; exactly one of
``embedded`` (a folder of the package), ``benchmark`` (a public data set, see ``benchmarks.py``), ``hub`` (with
``config``, ``splits`` and ``first``, a new column with the first of a list) or ``files`` (split to path, relative to
the YAML file; for texts whose lines belong together, split to a mapping from column to path).
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from t5peft.data.definition import definition_names, read_definition
from t5peft.data.files import load_aligned, load_records
from t5peft.data.public import load_benchmark
from t5peft.data.splits import Records, Splits, hold_out
from t5peft.data.task import Task

SPLITS = ("train", "validation", "test")


def load_task(path_or_name: str | Path) -> tuple[Task, Splits]:
    """A task and its records by split; validation is held out from train where the definition names none.

    Raises:
        FileNotFoundError: no such definition, or its data are not there, or on the hub, which cannot be reached.
        ValueError: the definition is wrong, or says nothing of data.
    """
    definition = read_definition(path_or_name)
    task = Task.from_yaml(path_or_name)
    splits = _read_splits(task.name, definition.get("data"), Path(path_or_name).parent)
    splits = with_validation(task, splits)
    return task, {split: splits[split] for split in SPLITS if split in splits}


def with_validation(task: Task, splits: Splits) -> Splits:
    """The splits with validation held out from train where there is none.

    Raises:
        ValueError: train records without text in the source's columns, all at once, or fewer than two different sources.
    """
    if "train" not in splits or "validation" in splits:
        return splits
    task.check_sources(splits["train"])
    train, validation = hold_out(splits["train"], task.source)
    return splits | {"train": train, "validation": validation}


def real_task(name: str) -> tuple[Task, Splits]:
    """One of ``task_names("benchmark")``, from the folder of public data sets (``T5PEFT_DATA``).

    Raises:
        ValueError: no such name.
        FileNotFoundError: the data are not there.
    """
    return _named(name, "benchmark")


def embedded_task(name: str) -> tuple[Task, Splits]:
    """One of ``task_names("embedded")``, from data that the package holds.

    Raises:
        ValueError: no such name.
    """
    return _named(name, "embedded")


def task_names(kind: str) -> tuple[str, ...]:
    """Names of the package's definitions whose data are ``embedded``, of a ``benchmark`` or on the ``hub``."""
    return tuple(name for name in definition_names() if kind in read_definition(name).get("data", {}))


def _named(name: str, kind: str) -> tuple[Task, Splits]:
    if name not in task_names(kind):
        raise ValueError(f"no task {name!r} with {kind} data; there are {', '.join(task_names(kind))}")
    return load_task(name)


def _read_splits(name: str, data: Any, folder: Path) -> Splits:
    kinds = ("embedded", "benchmark", "hub", "files")
    given = [kind for kind in kinds if isinstance(data, dict) and kind in data]
    if len(given) != 1:
        raise ValueError(
            f"task {name!r}: its definition must say under 'data' where records come from, by one of "
            f"{', '.join(kinds)}; it has {', '.join(given) or 'none of them'}"
        )
    named = data.get("files", data.get("splits", {}))
    if unknown := [split for split in named if split not in SPLITS]:
        raise ValueError(
            f"task {name!r}: its data name the splits {unknown}; expected {', '.join(SPLITS)}: rename them"
        )
    if given == ["embedded"]:
        return _read_embedded(data["embedded"])
    if given == ["benchmark"]:
        return load_benchmark(data["benchmark"])
    if given == ["files"]:
        return {split: _read_file(folder, path) for split, path in data["files"].items()}
    return {split: _read_hub(data, of_hub) for split, of_hub in data["splits"].items()}


def _read_file(folder: Path, path: str | dict[str, str]) -> Records:
    if isinstance(path, str):
        return load_records(folder / path)
    return load_aligned({column: folder / of_column for column, of_column in path.items()})


def _read_embedded(name: str) -> Splits:
    with as_file(files("t5peft.data") / "embedded" / name) as folder:
        return {split: load_records(folder, split) for split in SPLITS}


def _read_hub(data: dict[str, Any], split: str) -> Records:
    records = load_records(data["hub"], split, config=data.get("config"))
    for column, of_list in data.get("first", {}).items():
        records = [record | {column: record[of_list][0]} for record in records if record[of_list]]
    return records
