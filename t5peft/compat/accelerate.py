"""Read from accelerate what it does not offer to be read."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from torch.utils.data import DataLoader, IterableDataset

__all__ = ["CountedStream", "clear_device_cache", "examples_of_last_batch", "gather_object"]


class CountedStream(IterableDataset[Any]):
    """A stream of which accelerate gives each process its part, and which counts its examples.

    Args:
        stream: The stream, which each process reads whole.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        self.count = 0
        for example in self.stream:
            self.count += 1
            yield example

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream the epoch, where it wants to know it."""
        if hasattr(self.stream, "set_epoch"):
            self.stream.set_epoch(epoch)


def examples_of_last_batch(loader: DataLoader) -> int | None:
    """Count the examples of this process in the last batch of an epoch that are not repeated ones.

    Args:
        loader: A data loader that accelerate prepared, and not one that skips batches.

    Returns:
        The number; None where no example is repeated.
    """
    if isinstance(loader.dataset, IterableDatasetShard):
        part = loader.dataset
        return None if part.drop_last else _of_process(cast(CountedStream, part.dataset).count, part)
    shard = loader.batch_sampler
    if not isinstance(shard, BatchSamplerShard) or shard.num_processes == 1:
        return None
    if shard.drop_last or not shard.even_batches or shard.batch_size is None:
        return None
    return _of_process(len(cast(Sized, shard.batch_sampler.sampler)), shard)


def _of_process(examples: int, shard: Any) -> int | None:
    """Count the examples of a process in the last batch of an epoch of so many."""
    of_one = shard.batch_size // shard.num_processes if shard.split_batches else shard.batch_size
    left = examples % (of_one * shard.num_processes)
    return max(0, min(of_one, left - shard.process_index * of_one)) if left else None
