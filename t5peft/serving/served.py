"""The models that requests name: the backbone and the adapters of the folder, with what must be known of them to read a request."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.adapters.manifest import read_config
from t5peft.data.task import Task
from t5peft.data.truncation import encode
from t5peft.serving.pool import AdapterPool, Stamp, is_name, stamp_of
from t5peft.serving.requests import UnknownAdapterError, UnusableAdapterError
from t5peft.serving.text_stream import Pieces


@dataclass(frozen=True)
class Served:
    """A model that a request named.

    Args:
        name: As the request named it.
        adapter: Its name in the pool; None for the backbone.
        task: The task of the adapter, if it has one.
        has_head: Whether the adapter classifies by a head and generates nothing.
        method: The kind of the adapter, as peft names it.
        tokenizer: Of the backbone.
    """

    name: str
    adapter: str | None
    task: Task | None
    has_head: bool
    method: str | None
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Special tokens that stay in the texts of answers."""
        return () if self.task is None else self.task.special_tokens(self.tokenizer)

    @cached_property
    def pieces(self) -> Pieces:
        """The tokenizer, for texts that are decoded token by token."""
        return Pieces(self.tokenizer, self.special_tokens)

    @cached_property
    def candidate_ids(self) -> list[list[int]]:
        """Token ids of the words of the task's labels; none where it has no labels."""
        return [] if self.task is None or self.task.verbalizer is None else encode(self.task.candidates, self.tokenizer)


class Catalog:
    """Find models by name, and describe each adapter once for every state of its files.

    Args:
        pool: The adapters.
        backbone_name: The name of the backbone in requests.

    Raises:
        ValueError: An adapter has the name of the backbone.
    """

    def __init__(self, pool: AdapterPool, backbone_name: str) -> None:
        if backbone_name in pool.names():
            raise ValueError(
                f"Got an adapter {backbone_name!r} beside a backbone of this name; expected different names. Rename its folder."
            )
        self.pool, self.backbone_name = pool, backbone_name
        self._backbone = Served(backbone_name, None, None, False, None, pool.tokenizer)
        self._described: dict[str, tuple[Stamp, Served]] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> Served:
        """Return the model of a name. Reads files, so it belongs into a worker thread.

        Args:
            name: From a request.

        Returns:
            The model.

        Raises:
            UnknownAdapterError: Nothing has this name.
            UnusableAdapterError: Its configuration or its task cannot be read.
        """
        if name == self.backbone_name:
            return self._backbone
        folder = self.folder(name)
        stamp = stamp_of(folder)
        with self._lock:
            known = self._described.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        served = self._describe(name, folder)
        with self._lock:
            self._described[name] = stamp, served
        return served

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter.

        Args:
            name: From a request. It never reaches the file system where it could be a path.

        Returns:
            The folder.

        Raises:
            UnknownAdapterError: No adapter has this name.
        """
        if is_name(name):
            with contextlib.suppress(UnknownAdapterError):
                return self.pool.path(name)
        raise UnknownAdapterError(
            f"Got the model {ascii(name)[:80]}; expected {self.backbone_name!r} or an adapter of GET /v1/models. Correct the name."
        )

    def models(self) -> list[str]:
        """Return the names that requests may give."""
        return [self.backbone_name, *self.pool.names()]

    def _describe(self, name: str, folder: Path) -> Served:
        try:
            config = read_config(folder)
            task = self.pool.task(name)
        except (OSError, ValueError) as error:
            raise UnusableAdapterError(without_path(str(error), folder, name)) from error
        has_head = config.get("task_type") == "SEQ_CLS"
        return Served(name, name, task, has_head, _method(config), self.pool.tokenizer)


def without_path(text: str, folder: Path, name: str) -> str:
    """Return the text of an error with the name of an adapter in the place of its folder's path."""
    return text.replace(str(folder), name).replace(str(folder.resolve()), name)


def _method(config: Mapping[str, Any]) -> str | None:
    kind = config.get("peft_type")
    return kind.lower().removeprefix("t5_") if isinstance(kind, str) else None
