"""Train on two processes without a break, and again from each checkpoint of that run; run by torchrun from ``test_resume.py``.

    torchrun --nproc-per-node 2 distributed_resume.py OUTPUT

OUTPUT is the folder for ``losses.json``: for each case the losses of the whole run, and by the step of the checkpoint those of
the steps after it.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from stacks import OURS
from tiny import tiny_records, tiny_t5
from torch.utils.data import WeightedRandomSampler

from t5peft import T5PeftTrainer, T5PeftTrainingArguments

EXAMPLES, STEPS = 10, 6
# Ten examples in batches of two on two processes: the third step of an epoch has two examples, both of the first process.
CASES: dict[str, dict[str, Any]] = {
    "batches of two": {"per_device_train_batch_size": 2},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "split batches": {"per_device_train_batch_size": 4, "accelerator_config": {"split_batches": True}},
}


def losses_of(folder: Path, resume: Path | None, **arguments: Any) -> list[float]:
    trainer = OURS.trainer(
        tiny_t5().double(),
        folder,
        tiny_records(EXAMPLES),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        ddp_backend="gloo",
        seed=3,
        **arguments,
    )
    assert trainer.accelerator.num_processes == 2
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


class Subset(T5PeftTrainer):
    """Draws six of the ten examples an epoch."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        generator = torch.Generator().manual_seed(0)
        return WeightedRandomSampler([1.0] * EXAMPLES, 6, replacement=False, generator=generator)


def examples_of_an_epoch(output: Path) -> list[float]:
    """How many examples count in each step of one epoch of ``Subset``, over both processes."""
    counted = []

    class Watch(Subset):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            counted.append(float(num_items_in_batch) / 3)
            return super().training_step(model, inputs, num_items_in_batch)

    args = T5PeftTrainingArguments(
        str(output / "subset"), per_device_train_batch_size=2, num_train_epochs=1, report_to=[], save_strategy="no",
        disable_tqdm=True, ddp_backend="gloo",
    )  # fmt: skip
    records = [{"input_ids": [5, 6, 1], "labels": [7, 8, 1]}] * EXAMPLES
    Watch(tiny_t5(), args, train_dataset=records).train()
    return counted


def main(output: Path) -> None:
    found: dict[str, Any] = {}
    for name, arguments in CASES.items():
        folder = output / name.replace(" ", "-")
        found[name] = {"whole": losses_of(folder, None, **arguments)}
        for step in (1, 2, 3, 5):
            found[name][str(step)] = losses_of(folder, folder / f"checkpoint-{step}", **arguments)
    found["subset"] = examples_of_an_epoch(output)
    if int(torch.distributed.get_rank()) == 0:
        (output / "losses.json").write_text(json.dumps(found))
    # what still holds the process group when it is destroyed may wait for ever for a thread that waits for it
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
