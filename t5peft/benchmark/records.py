"""Run records: one JSON line a run, appended once and never edited.

A ``RunConfig`` is everything that decides a run's result, and its identity is a hash of its content. A suite that was
interrupted asks for the same identities again and finds the recorded ones. Delete a record's line to repeat its run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from t5peft.benchmark.json_lines import JsonLines
from t5peft.compat.json_text import parse_json
from t5peft.deprecated import current_options

Outcome = Literal["finished", "out_of_memory", "diverged", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("finished", "out_of_memory", "diverged", "failed")
SCHEMA = 1
FILE_NAME = "records.jsonl"

RunRecord = dict[str, Any]
"""A stored run: ``schema``, ``config``, ``outcome``, and what the run measured."""


@dataclass(frozen=True)
class RunConfig:
    """One run: a method on a task with one learning rate and one seed.

    Attributes:
        data: The examples: ``{"task": name}``, or ``{"own": ...}`` with the fields of a ``Task`` and its files. It
            always has a ``fingerprint``, the hash of the examples and the task's definition.
        limits: The most examples of a split. A split that is not named is used whole.
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
        """Return the fields as they are recorded: files by their names only, options by their current names."""
        fields = _with_current_options(asdict(self))
        fields["task"] = Path(self.task).name
        if "task" in fields["data"]:
            fields["data"]["task"] = Path(fields["data"]["task"]).name
        own = fields["data"].get("own", {})
        if "files" in own:
            own["files"] = {split: Path(path).name for split, path in own["files"].items()}
        return fields

    def identity(self) -> str:
        """Return the hash by which a record of exactly this configuration is found."""
        return _identity(self.content())


def _with_current_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options of a configuration their current names, as a record of 0.1 has old ones."""
    options = {name: current_options(config.get(name) or {}) for name in ("method_options", "training_options")}
    return {**config, **options}


def _identity(config: Mapping[str, Any]) -> str:
    """Hash a recorded configuration. Its data count by their fingerprint, which names and folders do not change."""
    known = {**config, "task": Path(config["task"]).name, "data": config["data"]["fingerprint"]}
    text = json.dumps(known, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class RunRecords:
    """The records of a suite, in ``records.jsonl`` of its folder.

    Version 0.1 wrote each record into a JSON file of its own in ``records/``. Those are read too.

    Args:
        folder: The suite's folder. It need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = JsonLines(folder / FILE_NAME)
        self._older_are_read = False
        self._by_identity: dict[str, RunRecord] = {}

    @property
    def path(self) -> Path:
        """The file that new records go into."""
        return self._lines.path

    def find(self, config: RunConfig) -> RunRecord | None:
        """Return the record of exactly this configuration, or None if it has not been run.

        Raises:
            ValueError: Some lines or files are not run records.
        """
        self._read()
        return self._by_identity.get(config.identity())

    def append(self, config: RunConfig, record: Mapping[str, Any]) -> None:
        """Append the record of a run, whole or not at all.

        Raises:
            FileExistsError: The configuration has a record already.
            ValueError: The outcome is not one of ``OUTCOMES``, or is not "finished" and has no reason.
        """
        _check_outcome(record)
        self._read()
        content = {"schema": SCHEMA, "config": config.content(), **record}

        def refuse_second(lines: list[tuple[int, bytes]]) -> None:
            self._take_lines(lines)
            if config.identity() in self._by_identity:
                raise FileExistsError(
                    f"{self.path} has a record of {config.method} on {config.task} at this rate and seed, and records are "
                    "never edited. Delete it to run this configuration again."
                )

        self._lines.append(json.dumps(content, ensure_ascii=False, allow_nan=False), refuse_second)

    def load(self) -> list[RunRecord]:
        """Return all records, sorted by task, method, learning rate and seed.

        Raises:
            FileNotFoundError: There are no records in the folder.
            ValueError: Some lines or files are not run records.
        """
        self._read()
        if not self._by_identity:
            raise FileNotFoundError(
                f"Got {self.folder}, which holds no records; expected the --output of a suite. Run `t5peft bench` first."
            )
        return [record for _, record in sorted(self._by_identity.items(), key=_sort_key)]

    def _read(self) -> None:
        if not self._older_are_read:
            paths = {*self.folder.glob("records/*.json"), *self.folder.glob("*-lr*-s*-????????????.json")}
            self._take((str(path), path.read_bytes()) for path in sorted(paths))
            self._older_are_read = True
        self._take_lines(self._lines.new_lines())

    def _take_lines(self, lines: list[tuple[int, bytes]]) -> None:
        self._take((f"{self.path}, line {number}", line) for number, line in lines)

    def _take(self, texts: Iterable[tuple[str, bytes]]) -> None:
        """Keep the records of these texts; of two with the same configuration the first one stands."""
        problems = []
        for place, text in texts:
            try:
                record = _parse(text)
                self._by_identity.setdefault(_identity(record["config"]), record)
            except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
                problems.append(
                    f"Got {place}, which is not a run record ({error or type(error).__name__}); expected one. Delete it, and the "
                    "suite repeats its run."
                )
        if problems:
            raise ValueError("\n".join(problems))


def _parse(text: bytes) -> RunRecord:
    record = parse_json(text)
    _check_outcome(record)
    if record.get("schema") != SCHEMA:
        raise ValueError(f"Got schema {record.get('schema')!r}; expected {SCHEMA}")
    found = {**record, "config": _with_current_options(record["config"])}
    _sort_key(("", found))  # which reads what every record has
    return found


def _check_outcome(record: Mapping[str, Any]) -> None:
    outcome = record.get("outcome")
    if outcome not in OUTCOMES:
        raise ValueError(f"Got the outcome {outcome!r}; expected one of {', '.join(OUTCOMES)}.")
    if outcome != "finished" and not record.get("reason"):
        raise ValueError(f"Got the outcome {outcome!r} without a reason; expected one.")


def _sort_key(item: tuple[str, RunRecord]) -> tuple[Any, ...]:
    identity, record = item
    config = record["config"]
    name = f"{Path(config['task']).name}-{config['method']}-lr{config['learning_rate']:g}-s{config['seed']}"
    return name, identity
