"""The same run in one, two and three processes, also resumed in another number of them; run by ``test_process_counts.py``.

    python distributed_numbers.py OUTPUT

A batch of six is one of six, two of three, or three of two. OUTPUT is the folder for ``losses.json``: for each case the losses of
the whole run by the number of processes, and those of runs that were resumed in another number.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "torture"))
import torch
from processes import in_processes
from stacks import OURS
from tiny import fill_unevenly, tiny_config, tiny_records, tiny_t5
from torch.utils.data import IterableDataset

from t5peft import lora_wrap
from t5peft.models.encoders import T5EncoderForEmbedding

STEPS, BATCH = 6, 6
EXAMPLES = {"13 examples": 13, "7 examples": 7, "a stream of 13": 13, "a stream of 8": 8, "13 pairs": 13}
RESUMED = [(2, 3), (3, 2), (1, 3), (3, 1), (2, 1)]


class Stream(IterableDataset[dict[str, Any]]):
    """Records one after the other."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.records)


def train(case: str, count: int, folder: Path, resume: Path | None, losses: Path, rank: int) -> None:
    torch.manual_seed(0)
    records: Any = tiny_records(EXAMPLES[case])
    # The negatives of a pair are those of all processes.
    model = fill_unevenly(T5EncoderForEmbedding(tiny_config())) if "pairs" in case else tiny_t5()
    data: Any = Stream(records) if "stream" in case else records
    trainer = OURS.trainer(
        lora_wrap(model.double(), rank=2),
        folder,
        data,
        tiny_records(5, seed=4),
        per_device_train_batch_size=BATCH // count,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        seed=3,
        **({"ddp_backend": "gloo"} if count > 1 else {}),
    )
    assert trainer.accelerator.num_processes == count
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if rank == 0:
        found = [line.get("loss", line.get("eval_loss")) for line in trainer.state.log_history]
        losses.write_text(json.dumps([loss for loss in found if loss is not None]))


def refuse_fsdp(folder: Path, rank: int) -> None:
    try:
        OURS.trainer(tiny_t5(), folder, tiny_records(4), ddp_backend="gloo", fsdp=True, fsdp_config={"version": 2})
    except ValueError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))


def main(output: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    gc.freeze()
    losses = output / "losses.json"
    found: dict[str, dict[str, list[float]]] = {case: {} for case in EXAMPLES}

    def run(case: str, name: str, count: int, folder: Path, resume: Path | None = None) -> None:
        statuses, _, _ = in_processes(lambda rank: train(case, count, folder, resume, losses, rank), count, output)
        errors = [path.read_text() for path in output.glob("error-*.txt")]
        assert not any(statuses), "\n".join(errors)
        found[case][name] = json.loads(losses.read_text())

    for case in EXAMPLES:
        for count in (1, 2, 3):
            run(case, str(count), count, output / f"{case} {count}")
        for before, after in RESUMED:
            checkpoint = output / f"{case} {before}" / "checkpoint-4"
            run(case, f"{before} then {after}", after, output / f"{case} {before} {after}", checkpoint)
    in_processes(lambda rank: refuse_fsdp(output, rank), 2, output)
    losses.write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
