"""Run records made up for tests of the report: plausible shapes, no run behind them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from t5peft.benchmark.records import RunConfig, RunRecords

# method -> accuracy, trained parameters, peak memory in MB, seconds a step, the best of three learning rates
SHAPES: dict[str, tuple[float, int, int, float, tuple[float, float, float]]] = {
    "full": (0.91, 9_400_000, 310, 0.21, (3e-4, 1e-3, 3e-3)),
    "lora": (0.905, 196_608, 150, 0.17, (1e-3, 3e-3, 1e-2)),
    "prefix": (0.88, 122_880, 152, 0.18, (3e-3, 1e-2, 3e-2)),
    "prompt": (0.72, 5_120, 158, 0.19, (1e-1, 3e-1, 1.0)),
    "qlora": (0.902, 720_000, 128, 0.23, (1e-3, 3e-3, 1e-2)),
    "ia3": (0.87, 14_000, 149, 0.17, (3e-3, 1e-2, 3e-2)),
    "peft-prefix": (0.70, 40_960, 151, 0.25, (3e-3, 1e-2, 3e-2)),
}


def config(method: str = "lora", *, rate: float = 1e-3, seed: int = 0, **changes: Any) -> RunConfig:
    """A run of a task that is nowhere."""
    fields: dict[str, Any] = {
        "task": "intents",
        "backbone": "mini",
        "backbone_fingerprint": "0123",
        "steps": 300,
        "examples_per_step": 16,
        "device": "cpu",
        "data": {"task": "intents", "fingerprint": "4567"},
    }
    return RunConfig(method=method, learning_rate=rate, seed=seed, **(fields | changes))


def finished(made: RunConfig, accuracy: float, *, parameters: int, peak: int, seconds: float) -> dict[str, Any]:
    """The record of a finished run."""
    chance = np.random.default_rng(zlib.crc32(f"{made.method} {made.seed}".encode()))
    points = [round(made.steps * k / 4) for k in range(1, 5)]
    curve = [
        {
            "step": step,
            "seconds": step * seconds,
            "loss": 1.2 - accuracy * k / 4,
            "accuracy": accuracy * (0.7 + 0.3 * k / 4),
        }
        for k, step in enumerate(points, start=1)
    ]
    right = np.zeros(200)
    right[: round(200 * accuracy)] = 1
    return {
        "outcome": "finished",
        "started": f"2026-01-0{made.seed + 1}T00:00:00Z",
        "commit": "abcdef012345",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {"device": "cpu", "name": "a processor", "cores": 2, "threads": 2, "memory_bytes": 8_000_000_000},
        "metric": "accuracy",
        "scores": {"validation": {"accuracy": accuracy}, "test": {"accuracy": float(right.mean())}},
        "validation_loss": 1.2 - accuracy,
        "test_score_by_example": chance.permutation(right).tolist() if made.method == "prompt" else right.tolist(),
        "curve": curve,
        "train_losses": [{"step": step, "loss": 1.0} for step in points],
        "examples": {"train": 900, "validation": 100, "test": 200},
        "parameters": {
            "trainable": parameters,
            "trainable_bytes": 4 * parameters,
            "stored_bytes": 4 * parameters + 4000,
        },
        "memory": memory_of(peak),
        "seconds": {
            "step_median": seconds,
            "step_mean": seconds,
            "to_best": 200 * seconds,
            "test_scoring": 1.0,
            "total": made.steps * seconds + 9,
        },
        "tokens_per_second": 400 / seconds,
        "latency": {"new_tokens": 16, "seconds": 0.1, "merged_seconds": 0.08}
        if method_merges(made.method)
        else {"new_tokens": 16, "seconds": 0.09, "merged_seconds": None, "merged_reason": "nothing to merge"},
    }


def baseline(accuracy: float) -> dict[str, Any]:
    """The record of a baseline."""
    right = np.zeros(200)
    right[: round(200 * accuracy)] = 1
    return {
        "outcome": "finished",
        "started": "2026-01-01T00:00:00Z",
        "metric": "accuracy",
        "scores": {"test": {"accuracy": float(right.mean())}},
        "test_score_by_example": right.tolist(),
        "example_metric": "accuracy",
    }


def memory_of(peak: int) -> dict[str, int]:
    """The memory of a run in bytes, with a peak of so many megabytes above the libraries."""
    return {
        "peak_bytes": (500 + peak) * 10**6,
        "mean_bytes": (480 + peak) * 10**6,
        "left_by_evaluation_bytes": 20 * 10**6,
        "libraries_bytes": 500 * 10**6,
        "peak_above_libraries_and_data_bytes": peak * 10**6,
        "mean_above_libraries_and_data_bytes": (peak - 20) * 10**6,
    }


def method_merges(method: str) -> bool:
    """Whether the method's records give a latency after merging."""
    return method in ("lora", "ia3")


def write_suite(folder: Path, *, task: str = "intents", seeds: int = 3, drop: float = 0.0) -> None:
    """Records of a whole suite: three rates each, the middle one best, and two methods that did not finish."""
    for method, (accuracy, parameters, peak, seconds, rates) in SHAPES.items():
        for seed in range(seeds):
            for position, rate in enumerate(rates if seed == 0 else rates[1:2]):
                made = config(method, rate=rate, seed=seed, task=task)
                score = accuracy - drop - (0.06 if rate != rates[1] else 0.0) - 0.004 * seed - 0.001 * position
                RunRecords(folder).append(
                    made, finished(made, score, parameters=parameters, peak=peak, seconds=seconds)
                )
    big = config("lora", rate=1e-3, task=task, method_options={"rank": 64})
    small = config("lora", rate=1e-3, task=task, method_options={"rank": 4})
    for made, score in ((big, 0.91 - drop), (small, 0.89 - drop)):
        rank = made.method_options["rank"]
        RunRecords(folder).append(made, finished(made, score, parameters=12_288 * rank, peak=140 + rank, seconds=0.18))
    lost = config("peft-prompt", rate=0.3, task=task)
    RunRecords(folder).append(
        lost, {"outcome": "diverged", "reason": "the loss is nan at step 12", "seconds": {"total": 4.0}}
    )
    full = config("peft-lora", rate=0.3, task=task)
    RunRecords(folder).append(full, {"outcome": "out_of_memory", "reason": "the system killed the process (signal 9)"})
