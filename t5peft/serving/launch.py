"""From the options of a server to its engine and application, in one process or in each replica of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from t5peft.serving.scheduler import Limits
from t5peft.serving.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from t5peft.models.quantized import Quantization


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server.

    Args:
        backbone: What ``load_backbone`` takes.
        adapters: The folder of the adapters.
        settings: The limits and keys of the server.
        limits: The limits of its engine.
        quantize: How to load the backbone.
        max_bytes: Memory of adapters; None for no limit.
        pinned: Adapters that are loaded at the start and stay.
        sha256: The SHA-256 of the manifest of some adapters.
    """

    backbone: str
    adapters: str
    settings: ServerSettings
    limits: Limits = field(default_factory=Limits)
    quantize: Quantization | None = None
    max_bytes: int | None = None
    pinned: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_app(options: ServeOptions) -> Iterator[FastAPI]:
    """Load the backbone, start an engine and make the application; the engine stops with the block.

    Args:
        options: What to serve.

    Yields:
        The application.

    Raises:
        FileNotFoundError: The backbone or the folder is not there.
        ValueError: An option is wrong, or a pinned adapter cannot be loaded.
    """
    from t5peft.serving.engine import Engine
    from t5peft.serving.pool import AdapterPool
    from t5peft.serving.server import create_app

    pool = AdapterPool(
        options.backbone,
        options.adapters,
        quantize=options.quantize,
        max_bytes=options.max_bytes,
        pinned=options.pinned,
        sha256=options.sha256,
    )
    engine = Engine(pool, options.limits)
    try:
        yield create_app(engine, pool, options.settings)
    finally:
        engine.close(finish=False)


def public_name(backbone: str) -> str:
    """Return the name of a backbone for requests: of a folder only its last part.

    Args:
        backbone: What ``load_backbone`` takes.

    Returns:
        The name.
    """
    return Path(backbone).resolve().name if Path(backbone).is_dir() else backbone
