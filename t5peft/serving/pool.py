"""The adapters below a folder on one backbone: thousands known, hundreds in memory.

    pool = AdapterPool("google/flan-t5-base", "adapters", max_bytes=2 << 30)
    pool.predict(["Where is my parcel?", "I want to pay by card"], ["support", "intent"], max_new_tokens=20)

An adapter is loaded and verified, as in ``load_adapter``, when it is first used. When memory is short, unused adapters are evicted,
the least recently used first. If a folder has changed, the next request loads the new version. Running requests finish on the old
one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters.manifest import CONFIG, OLD_WEIGHTS, WEIGHTS, ensure_sha256
from t5peft.data.decoding import decode
from t5peft.data.task import Task
from t5peft.evaluation.inference import Sources, length_batches, source_ids
from t5peft.evaluation.ranking import Ranking, candidate_ids
from t5peft.models.backbone import load_backbone
from t5peft.models.folders import recover
from t5peft.models.manifest import MANIFEST
from t5peft.models.quantized import Quantization
from t5peft.serving.adapter import read_adapter
from t5peft.serving.mixed import MixedModel
from t5peft.serving.requests import Ids, QueueFullError, UnknownAdapterError, UnusableAdapterError
from t5peft.serving.weights import AdapterWeights
from t5peft.training.config import TASK_FILE

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of files."""

_STAMPED = (MANIFEST, CONFIG, WEIGHTS, OLD_WEIGHTS, TASK_FILE)
_WAIT_SECONDS = 30.0  # for memory that other requests hold
_TRIES = 3  # to read a folder that is replaced meanwhile


@dataclass
class _Entry:
    """An adapter in memory, or one that is being loaded."""

    stamp: Stamp
    weights: AdapterWeights | None = None
    task: Task | None = None
    num_bytes: int = 0
    holders: int = 0
    used: float = field(default_factory=time.monotonic)


class AdapterPool:
    """Adapters of a folder on one backbone. All methods are thread-safe.

    Args:
        backbone: A name or folder for ``load_backbone``, or a plain T5.
        folder: A folder with one folder per adapter, or per run with a folder ``adapter``. The folder names are the adapter names.
        tokenizer: The tokenizer of the backbone, if a T5 is given.
        quantize: How to quantize the backbone.
        max_bytes: Maximum memory of adapters; None for no limit.
        pinned: Names of adapters to load now and never evict.
        sha256: Manifest hashes by adapter name. An adapter with another hash is refused.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        UnknownAdapterError, UnusableAdapterError: A pinned adapter cannot be loaded.
    """

    def __init__(
        self,
        backbone: str | Path | PreTrainedModel,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        quantize: Quantization | None = None,
        max_bytes: int | None = None,
        pinned: Collection[str] = (),
        sha256: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"Got no folder {folder}; expected one whose folders are adapters.")
        if isinstance(backbone, PreTrainedModel):
            if tokenizer is None:
                raise ValueError("Got a model without a tokenizer; expected both. Give tokenizer=.")
            t5 = backbone
        else:
            t5, tokenizer = load_backbone(backbone, quantize=quantize)
        self.tokenizer = tokenizer
        self.model = MixedModel(t5)
        self.max_bytes = max_bytes
        self.sha256 = dict(sha256 or {})
        self.pinned = frozenset(pinned)
        self._entries: dict[str, _Entry] = {}
        self._replaced: dict[AdapterWeights, _Entry] = {}  # earlier versions that somebody still holds
        self._changed = threading.Condition()
        for name in sorted(self.pinned):
            self.release(self.acquire(name))

    @property
    def num_bytes(self) -> int:
        """Return the memory of all adapters that are loaded or being loaded."""
        with self._changed:
            return self._num_bytes()

    def names(self) -> list[str]:
        """Return the names of all adapters in the folder now."""
        return sorted(path.name for path in self.folder.iterdir() if is_name(path.name) and self._find(path.name))

    def loaded(self) -> dict[str, int]:
        """Return the names of the adapters in memory, and their bytes."""
        with self._changed:
            return {name: entry.num_bytes for name, entry in self._entries.items() if entry.weights is not None}

    def path(self, name: str) -> Path:
        """Return the folder of an adapter.

        Raises:
            UnknownAdapterError: No adapter has this name.
        """
        found = self._find(name) if is_name(name) else None
        if found is None:
            raise UnknownAdapterError(f"Got the adapter {name!r}; expected one of the adapters of the server.")
        return found

    def task(self, name: str) -> Task | None:
        """Return the task that is saved with an adapter, or None.

        Raises:
            UnknownAdapterError: No adapter has this name.
            UnusableAdapterError: Its task cannot be read.
        """
        path = self.path(name)
        with self._changed:
            entry = self._entries.get(name)
            if entry is not None and entry.weights is not None and entry.stamp == stamp_of(path):
                return entry.task
        return _read_task(path)

    def acquire(self, name: str | None) -> AdapterWeights | None:
        """Return an adapter, loaded and verified, and hold it in memory until ``release``.

        Args:
            name: The adapter's name; None for the plain backbone.

        Raises:
            UnknownAdapterError: No adapter has this name.
            UnusableAdapterError: It is damaged, belongs to another backbone, cannot be served, or exceeds the memory.
            QueueFullError: Other requests used the memory for too long.
        """
        if name is None:
            return None
        for attempt in range(_TRIES):
            path = self.path(name)
            stamp = stamp_of(path)
            with self._changed:
                entry = self._claim(name, stamp)
                if entry.weights is not None:
                    return entry.weights
            try:
                self._reserve(name, entry, path)
                task = _read_task(path)
                if name in self.sha256:
                    ensure_sha256(path, self.sha256[name])
                weights = read_adapter(name, path, self.model.t5)
            except BaseException as error:
                self._abandon(name, entry)
                if attempt + 1 < _TRIES and isinstance(error, Exception) and stamp_of(path) != stamp:
                    continue  # it was replaced while it was read
                if isinstance(error, (ValueError, OSError)) and not isinstance(error, UnusableAdapterError):
                    raise UnusableAdapterError(_reason(error, path)) from error
                raise
            if stamp_of(path) == stamp:
                return self._keep(entry, weights, task)
            self._abandon(name, entry)
        raise UnusableAdapterError(
            f"Got the adapter {name}, which was replaced while it was being read; expected a stable folder."
        )

    def release(self, adapter: AdapterWeights | None) -> None:
        """Release an adapter that ``acquire`` returned.

        Args:
            adapter: The adapter; None for the plain backbone.
        """
        if adapter is None:
            return
        with self._changed:
            entry = self._entries.get(adapter.name)
            if entry is None or entry.weights is not adapter:
                entry = self._replaced[adapter]
            entry.holders -= 1
            if adapter in self._replaced and not entry.holders:
                del self._replaced[adapter]
            self._changed.notify_all()

    def unload(self, name: str) -> bool:
        """Remove an adapter from memory as soon as it is unused, and return whether it was loaded.

        Args:
            name: The adapter's name.
        """
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or entry.weights is None:
                return False
            self._drop(name)
            self._changed.notify_all()
            return True

    def predict(
        self,
        sources: Sources,
        adapters: Sequence[str | None],
        *,
        max_new_tokens: int,
        num_beams: int = 1,
        tokens_per_batch: int = 8192,
    ) -> list[str]:
        """Generate an answer for each source with its adapter, in mixed batches.

        Args:
            sources: Texts, or token IDs from ``Task.tokenize``.
            adapters: The adapter name of each source; None for the plain backbone.
            max_new_tokens: Maximum tokens of an answer, including ``</s>``.
            num_beams: Number of beams; 1 for greedy search.
            tokens_per_batch: Maximum of rows x beams x (longest source + max_new_tokens) per batch.

        Returns:
            The texts in the order of the sources.

        Raises:
            UnknownAdapterError, UnusableAdapterError: As for ``acquire``.
            ValueError: The numbers of sources and adapters differ.
        """
        ids = source_ids(sources, self.tokenizer)
        texts: dict[int, str] = {}
        for batch, own in self._batches(ids, adapters, tokens_per_batch, max_new_tokens, num_beams):
            generated = self.model.generate(
                [ids[i] for i in batch], own, max_new_tokens=max_new_tokens, num_beams=num_beams
            )
            texts.update(zip(batch, decode(generated, self.tokenizer), strict=True))
        return [texts[i] for i in range(len(ids))]

    def rank(
        self,
        sources: Sources,
        candidates: Iterable[str] | Iterable[Iterable[str]],
        adapters: Sequence[str | None],
        *,
        tokens_per_batch: int = 8192,
    ) -> Ranking:
        """Score every candidate for every source with its adapter, in mixed batches.

        Args:
            sources: Texts, or token IDs from ``Task.tokenize``.
            candidates: One list of texts for all sources, or one list per source.
            adapters: The adapter name of each source; None for the plain backbone.
            tokens_per_batch: Maximum of rows x (longest source + tokens of the candidates) per batch.

        Returns:
            The scores, as ``t5peft.rank`` returns them.

        Raises:
            UnknownAdapterError, UnusableAdapterError: As for ``acquire``.
            ValueError: The numbers of sources, adapters or lists differ, or a list is empty.
        """
        ids = source_ids(sources, self.tokenizer)
        tokens = candidate_ids(candidates, len(ids), self.tokenizer)
        own_tokens = [tokens[i if i in tokens else -1] for i in range(len(ids))]
        widest = max((sum(map(len, several)) for several in tokens.values()), default=1)
        scores = torch.full((len(ids), max(map(len, own_tokens), default=0)), -torch.inf)
        for batch, own in self._batches(ids, adapters, tokens_per_batch, widest, 1):
            for i, row in zip(
                batch, self.model.rank([ids[i] for i in batch], [own_tokens[i] for i in batch], own), strict=True
            ):
                scores[i, : len(row)] = torch.tensor(row)
        return Ranking.of(scores)

    def _batches(
        self, ids: Ids, names: Sequence[str | None], tokens_per_batch: int, more: int, copies: int
    ) -> Iterator[tuple[list[int], list[AdapterWeights | None]]]:
        """Yield batches of sources of like lengths, with their adapters, which are held meanwhile."""
        if len(ids) != len(names):
            raise ValueError(f"Got {len(ids)} sources and {len(names)} adapters; expected one adapter for each source.")
        for batch in length_batches(ids, tokens_per_batch, more_per_row=more, passes=1 + more, copies=copies):
            held: list[AdapterWeights | None] = []
            try:
                for i in batch:
                    held.append(self.acquire(names[i]))
                yield batch, held
            finally:
                for weights in held:
                    self.release(weights)

    def _find(self, name: str) -> Path | None:
        path = self.folder / name
        if not path.is_dir():
            recover(path)  # a save that was interrupted between two names
        return next((one for one in (path, path / "adapter") if (one / CONFIG).is_file()), None)

    def _claim(self, name: str, stamp: Stamp) -> _Entry:
        """Return the entry of an adapter, held: loaded, or new and to be loaded by the caller."""
        while True:
            entry = self._entries.get(name)
            if entry is not None and entry.weights is None:
                self._changed.wait()  # another thread loads it
                continue
            if entry is not None and entry.stamp != stamp:
                self._drop(name)
                entry = None
            if entry is None:
                entry = self._entries[name] = _Entry(stamp)
            entry.holders += 1
            entry.used = time.monotonic()
            return entry

    def _reserve(self, name: str, entry: _Entry, path: Path) -> None:
        """Take memory for an adapter, and drop others where it is short."""
        need = sum((path / file).stat().st_size for file in (WEIGHTS, OLD_WEIGHTS) if (path / file).is_file())
        with self._changed:
            if self.max_bytes is not None and need > self.max_bytes:
                raise UnusableAdapterError(
                    f"Got the adapter {name} of {need} bytes; expected at most the {self.max_bytes} bytes for all adapters."
                )
            deadline = time.monotonic() + _WAIT_SECONDS
            while self.max_bytes is not None and self._num_bytes() + need > self.max_bytes:
                idle = [
                    (other.used, key)
                    for key, other in self._entries.items()
                    if not other.holders and other.weights is not None and key not in self.pinned
                ]
                if idle:
                    self._drop(min(idle)[1])
                elif not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise QueueFullError(
                        f"Got a request for {name} while others use all {self.max_bytes} bytes for adapters; expected free "
                        "memory. Try again."
                    )
            entry.num_bytes = need

    def _keep(self, entry: _Entry, weights: AdapterWeights, task: Task | None) -> AdapterWeights:
        with self._changed:
            entry.weights, entry.task, entry.num_bytes = weights, task, weights.num_bytes
            self._changed.notify_all()
        return weights

    def _abandon(self, name: str, entry: _Entry) -> None:
        with self._changed:
            if self._entries.get(name) is entry:
                del self._entries[name]
            self._changed.notify_all()

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name)
        if entry.holders and entry.weights is not None:
            self._replaced[entry.weights] = entry

    def _num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in (*self._entries.values(), *self._replaced.values()))


def is_name(name: str) -> bool:
    """Return whether a text can only be the name of a folder, and neither a way to another one nor something hidden."""
    is_plain = name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:")
    return is_plain and 0 < len(name.encode()) <= 255


def stamp_of(path: Path) -> Stamp:
    """Return what changes with each file that decides what an adapter is."""
    found = []
    for name in _STAMPED:
        try:
            status = (path / name).stat()
        except OSError:
            continue
        found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _read_task(path: Path) -> Task | None:
    if not (path / TASK_FILE).is_file():
        return None
    try:
        return Task.from_yaml(path / TASK_FILE)
    except (OSError, ValueError) as error:
        reason = _reason(error, path)
        raise UnusableAdapterError(f"Got a task beside {path.name} that cannot be read: {reason}") from error


def _reason(error: ValueError | OSError, path: Path) -> str:
    """Return what an error says; one of the system with the folder that it is of."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    return f"Got {path}, in which a file cannot be read ({error.strerror}); expected readable files. Check its disk."
