"""peft beside the server: ``set_adapter`` for each request, and peft's own batches of several adapters (LoRA only)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from serving_adapters import METHODS, Question, name_of
from transformers import PreTrainedTokenizerBase

from t5peft.models.backbone import load_backbone

ROWS = 64


def run_baselines(
    folder: Path, asked: Sequence[Question], records: Path, about: dict[str, Any], *, seconds: float, count: int = 100
) -> None:
    """Measure both and write a record of each."""
    lora = [name_of(number) for number in range(count) if name_of(number).endswith("-lora")]
    # One adapter of each method cannot be in one PeftModel, so that peft, too, holds only LoRA here: its best case.
    model, tokenizer = load_backbone("mini")
    wrapped = PeftModel.from_pretrained(model, str(folder / "adapters" / lora[0]), adapter_name=lora[0])
    for name in lora[1:]:
        wrapped.load_adapter(str(folder / "adapters" / name), adapter_name=name)
    wrapped.eval()
    records.mkdir(parents=True, exist_ok=True)
    for system, rows in (("peft-set-adapter", 1), ("peft-mixed-batches", ROWS)):
        record = measure(wrapped, tokenizer, lora, asked, rows, seconds)
        record |= {"system": system, "rows": rows, "methods": sorted(METHODS), "adapters": len(lora), **about}
        (records / f"{system}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{system}: {record['requests_per_second']:.1f} requests a second")


@torch.no_grad()
def measure(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    asked: Sequence[Question],
    rows: int,
    seconds: float,
) -> dict[str, Any]:
    """Answer batches of ``rows`` requests, with an adapter each, until the time is over."""
    choose, done, began = random.Random(0), 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        batch = [(choose.choice(names), choose.choice(asked)) for _ in range(rows)]
        inputs = tokenizer([question.source for _, question in batch], return_tensors="pt", padding=True)
        # A batch takes as long as its longest answer.
        options: dict[str, Any] = {
            "max_new_tokens": max(question.max_tokens for _, question in batch),
            "do_sample": False,
        }
        if rows == 1:
            model.set_adapter(batch[0][0])
        else:
            options["adapter_names"] = [name for name, _ in batch]
        model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **options)
        done += rows
    return {"requests": done, "seconds": spent, "requests_per_second": done / spent}
