"""Get the batches of each optimizer step, and count their items over all processes."""

from __future__ import annotations

import dis
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from t5peft.compat.accelerate import CountedStream, examples_of_last_batch
from t5peft.models.unwrap import has_own_forward
from t5peft.training.contrastive import EmbeddingHead
from t5peft.training.evaluation_loop import Collator, EvaluatingTrainer
from t5peft.training.head import Batch
from t5peft.training.order import repeatable_order


class BatchingTrainer(EvaluatingTrainer):
    """A Trainer whose steps count each example once, with any number of processes."""

    _pending: list[dict[str, Any]]  # examples of a step whose last batch has not come

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader of the training data, whose batches are inputs of the model."""
        self._tell_collator()
        if isinstance(self.train_dataset, IterableDataset) and self.accelerator.num_processes > 1:
            self._count_stream()
        loader = super().get_train_dataloader()
        self.order = repeatable_order(loader, None if self.args.ignore_data_skip else self.resumed_from)
        return loader

    def _count_stream(self) -> None:
        """Let each process read the whole stream, take its part of it, and know where it ends.

        Raises:
            ValueError: Workers would read it, who cannot tell where it ends.
        """
        if self.args.dataloader_num_workers:
            raise ValueError(
                f"Got a stream in {self.accelerator.num_processes} processes with dataloader_num_workers="
                f"{self.args.dataloader_num_workers}; expected 0. Leave it out."
            )
        self.accelerator.dataloader_config.dispatch_batches = False
        if not isinstance(self.train_dataset, CountedStream):
            self.train_dataset = CountedStream(self.train_dataset)

    def set_initial_training_values(
        self, args: TrainingArguments, dataloader: DataLoader
    ) -> tuple[int, int, int, int, int, int | None, int]:
        """Return the numbers of epochs, steps and examples; of a stream that ended before its checkpoint, its own steps."""
        values = super().set_initial_training_values(args, dataloader)
        if isinstance(self.train_dataset, IterableDataset) and self.resumed_from is not None:
            steps = self._steps_of_stream(self.train_dataset, self.resumed_from)
            return (values[0], steps or values[1], values[2], values[3], values[4], values[5], values[6])
        return values

    def _steps_of_stream(self, stream: IterableDataset[Any], checkpoint: Path) -> int | None:
        """Count the steps of an epoch of a stream; None where a run has not come to its end at a checkpoint.

        transformers takes a stream for endless, and would skip the steps of all epochs in the first one.
        """
        taken = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        batch, accumulated = self.get_total_train_batch_size(self.args), self.args.gradient_accumulation_steps
        examples = sum(1 for _ in itertools.islice(stream, taken * batch + 1))
        if examples > taken * batch:
            return None
        batches = math.ceil(examples * accumulated / batch)
        return math.ceil(batches / accumulated)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the batches of one optimizer step, and the number of their items over all processes."""
        self._pending = []
        if self._has_ended():  # transformers would take a step more
            self.control.should_training_stop = True
            return [], None
        if self.has_own_loss():
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        for batch in batches:
            lists = (
                [name for name, value in batch.items() if isinstance(value, list | np.ndarray)]
                if isinstance(batch, Mapping)
                else []
            )
            if lists or not isinstance(batch, Mapping):
                found = f"lists or arrays as {', '.join(lists)}" if lists else f"a {type(batch).__name__}"
                raise ValueError(
                    f"Got {found} from the data_collator; expected a dictionary of tensors. Let it return tensors, such as by "
                    "return_tensors='pt'."
                )
        if not all(map(self.head.is_labeled, batches)):
            raise ValueError(self.head.columns_error(batches[0]))
        if self.accelerator.gradient_state.end_of_dataloader:
            batches[-1] = self._without_repeated(batches[-1])
        items = torch.tensor(float(sum(map(self.head.count, batches))), device=device)
        total = self.accelerator.reduce(items, reduction="sum") if self.accelerator.num_processes > 1 else items
        if total == 0:
            raise ValueError(
                "Got a step whose targets are all padding (-100); expected at least one target token. Check the `labels` of "
                "the data."
            )
        if self._cuts_steps:  # a stream has ended within a step
            batches += [{name: value[:0] for name, value in batches[0].items()}] * (num_batches - len(batches))
        return batches, total if self.args.average_tokens_across_devices else items

    def _has_ended(self) -> bool:
        """Tell whether a resumed run had taken its last step, or had been stopped early, when its checkpoint was saved."""
        stopped = any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )
        return self.state.global_step >= self.state.max_steps > 0 or (self.resumed_from is not None and stopped)

    def _without_repeated(self, batch: Batch) -> Batch:
        """Return the last batch of an epoch without the examples that accelerate repeats, so that all processes get as many.

        A process that is left with none keeps one without a label: it must take part in the exchange of gradients.
        """
        real = examples_of_last_batch(cast(DataLoader, self.callback_handler.train_dataloader))
        if real is None:
            return batch
        rows = {name: value[: max(1, real)] for name, value in batch.items()}
        return rows if real else self.head.without_labels(rows)

    @property
    def _cuts_steps(self) -> bool:
        """Whether the batches of a step are taken together and cut by length."""
        cuts = isinstance(self.data_collator, Collator) and not self.is_deepspeed_enabled
        own_forward = has_own_forward(self.wrapped_model) and not isinstance(self.head, EmbeddingHead)
        return cuts and not self.has_own_loss() and not own_forward


def uses_items(function: Callable[..., Any]) -> bool:
    """Return whether a loss of the user's uses ``num_items_in_batch``, or hands it on, and so is not a mean over a batch."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    parameters = inspect.signature(function).parameters
    if "num_items_in_batch" in parameters:
        names = {"num_items_in_batch"}
    else:
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names = {name for name, parameter in parameters.items() if parameter.kind in kinds}
    loaded = [i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD")]
    return any(names & {*(value if isinstance(value, tuple) else (value,))} for value in loaded)
