"""Requests to the engine, and what it gives out: tickets, answers, counts and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
Ids = Sequence[Sequence[int]]
"""Token ids of each of several texts."""


@dataclass(frozen=True)
class GenerateRequest:
    """Generate an answer to one source."""

    adapter: str | None
    """The name of the adapter in the pool; None for the backbone as it is."""
    source_ids: Sequence[int]
    """Token ids that end in ``</s>``."""
    max_new_tokens: int
    """Tokens of the longest answer, with ``</s>``."""
    num_beams: int = 1
    """1 is greedy search, or sampling where ``temperature`` is above 0."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Sample from the most probable tokens whose probabilities sum to at least this."""
    seed: int = 0
    """Of the samples of this request, whatever else is in the batch."""
    top_log_probabilities: int = 0
    """How many alternatives to return for each token."""


@dataclass(frozen=True)
class RankRequest:
    """Score candidate targets for one source."""

    adapter: str | None
    source_ids: Sequence[int]
    candidate_ids: Sequence[Sequence[int]]
    """Token ids of each candidate, which end in ``</s>``."""


@dataclass(frozen=True)
class ClassifyRequest:
    """Score the classes of an adapter with a classification head for one source."""

    adapter: str
    source_ids: Sequence[int]


Request = GenerateRequest | RankRequest | ClassifyRequest


@dataclass(frozen=True)
class Token:
    """A generated token."""

    id: int
    log_probability: float
    """Its natural logarithm, before temperature."""
    alternatives: Mapping[int, float] = field(default_factory=dict)
    """Log-probabilities of the most probable tokens, by id."""


@dataclass(frozen=True)
class Generated:
    """An answer to a ``GenerateRequest``."""

    tokens: Sequence[Token]
    """Without the start token; the last one is ``</s>`` where it ended by itself."""
    finish_reason: FinishReason

    @property
    def ids(self) -> list[int]:
        """Return the token ids."""
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class Scores:
    """An answer to a ``RankRequest`` or a ``ClassifyRequest``."""

    log_probabilities: Sequence[float]
    """One for each candidate or class."""


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


class UnknownAdapterError(KeyError):
    """The pool has no adapter of this name."""


class UnusableAdapterError(ValueError):
    """The adapter is damaged, of another backbone, or of a kind that cannot be served in mixed batches."""


class QueueFullError(RuntimeError):
    """So many requests wait that another one is refused."""


class TooLongError(ValueError):
    """The request needs more tokens than one may."""


class EngineClosedError(RuntimeError):
    """The engine takes no more requests."""
