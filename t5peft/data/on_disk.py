"""Values that grow with the rows, in temporary files: they take no memory until they are read."""

from __future__ import annotations

import mmap
import operator
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar, overload

import numpy as np
from datasets.fingerprint import get_temporary_cache_files_directory
from numpy.typing import DTypeLike, NDArray

from t5peft.data.sources import ROWS_IN_MEMORY

T = TypeVar("T")
_VALUES_AT_ONCE = 1000


def gathered_values(values: Iterable[T]) -> Sequence[T]:
    """Return a few values as a list, and ``ROWS_IN_MEMORY`` or more as a file.

    Args:
        values: The values, read once.
    """
    left = iter(values)
    first = list(islice(left, ROWS_IN_MEMORY))
    return first if len(first) < ROWS_IN_MEMORY else ValueFile(chain(first, left))


class ValueFile(Sequence[T]):
    """Values as Python wrote them, in a file that is deleted when nobody reads it any more.

    Args:
        values: At least one, read once.
    """

    def __init__(self, values: Iterable[T]) -> None:
        left = iter(values)
        self._count, self._starts = 0, [0]
        with tempfile.TemporaryFile(dir=get_temporary_cache_files_directory()) as file:
            while block := list(islice(left, _VALUES_AT_ONCE)):
                self._count += len(block)
                self._starts.append(self._starts[-1] + file.write(pickle.dumps(block)))
            file.flush()
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(map(self._block, range(len(self._starts) - 1)))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[row] for row in range(self._count)[index]]
        block, place = divmod(range(self._count)[index], _VALUES_AT_ONCE)
        return self._block(block)[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _block(self, number: int) -> list[T]:
        return pickle.loads(self._bytes[self._starts[number] : self._starts[number + 1]])


def joined(parts: Iterable[NDArray[Any]], count: int, dtype: DTypeLike, *, in_memory: int) -> NDArray[Any]:
    """Return parts of an array as one, which is read from a file where it is long [count].

    Args:
        parts: The parts, read once.
        count: Numbers in all of them.
        dtype: Type of the numbers.
        in_memory: Longer arrays are in a file, which is deleted with the array.
    """
    if count <= in_memory:
        numbers, done = np.empty(count, dtype), 0
        for part in parts:
            numbers[done : done + len(part)] = part
            done += len(part)
        return numbers
    with tempfile.TemporaryFile(dir=get_temporary_cache_files_directory()) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
        file.flush()
        return np.asarray(np.memmap(file, dtype, mode="r", shape=(count,)))
