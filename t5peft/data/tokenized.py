"""Tokenize records batch by batch into Arrow, so that memory does not grow with their number.

Few records stay in memory. From ``ROWS_IN_MEMORY`` on, they go to the cache folder of ``datasets`` in shards, whose names are
hashes of what is in them: the columns' texts, the templates, the limits and the tokenizer. So the same records are tokenized once,
also after an interruption, and also where they come from a stream.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher, get_temporary_cache_files_directory
from transformers import PreTrainedTokenizerBase

from t5peft.data import checks
from t5peft.data.checks import Findings
from t5peft.data.sources import ROWS_IN_MEMORY, batches_of
from t5peft.data.template import Template
from t5peft.data.truncation import Row, Truncated, as_targets, encode, truncate

logger = logging.getLogger(__name__)

BATCH_ROWS = 1_000
SHARD_ROWS = 50_000
SHARD_CHARACTERS = 16_000_000
FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int64"))})
_SCHEMA = FEATURES.arrow_schema
_FORMAT = "1"  # of the shards; another one makes the old ones unused


class _Texts(Protocol):
    """The part of a ``Task`` that tokenizing needs."""

    @property
    def name(self) -> str: ...
    @property
    def template(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def verbalizer(self) -> Any: ...
    @property
    def max_source_length(self) -> int: ...
    @property
    def max_target_length(self) -> int: ...
    @property
    def candidates(self) -> Sequence[str]: ...
    def with_names(self, records: Iterable[Any]) -> Sequence[Any]: ...
    def problems_of(self, records: Sequence[Any]) -> list[checks.Problems]: ...
    def collisions(self, tokenizer: PreTrainedTokenizerBase) -> list[str]: ...
    def side(self, name: str) -> tuple[Template, int]: ...
    def source_row(self, record: Any) -> Row: ...
    def target_row(self, record: Any) -> Row: ...


@dataclass(frozen=True)
class Encoded:
    """Tokenized records, and the rows that were changed by truncation or by removal of special tokens.

    Args:
        sources: The sources.
        targets: The targets.
    """

    sources: Truncated
    targets: Truncated

    def dataset(self) -> Dataset:
        """Return the columns ``input_ids`` [S] and ``labels`` [T], both ending in ``</s>``, without padding."""
        return Dataset.from_dict({"input_ids": self.sources.ids, "labels": self.targets.ids})


@dataclass
class Changes:
    """Numbers of rows that were truncated, and of rows whose special tokens were broken up, by side."""

    rows: int = 0
    cut: dict[str, int] = field(default_factory=lambda: {"sources": 0, "targets": 0})
    escaped: dict[str, int] = field(default_factory=lambda: {"sources": 0, "targets": 0})

    def add(self, side: str, truncated: Truncated) -> None:
        """Count the changes of a batch."""
        self.cut[side] += len(truncated.cut)
        self.escaped[side] += len(truncated.escaped)

    def join(self, other: Changes) -> None:
        """Add the counts of another part."""
        self.rows += other.rows
        for mine, theirs in ((self.cut, other.cut), (self.escaped, other.escaped)):
            for side, count in theirs.items():
                mine[side] += count


def tokenize(task: _Texts, records: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Changes]:
    """Return ``input_ids`` [S] and ``labels`` [T] of all records, and how many rows were changed.

    Args:
        task: Makes texts of the records.
        records: A list, a ``Dataset``, a stream, or any iterable, which is read once.
        tokenizer: The tokenizer of the model.

    Raises:
        ValueError: All problems with the records and the tokenizer, at once; see ``Task.encode``.
    """
    reading = _Reading(task, records, tokenizer)
    shards = list(reading.shards())
    reading.raise_problems()
    changes = Changes()
    for _, of_shard in shards:
        changes.join(of_shard)
    parts = [dataset for dataset, _ in shards]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts), changes


def lengths_of(dataset: Dataset, column: str) -> list[int]:
    """Return the number of tokens of each row, without reading the tokens.

    Args:
        dataset: With lists of tokens.
        column: Their column.
    """
    table = dataset.with_format("arrow")[:]
    return [length or 0 for length in pc.list_value_length(table[column]).to_pylist()]


@dataclass
class _Shard:
    """Rows that are tokenized into one file."""

    first_row: int
    sources: list[Row] = field(default_factory=list)
    targets: list[Row] = field(default_factory=list)
    characters: int = 0

    def __len__(self) -> int:
        return len(self.sources)

    def add(self, source: Row, target: Row) -> None:
        self.sources.append(source)
        self.targets.append(target)
        self.characters += sum(map(len, source.values())) + sum(map(len, target.values()))

    @property
    def is_full(self) -> bool:
        return len(self) >= SHARD_ROWS or self.characters >= SHARD_CHARACTERS


class _Reading:
    """One pass over the records: checks them all, and tokenizes them as long as none has a problem."""

    def __init__(self, task: _Texts, records: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> None:
        self.task, self.records, self.tokenizer = task, records, tokenizer
        self.collisions = task.collisions(tokenizer)
        self.found = [Findings() for _ in task.problems_of([])]
        self.unusable = {"source": Findings(), "target": Findings()}

    def shards(self) -> Iterator[tuple[Dataset, Changes]]:
        """Yield the data set of each shard and its changes; none where there are problems."""
        count, shard = 0, _Shard(0)
        for batch in batches_of(self.records, BATCH_ROWS):
            named = self.task.with_names(batch)
            checks.raise_all(self.task.name, checks.no_records(named, count), self.records)
            for findings, problems in zip(self.found, self.task.problems_of(named), strict=True):
                findings.add(problems, count)
            count += len(named)
            if self.collisions or any(self.found):
                continue
            for record in named:
                shard.add(self.task.source_row(record), self.task.target_row(record))
            if shard.is_full:
                yield self._tokenized(shard, on_disk=True)
                shard = _Shard(count)
        if not count:
            for findings, problems in zip(self.found, self.task.problems_of([]), strict=True):
                findings.add(problems)
        elif len(shard) and not self.collisions and not any(self.found):
            yield self._tokenized(shard, on_disk=count >= ROWS_IN_MEMORY)

    def raise_problems(self) -> None:
        """Raise one error for all problems of all batches."""
        first = [problem for findings in self.found for problem in findings]
        checks.raise_all(self.task.name, [*first, *self.collisions], self.records)
        later = [problem for findings in self.unusable.values() for problem in findings]
        checks.raise_all(self.task.name, later, self.records)

    def _tokenized(self, shard: _Shard, *, on_disk: bool) -> tuple[Dataset, Changes]:
        if on_disk:
            try:
                return self._from_disk(shard)
            except OSError as error:
                logger.warning("Tokens cannot be stored on disk (%s); they are kept in memory instead.", error)
        changes = Changes()
        table = pa.Table.from_batches(self._batches(shard, changes), _SCHEMA)
        columns = {name: table.column(name) for name in table.column_names}
        return Dataset.from_dict(columns, features=FEATURES), changes

    def _batches(self, shard: _Shard, changes: Changes) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(shard), BATCH_ROWS):
            rows, first = slice(start, start + BATCH_ROWS), shard.first_row + start
            sources = truncate_sources(self.task, shard.sources[rows], self.tokenizer, first)
            targets = truncate_targets(self.task, shard.targets[rows], self.tokenizer, first)
            for side, truncated in (("source", sources), ("target", targets)):
                self.unusable[side].add(unusable(self.task, side, truncated), first)
                changes.add(f"{side}s", truncated)
            changes.rows += len(sources.ids)
            arrays = [pa.array(side.ids, kind.type) for side, kind in zip((sources, targets), _SCHEMA, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)

    def _from_disk(self, shard: _Shard) -> tuple[Dataset, Changes]:
        """Return a shard of the cache; where it is not there yet, make it."""
        path = _cache_folder() / f"{self._key(shard)}.arrow"
        if (stored := _stored(path, len(shard))) is not None:
            return stored
        changes = Changes()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            tokens, counts = Path(folder) / "tokens", Path(folder) / "changes"
            with pa.OSFile(str(tokens), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
                for batch in self._batches(shard, changes):
                    writer.write_batch(batch)
            if any(self.unusable.values()):
                return Dataset.from_dict({}), changes  # an error is raised at the end
            counts.write_text(json.dumps(asdict(changes)), encoding="utf-8")
            os.replace(counts, path.with_suffix(".json"))
            os.replace(tokens, path)
        return Dataset.from_file(str(path)), changes

    def _key(self, shard: _Shard) -> str:
        """Return a hash of everything that the tokens of a shard depend on."""
        task = self.task
        limits = (task.max_source_length, task.max_target_length, task.verbalizer is None)
        digest = hashlib.blake2b(
            repr((_FORMAT, task.template, task.target, limits, _name_of(self.tokenizer))).encode(), digest_size=20
        )
        for rows in (shard.sources, shard.targets):
            cells = (f"{len(value)}:{value}" for row in rows for value in row.values())
            digest.update("".join(cells).encode())
        return digest.hexdigest()


def unusable(task: _Texts, side: str, truncated: Truncated) -> list[checks.RowProblem]:
    """Return the problems with sources or targets that cannot be used.

    Args:
        task: The task.
        side: ``"source"`` or ``"target"``.
        truncated: The rows.
    """
    template, limit = task.side(side)
    return checks.unusable(truncated, template, side, limit)


def truncate_sources(
    task: _Texts, rows: list[Row], tokenizer: PreTrainedTokenizerBase, first_row: int = 0
) -> Truncated:
    """Return the tokens of sources, from the texts of their columns."""
    template, limit = task.side("source")
    return truncate(template, rows, tokenizer, limit, first_row=first_row)


def truncate_targets(
    task: _Texts, rows: list[Row], tokenizer: PreTrainedTokenizerBase, first_row: int = 0
) -> Truncated:
    """Return the tokens of targets, from the texts of their columns.

    The words of a verbalizer are the task's own, not a user's text. They are ranked as they are, special tokens among them too.
    """
    template, limit = task.side("target")
    if task.verbalizer is None:
        truncated = truncate(template, rows, tokenizer, limit, first_row=first_row)
        return replace(truncated, ids=as_targets(truncated.ids, tokenizer))
    texts = [template.render(row) for row in rows]
    ids = dict(zip(task.candidates, as_targets(encode(task.candidates, tokenizer), tokenizer), strict=True))
    return Truncated(texts, [list(ids[text]) for text in texts], cut=[], escaped=[], empty=[], crowded_out=[])


def _name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that differs for tokenizers that encode differently."""
    encode(["a"], tokenizer)  # which drops settings for padding that an earlier call has left
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else Hasher.hash(tokenizer)
    kept = (type(tokenizer).__name__, tokenizer.eos_token_id, sorted(tokenizer.all_special_ids), version("tokenizers"))
    return hashlib.sha256(f"{kept}{content}".encode()).hexdigest()


def _cache_folder() -> Path:
    enabled = datasets.is_caching_enabled()
    folder = Path(datasets.config.HF_DATASETS_CACHE if enabled else get_temporary_cache_files_directory())
    (folder / "t5peft").mkdir(parents=True, exist_ok=True)
    return folder / "t5peft"


def _stored(path: Path, rows: int) -> tuple[Dataset, Changes] | None:
    """Return a shard that is on the disk, or None where it is missing or damaged."""
    try:
        changes = Changes(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        dataset = Dataset.from_file(str(path))
    except (OSError, ValueError, TypeError):  # Arrow's error for damaged files is a ValueError
        return None
    return (dataset, changes) if len(dataset) == rows and dataset.features == FEATURES else None
