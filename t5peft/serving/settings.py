"""Limits and keys of the server, apart from the limits of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Args:
        backbone_name: The name under which requests ask the backbone without an adapter.
        api_keys: Keys of which a request must bring one; none lets every request in, which must then come to a loopback name.
        max_body_bytes: The longest body of a request.
        max_answers: Most answers of one request: prompts times ``n``.
        max_candidates: Most candidates of one ranking.
        retry_after_seconds: When a client that was refused for load should come again.

    Raises:
        ValueError: A number is below 1.
    """

    backbone_name: str
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 1 << 20
    max_answers: int = 64
    max_candidates: int = 256
    retry_after_seconds: int = 1

    def __post_init__(self) -> None:
        names = ("max_body_bytes", "max_answers", "max_candidates", "retry_after_seconds")
        if small := [f"{name}={value}" for name in names if (value := getattr(self, name)) < 1]:
            raise ValueError(f"Got {', '.join(small)}; expected at least 1 of each.")
