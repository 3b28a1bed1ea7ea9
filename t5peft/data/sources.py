"""The doors for what users give: records as a list, whatever holds them, and sources as texts or as token ids."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Integral
from typing import Any, TypeGuard, overload

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, IterableDataset
from datasets.fingerprint import get_temporary_cache_files_directory
from numpy.typing import NDArray

from t5peft.compat.datasets import chosen_rows

Records = Sequence[dict[str, Any]]


class RecordList(list[dict[str, Any]]):
    """Records that know where they come from.

    Args:
        records: The records.
        origin: The file or data set, for errors.
        label_names: Column to the names of its labels, where the cells are their numbers.
    """

    def __init__(
        self,
        records: Iterable[dict[str, Any]],
        origin: str | None = None,
        label_names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(records)
        self.origin = origin
        self.label_names = dict(label_names or {})


class RecordFile(Sequence[dict[str, Any]]):
    """Many records in Arrow on the disk: they take no memory until they are read.

    Args:
        dataset: The records.
        origin: The file or data set, for errors.
        label_names: Column to the names of its labels, where the cells are their numbers.
        named: Those of these columns that are read as names.
        pickled: Whether the one column ``record`` holds each record as Python wrote it.
    """

    def __init__(
        self,
        dataset: Dataset,
        origin: str | None = None,
        label_names: Mapping[str, Sequence[str]] | None = None,
        *,
        named: Iterable[str] = (),
        pickled: bool = False,
    ) -> None:
        self.dataset, self.origin = dataset.with_format("arrow"), origin
        self._names, self._named, self._pickled = dict(label_names or {}), frozenset(named), pickled

    @classmethod
    def written(
        cls,
        records: Iterable[dict[str, Any]],
        origin: str | None = None,
        label_names: Mapping[str, Sequence[str]] | None = None,
    ) -> RecordFile:
        """Write records to the temporary files of ``datasets``, which are deleted when the process ends.

        A record is kept as Python wrote it, so it comes back as it was, whatever the kinds of its cells.

        Args:
            records: The records, read once.
            origin: Where they come from.
            label_names: Column to the names of its labels, where the cells are their numbers.
        """
        descriptor, path = tempfile.mkstemp(suffix=".arrow", dir=get_temporary_cache_files_directory())
        schema = pa.schema({"record": pa.large_binary()})
        left = iter(records)
        with os.fdopen(descriptor, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while batch := [pickle.dumps(record) for record in islice(left, _ROWS_AT_ONCE)]:
                writer.write_batch(pa.record_batch([pa.array(batch, pa.large_binary())], schema=schema))
        return cls(Dataset.from_file(path), origin, label_names, pickled=True)

    @property
    def label_names(self) -> dict[str, Sequence[str]]:
        """The names of the labels of columns that hold their numbers."""
        return {column: names for column, names in self._names.items() if column not in self._named}

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches(_ROWS_AT_ONCE):
            yield from batch

    def batches(self, rows: int) -> Iterator[Sequence[dict[str, Any]]]:
        """Yield the records, so many at a time."""
        yield from map(self._read, self.dataset.iter(rows))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(index, slice):
            return self._read(self.dataset[index])
        row = range(len(self))[index]
        return self._read(self.dataset[row : row + 1])[0]

    def _read(self, table: Any) -> Sequence[dict[str, Any]]:
        if self._pickled:
            records = RecordList(map(pickle.loads, table["record"].to_pylist()), self.origin, self._names)
        else:
            records = labeled_records(table.to_pylist(), self.dataset.features, self.origin)
        return with_label_names(records, self._named)

    def chosen(self, rows: NDArray[np.int64]) -> RecordFile:
        """Return the records of these numbers, on the same file."""
        return self._with(chosen_rows(self.dataset, rows), self._named)

    def with_names(self, columns: Iterable[str]) -> RecordFile:
        """Return the records, on the same file, with the names of labels in the place of their numbers.

        Args:
            columns: Where to read names.
        """
        return self._with(self.dataset, self._named | set(columns))

    def _with(self, dataset: Dataset, named: Iterable[str]) -> RecordFile:
        return RecordFile(dataset, self.origin, self._names, named=named, pickled=self._pickled)


_ROWS_AT_ONCE = 1000
ROWS_IN_MEMORY = 10_000
"""Fewer records of a stream, a data set or a folder than this are kept in memory, and fewer tokens are not written to the disk."""


def gathered(
    records: Iterable[dict[str, Any]], origin: str | None = None, label_names: Mapping[str, Sequence[str]] | None = None
) -> RecordList | RecordFile:
    """Return a few records as a list, and many as a file.

    Args:
        records: The records, read once.
        origin: Where they come from.
        label_names: Column to the names of its labels, where the cells are their numbers.
    """
    left = iter(records)
    first = list(islice(left, ROWS_IN_MEMORY))
    if len(first) < ROWS_IN_MEMORY:
        return RecordList(first, origin, label_names)
    return RecordFile.written(chain(first, left), origin, label_names)


def of_dataset(dataset: Dataset, origin: str | None = None) -> RecordList | RecordFile:
    """Return the records of a data set, a few as a list and many on its own files.

    Args:
        dataset: The data set.
        origin: What errors call it.
    """
    if len(dataset) >= ROWS_IN_MEMORY:
        return RecordFile(dataset, origin, label_names_of(dataset.features))
    return labeled_records(dataset.to_list(), dataset.features, origin)


def read_records(records: Iterable[Any]) -> Sequence[Any]:
    """Return records as a sequence, with the names of the labels of a ``Dataset``.

    Lists and files stay as they are. Many records of a data set or of an iterator are read from the disk. Any other collection
    becomes a list.
    """
    _ensure_iterable(records)
    if isinstance(records, list | RecordFile):
        return records
    if isinstance(records, Dataset):
        return of_dataset(records)
    if isinstance(records, IterableDataset):
        return gathered(chain.from_iterable(batches_of(records)), None, label_names_of(records.features or {}))
    return gathered(records) if isinstance(records, Iterator) else list(records)


def batches_of(records: Iterable[Any], rows: int = 1000) -> Iterator[Sequence[Any]]:
    """Yield records as ``read_records`` returns them, so many at a time, and read them once.

    Args:
        records: A list, a ``Dataset``, a stream, or any iterable.
        rows: Records of a batch.
    """
    _ensure_iterable(records)
    if isinstance(records, RecordFile):
        yield from records.batches(rows)
    elif isinstance(records, Dataset):
        for table in records.with_format("arrow").iter(rows):
            yield labeled_records(table.to_pylist(), records.features)
    elif isinstance(records, list):
        for start in range(0, len(records), rows):
            yield part_of(records, records[start : start + rows])
    else:
        features = records.features if isinstance(records, IterableDataset) else None
        left = iter(records)
        while batch := list(islice(left, rows)):
            yield batch if features is None else labeled_records(batch, features)


def _ensure_iterable(records: object) -> None:
    if not isinstance(records, Iterable):
        raise ValueError(f"Got {records!r:.60} as records; expected a list of mappings, a Dataset or a stream.")


def label_names_of(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return column to the names of its labels, of the columns of features of ``datasets`` that hold numbers of labels."""
    return {column: kind.names for column, kind in features.items() if isinstance(kind, ClassLabel)}


def labeled_records(records: Records, features: Mapping[str, Any], origin: str | None = None) -> RecordList:
    """Return records with the names of the labels of their ``ClassLabel`` columns.

    Args:
        records: The records. Lists of numbers of labels become lists of names, in place.
        features: Column to its feature of ``datasets``.
        origin: The file or data set, for errors.
    """
    for column, kind in features.items():
        inner = getattr(kind, "feature", None)
        if isinstance(inner, ClassLabel):
            for record in records:
                if isinstance(record[column], list):
                    record[column] = [_name(number, inner.names) for number in record[column]]
    return RecordList(records, origin, label_names_of(features))


def with_label_names(records: Sequence[Any], columns: Iterable[str]) -> Sequence[Any]:
    """Return records with the names of labels in the place of their numbers.

    Args:
        records: What ``read_records`` returned.
        columns: Where to write names.
    """
    if isinstance(records, RecordFile):
        return records.with_names(columns)
    if not isinstance(records, RecordList):
        return records
    names = {column: records.label_names[column] for column in columns if column in records.label_names}
    if not names:
        return records
    named = [
        {**record, **{column: _name(record[column], names[column]) for column in names if column in record}}
        for record in records
    ]
    left = {column: of_column for column, of_column in records.label_names.items() if column not in names}
    return RecordList(named, records.origin, left)


def part_of(records: Sequence[Any], rows: Iterable[dict[str, Any]]) -> Records:
    """Return rows of ``records`` as a list that knows as much of them as ``records`` does."""
    if isinstance(records, RecordList | RecordFile):
        return RecordList(rows, records.origin, records.label_names)
    return list(rows)


def _name(number: Any, names: Sequence[str]) -> Any:
    """Return the name of the label of a number; a number without a name stays, and -1, which says that it is missing, is None."""
    if number == -1:
        return None
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else number


def origin_of(records: object) -> str | None:
    """Return the file or data set that records were loaded from, if it is known."""
    return records.origin if isinstance(records, RecordList | RecordFile) else None


def read_sources(values: object) -> list[str] | list[list[int]]:
    """Return sources as a list of texts, or as a list of lists of token ids.

    Args:
        values: Any iterable of texts, or of sequences, arrays or tensors of token ids: a list, generator, Series, column or
            array.

    Raises:
        ValueError: One text, a mapping, a table, missing values, or anything else that is not one of the two.
    """
    items = items_of(values)
    texts = [isinstance(item, str) for item in items]
    if all(texts):
        return [str(item) for item in items]
    if any(texts):
        other = texts.index(not texts[0])
        raise ValueError(
            f"Got sources of several kinds: source 0 is {_shown(items[0])}, source {other} is {_shown(items[other])}; expected "
            "either texts or lists of token ids. Remove missing ones."
        )
    rows = [_token_ids(item) for item in items]
    for number, row in enumerate(rows):
        if row is None:
            raise ValueError(
                f"Got {_shown(items[number])} as source {number}; expected a text, or a list of token ids that ends in </s>. "
                "Remove missing texts, and convert numbers with str()."
            )
        if not row:
            raise ValueError(f"Got no token ids as source {number}; expected at least </s>. Remove it.")
    return [row for row in rows if row is not None]


def read_texts(values: object, name: str) -> list[str]:
    """Return texts as a list.

    Args:
        values: Any iterable of texts.
        name: Of the values, for errors.

    Raises:
        ValueError: One text, a mapping, a table, or values that are not texts.
    """
    items = items_of(values, name)
    wrong = [number for number, item in enumerate(items) if not isinstance(item, str)]
    if wrong:
        raise ValueError(
            f"Got {_shown(items[wrong[0]])} as number {wrong[0]} of {name}; expected a text. Remove missing ones."
        )
    return [str(item) for item in items]


def read_candidates(values: object) -> list[str] | list[list[str]]:
    """Return candidates as a list of texts for all sources, or as one list of texts for each source.

    Args:
        values: Any iterable of texts, or of iterables of texts.

    Raises:
        ValueError: See ``read_texts``.
    """
    items = items_of(values, "candidates")
    if all(isinstance(item, str) for item in items):
        return [str(item) for item in items]
    if any(isinstance(item, str) or not isinstance(item, Iterable) for item in items):
        return read_texts(items, "candidates")
    return [read_texts(item, f"the candidates of source {number}") for number, item in enumerate(items)]


def without_padding(ids: list[int], pad_token_id: int | None) -> list[int]:
    """Return token ids without padding on either side; the pad id within them stays."""
    places = [place for place, token in enumerate(ids) if token != pad_token_id]
    return ids[places[0] : places[-1] + 1] if places else ids


def items_of(values: object, name: str = "sources") -> list[object]:
    """Return the items of any iterable but a text, a mapping, a set or a table.

    Args:
        values: The iterable.
        name: What errors call it.

    Raises:
        ValueError: It is one of these, or nothing iterable.
    """
    kind = f"{type(values).__module__.split('.')[0]}.{type(values).__qualname__}"
    advice = ""
    if isinstance(values, str):
        raise ValueError(f"Got one text as {name}, {values[:60]!r}; expected a list of texts. Write [text].")
    if isinstance(values, Mapping):
        advice = "Pass one of its values without padding, such as batch['input_ids']."
    elif hasattr(values, "columns") or hasattr(values, "column_names"):
        advice = "Pass one of its columns, such as table['text']. Task.sources creates texts from records."
    elif isinstance(values, set | frozenset):
        advice = "It has no order that answers could follow. Write sorted(values)."
    elif isinstance(values, bytes | bytearray) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        advice = "Write [text]."
    if advice or not isinstance(values, Iterable):
        raise ValueError(f"Got {kind} as {name}; expected a list or another iterable of texts. {advice}")
    return [
        item.item() if getattr(item, "ndim", None) == 0 else item.as_py() if hasattr(item, "as_py") else item
        for item in values
    ]


def _token_ids(item: object) -> list[int] | None:
    """Return the ids of one source, or ``None`` where it is not a sequence of whole numbers."""
    plain = item.tolist() if hasattr(item, "tolist") else item
    if not isinstance(plain, list | tuple) or not _are_ids(plain):
        return None
    return [int(token) for token in plain]


def _are_ids(row: Sequence[object]) -> TypeGuard[Sequence[int]]:
    return all(isinstance(token, Integral) and not isinstance(token, bool) and int(token) >= 0 for token in row)


def _shown(item: object) -> str:
    missing = ", a missing value" if item is None or (isinstance(item, float) and item != item) else ""
    return f"{item!r:.60} ({type(item).__name__}{missing})"
