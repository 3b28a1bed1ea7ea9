"""One optimizer step and one evaluation on each of several processes; run by torchrun from ``test_splits.py``.

    torchrun --nproc-per-node 2 distributed_split.py OUTPUT BACKBONE STACK:CASE...

OUTPUT is the folder for ``STACK/CASE.pt`` (loss, gradients, evaluation loss), BACKBONE a folder with the tiny T5 for cases that
load it, and STACK ``plain`` or ``ours``.
"""

from __future__ import annotations

import gc
import sys
import warnings
from pathlib import Path

import torch
from cases import CASES, Case, base_of, stir, wrap
from peft import PeftModel
from stacks import OURS, PLAIN, GradientRecorder, Stack, one_step
from tiny import tiny_records

from t5peft import METHODS

RECORDS = 8  # in all, in one optimizer step
EVALUATED = 7  # not divisible by two processes
EPOCH = 5  # a step of four, and one of one, of which the second process gets nothing


def precise_model(case: Case, backbone: Path) -> PeftModel:
    """The wrapped tiny T5, in double precision unless it is quantized, so that rounding hides nothing."""
    model = stir(wrap(case, base_of(case, "v1.1", backbone)))
    return model if METHODS[case.method].quantize is not None else model.double()


def last_step_of_an_epoch(
    stack: Stack, case: Case, output: Path, backbone: Path
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the second step, at a rate of zero."""
    trainer = stack.trainer(
        precise_model(case, backbone),
        output / "epoch",
        tiny_records(EPOCH),
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=0.0,
        ddp_backend="gloo",
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses[1], recorder.steps[1]


def step_and_evaluate(stack: Stack, case: Case, output: Path, backbone: Path) -> None:
    last_loss, last_gradients = last_step_of_an_epoch(stack, case, output, backbone)
    trainer = stack.trainer(
        precise_model(case, backbone),
        output / "run",
        tiny_records(RECORDS),
        tiny_records(EVALUATED, seed=1),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        max_steps=1,
        ddp_backend="gloo",
    )
    assert trainer.accelerator.num_processes == 2
    evaluation_loss = trainer.evaluate()["eval_loss"]
    loss, gradients = one_step(trainer)
    if trainer.is_world_process_zero():
        found = {"loss": loss, "gradients": gradients, "eval_loss": evaluation_loss}
        torch.save(found | {"last_loss": last_loss, "last_gradients": last_gradients}, output / f"{case}.pt")


def main(output: Path, backbone: Path, names: list[str]) -> None:
    stacks: dict[str, Stack] = {"plain": PLAIN, "ours": OURS}
    for name in names:  # such as plain:full
        stack, _, wanted = name.partition(":")
        (output / stack).mkdir(exist_ok=True)
        step_and_evaluate(stacks[stack], next(case for case in CASES if str(case) == wanted), output / stack, backbone)
    # what still holds the process group when it is destroyed may wait for ever for a thread that waits for it
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
