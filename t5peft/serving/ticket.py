"""Handles that the engine gives out: the ticket of a request, and counts."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from t5peft.serving.requests import Generated, Scores


@dataclass(frozen=True)
class Ticket:
    """A request that was accepted."""

    result: Future[Generated | Scores]
    """The answer, or the error."""

    def cancel(self) -> None:
        """Give the request up. Its row is free at the next step."""
        self.result.cancel()


@dataclass(frozen=True)
class EngineStats:
    """Requests and steps of the engine, now and since it started."""

    running: int
    """Rows of the running batch."""
    waiting: int
    """Requests whose adapters are loaded and that wait for the batch."""
    loading: int
    """Requests whose adapters are being loaded."""
    active_adapters: int
    """Adapters of the running rows."""
    finished: int
    cancelled: int
    failed: int
    generated_tokens: int
    steps: int
    """Of the running batch, without the first step of each row."""
    rows_per_step: float
    """Their mean."""
