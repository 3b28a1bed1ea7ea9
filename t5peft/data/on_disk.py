"""Values that grow with the rows, in temporary files: they take no memory until they are read."""

from __future__ import annotations

import mmap
import operator
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import IO, Any, TypeVar, overload

import numpy as np
from datasets.fingerprint import get_temporary_cache_files_directory
from numpy.typing import DTypeLike, NDArray

T = TypeVar("T")
VALUES_IN_MEMORY = 100_000
"""Fewer values than these are a list, which is some ten megabytes."""
_VALUES_AT_ONCE = 1000


def gathered_values(values: Iterable[T]) -> Sequence[T]:
    """Return values as a list, or as a file where they are ``VALUES_IN_MEMORY`` or more and the disk has room for them.

    Args:
        values: The values, read once.
    """
    left = iter(values)
    first = list(islice(left, VALUES_IN_MEMORY))
    if len(first) < VALUES_IN_MEMORY:
        return first
    left, file, block = chain(first, left), ValueFile[T](), []
    del first
    try:
        while block := list(islice(left, _VALUES_AT_ONCE)):
            file.append(block)
    except OSError:
        return [*file, *block, *left]
    return file


class ValueFile(Sequence[T]):
    """Values as Python wrote them, in a file that is deleted when nobody reads it any more."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._count, self._starts = 0, [0]

    def append(self, block: Sequence[T]) -> None:
        """Write values behind those that are there. All blocks but the last have ``_VALUES_AT_ONCE``, and nothing was read yet.

        Raises:
            OSError: The disk has no room. What was there is there.
        """
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=get_temporary_cache_files_directory(), buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        left = memoryview(pickle.dumps(block))
        end = self._starts[-1] + len(left)
        while left:
            left = left[self._file.write(left) :]
        self._count += len(block)
        self._starts.append(end)

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

    @cached_property
    def _bytes(self) -> mmap.mmap:
        assert self._file is not None  # as there is a block
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

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
