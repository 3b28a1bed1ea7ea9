"""Train and serve for long, and look at memory, handles and threads.

    python tests/torture/soak.py --minutes 20 --record benchmarks/records/torture/soak.json

``--count`` optimizer steps with evaluations, checkpoints and rotation, then five times as many served requests, each for at
most half of the time. Resident memory is sampled a hundred times. The growth is that of its median from the second tenth of the
samples to the last one.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
sys.path.insert(0, str(Path(__file__).parent))
import psutil
import torch
from campaign import Line, parse, report
from tiny import tiny_records, tiny_t5
from transformers import TrainerCallback

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, lora_wrap

SAMPLES = 100
MOST_GROWTH = 0.02


class Samples:
    """Resident memory over the course of something."""

    def __init__(self, count: int) -> None:
        self.every = max(1, count // SAMPLES)
        self.bytes: list[int] = []

    def at(self, number: int) -> None:
        """Take a sample if one is due."""
        if number % self.every == 0:
            self.bytes.append(psutil.Process().memory_info().rss)

    def growth(self) -> float:
        """Return the growth after the first tenth, as a share."""
        tenth = max(1, len(self.bytes) // 10)
        first, last = self.bytes[tenth : 2 * tenth], self.bytes[-tenth:]
        return statistics.median(last) / statistics.median(first or last) - 1


@contextmanager
def left() -> Iterator[dict[str, int]]:
    """Count the handles and threads that are left after the block."""
    process, found = psutil.Process(), dict[str, int]()
    handles, threads = process.num_fds(), threading.active_count()
    yield found
    gc.collect()
    found |= {"handles_left": process.num_fds() - handles, "threads_left": threading.active_count() - threads}
    if found["threads_left"]:
        print([thread.name for thread in threading.enumerate()], file=sys.stderr)


class _Watch(TrainerCallback):
    def __init__(self, samples: Samples, end: float) -> None:
        self.samples, self.end = samples, end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.samples.at(state.global_step)
        control.should_training_stop = control.should_training_stop or time.monotonic() > self.end


def training(steps: int, minutes: float) -> Line:
    """Train so many steps, or so many minutes."""
    samples = Samples(steps)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, left() as found:
        every = max(1, steps // 100)
        arguments = T5PeftTrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-4, eval_strategy="steps", eval_steps=every,
            save_steps=every, save_total_limit=2, load_best_model_at_end=True, logging_steps=every, report_to="none",
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        watch = _Watch(samples, start + 60 * minutes)
        model = lora_wrap(tiny_t5(dropout_rate=0.1), rank=2)
        data: dict[str, Any] = {"train_dataset": tiny_records(50), "eval_dataset": tiny_records(8, seed=3)}
        trainer = T5PeftTrainer(model, arguments, **data, callbacks=[watch])
        trainer.train()
        reached = trainer.state.global_step
        checkpoints = len(list(Path(folder).glob("checkpoint-*")))
        del trainer, model, watch
    return _result("steps", reached, samples, start, found) | {"checkpoints_left": checkpoints}


def serving(requests: int, minutes: float) -> Line:
    """Answer so many requests, by several adapters, or for so many minutes."""
    from served_folder import write_folder

    from t5peft.models.backbone import load_backbone
    from t5peft.serving.engine import Engine
    from t5peft.serving.pool import AdapterPool
    from t5peft.serving.requests import GenerateRequest
    from t5peft.serving.scheduler import Limits

    samples = Samples(requests)
    with tempfile.TemporaryDirectory() as folder, left() as found:
        base = write_folder(Path(folder))
        model, tokenizer = load_backbone(base / "base")
        start = time.monotonic()
        with Engine(AdapterPool(model, base / "adapters", tokenizer=tokenizer), Limits()) as engine:
            names = ("lora", "beams", "labels", "plain", None)

            def submit(number: int) -> Any:
                ids = [3 + (number * k) % 200 for k in range(1, 3 + number % 7)] + [1]
                return engine.submit(GenerateRequest(names[number % len(names)], ids, 1 + number % 4))

            reached, wrong = _answer_all(submit, requests, start + 60 * minutes, samples)
        del model
    return _result("requests", reached, samples, start, found) | {"wrong": wrong}


def _answer_all(submit: Callable[[int], Any], count: int, end: float, samples: Samples) -> tuple[int, int]:
    """Keep some requests in flight; each kind must always have the same answer."""
    waiting: deque[tuple[int, Any]] = deque()
    answers: dict[int, list[int]] = {}
    reached = wrong = 0
    for number in range(count):
        waiting.append((number, submit(number)))
        if number % 97 == 0:
            waiting[-1][1].cancel()
            waiting.pop()
        while waiting and (len(waiting) >= 32 or number == count - 1):
            first, ticket = waiting.popleft()
            ids = ticket.result.result(60).ids
            wrong += ids != answers.setdefault(first % 4200, ids)
            reached += 1
        samples.at(number)
        if time.monotonic() > end:
            break
    for _, ticket in waiting:
        ticket.result.result(60)
        reached += 1
    return reached, wrong


def _result(what: str, reached: int, samples: Samples, start: float, found: dict[str, int]) -> Line:
    return {
        what: reached,
        "seconds": round(time.monotonic() - start, 1),
        "resident_bytes_at_the_end": samples.bytes[-1] if samples.bytes else 0,
        "growth_after_the_first_tenth": round(samples.growth(), 4) if len(samples.bytes) > 2 else None,
        **found,
    }


def campaign(steps: int, minutes: float) -> Line:
    """Train and serve; return what was reached, and what grew."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: Line = {
        "campaign": "soak",
        "training": training(steps, minutes / 2),
        "serving": serving(5 * steps, minutes / 2),
    }
    found["faults"] = [
        {"part": name, **found[name]}
        for name in ("training", "serving")
        if (found[name]["growth_after_the_first_tenth"] or 0) > MOST_GROWTH
        or found[name]["handles_left"] > 0
        or found[name]["threads_left"] > 0
        or found[name].get("wrong")
    ]
    return found


def main() -> None:
    """Train and serve, print the figures, and write the record."""
    args = parse(__doc__ or "", "soak", 20_000)
    report(campaign(args.count, args.minutes), args.record)


if __name__ == "__main__":
    main()
