"""Draw the order of an epoch again when a run resumes within it.

A sampler that draws from torch's own generator, as that of ``group_by_length`` does, gives another order after a checkpoint: the
generator has moved on by the dropout of the steps between. Some examples would come twice and others not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, SequentialSampler

ORDER_FILE = "epoch_order.pt"


class RepeatableOrder(Sampler[int]):
    """A sampler that knows from which states of the generators its order was drawn.

    Args:
        sampler: Draws from torch's generator, or from one in its attribute ``generator``.
        start: The states of these generators to draw the next order from; None to draw from where they are.
    """

    def __init__(self, sampler: Any, start: list[Tensor] | None = None) -> None:
        self.sampler = sampler
        self.start = start
        self.drawn_from: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["sampler"], name)  # such as ``set_epoch``

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        possible = (torch.default_generator, getattr(self.sampler, "generator", None))
        generators = [one for one in possible if isinstance(one, torch.Generator)]
        for generator, state in zip(generators, self.start or [], strict=False):
            generator.set_state(state)
        self.start, self.drawn_from = None, [generator.get_state() for generator in generators]
        yield from self.sampler


def repeatable_order(loader: DataLoader[Any], checkpoint: Path | None) -> RepeatableOrder | None:
    """Let ``loader`` draw its next order as it was drawn before ``checkpoint``, in place.

    Args:
        loader: A loader that accelerate has prepared.
        checkpoint: The checkpoint of a run that resumes; None for a new run.

    Returns:
        The sampler that the loader has now; None where its order does not depend on the state of a generator.
    """
    if isinstance(loader.dataset, IterableDataset):  # whose sampler draws nothing
        return None
    batches: Any = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # one process of several
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    if sampler is None or isinstance(sampler, (SeedableRandomSampler, SequentialSampler)):
        return None
    path = None if checkpoint is None else checkpoint / ORDER_FILE
    start = torch.load(path, weights_only=True) if path is not None and path.is_file() else None
    batches.sampler = RepeatableOrder(sampler, start)
    return batches.sampler
