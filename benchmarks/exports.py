"""Compare the engines that run an export, on summaries of DialogSum: seconds, size of the folder, ROUGE.

    T5PEFT_DATA=... python benchmarks/exports.py      # about ten minutes; writes benchmarks/records/exports.json

A LoRA adapter on ``mini`` is tuned briefly and exported. Every engine answers the same test records by greedy search, in turn,
several times, with one thread. Seconds are medians; only their ratios within one run mean something. An export that is refused
stays in the table, with its difference from the adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

from t5peft import (
    T5PeftTrainer,
    T5PeftTrainingArguments,
    export,
    load_adapter,
    load_backbone,
    load_exported,
    lora_wrap,
    predict,
    save_adapter,
)
from t5peft.benchmark.environment import environment
from t5peft.benchmark.tables import markdown_table
from t5peft.data import Task, load_task
from t5peft.evaluation import compute
from t5peft.serving.exported import Target
from t5peft.serving.parity import Parity, ParityError

RECORD = Path(__file__).parent / "records" / "exports.json"
EXPORTS: tuple[tuple[str, Target, Literal["int8"] | None], ...] = (
    ("transformers", "transformers", None),
    ("CTranslate2", "ct2", None),
    ("CTranslate2, int8", "ct2", "int8"),
    ("ONNX", "onnx", None),
    ("ONNX, int8", "onnx", "int8"),
)
ROWS = 16  # of a batch of plain transformers


def tune(task: Task, records: Any, folder: Path, steps: int) -> None:
    """Tune LoRA and save it with its backbone's name."""
    set_seed(0)
    backbone, tokenizer = load_backbone("mini")
    model = lora_wrap(backbone, target_modules="all-linear")
    arguments = T5PeftTrainingArguments(
        str(folder / "run"),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    train = task.tokenize(records[: 4 * steps], tokenizer)
    T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()
    save_adapter(model, folder / "adapter")


def plainly(model: Any, tokenizer: Any, sources: list[str], max_new_tokens: int) -> list[str]:
    """Answer as the page of transformers shows it: batches in the order of the records."""
    answers: list[str] = []
    for start in range(0, len(sources), ROWS):
        batch = tokenizer(sources[start : start + ROWS], return_tensors="pt", padding=True)
        generated = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answers += tokenizer.batch_decode(generated, skip_special_tokens=True)
    return answers


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def differences(parity: Parity) -> dict[str, float]:
    return {check.name: check.difference for check in parity.checks}


def run(task: Task, test: Any, folder: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Time every engine, in turn."""
    limit = task.max_target_length
    model, tokenizer = load_adapter(folder / "adapter")
    assert tokenizer is not None  # as no model was given
    sources = task.sources(test, tokenizer)
    rows: dict[str, dict[str, Any]] = {}
    engines: dict[str, Callable[[], list[str]]] = {
        "t5peft predict": partial(predict, model, tokenizer, sources, max_new_tokens=limit)
    }
    rows["t5peft predict"] = {"bytes": size_of(folder / "adapter"), "parity": None}
    for name, to, quantize in EXPORTS:
        place = folder / name
        try:
            parity = export(folder / "adapter", place, to=to, quantize=quantize)
        except ParityError as error:
            if error.parity is None:
                raise
            rows[name] = {"parity": differences(error.parity), "refused": True}
            continue
        rows[name] = {"bytes": size_of(place), "parity": differences(parity)}
        if to == "transformers":
            plain = AutoModelForSeq2SeqLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
            engines[name] = partial(plainly, *plain, sources, limit)
        else:
            engines[name] = partial(load_exported(place).predict, sources, max_new_tokens=limit)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, list[str]] = {}
    for repeat in range(repeats):
        order = list(engines.items())
        for name, engine in order if repeat % 2 == 0 else order[::-1]:
            started = time.perf_counter()
            answers[name] = list(engine())
            seconds[name].append(round(time.perf_counter() - started, 3))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    references = [task.answers(record, tokenizer) for record in test]
    ours = answers["t5peft predict"]
    for name in engines:
        row = rows[name]
        row["seconds"], row["median_seconds"] = seconds[name], statistics.median(seconds[name])
        row["scores"] = compute("rouge", [task.read(text, tokenizer) for text in answers[name]], references)
        row["same_answers"] = sum(a == b for a, b in zip(answers[name], ours, strict=True)) / len(ours)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RECORD)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task, splits = load_task("dialogsum")
    task = replace(task, max_source_length=256, max_target_length=48, num_beams=1)
    before, started = os.getloadavg(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tune(task, list(splits["train"]), folder, args.steps)
        rows = run(task, list(splits["test"])[: args.records], folder, args.repeats)
    record = {
        "what": "greedy summaries of DialogSum by a LoRA adapter on mini, in every engine, with one thread",
        "started": started,
        "records": args.records,
        "steps": args.steps,
        "max_source_length": task.max_source_length,
        "max_new_tokens": task.max_target_length,
        "load_before_and_after": [before, os.getloadavg()],
        **environment("cpu"),
        "engines": {name: version(name) for name in ("ctranslate2", "onnx", "onnxruntime")},
        "rows": rows,
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))
    return 0


def table(record: dict[str, Any]) -> str:
    """Return the table of a record."""
    ours = record["rows"]["t5peft predict"]["median_seconds"]
    lines = []
    for name, row in record["rows"].items():
        difference = "" if row["parity"] is None else f"{max(row['parity'].values()):.1e}"
        if row.get("refused"):
            lines.append([name, "refused", "", "", "", "", difference])
            continue
        speed, size = ours / row["median_seconds"], row["bytes"] / 1e6
        figures = [f"{row['median_seconds']:.1f}", f"{speed:.2f}", f"{size:.1f}", f"{row['scores']['rougeL']:.4f}"]
        lines.append([name, *figures, f"{row['same_answers']:.2f}", difference])
    head = ["engine", "seconds", "speed", "MB", "ROUGE-L", "same answers", "difference"]
    summary = f"{record['records']} records, {record['machine']['name']}"
    return f"{markdown_table(head, lines)}\n\n{summary}"


if __name__ == "__main__":
    sys.exit(main())
