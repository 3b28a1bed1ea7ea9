"""A run's examples: the task and its splits, by name or from the user's files, and the fingerprint that identifies them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from t5peft.benchmark.suites import SuiteTask
from t5peft.data import Task, checks, load_records, load_task
from t5peft.data.registry import with_validation
from t5peft.data.splits import Splits, fingerprint_of_data
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import check_metrics
from t5peft.models.embedded import resolve_backbone


def describe_data(task: SuiteTask) -> dict[str, Any]:
    """Return the ``data`` of a ``RunConfig``: where the examples are, and a hash of them and of the task's definition.

    Args:
        task: A task of a suite.

    Raises:
        ValueError: The first metric is unknown or better when lower, or the user's files lack records to train on or to
            test with, or the task cannot read them.
    """
    data: dict[str, Any] = {"task": task.name} if task.own is None else {"own": dict(task.own)}
    definition, splits = _load(data)
    check_metrics(definition)
    if not METRICS[definition.metrics[0]].greater_is_better:
        raise ValueError(
            f"Got task {definition.name!r} with {definition.metrics[0]} as its first metric; expected one that is better when "
            "higher, because tables and charts are sorted by the first metric. Name another one first."
        )
    if task.own is not None:
        _check_own(definition, splits)
    return data | {"fingerprint": fingerprint_of_data(definition, splits)}


def _check_own(task: Task, splits: Splits) -> None:
    """Raise ValueError for what would stop every run, or score it by wrong references."""
    if missing := [split for split in ("train", "test") if not splits.get(split)]:
        raise ValueError(
            f"Got no {' and no '.join(missing)} records for task {task.name!r}; expected a file of train and one of test. "
            "A file of validation is optional."
        )
    tested = [*splits["validation"], *splits["test"]]
    checks.raise_all(task.name, checks.missing_references(tested, task.references))
    for records in splits.values():
        task.check(records)


def load_data(data: Mapping[str, Any], limits: Mapping[str, int]) -> tuple[Task, Splits]:
    """Return the task and at most ``limits`` records of each split.

    Records are drawn with a fixed seed, so that every seed and method sees the same ones.

    Args:
        data: From ``describe_data``.
        limits: The most records of a split.

    Raises:
        RuntimeError: The data are no longer those of the configuration.
    """
    task, splits = _load(data)
    if fingerprint_of_data(task, splits) != data["fingerprint"]:
        raise RuntimeError(f"The data of task {task.name!r} changed while the suite ran. Start it again.")
    for name, limit in limits.items():
        if name in splits and len(splits[name]) > limit:
            splits[name] = random.Random(0).sample(splits[name], limit)
    return task, splits


def _load(data: Mapping[str, Any]) -> tuple[Task, Splits]:
    if "task" in data:
        return load_task(data["task"])
    fields = dict(data["own"])
    files = fields.pop("files")
    task = Task.from_mapping(fields)
    splits: Splits = {split: load_records(path, split) for split, path in files.items()}
    return task, with_validation(task, splits)


def definition_of(task: SuiteTask) -> Task:
    """Return the definition of a suite's task, without its records.

    Args:
        task: A task of a suite.
    """
    if task.own is None:
        return Task.from_yaml(task.name)
    return Task.from_mapping({name: value for name, value in task.own.items() if name != "files"})


def backbone_fingerprint(backbone: str) -> str:
    """Return the hash of a local backbone's configuration and weights, or the commit of one from the hub.

    Args:
        backbone: "mini", a folder, or a hub name.

    Raises:
        FileNotFoundError: The backbone is neither a folder with a config.json nor on the hub or in its cache.
    """
    folder = Path(resolve_backbone(backbone))
    if (folder / "config.json").is_file():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.suffix in (".json", ".safetensors", ".bin", ".model"):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 24):  # weights may be larger than the memory
                        digest.update(block)
        return digest.hexdigest()[:16]
    try:
        found, why = cached_file(backbone, "config.json"), "it has no config.json"
    except OSError as error:
        found, why = None, str(error).splitlines()[0]
    if found is None:
        raise FileNotFoundError(
            f"Got backbone {backbone!r}, which is neither a model's folder nor on the hub ({why}); expected 'mini', a local "
            "folder, or a hub name such as 'google/flan-t5-base'. A hub name needs a network."
        )
    return Path(found).parent.name
