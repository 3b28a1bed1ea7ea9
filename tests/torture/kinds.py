"""The files that are damaged: for each kind that the package reads, an original, and a reader that says what was read."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_records, tiny_t5, tiny_tokenizer
from torch import Tensor

from t5peft import METHODS, load_adapter, load_backbone, save_adapter
from t5peft.adapters import save_model
from t5peft.adapters.checkpoints import newest_complete, read_run_state
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.suites import load_suite
from t5peft.data import Task, load_records
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving.adapter import read_adapter
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments

Reader = Callable[[Path], str]


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], None]
    """Write the original into a folder."""
    read: Reader
    """Read it, and return what was read as a short text."""
    is_sealed: bool
    """Whether hashes protect it, so that it must never be read as something else."""
    files: str = "*"
    """Which of its files are damaged."""


def digest(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """Return a hash of names and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _text(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _adapter(method: str, **options: Any) -> Kind:
    def make(folder: Path) -> None:
        model = METHODS[method].wrap(tiny_t5(), **options)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        save_adapter(model, folder)

    def read(folder: Path) -> str:
        model, _ = load_adapter(folder, model=tiny_t5())
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[5, 6, 7, 1]]), labels=torch.tensor([[8, 9, 1]])).logits
        return digest(iter([("logits", logits)]))

    return Kind(make, read, is_sealed=True, files="*[!d]")  # not README.md, which is a draft to be written in


def _make_served(folder: Path) -> None:
    save_adapter(METHODS["lora"].wrap(tiny_t5(), rank=2), folder)


def _read_served(folder: Path) -> str:
    weights = read_adapter("a", folder, tiny_t5())
    return digest((name, change.a) for name, change in weights.maps.items() if change.a is not None)


def _make_model(folder: Path) -> None:
    save_model(tiny_t5(), folder, tokenizer=tiny_tokenizer())


def _read_model(folder: Path) -> str:
    return digest(unwrap_t5(load_backbone(folder)[0]).named_parameters())


def _make_run(folder: Path) -> None:
    model = METHODS["lora"].wrap(tiny_t5(), rank=2)
    arguments = T5PeftTrainingArguments(
        str(folder), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to="none", disable_tqdm=True
    )
    T5PeftTrainer(model, arguments, train_dataset=tiny_records(4)).train()  # a list is a data set


def _read_run(folder: Path) -> str:
    """Return which checkpoint a run would go on from, and that its files are whole."""
    found = newest_complete(folder)
    if found is None:
        raise ValueError("Got a run without a complete checkpoint; expected one.")
    state = json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
    return f"{found.name} {state['global_step']} {_text(sorted(read_run_state(found).items()))}"


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


_TABLE = "text,label,number\n" + "".join(f'"text ä {i}, quoted",{"yes" if i % 2 else "no"},{i}\n' for i in range(40))
_LINES = "".join(json.dumps({"text": f"line {i}", "labels": ["a", "b"][: i % 3], "n": i}) + "\n" for i in range(40))
_TASK = """name: tickets
template: "which team answers this? {text}"
target: "{team}"
verbalizer: {billing: money, technical: computer}
metrics: [accuracy, f1]
max_source_length: 128
max_target_length: 8
"""
_SUITE = """about: a small one
seeds: [0, 1]
steps: 20
examples_per_step: 8
limits: {validation: 60}
tasks: [support_intent, {task: finance, steps: 40}]
methods:
  - {method: full, learning_rates: [1.0e-3]}
  - {method: lora, options: {rank: 4}, learning_rates: [1.0e-3, 3.0e-3]}
"""


def _make_records(folder: Path) -> None:
    import synthetic

    synthetic.write_suite(folder)


def _make_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    rows = [json.loads(line) for line in _LINES.splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet")


def _records_of(name: str) -> Reader:
    return lambda folder: _text(list(load_records(folder / name)))


KINDS: dict[str, Kind] = {
    "adapter-lora": _adapter("lora", rank=2),
    "adapter-prefix": _adapter("prefix", length=3),
    "adapter-prompt": _adapter("prompt", length=3),
    "adapter-ia3": _adapter("ia3"),
    "adapter-houlsby": _adapter("houlsby", size=4),
    "adapter-norm": _adapter("norm"),
    "adapter-ladder": _adapter("ladder"),
    "served adapter": Kind(_make_served, _read_served, is_sealed=True, files="*[!d]"),
    "model": Kind(_make_model, _read_model, is_sealed=True),
    "run": Kind(_make_run, _read_run, is_sealed=True, files="checkpoint-2/*"),
    "task": Kind(_write("task.yaml", _TASK), lambda folder: repr(Task.from_yaml(folder / "task.yaml")), is_sealed=False),
    "suite": Kind(_write("suite.yaml", _SUITE), lambda folder: repr(load_suite(str(folder / "suite.yaml"))), is_sealed=False),
    "records": Kind(_make_records, lambda folder: _text(RunRecords(folder).load()), is_sealed=False),
    "csv": Kind(_write("data.csv", _TABLE), _records_of("data.csv"), is_sealed=False),
    "jsonl": Kind(_write("data.jsonl", _LINES), _records_of("data.jsonl"), is_sealed=False),
    "json": Kind(_write("data.json", "[" + ",".join(_LINES.splitlines()) + "]"), _records_of("data.json"), is_sealed=False),
    "csv.gz": Kind(_write("data.csv.gz", gzip.compress(_TABLE.encode(), mtime=0)), _records_of("data.csv.gz"), is_sealed=False),
    "csv.xz": Kind(_write("data.csv.xz", lzma.compress(_TABLE.encode())), _records_of("data.csv.xz"), is_sealed=False),
    "parquet": Kind(_make_parquet, _records_of("data.parquet"), is_sealed=False),
}  # fmt: skip
