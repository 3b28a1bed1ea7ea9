"""The adapters of the serving benchmark, its questions, and the answers that each adapter gives on its own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

import t5peft
from t5peft.adapters import load_adapter, save_adapter
from t5peft.data import load_task
from t5peft.evaluation import predict
from t5peft.models.backbone import load_backbone

METHODS: dict[str, Callable[[PreTrainedModel], PeftModel]] = {
    "lora": lambda t5: t5peft.lora_wrap(t5, rank=8),
    "ia3": lambda t5: t5peft.ia3_wrap(t5),
    "prefix": lambda t5: t5peft.prefix_wrap(t5, length=10),
    "prompt": lambda t5: t5peft.prompt_wrap(t5, length=10),
    "houlsby": lambda t5: t5peft.bottleneck_wrap(t5, size=16, placement="houlsby"),
    "norm": lambda t5: t5peft.norm_wrap(t5),
}
QUESTIONS = 24
# Relative to the size of what a parameter begins with: enough that each adapter answers in its own way.
SHAKE = 0.3


@dataclass(frozen=True)
class Question:
    """A source, and the longest answer to it."""

    source: str
    max_tokens: int


def name_of(number: int) -> str:
    """Return the name of an adapter: its number and its method."""
    return f"{number:03d}-{list(METHODS)[number % len(METHODS)]}"


def questions(folder: Path) -> list[Question]:
    """Return questions of mixed lengths: sources of the embedded tasks, and answers of 4 to 48 tokens."""
    path = folder / "questions.json"
    if not path.is_file():
        made: list[dict[str, object]] = []
        choose = random.Random(0)
        for name in ("correction", "restaurants", "phrases"):
            task, splits = load_task(name)
            for record in choose.sample(list(splits["test"]), QUESTIONS // 3):
                made.append({"source": task.source(record), "max_tokens": choose.choice((4, 8, 16, 32, 48))})
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return [Question(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def write_adapters(folder: Path, count: int) -> None:
    """Write the adapters that are not there yet."""
    for number in range(count):
        target = folder / "adapters" / name_of(number)
        if not target.is_dir():
            model, _ = load_backbone("mini")
            wrapped = list(METHODS.values())[number % len(METHODS)](model)
            shake(wrapped, number)
            save_adapter(wrapped, target)


@torch.no_grad()
def shake(model: PeftModel, seed: int) -> None:
    """Add noise to the trained parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            size = float(parameter.std()) if parameter.numel() > 1 and float(parameter.std()) > 0 else 0.1
            parameter.add_(SHAKE * size * torch.randn(parameter.shape, generator=generator))


def answers_of(folder: Path, count: int, asked: Sequence[Question]) -> dict[str, list[str]]:
    """Return the answers of each adapter, loaded by itself; those that were computed before are read."""
    path = folder / "answers.json"
    known: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for number in range(count):
        name = name_of(number)
        if len(known.get(name, [])) != len(asked):
            model, tokenizer = load_adapter(folder / "adapters" / name)
            found = [""] * len(asked)
            for length in {question.max_tokens for question in asked}:
                places = [place for place, question in enumerate(asked) if question.max_tokens == length]
                texts = predict(model, tokenizer, [asked[place].source for place in places], max_new_tokens=length)
                for place, text in zip(places, texts, strict=True):
                    found[place] = text
            known[name] = found
            path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    names = [name_of(number) for number in range(count)]
    distinct = len({tuple(known[name]) for name in names})
    if distinct < len(names):
        print(
            f"{len(names) - distinct} adapters answer as another one does; an answer of the one may pass for the other's."
        )
    return {name: known[name] for name in names}
