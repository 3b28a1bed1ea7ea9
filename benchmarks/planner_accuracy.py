"""The planner against measured peaks: six shapes, all methods, on the CPU.

    python benchmarks/planner_accuracy.py                 # about fifteen minutes; writes benchmarks/records/bench/planner.json

Each measurement is a process of its own: a model of random weights in the shape, two optimizer steps, the system's high-water
mark of the resident set above what it was after the imports and two steps of a tiny model, which load the rest of the libraries.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from t5peft.benchmark.machine import commit, machine, versions
from t5peft.benchmark.process import RunProcesses
from t5peft.methods import METHODS

RECORD = Path(__file__).parent / "records" / "bench" / "planner.json"


@dataclass(frozen=True)
class Shape:
    """A backbone's geometry and one micro-batch."""

    backbone: str
    rows: int
    source_tokens: int
    target_tokens: int
    checkpointing: bool = False


SHAPES = (
    Shape("mini", 32, 128, 32),
    Shape("t5-small", 16, 128, 32),
    Shape("t5-small", 8, 256, 64),
    Shape("t5-small", 16, 256, 64, checkpointing=True),
    Shape("google/t5-v1_1-small", 8, 128, 32),
    Shape("t5-base", 4, 128, 32),
)


def predicted_bytes(shape: Shape, method: str) -> int:
    """What the planner says."""
    from t5peft.benchmark.planner import Job, step_bytes

    job = Job(
        shape.backbone, method, shape.source_tokens, shape.target_tokens, shape.rows, shape.rows, device="cpu",
        checkpointing=shape.checkpointing,
    )  # fmt: skip
    return step_bytes(job).peak_bytes


def measured_bytes(shape: Shape, method: str) -> int:
    """The peak of two steps in this process, above the imports."""
    import torch

    from t5peft.benchmark.geometry import config_of
    from t5peft.benchmark.memory import MemoryMeter, return_freed_memory

    return_freed_memory(
        1 << 17
    )  # holes between the small tensors of a ladder's side are the allocator's, not the step's
    torch.manual_seed(0)
    tiny = config_of("mini")
    tiny.d_model, tiny.d_ff, tiny.vocab_size, tiny.num_layers, tiny.num_decoder_layers = 64, 64, 8192, 1, 1
    _two_steps(tiny, replace(shape, rows=2, source_tokens=8, target_tokens=4), method, MemoryMeter("cpu"))
    meter = MemoryMeter("cpu")
    before = meter.now_bytes()
    _two_steps(config_of(shape.backbone), shape, method, meter)
    return meter.peak_bytes - before


def _two_steps(config: Any, shape: Shape, method: str, meter: Any) -> None:
    """Loads a model of random weights as a user would, wraps it, and takes two steps that `meter` watches."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from t5peft.backbone import MINI, load_backbone, t5_of
    from t5peft.loss import target_loss
    from t5peft.speed import kernels

    with tempfile.TemporaryDirectory() as folder:
        built = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        if config.is_gated_act:  # an untied head, as the checkpoints have
            built.lm_head.weight = torch.nn.Parameter(built.lm_head.weight.detach().clone())
        built.save_pretrained(folder)
        del built
        AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
        model, _ = load_backbone(folder, quantize=METHODS[method].quantize)
        for parameter in model.parameters():  # what was mapped from the file is read in now, not in the step
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
        model = METHODS[method].wrap(model).train()
        if shape.checkpointing:
            t5_of(model).activation_checkpointing_enable({"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        batch = _batch(shape)
        with meter, kernels(model):
            for _ in range(2):
                loss, tokens = target_loss(model, batch)
                (loss / tokens).backward()
                del loss  # what autograd functions keep beside their saved tensors lives as long as the graph
                optimizer.step()
                optimizer.zero_grad()


def _batch(shape: Shape) -> dict[str, Any]:
    import torch

    source = torch.randint(3, 8000, (shape.rows, shape.source_tokens))
    target = torch.randint(3, 8000, (shape.rows, shape.target_tokens))
    mask = torch.ones_like(source)
    mask[0, -1] = 0
    return {"input_ids": source, "attention_mask": mask, "labels": target}


def worker(pair: Any, tell: Any) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    return {"measured_bytes": measured_bytes(*pair)}


def main() -> int:
    """Measures every pair and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RECORD)
    args = parser.parse_args()
    log = Path(tempfile.mkdtemp()) / "log.txt"
    measure = RunProcesses(worker, log=log, threads=1, preload=("t5peft.benchmark.planner", "bitsandbytes"))
    rows = []
    for shape in SHAPES:
        for method in METHODS:
            found = measure((shape, method))
            predicted, measured = predicted_bytes(shape, method), found.get("measured_bytes")
            error = measured and round(predicted / measured - 1, 4)
            rows.append(
                asdict(shape)
                | {"method": method, "predicted_bytes": predicted, "measured_bytes": measured, "relative_error": error}
                | {name: found[name] for name in ("outcome", "reason") if name in found}
            )
            print(json.dumps(rows[-1]), flush=True)
    errors = [abs(row["relative_error"]) for row in rows if row["relative_error"] is not None]
    record = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "versions": versions(),
        "machine": machine("cpu"), "largest_relative_error": max(errors), "mean_relative_error": sum(errors) / len(errors),
        "rows": rows,
    }  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"largest error {max(errors):.1%}, mean {record['mean_relative_error']:.1%}, {len(errors)} of {len(rows)} measured"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
