"""Parts of answers: the tickets of a request, and how texts and scores are written."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from t5peft.data.decoding import decode
from t5peft.serving.engine import Engine, Ticket
from t5peft.serving.errors import ApiError
from t5peft.serving.requests import Request, Token, TooLongError, UnusableAdapterError
from t5peft.serving.served import Served

# No logarithm of a probability that JSON can write is -inf; OpenAI's API has this number in its place.
LOWEST = -9999.0


class Tickets:
    """The tickets of one request; those that are not done are given up at the end.

    Args:
        engine: Where they are taken.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tickets: list[Ticket] = []

    def take(self, request: Request, on_token: Callable[[Token], None] | None = None) -> Ticket:
        """Submit a request.

        Args:
            request: For the engine.
            on_token: Called in the engine's thread.

        Returns:
            Its ticket.

        Raises:
            ApiError: The engine finds the request wrong.
            QueueFullError: Too many requests wait.
            EngineClosedError: The server stops.
            TooLongError: The request is above the limits.
        """
        try:
            ticket = self._engine.submit(request, on_token=on_token)
        except (TooLongError, UnusableAdapterError):
            raise
        except ValueError as error:
            raise ApiError(str(error)) from error
        self._tickets.append(ticket)
        return ticket

    def close(self) -> None:
        """Cancel every ticket that is not done."""
        for ticket in self._tickets:
            if not ticket.result.done():
                ticket.cancel()


def softmax(log_probabilities: Sequence[float]) -> list[float]:
    """Return the probabilities of log-probabilities, normalized over them."""
    most = max(log_probabilities)
    weights = [math.exp(value - most) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]


def as_json_number(value: float) -> float:
    """Return a log-probability that JSON can write."""
    return value if value > LOWEST else LOWEST


def new_id(prefix: str) -> str:
    """Return an id for a response."""
    return f"{prefix}-{secrets.token_hex(12)}"


def read_text(ids: Sequence[int], served: Served, *, as_record: bool) -> str:
    """Return the text of an answer, read by the task where a record was asked."""
    text = decode([ids], served.tokenizer, keep=served.special_tokens)[0]
    return served.task.read(text, served.tokenizer) if as_record and served.task is not None else text


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return the counts of tokens as OpenAI's API writes them."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def label_probabilities(log_probabilities: Sequence[float], served: Served) -> dict[str, float]:
    """Return the probability of each class by its name: of the labels of the task where there are as many, else by numbers."""
    labels: Sequence[str] = () if served.task is None else served.task.labels
    if len(labels) != len(log_probabilities):
        labels = [str(number) for number in range(len(log_probabilities))]
    return dict(zip(labels, softmax(log_probabilities), strict=True))
