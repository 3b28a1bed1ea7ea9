"""Which waiting requests come next: first come, first served within a kind, and no kind waits for ever.

Rows that decode step by step join the running batch. Beams, ranks and classes are answered in whole batches of their own between
two steps. Between two steps of beams the running rows take a step too. After a batch they take as many steps as it had passes of
the decoder without one of theirs, so neither waits for long.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, cast

from t5peft.serving.batch import Row
from t5peft.serving.requests import Generated, GenerateRequest, RankRequest, Request, Scores, Token
from t5peft.serving.sampling import Sampler

Kind = Literal["row", "beams", "rank", "classify"]


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on at once.

    Raises:
        ValueError: A number is below 1, or the longest request does not fit into the caches.
    """

    max_rows: int = 64
    """Rows of a batch, and beams of a batch of beams."""
    max_tokens: int = 131_072
    """Columns of sources and answers in the caches, times rows. A row on its own may exceed it by its prompt."""
    max_encoded_tokens: int = 8_192
    """Source tokens, with padding, that join between two steps. It bounds how long running rows wait. One row may exceed it."""
    max_waiting: int = 256
    """Requests that are not running yet."""
    max_source_tokens: int = 1_024
    """Tokens of a source, with ``</s>``."""
    max_new_tokens: int = 512
    """Tokens of an answer or of a candidate, with ``</s>``."""
    max_joining_steps: int = 4
    """Most steps for which a row waits for others to join with it, while there is room."""
    max_steps_between: int = 64
    """Most steps between two batches of beams, ranks or classes."""

    def __post_init__(self) -> None:
        problems = [f"Got {name}={value}; expected at least 1." for name, value in vars(self).items() if not value >= 1]
        longest = self.max_source_tokens + self.max_new_tokens
        if longest > self.max_tokens:
            problems.append(f"Got max_tokens={self.max_tokens}; expected at least {longest}, the longest request.")
        if problems:
            raise ValueError(" ".join(problems))


@dataclass(eq=False, kw_only=True)
class Job(Row):
    """A request on its way."""

    number: int
    """It came after those with lower numbers."""
    request: Request
    on_token: Callable[[Token], None] | None
    result: Future[Generated | Scores] = field(default_factory=Future)
    sampler: Sampler | None = None
    tokens: list[Token] = field(default_factory=list)
    is_held: bool = False
    """Whether the pool holds its adapter."""

    @property
    def kind(self) -> Kind:
        """Return how it is answered."""
        if isinstance(self.request, GenerateRequest):
            shares = self.adapter is None or self.adapter.separate is None
            return "row" if self.request.num_beams == 1 and shares else "beams"
        return "rank" if isinstance(self.request, RankRequest) else "classify"

    @property
    def source_size(self) -> int:
        """Return the columns of its source, with those of a prompt."""
        return len(self.source_ids) + (self.adapter.prompt_length if self.adapter else 0)

    @property
    def target_size(self) -> int:
        """Return the most columns that its answer may take."""
        if isinstance(self.request, GenerateRequest):
            return self.request.max_new_tokens
        return sum(map(len, self.request.candidate_ids)) if isinstance(self.request, RankRequest) else 1

    @property
    def copies(self) -> int:
        """Return how many rows of the decoder it takes."""
        return self.request.num_beams if isinstance(self.request, GenerateRequest) else 1

    def settle(self, outcome: Generated | Scores | BaseException | None) -> None:
        """Give the answer, or the error, to who waits for it."""
        if isinstance(outcome, BaseException):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(cast(Generated | Scores, outcome))

    def may_share(self, other: Job) -> bool:
        """Return whether one call answers both: the same kind; beams of the same number and length."""
        if self.kind != other.kind:
            return False
        return self.kind != "beams" or (self.copies, self.target_size) == (other.copies, other.target_size)


class Scheduler:
    """The requests whose adapters are loaded and that are not running yet. Not safe for several threads.

    Args:
        limits: How much may run at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._rows: list[Job] = []
        self._others: list[Job] = []
        self._steps_waited = 0
        self._steps_owed = 0

    def __len__(self) -> int:
        return len(self._rows) + len(self._others)

    def add(self, job: Job) -> None:
        """Let a request wait, in the order in which it came."""
        insort(self._rows if job.kind == "row" else self._others, job, key=lambda job: job.number)

    def remove(self, condition: Callable[[Job], bool]) -> list[Job]:
        """Take out and return the waiting requests that meet a condition."""
        found = [job for job in (*self._rows, *self._others) if condition(job)]
        self._rows = [job for job in self._rows if not condition(job)]
        self._others = [job for job in self._others if not condition(job)]
        return found

    def count_step(self) -> None:
        """Note that the running rows have taken a step."""
        self._steps_waited += bool(self._rows)
        self._steps_owed = max(0, self._steps_owed - 1)

    def count_passes(self, passes: int) -> None:
        """Note that a batch of beams, ranks or classes took so many passes of the decoder without a step of the rows between."""
        self._steps_owed = min(passes, self._limits.max_steps_between)

    def next_rows(self, running: Sequence[Job]) -> list[Job]:
        """Take out and return the rows that join the running ones now.

        Few rows at a time are dear: they cost a pass of the encoder, a step of their own, and a pass over the caches. While
        many run, a row waits a few steps for others.

        Args:
            running: The rows that run.

        Returns:
            The rows, first come first.
        """
        count = self._fitting(self._rows, running, self._limits.max_rows)
        if count * 8 < len(running) and self._steps_waited < self._limits.max_joining_steps:
            return []
        self._steps_waited = 0
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def next_batch(self, is_running: bool) -> list[Job]:
        """Take out and return the requests that are answered by one call between two steps.

        Args:
            is_running: Whether rows are running, which may have steps to take first.

        Returns:
            The request that came first and those that may share its call.
        """
        if not self._others or (is_running and self._steps_owed):
            return []
        first = self._others[0]
        sharing = [job for job in self._others if first.may_share(job)]
        sharing = sharing[: self._fitting(sharing, (), max(1, self._limits.max_rows // first.copies))]
        self._others = [job for job in self._others if job not in sharing]
        return sharing

    def _fitting(self, waiting: Sequence[Job], running: Sequence[Job], max_rows: int) -> int:
        """Return how many of the first waiting requests fit; at least one where nothing runs."""
        rows, encoded = len(running), 0
        sources = max((job.source_size for job in running), default=0)
        targets = max((job.target_size for job in running), default=0)
        for count, job in enumerate(waiting):
            rows += 1
            sources, targets = max(sources, job.source_size), max(targets, job.target_size)
            encoded = max(encoded, job.source_size)
            if rows == 1:
                continue
            if rows > max_rows or rows * job.copies * (sources + targets) > self._limits.max_tokens:
                return count
            if count and (count + 1) * encoded > self._limits.max_encoded_tokens:
                return count
        return len(waiting)
