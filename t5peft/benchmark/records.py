"""Run records: one JSON file a run, written once, named by what was asked for.

A `RunConfig` is everything that decides a run's result. Its identity is a hash of its content, and the record's file
name ends in it: a suite that was interrupted asks for the same identities again and finds those that exist. Nothing
ever edits a record; to run one again, delete its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["finished", "out_of_memory", "diverged", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "out_of_memory", "diverged", "failed")
SCHEMA = 1


@dataclass(frozen=True)
class RunConfig:
    """One run: a method on a task with one learning rate and one seed.

    `data` names the examples: {"task": name}, or {"own": the fields of a `Task` and its files}, always with
    "fingerprint", the hash of the examples with the task's definition. `limits` caps the examples of a split; a split not
    named is taken whole.
    """

    task: str
    backbone: str
    backbone_fingerprint: str
    method: str
    learning_rate: float
    seed: int
    steps: int
    examples_per_step: int
    device: str
    data: Mapping[str, Any]
    evaluations: int = 4
    limits: Mapping[str, int] = field(default_factory=dict)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    training_options: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """The fields as they are recorded: of files the names alone, as the fingerprint says what they hold."""
        fields = asdict(self)
        fields["task"] = Path(self.task).name
        if "task" in fields["data"]:
            fields["data"]["task"] = Path(fields["data"]["task"]).name
        own = fields["data"].get("own", {})
        if "files" in own:
            own["files"] = {split: Path(path).name for split, path in own["files"].items()}
        return fields

    def identity(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the content's canonical JSON."""
        text = json.dumps(self.content(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def file_name(self) -> str:
        """`TASK-METHOD-lrRATE-sSEED-IDENTITY.json`: readable first, unique by its end."""
        readable = f"{Path(self.task).name}-{self.method}-lr{self.learning_rate:g}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9._+-]+', '_', readable)}-{self.identity()}.json"


def write_record(directory: Path, config: RunConfig, record: Mapping[str, Any]) -> Path:
    """Writes `record` whole or not at all: to a temporary file, flushed to the disk, then renamed.

    Raises:
        FileExistsError: a record of this configuration exists; records are never edited.
        ValueError: the record's outcome is none of OUTCOMES, or one that is not "finished" gives no reason.
    """
    _check(record)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / config.file_name()
    if path.exists():
        raise FileExistsError(f"{path} exists, and records are never edited: delete it to run this configuration again")
    text = json.dumps({"schema": SCHEMA, "config": config.content(), **record}, ensure_ascii=False, allow_nan=False)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _check(record: Mapping[str, Any]) -> None:
    outcome = record.get("outcome")
    if outcome not in OUTCOMES:
        raise ValueError(f"the record's outcome is {outcome!r}, expected one of {', '.join(OUTCOMES)}")
    if outcome != "finished" and not record.get("reason"):
        raise ValueError(f"a record whose outcome is {outcome!r} must give its reason")


def find_record(directory: Path, config: RunConfig) -> dict[str, Any] | None:
    """The record of exactly this configuration, or None where it has not been run."""
    path = directory / config.file_name()
    return _read(path) if path.exists() else None


def load_records(directory: Path) -> list[dict[str, Any]]:
    """All records of a folder, by file name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: files that are no records, all of them in one error.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no folder of records at {directory}: run `t5peft bench` first, or give its --output")
    records, problems = [], []
    for path in sorted(directory.glob("*.json")):
        try:
            records.append(_read(path))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return records


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _check(record)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no run record ({error}): delete it, and the suite runs it again") from error
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r}, this version reads {SCHEMA}: delete it or run again"
        )
    return record
