"""Speed of many adapters on one backbone: mixed batches and the engine beside what peft offers.

    python benchmarks/mixed_batches.py                       # 100 adapters of LoRA, Zipf
    python benchmarks/mixed_batches.py --adapters 8 --spread uniform
    python benchmarks/mixed_batches.py --methods lora lora-all ia3 prefix prompt houlsby norm dora   # peft's batches take LoRA only

The systems answer the same requests on ``mini``, alternating in one run:

    set_adapter    peft, ``set_adapter`` and ``generate`` for each request
    peft           peft, ``generate(adapter_names=...)`` on batches of 64 rows (LoRA only)
    batches        ``MixedModel.generate`` on batches of 64 rows
    engine         the engine, with 64 rows at most
    one_adapter    the engine, where every request names the same adapter
    no_adapter     the engine, where no request names one

Adapters are stirred, not trained: their arithmetic is that of tuned ones. Every answer is compared with what its adapter says by
itself. Figures are medians, ratios are medians of the ratios within a repeat. The record goes to
records/serving/mixed_batches.jsonl.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from peft import PeftConfig, PeftModel
from transformers import logging

from t5peft import METHODS, load_backbone, save_adapter
from t5peft.benchmark.environment import environment
from t5peft.data import embedded_task
from t5peft.evaluation.inference import padded
from t5peft.serving.engine import Engine, Limits
from t5peft.serving.mixed import MixedModel
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import Generated, GenerateRequest

RECORDS = Path(__file__).parent / "records" / "serving" / "mixed_batches.jsonl"
ROWS = 64
OPTIONS: dict[str, dict[str, Any]] = {name: {"rank": 8} for name in ("lora", "lora-all", "dora")}

Answers = list[list[int]]


def make_adapters(folder: Path, count: int, methods: Sequence[str]) -> list[str]:
    """Save ``count`` stirred adapters of the methods in turn; return their names."""
    names = []
    for i in range(count):
        method = methods[i % len(methods)]
        torch.manual_seed(i)
        model = METHODS[method].wrap(load_backbone("mini")[0], **OPTIONS.get(method, {}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.03 * torch.randn_like(parameter))
        names.append(f"{method}-{i}")
        save_adapter(model, folder / names[-1])
    return names


def draw(names: Sequence[str], spread: str, count: int) -> list[str]:
    """Return the adapter of each request."""
    weights = torch.ones(len(names)) if spread == "uniform" else 1 / torch.arange(1, len(names) + 1)
    drawn = torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(0))
    return [names[i] for i in drawn.tolist()]


def by_engine(pool: AdapterPool, sources: Answers, chosen: Sequence[str | None], tokens: int) -> Answers:
    """Answer all requests by the engine."""
    with Engine(pool, Limits(max_rows=ROWS, max_waiting=len(sources))) as engine:
        tickets = [
            engine.submit(GenerateRequest(adapter=name, source_ids=source, max_new_tokens=tokens))
            for source, name in zip(sources, chosen, strict=True)
        ]
        answers = [ticket.result.result() for ticket in tickets]
    return [answer.ids for answer in answers if isinstance(answer, Generated)]


def by_batches(pool: AdapterPool, sources: Answers, chosen: Sequence[str], tokens: int) -> Answers:
    """Answer all requests by mixed batches, one after another."""
    held = {name: pool.acquire(name) for name in set(chosen)}
    model: MixedModel = pool.model
    answers: Answers = []
    for start in range(0, len(sources), ROWS):
        part = slice(start, start + ROWS)
        answers += model.generate(sources[part], [held[name] for name in chosen[part]], max_new_tokens=tokens).tolist()
    for weights in held.values():
        pool.release(weights)
    return [until_end(row[1:]) for row in answers]


def by_peft(
    models: Mapping[str, PeftModel], sources: Answers, chosen: Sequence[str], tokens: int, rows: int
) -> Answers:
    """Answer all requests by peft: each with its active adapter, or batches with the names of their rows' adapters."""
    answers: Answers = []
    for start in range(0, len(sources), rows):
        part = slice(start, start + rows)
        model = models[chosen[start]]
        input_ids, attention_mask = padded(sources[part], 0, model.device)
        options: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
        if rows == 1:
            model.set_adapter(chosen[start])
        else:
            options["adapter_names"] = list(chosen[part])
        with torch.inference_mode():
            answers += model.generate(input_ids=input_ids, attention_mask=attention_mask, **options).tolist()
    return [until_end(row[1:]) for row in answers]


def until_end(ids: list[int]) -> list[int]:
    """Return the tokens up to ``</s>``."""
    return ids[: ids.index(1) + 1] if 1 in ids else ids


def in_models(folder: Path, names: Sequence[str]) -> dict[str, PeftModel]:
    """Load the adapters as peft does, all of one kind into one model; return the model of each."""
    models: dict[str, PeftModel] = {}
    kinds: dict[Any, PeftModel] = {}
    for name in names:
        kind = PeftConfig.from_pretrained(str(folder / name)).peft_type
        if kind in kinds:
            kinds[kind].load_adapter(folder / name, adapter_name=name)
        else:
            kinds[kind] = PeftModel.from_pretrained(load_backbone("mini")[0], folder / name, adapter_name=name).eval()
        models[name] = kinds[kind]
    return models


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the systems in turn, and return the record."""
    names = make_adapters(folder, args.adapters, args.methods)
    pool = AdapterPool("mini", folder, pinned=names)
    task = embedded_task("support_intent")[0]
    records = list(embedded_task("support_intent")[1]["test"])
    ids = [list(row) for row in task.tokenize(records, pool.tokenizer)["input_ids"]]
    sources = [ids[i % len(ids)] for i in range(args.requests)]
    chosen = draw(names, args.spread, args.requests)
    models = in_models(folder, names)
    few = min(len(sources), args.one_by_one)
    systems: dict[str, tuple[int, Callable[[], Answers]]] = {
        "set_adapter": (few, lambda: by_peft(models, sources[:few], chosen[:few], args.tokens, 1)),
        "batches": (len(sources), lambda: by_batches(pool, sources, chosen, args.tokens)),
        "engine": (len(sources), lambda: by_engine(pool, sources, chosen, args.tokens)),
        "one_adapter": (len(sources), lambda: by_engine(pool, sources, [names[0]] * len(sources), args.tokens)),
        "no_adapter": (len(sources), lambda: by_engine(pool, sources, [None] * len(sources), args.tokens)),
    }
    if set(args.methods) <= {"lora", "lora-all", "dora"}:
        systems["peft"] = (len(sources), lambda: by_peft(models, sources, chosen, args.tokens, ROWS))
    own = by_peft(models, sources, chosen, args.tokens, 1)
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    wrong = dict.fromkeys(("peft", "batches", "engine", "set_adapter"), 0)
    for repeat in range(args.repeats + 1):
        for name, (count, run) in systems.items():
            start = time.perf_counter()
            answers = run()
            seconds = time.perf_counter() - start
            if repeat:  # the first round warms up
                speeds[name].append(count / seconds)
            if name in wrong:
                wrong[name] += sum(answer != right for answer, right in zip(answers, own, strict=False))
            print(f"{repeat} {name:12} {count / seconds:8.1f} requests/s", flush=True)
    ratios = {
        f"engine/{name}": median(a / b for a, b in zip(speeds["engine"], speeds[name], strict=True))
        for name in systems
        if name != "engine"
    }
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": vars(args),
        "active_per_batch": len(set(chosen[:ROWS])),
        "requests_per_second": {name: median(values) for name, values in speeds.items()},
        "ratios": ratios,
        "answers_unlike_their_adapters": {name: count for name, count in wrong.items() if name in systems},
        "load_before": psutil.getloadavg()[0],
        **environment("cpu"),
    }


def main() -> None:
    """Measure, print and append the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["lora"], choices=[*METHODS])
    parser.add_argument("--spread", choices=["zipf", "uniform"], default="zipf")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--one-by-one", type=int, default=64, help="requests that set_adapter answers")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, Path(folder))
    print(
        json.dumps(
            {key: record[key] for key in ("requests_per_second", "ratios", "answers_unlike_their_adapters")}, indent=1
        )
    )
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
