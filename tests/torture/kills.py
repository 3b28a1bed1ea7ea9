"""Kill training at random moments, go on, and compare with the run that nobody killed, bit for bit.

    python tests/torture/kills.py --count 500 --minutes 30 --record benchmarks/records/torture/kills.json

Each number draws a method, the arguments of the Trainer, and one to three moments. A run is a process that is forked from one that
has imported everything, and ``kill -9`` ends it at each moment. Then it goes on from its newest complete checkpoint, as
``t5peft train --resume`` does, to its end. The outcomes:

    same       weights and losses are those of the run that was never killed, bit for bit
    other      they are not
    failed     the run could not go on

The campaign goes on where its file of outcomes ends.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from campaign import go_on, parse, read_outcomes, report
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tiny import tiny_records, tiny_t5
from transformers import ByT5Tokenizer, EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.utils import logging

from t5peft import METHODS, Task
from t5peft.data import Mixture, WordDropout, augment, mixture_rates
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments
from t5peft.training.checkpoints import newest_resumable

METHOD_NAMES = [name for name in METHODS if name != "qlora"]  # which needs a backbone in 8 bits
_TIMES = ("runtime", "per_second", "flos", "peak_memory")


def draw(rng: random.Random) -> dict[str, Any]:
    """Draw the settings of a run."""
    method = rng.choice(METHOD_NAMES)
    evaluates = rng.random() < 0.5
    save_steps = rng.choice([1, 1, 2, 3])
    arguments: dict[str, Any] = {
        "max_steps": rng.randint(6, 12),
        "per_device_train_batch_size": rng.choice([2, 3]),
        "gradient_accumulation_steps": rng.choice([1, 1, 2]),
        "learning_rate": rng.choice([1e-3, 1e-2]),
        "weight_decay": rng.choice([0.0, 0.1]),
        "lr_scheduler_type": rng.choice(["linear", "cosine", "constant_with_warmup"]),
        "warmup_steps": rng.choice([0, 2]),
        "optim": rng.choice(["adamw_torch", "adafactor"]),
        "label_smoothing_factor": rng.choice([0.0, 0.1]),
        "max_grad_norm": rng.choice([0.0, 1.0]),
        "dataloader_num_workers": rng.choice([0, 0, 0, 1]),
        "bucket_by_length": rng.choice([True, False]),
        "pack": rng.choice([None, False]) if method != "prompt" else None,
        "tokens_per_micro_batch": rng.choice([None, 24, 64]),
        "save_steps": save_steps,
        "save_total_limit": rng.choice([None, 1, 2]),
        "logging_steps": 1,
        "seed": rng.randrange(100),
    }
    if evaluates:
        arguments |= {"eval_strategy": "steps", "eval_steps": save_steps, "load_best_model_at_end": rng.random() < 0.6}
    if method == "lora" and rng.random() < 0.3:
        arguments["lora_plus_ratio"] = 4.0
    if method == "ladder" and rng.random() < 0.5:
        arguments["activation_cache_bytes"] = 1 << 20
    patience = 2 if arguments.get("load_best_model_at_end") and rng.random() < 0.5 else None
    kind = rng.choice(["records", "records", "mixture", "augmented"])
    return {"method": method, "arguments": arguments, "patience": patience, "records": rng.randint(5, 14), "data": kind}


def training_data(settings: dict[str, Any], folder: Path) -> Any:
    """Make the data set of a run: records, draws of a mixture, or augmented records."""
    count = settings["records"]
    if settings["data"] == "mixture":
        tasks = {"a": Dataset.from_list(tiny_records(count)), "b": Dataset.from_list(tiny_records(4, seed=5))}
        arguments = settings["arguments"]
        examples = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
        return Mixture(tasks, mixture_rates({"a": count, "b": 4})).dataset(examples * arguments["max_steps"])
    if settings["data"] == "augmented":
        task = Task("shop", template="{text}", target="{answer}")
        rows = [{"text": f"the {i} small red shoes fit well", "answer": f"good {i}"} for i in range(count)]
        reworded = augment(rows, task, WordDropout(0.3), cache_folder=folder / "augmented")
        return task.tokenize(reworded.dataset, ByT5Tokenizer())
    return tiny_records(count)


def train(settings: dict[str, Any], folder: Path, *, is_first: bool = True) -> None:
    """Train, or go on, and let the first process write weights and losses to ``folder``."""
    set_seed(1)
    model = METHODS[settings["method"]].wrap(tiny_t5(dropout_rate=0.1))
    arguments = T5PeftTrainingArguments(
        str(folder / "run"), report_to="none", disable_tqdm=True, use_cpu=True, **settings["arguments"]
    )
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(settings["patience"])] if settings["patience"] else []
    trainer = T5PeftTrainer(
        model,
        arguments,
        train_dataset=training_data(settings, folder),
        eval_dataset=tiny_records(4, seed=9) if "eval_strategy" in settings["arguments"] else None,
        callbacks=callbacks,
    )
    newest = newest_resumable(folder / "run") if (folder / "run").is_dir() else None
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if not is_first:
        return
    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}
    save_file(weights, folder / "weights.safetensors")
    losses = [
        {key: value for key, value in line.items() if not any(mark in key for mark in _TIMES)}
        for line in trainer.state.log_history
    ]
    (folder / "losses.json").write_text(json.dumps([line for line in losses if "train_loss" not in line]))


def in_a_process(run: Callable[[], None], kill_after: float | None = None) -> tuple[int, float]:
    """Run a function in a forked process; return its status, negative where it was killed, and its seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            run()
            status = 0
        except BaseException:
            Path("error.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - start


def one(number: int, seed: int) -> dict[str, Any]:
    """Kill and resume the run of this number."""
    rng = random.Random(f"{seed} {number}")
    settings = draw(rng)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        whole, killed = folder / "whole", folder / "killed"
        for path in (whole, killed):
            path.mkdir()
        status, seconds = in_a_process(lambda: train(settings, whole))
        line: dict[str, Any] = {"number": number, **settings, "kills": 0, "finished_before": 0}
        if status:
            return {**line, "outcome": "failed", "error": "whole: " + (folder / "error.txt").read_text()[-600:]}
        for _ in range(rng.choice([1, 1, 2, 3])):
            found, _ = in_a_process(lambda: train(settings, killed), rng.uniform(0.05, 1.1) * seconds)
            line["kills" if found == -signal.SIGKILL else "finished_before"] += 1
            if found > 0:
                return {**line, "outcome": "failed", "error": (folder / "error.txt").read_text()[-600:]}
            if found == 0:
                shutil.rmtree(killed)  # there is nothing left to go on with
                killed.mkdir()
        newest = newest_resumable(killed / "run") if (killed / "run").is_dir() else None
        resumed = None if newest is None else newest.name
        status, _ = in_a_process(lambda: train(settings, killed))
        if status:
            return {**line, "outcome": "failed", "error": (folder / "error.txt").read_text()[-600:]}
        different = compare(whole, killed)
        return {
            **line,
            "outcome": "other" if different else "same",
            "different": different[:3],
            "resumed_from": resumed,
        }


def compare(whole: Path, killed: Path) -> list[str]:
    """Return in what the weights and losses of two runs differ."""
    first, second = (load_file(path / "weights.safetensors") for path in (whole, killed))
    different = [key for key in first if key not in second or not torch.equal(first[key], second[key])]
    losses = [json.loads((path / "losses.json").read_text()) for path in (whole, killed)]
    different += [f"{a} instead of {b}" for b, a in zip(*losses, strict=False) if a != b]
    if len(losses[0]) != len(losses[1]):
        different.append(f"{len(losses[1])} log lines instead of {len(losses[0])}")
    return different


def campaign(count: int, minutes: float, seed: int, outcomes: Path) -> dict[str, Any]:
    """Kill until so many kills were counted, or the time is over; return the counts."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()  # a forked process that collects garbage copies nothing then
    here = Path.cwd()
    numbers = itertools.takewhile(
        lambda _: sum(line["kills"] for line in read_outcomes(path)) < count, itertools.count()
    )
    path = outcomes.resolve()
    lines = go_on(path, numbers, minutes, lambda number: one(number, seed))
    os.chdir(here)
    return {
        "campaign": "kills",
        "seed": seed,
        "runs": len(lines),
        "kills": sum(line["kills"] for line in lines),
        "outcomes": dict(sorted(Counter(line["outcome"] for line in lines).items())),
        "kills_by_method": dict(
            sorted(sum((Counter({line["method"]: line["kills"]}) for line in lines), Counter()).items())
        ),
        "faults": [line for line in lines if line["outcome"] != "same"],
    }


def main() -> None:
    """Run the campaign, print the counts, and write the record."""
    args = parse(__doc__ or "", "kills", 500)
    report(campaign(args.count, args.minutes, args.seed, args.outcomes), args.record)


if __name__ == "__main__":
    main()
