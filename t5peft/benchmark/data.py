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
from t5peft.data.splits import fingerprint_of_data
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import check_metrics
from t5peft.models.embedded import resolve_backbone

Splits = dict[str, list[dict[str, Any]]]


def data_of(task: SuiteTask) -> dict[str, Any]:
    """What a `RunConfig` holds of the data: where it is, and the SHA-256 of its content with the task's definition.

    Raises:
        ValueError: the task's first metric is one of which less is better, or there is none of that name; files of one's own
            without records to train on or to test by, or with records that the task cannot read.
    """
    data: dict[str, Any] = {"task": task.name} if task.own is None else {"own": dict(task.own)}
    definition, splits = _load(data)
    check_metrics(definition)
    if not METRICS[definition.metrics[0]].greater_is_better:
        raise ValueError(
            f"task {definition.name!r} leads with {definition.metrics[0]}, of which less is better; tables and figures take the "
            "first metric for one of which more is: give another one first"
        )
    if task.own is not None:
        _check_own(definition, splits)
    return data | {"fingerprint": fingerprint_of_data(definition, splits)}


def _check_own(task: Task, splits: Splits) -> None:
    """Raise ValueError for what would else stop every run, or score it by the wrong references."""
    if missing := [split for split in ("train", "test") if not splits.get(split)]:
        raise ValueError(
            f"task {task.name!r} has no {' and no '.join(missing)} records; expected files of train and of test, and maybe of "
            "validation"
        )
    tested = [*splits["validation"], *splits["test"]]
    checks.raise_all(task.name, checks.missing_references(tested, task.references))
    for records in splits.values():
        task.check(records)


def load_data(data: Mapping[str, Any], limits: Mapping[str, int]) -> tuple[Task, Splits]:
    """The task and at most `limits` records of each split.

    Records are drawn, not cut off, and with a fixed number, so that every seed and method sees the same ones.

    Raises:
        RuntimeError: the data are no longer those of the configuration.
    """
    task, splits = _load(data)
    if fingerprint_of_data(task, splits) != data["fingerprint"]:
        raise RuntimeError(f"the data of task {task.name!r} changed while the suite ran; start it again")
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
    splits = {split: load_records(path, split) for split, path in files.items()}
    return task, with_validation(task, splits)


def backbone_fingerprint(backbone: str) -> str:
    """The SHA-256 of a local backbone's configuration and weights; for a hub name the commit, which a run will load.

    Raises:
        FileNotFoundError: neither a folder with a config.json nor what the hub or its cache has.
    """
    folder = Path(resolve_backbone(backbone))
    if (folder / "config.json").is_file():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*")):
            if path.suffix in (".json", ".safetensors", ".bin", ".model"):
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while block := file.read(1 << 24):  # weights may be more than the memory holds
                        digest.update(block)
        return digest.hexdigest()[:16]
    try:
        found, why = cached_file(backbone, "config.json"), "no config.json is there"
    except OSError as error:
        found, why = None, str(error).splitlines()[0]
    if found is None:
        raise FileNotFoundError(
            f"backbone {backbone!r} is neither a model's folder nor what the hub has ({why}); expected 'mini', a local folder, "
            "or, with a network, a hub name such as 'google/flan-t5-base'"
        )
    return Path(found).parent.name
