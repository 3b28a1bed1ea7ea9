"""A pool for the engine whose model can be held up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from engine_requests import MODELS, SECONDS
from fake_pool import FakePool


@pytest.fixture
def pool() -> Iterator[Any]:
    """Its answers are as long as they may be."""
    yield from watched(FakePool(MODELS[False]))


@pytest.fixture
def ending_pool() -> Iterator[Any]:
    """Half of its answers end by themselves."""
    yield from watched(FakePool(MODELS[True]))


def watched(pool: Any) -> Iterator[FakePool]:
    yield pool
    assert not +pool.held, "adapters are still held"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("t5peft-")]


@pytest.fixture
def gate(pool: Any) -> Iterator[Any]:
    """Holds the model up at its first call until it is opened."""
    opened: Any = threading.Event()
    reached = threading.Event()

    def wait(*_: Any) -> None:
        reached.set()
        assert opened.wait(SECONDS)

    pool.model.on_call = wait
    opened.reached = reached
    yield opened
    opened.set()
