"""Read from accelerate what it does not offer to be read."""

from __future__ import annotations

from accelerate.data_loader import BatchSamplerShard  # type: ignore[import-untyped]  # accelerate has no py.typed
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from accelerate.utils.memory import clear_device_cache  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

from t5peft.compat.private import PrivateUse

__all__ = ["PRIVATE", "clear_device_cache", "examples_of_last_batch", "gather_object"]

PRIVATE = (
    PrivateUse(
        BatchSamplerShard,
        "__init__",
        ("self", "batch_sampler", "num_processes", "process_index", "split_batches", "even_batches"),
        "It repeats examples so that all processes get as many. Only it knows how it deals them out: the remainder that "
        "accelerate keeps for this is lost when a run is resumed, and wrong for a sampler of another length than the data.",
    ),
)
"""Each private touch of accelerate, with the reason."""


def examples_of_last_batch(loader: DataLoader) -> int | None:
    """Count the examples of this process in the last batch of an epoch that are not repeated ones.

    Args:
        loader: A data loader that accelerate prepared, and not one that skips batches.

    Returns:
        The number; None where no example is repeated.
    """
    shard = loader.batch_sampler
    if not isinstance(shard, BatchSamplerShard) or shard.num_processes == 1:
        return None
    if shard.drop_last or not shard.even_batches or shard.batch_size is None:
        return None
    of_one = shard.batch_size // shard.num_processes if shard.split_batches else shard.batch_size
    left = len(shard.batch_sampler.sampler) % (of_one * shard.num_processes)
    return max(0, min(of_one, left - shard.process_index * of_one)) if left else None
