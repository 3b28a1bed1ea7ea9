"""A folder with a tiny backbone and adapters of several kinds, and a server of it in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.testclient import TestClient
from tiny import tiny_t5, tiny_tokenizer
from torch import nn

import t5peft
from t5peft.adapters import save_adapter
from t5peft.cli.data import save_task
from t5peft.data import Task
from t5peft.models.backbone import load_backbone
from t5peft.serving.engine import Engine
from t5peft.serving.pool import AdapterPool
from t5peft.serving.scheduler import Limits
from t5peft.serving.server import create_app
from t5peft.serving.settings import ServerSettings

FREE = Task("free", "say: {text}", max_target_length=12)
# Its answers keep a special token, and the task puts a space behind it.
BEAMS = Task("beams", "say {count} times: {text}", "<extra_id_11> {target}", max_target_length=7, num_beams=3)
LABELS = Task("labels", "film: {text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",))
COLORS = Task("colors", "{text}", "{label}", {"r": "red", "g": "green", "b": "blue"}, metrics=("accuracy",))


def write_folder(folder: Path) -> Path:
    """Write the backbone to ``folder/base`` and the adapters to ``folder/adapters``."""
    tiny_t5().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "adapters").mkdir()
    write_adapter(folder, "lora", FREE)
    write_adapter(folder, "beams", BEAMS, method="ia3", seed=12)
    write_adapter(folder, "labels", LABELS, method="prefix")
    write_adapter(folder, "plain", None, method="prompt")
    write_adapter(folder, "head", COLORS, num_labels=3)
    return folder


def write_adapter(
    folder: Path, name: str, task: Task | None, *, method: str = "lora", seed: int = 1, num_labels: int | None = None
) -> None:
    model, _ = load_backbone(folder / "base", num_labels=num_labels)
    wrapped = {
        "lora": lambda: t5peft.lora_wrap(model, rank=2),
        "ia3": lambda: t5peft.ia3_wrap(model),
        "prefix": lambda: t5peft.prefix_wrap(model, length=3),
        "prompt": lambda: t5peft.prompt_wrap(model, length=3),
    }[method]()
    shake(wrapped, seed)
    save_adapter(wrapped, folder / "adapters" / name)
    if task is not None:
        save_task(task, folder / "adapters" / name)


@torch.no_grad()
def shake(model: nn.Module, seed: int) -> None:
    """Change the trained parameters, so that the adapter's answers differ from those of the backbone."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@contextmanager
def serving(
    folder: Path, *, limits: Limits | None = None, step_seconds: float = 0.0, **settings: Any
) -> Iterator[TestClient]:
    """A client of a server in this process; ``step_seconds`` slows down every step of the decoder."""
    pool = AdapterPool(folder / "base", folder / "adapters")
    if step_seconds:
        pool.model.t5.get_decoder().register_forward_pre_hook(lambda *_: time.sleep(step_seconds))
    with Engine(pool, limits or Limits()) as engine:
        app = create_app(engine, pool, ServerSettings("base", **settings))
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client


@contextmanager
def listening(client: TestClient) -> Iterator[str]:
    """The address of the client's application, on a free port of this machine."""
    config = uvicorn.Config(client.app, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def held_rows(client: TestClient) -> int:
    """How many requests the engine has not given up or answered."""
    stats = context_of(client).engine.stats()
    return stats.running + stats.waiting + stats.loading


def wait_until_free(client: TestClient, seconds: float = 20) -> None:
    """Wait until the engine holds no request any more."""
    deadline = time.monotonic() + seconds
    while held_rows(client):
        assert time.monotonic() < deadline, "requests were not given up"
        time.sleep(0.01)


def context_of(client: TestClient) -> Any:
    """The state of the server behind ``client``."""
    app: Any = client.app
    return app.state.context
