"""Beside training speed: memory, losses and prediction of the systems; run by ``throughput.py``."""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from throughput_data import load_features, load_tokenizer
from throughput_systems import PEER_BATCH, Features, new_model, new_trainer, time_training
from throughput_tables import median_ratio
from torch import nn

from t5peft.benchmark.memory import MemoryMeter, return_freed_memory
from t5peft.benchmark.peers import plain_trainer
from t5peft.evaluation import predict, rank
from t5peft.models.backbone import load_tokenizer as load_mini_tokenizer
from t5peft.planning.geometry import config_of


def memory_of(system: str, args: argparse.Namespace) -> None:
    """Print the peak resident bytes of three steps above those of the loaded model; for a process of its own."""
    return_freed_memory()
    tokenizer = load_tokenizer()
    features = load_features(args.data[0], tokenizer, 3 * args.examples)
    model = new_model(args.method, system, args.vocabulary, None)
    trainer = new_trainer(system, model, features, tokenizer, args)
    before = psutil.Process().memory_info().rss
    with MemoryMeter("cpu") as meter:
        trainer.train()
    print(json.dumps({"model_bytes": before, "peak_bytes": meter.peak_bytes, "above_bytes": meter.peak_bytes - before}))


def run_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory by system, data set and size of the vocabulary, each in a process of its own."""
    results: dict[str, Any] = {}
    for name in args.data:
        for vocabulary in (32_128, 250_112):
            cell = results.setdefault(name, {}).setdefault(str(vocabulary), {})
            for system in args.systems:
                command = [
                    sys.executable,
                    str(Path(__file__).with_name("throughput.py")),
                    "--one-memory",
                    system,
                    "--data",
                    name,
                ]
                command += ["--vocabulary", str(vocabulary), "--method", args.method, "--examples", str(args.examples)]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cell[system] = json.loads(done.stdout.splitlines()[-1])
            ratios = {p: cell["t5peft"]["above_bytes"] / cell[p]["above_bytes"] for p in args.systems if p != "t5peft"}
            print(
                name, vocabulary, {s: f"{c['above_bytes'] / 1e6:.0f} MB" for s, c in cell.items()}, ratios, flush=True
            )
    return results


def made_up(vocabulary: int, examples: int) -> Features:
    """Return features of random tokens, with lengths as in summaries: medians of 120 for sources and 24 for targets."""
    draw = random.Random(0)

    def ids(median: float, most: int) -> list[int]:
        count = min(most, max(2, round(draw.lognormvariate(math.log(median), 0.7))))
        return [*(draw.randrange(2, min(vocabulary, 32_000)) for _ in range(count - 1)), 1]

    return [{"input_ids": ids(120, 512), "labels": ids(24, 128)} for _ in range(examples)]


def run_shapes(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak bytes of an epoch over made-up examples, for each shape and system, alternating; needs no data."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "Got no GPU that torch can use; expected one. Run this on a machine with a GPU, or give --device cpu."
        )
    tokenizer = load_mini_tokenizer()
    results: dict[str, Any] = {}
    for shape in args.shapes:
        args.shape = shape
        features = made_up(config_of(shape).vocab_size, args.limit or 8 * args.examples)
        runs = []
        for repeat in range(-1, args.repeats):
            used = features if repeat >= 0 else features[: args.examples]  # the first round only warms up
            run = {system: _time_and_memory(system, used, tokenizer, args) for system in args.systems}
            if repeat >= 0:
                runs.append(run)
                print(shape, run, flush=True)
        tokens = sum(len(feature["input_ids"]) + len(feature["labels"]) for feature in features)
        results[shape] = {"examples": len(features), "tokens": tokens, "runs": runs}
    return results


def _time_and_memory(system: str, features: Features, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with MemoryMeter(args.device) as meter:
            found: dict[str, Any] = time_training(system, features, tokenizer, args)[0]
    except torch.OutOfMemoryError:  # a row of the table too
        return {"outcome": "out_of_memory"}
    return found | {"outcome": "finished", "peak_bytes": meter.peak_bytes}


def run_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Losses of 50 steps at dropout 0: t5peft's beside those of the plain way, 16 examples a step, without accumulation.

    In double precision the difference is that of the computations; in single precision Adam, which divides by the size of the
    gradient, makes the rounding of the first steps grow.
    """
    tokenizer = load_tokenizer()
    results: dict[str, Any] = {}
    args.examples = PEER_BATCH
    for name in args.data:
        features = load_features(name, tokenizer, 50 * PEER_BATCH)
        results[name] = {}
        for precision in ("float64", "float32"):
            losses = {}
            for system in ("t5peft", "peft"):
                # Both are wrapped by ours: peft's own prefix is another method.
                model = new_model(args.method, "t5peft", dropout=0.0).to(getattr(torch, precision))
                more = {"logging_strategy": "steps", "logging_steps": 1, "seed": 7}
                trainer = new_trainer(system, model, features, tokenizer, args, **more)
                trainer.train()
                losses[system] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            worst = max(abs(ours - plain) / plain for ours, plain in zip(losses["t5peft"], losses["peft"], strict=True))
            results[name][precision] = {"losses": losses, "largest_relative_difference": worst}
            steps = len(losses["peft"])
            print(f"{name} {precision}: {steps} steps, largest relative difference {worst:.1e}", flush=True)
    return results


def peer_predict(model: nn.Module, features: Features, tokenizer: Any, max_new_tokens: int) -> None:
    """Generate as users of ``Seq2SeqTrainer`` do."""
    arguments = {
        "output_dir": tempfile.mkdtemp(),
        "predict_with_generate": True,
        "generation_max_length": max_new_tokens + 1,  # with the start token
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    plain_trainer(model, arguments, None, tokenizer).predict(Dataset.from_list(features))


def run_prediction(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of classifying SST-2 by ``rank`` and of summarizing DialogSum by ``predict``, beside the peer's generate.

    Weights are random and generation never ends by itself: a class is given the two tokens it has, a summary 48.
    """
    tokenizer = load_tokenizer()
    results = {}
    for name, examples, max_new_tokens in (("sst2", 128, 2), ("dialogsum", 32, 48)):
        features = load_features(name, tokenizer, examples, seed=1)
        sources = [feature["input_ids"] for feature in features]
        ours, peer = (new_model("lora", system, None, None).eval() for system in ("t5peft", "peft"))

        def predict_ours(
            name: str = name, sources: list[list[int]] = sources, model: nn.Module = ours, tokens: int = max_new_tokens
        ) -> None:
            if name == "sst2":
                rank(model, tokenizer, sources, ["negative", "positive"])
            else:
                predict(model, tokenizer, sources, max_new_tokens=tokens)

        runs = []
        for repeat in range(-1, args.repeats):
            run = {}
            for system in ("t5peft", "peft"):
                start = time.perf_counter(), time.process_time()
                if system == "t5peft":
                    predict_ours()
                else:
                    peer_predict(peer, features, tokenizer, max_new_tokens)
                run[system] = {
                    "seconds": time.perf_counter() - start[0],
                    "processor_seconds": time.process_time() - start[1],
                }
            if repeat >= 0:
                runs.append(run)
        results[name] = {"examples": examples, "max_new_tokens": max_new_tokens, "runs": runs}
        ratios = {
            field: f"{median_ratio(results[name], 'peft', field):.2f}" for field in ("seconds", "processor_seconds")
        }
        print(name, "peft over t5peft", ratios, flush=True)
    return results
