"""Values in files are those of a list, and take no memory."""

from __future__ import annotations

import copy
import pickle
import sys
import tracemalloc
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest

if sys.platform != "win32":
    import resource

from t5peft.data.on_disk import ValueFile, gathered_values, joined

VALUES: list[Any] = [["a", "b"], [], 0.1 + 0.2, float("inf"), "\ud800", None, *(f"text {i}" for i in range(2994))]


def test_few_values_are_a_list_and_many_are_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 3000)
    assert type(gathered_values(iter(VALUES[1:]))) is list
    assert type(gathered_values(iter(VALUES))) is ValueFile
    assert gathered_values([]) == []


def file_of(values: Iterable[Any]) -> ValueFile[Any]:
    """A file of any number of values."""
    found, left = ValueFile[Any](), iter(values)
    while block := list(islice(left, 1000)):
        found.append(block)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are of Unix")
@pytest.mark.parametrize("room", [0, 10, 20_000, 30_000])
def test_values_for_which_the_disk_has_no_room_are_kept_in_memory(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        found = gathered_values(iter(VALUES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert type(found) is list
    assert found == VALUES


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 3000])
def test_a_file_has_the_values_of_the_list(count: int) -> None:
    wanted = VALUES[:count]
    found = file_of(iter(wanted))
    assert [list(found), list(found)] == [wanted, wanted]
    assert len(found) == count
    for index in (0, count // 2, count - 1, -1, -count, slice(None), slice(5, -5, 7), slice(None, None, -300)):
        assert found[index] == wanted[index]
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            found[index]
    assert np.array(file_of([0.5, 0.25])).tolist() == [0.5, 0.25]


def test_a_file_is_equal_to_its_values_and_is_copied_as_a_list() -> None:
    found = file_of(VALUES)
    assert found == VALUES
    assert (0, found) == (0, VALUES)
    assert found != VALUES[1:]
    assert found != [*VALUES[1:], "other"]
    for copied in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert type(copied) is list
        assert copied == VALUES


def test_a_file_of_values_takes_little_memory() -> None:
    tracemalloc.start()
    found = file_of(f"text {i}" for i in range(50_000))
    assert sum(map(len, found)) == sum(len(f"text {i}") for i in range(50_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(found)  # bytes; the texts of a list take 60 and more


@pytest.mark.parametrize("in_memory", [10_000, 1])
def test_parts_are_joined_in_memory_and_in_a_file(in_memory: int) -> None:
    parts = [np.arange(start, start + 900) for start in range(0, 9000, 900)]
    found = joined(iter(parts), 9000, np.uint16, in_memory=in_memory)
    assert type(found) is np.ndarray
    assert found.dtype == np.uint16
    assert found.tolist() == list(range(9000))
    assert joined([], 0, np.uint16, in_memory=in_memory).tolist() == []
