"""The planner against measured peaks: six shapes, all methods, on the CPU.

    python benchmarks/planner_accuracy.py                 # about fifteen minutes; writes benchmarks/records/bench/planner.json
    python benchmarks/planner_accuracy.py --report-only   # of the measurements that there are

The record holds what was measured; the table in benchmarks/RESULTS.md sets the planner as it is beside it.
Each measurement is a process of its own: a model of random weights in the shape, two optimizer steps, the system's high-water
mark of the resident set above what it was after the imports and two steps of a tiny model, which load the rest of the libraries.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from t5peft.benchmark.environment import environment
from t5peft.benchmark.process import OnProgress, RunProcesses
from t5peft.benchmark.tables import fill_markers, markdown_table
from t5peft.methods import METHODS

RECORD = Path(__file__).parent / "records" / "bench" / "planner.json"
RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Shape:
    """A backbone's geometry and one micro-batch."""

    backbone: str
    rows: int
    source_tokens: int
    target_tokens: int
    checkpointing: bool = False

    def __str__(self) -> str:
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.backbone}, {self.rows} x {self.source_tokens} -> {self.target_tokens}{checkpointing}"


SHAPES = (
    Shape("mini", 32, 128, 32),
    Shape("t5-small", 16, 128, 32),
    Shape("t5-small", 8, 256, 64),
    Shape("t5-small", 16, 256, 64, checkpointing=True),
    Shape("google/t5-v1_1-small", 8, 128, 32),
    Shape("t5-base", 4, 128, 32),
)


def predicted_bytes(shape: Shape, method: str) -> int:
    """Return the peak that the planner predicts, in bytes."""
    from t5peft.planning.job import Job
    from t5peft.planning.plan import step_bytes

    job = Job(
        shape.backbone, method, shape.source_tokens, shape.target_tokens, shape.rows, shape.rows, device="cpu",
        checkpointing=shape.checkpointing,
    )  # fmt: skip
    return step_bytes(job).peak_bytes


def measured_bytes(shape: Shape, method: str) -> int:
    """Return the peak of two steps in this process, above the imports."""
    import torch

    from t5peft.benchmark.memory import MemoryMeter, return_freed_memory
    from t5peft.planning.geometry import config_of

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
    """Load a model of random weights as a user would, wrap it, and take two steps that ``meter`` watches."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from t5peft.models.backbone import MINI, load_backbone
    from t5peft.models.families import family_of
    from t5peft.models.unwrap import unwrap_t5
    from t5peft.nn.fast import fast_kernels
    from t5peft.nn.loss import target_loss

    with tempfile.TemporaryDirectory() as folder:
        built = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        if not family_of(config).has_tied_head(config):  # one of the same values would be tied on loading
            built.lm_head.weight = torch.nn.Parameter(torch.randn_like(built.lm_head.weight))
        built.save_pretrained(folder)
        del built
        AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
        backbone, _ = load_backbone(folder, quantize=METHODS[method].quantize)
        for parameter in backbone.parameters():  # what was mapped from the file is read in now, not in the step
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
        model = METHODS[method].wrap(backbone).train()
        if shape.checkpointing:
            unwrap_t5(model).activation_checkpointing_enable({"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        batch = _batch(shape)
        with meter, fast_kernels(model):
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


def worker(pair: tuple[Shape, str], on_progress: OnProgress) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    return {"measured_bytes": measured_bytes(*pair)}


def measure_all(methods: Sequence[str]) -> dict[str, Any]:
    """Return the record: the peak of every shape and method, or why there is none."""
    log = Path(tempfile.mkdtemp()) / "log.txt"
    measure = RunProcesses(worker, log=log, threads=1, preload=("t5peft.planning.plan", "bitsandbytes"))
    started, rows = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), []
    for shape in SHAPES:
        for method in methods:
            found = measure((shape, method))
            kept = {name: found[name] for name in ("measured_bytes", "outcome", "reason") if name in found}
            rows.append(asdict(shape) | {"method": method} | kept)
            print(json.dumps(rows[-1]), flush=True)
    return {"started": started, **environment("cpu"), "rows": rows}


def table(record: dict[str, Any]) -> str:
    """By how much the planner is off, a row a method and a column a shape."""
    errors: dict[str, dict[Shape, float]] = {}
    for row in record["rows"]:
        shape = Shape(**{field.name: row[field.name] for field in fields(Shape)})
        if "measured_bytes" in row:
            error = predicted_bytes(shape, row["method"]) / row["measured_bytes"] - 1
            errors.setdefault(row["method"], {})[shape] = error
    rows = [
        [method, *(f"{found[shape]:+.1%}" if shape in found else "not measured" for shape in SHAPES)]
        for method, found in errors.items()
    ]
    largest = max((abs(error) for found in errors.values() for error in found.values()), default=0.0)
    text = markdown_table(["method", *map(str, SHAPES)], rows)
    others = {row["method"]: row["machine"] for row in record["rows"] if "machine" in row}
    machines = [record["machine"]["name"], *(f"{method} on {name}" for method, name in others.items())]
    return f"Largest error {largest:.1%}; {', '.join(machines)}.\n\n{text}"


def main() -> int:
    """Measures every pair, writes the record, fills the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="measure these and keep the rows of the others")
    args = parser.parse_args()
    if not args.report_only:
        record = measure_all(args.methods or list(METHODS))
        if args.methods:
            earlier = json.loads(RECORD.read_text(encoding="utf-8"))
            kept = [row for row in earlier["rows"] if row["method"] not in args.methods]
            name = record["machine"]["name"]
            record = earlier | {"rows": kept + [row | {"machine": name} for row in record["rows"]]}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table(json.loads(RECORD.read_text(encoding="utf-8")))
    print(text)
    fill_markers(RESULTS, {"planner": text})
    return 0


if __name__ == "__main__":
    sys.exit(main())
