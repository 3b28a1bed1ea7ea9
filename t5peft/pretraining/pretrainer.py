"""The pretraining loop. Batches and dropout are functions of the step, so a stopped run resumes with the same losses.

One step sees ``micro_batches`` batches of span corruption (or prefix language modeling) and ``task_rows`` examples of
self-supervised tasks. Text and tasks have the same weight: each gives a mean over its target tokens. Weights are fp32; with
``precision="bf16"`` matrix products run in bfloat16.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.compat.filesystem import write_whole
from t5peft.data.collate import pad_rows
from t5peft.nn.loss import target_loss
from t5peft.pretraining.corruption import Corruption, corrupt, corruption_for_source, split_prefix
from t5peft.pretraining.optimizers import OptimizerName, make_optimizer, rate_factor
from t5peft.pretraining.selfsupervised import SelfSupervised
from t5peft.pretraining.sentiment import VALENCES, read_valences
from t5peft.pretraining.tokenizer import sentinel_ids
from t5peft.pretraining.tokens import TokenStore

STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"
TASK_ROWS_AT_ONCE = 16  # sorted by length, so that little is padded
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run.

    Attributes:
        source_tokens: Source tokens S of every row, including ``</s>``.
        rows: Rows B of a micro-batch.
        micro_batches: Batches of span corruption in a step.
        task_rows: Examples of self-supervised tasks in a step; 0 for none.
        valences: File of words and their valences (``read_valences``) for the sentiment task; None for a few built-in words.
        objective: Span corruption, or prefix language modeling ("LM adaptation").
        learning_rate: Peak learning rate; None for the default of the optimizer.
        warmup: Steps of linear warm-up.
        decay_start_step: Step at which the inverse square root decay begins.
        steps: Number of steps of the run.
        cooldown: Last steps, over which the learning rate falls linearly to zero.
        precision: Precision of matrix products.
    """

    source_tokens: int = 512
    rows: int = 16
    micro_batches: int = 1
    task_rows: int = 0
    valences: str | None = None
    objective: Literal["spans", "prefix"] = "spans"
    optimizer: OptimizerName = "adafactor"
    learning_rate: float | None = None
    warmup: int = 100
    decay_start_step: int = 1000
    steps: int = 1000
    cooldown: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = 10
    eval_every: int = 200
    save_every: int = 200

    def __post_init__(self) -> None:
        counts = (
            "source_tokens",
            "rows",
            "micro_batches",
            "decay_start_step",
            "steps",
            "log_every",
            "eval_every",
            "save_every",
        )
        wrong = [f"{name}={getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        wrong += [
            f"{name}={getattr(self, name)}" for name in ("task_rows", "warmup", "cooldown") if getattr(self, name) < 0
        ]
        if wrong:
            raise ValueError(f"Got {', '.join(wrong)} for PretrainConfig; expected positive whole numbers.")


class Pretrainer:
    """Train ``model`` in place on a token store; the state and the log are in ``directory``."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        store: TokenStore,
        config: PretrainConfig,
        directory: Path,
        *,
        held_out: TokenStore | None = None,
        report: Callable[[dict[str, Any]], None] = lambda entry: None,
    ) -> None:
        self.model, self.tokenizer, self.store, self.config = model, tokenizer, store, config
        self.directory, self.held_out, self.report = directory, held_out, report
        self.device = next(model.parameters()).device
        self.sentinels = np.array(sentinel_ids(tokenizer))
        self.plan = _plan(config, len(self.sentinels))
        if held_out is not None:
            try:
                held_out.rows(0, 1, self.plan.raw_tokens, 0)
            except ValueError as error:
                raise ValueError(
                    f"Got a held-out text that is too short; expected two rows of tokens. {error}"
                ) from error
        valences = VALENCES if config.valences is None else read_valences(config.valences)
        self.tasks = SelfSupervised(store, tokenizer, valences) if config.task_rows else None
        self.optimizer = make_optimizer(model, config.optimizer, config.learning_rate)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.tokens_seen = 0

    def train(self, *, until: int | None = None, seconds: float | None = None) -> None:
        """Train to step ``until`` (None for the last), for at most ``seconds``, and save the state."""
        self.directory.mkdir(parents=True, exist_ok=True)
        end = min(self.config.steps, until or self.config.steps)
        started = time.perf_counter()
        window_tokens, window_start, losses = 0, time.perf_counter(), []
        if self.step and not any("held_out_loss" in line for line in self._lines() if line["step"] == self.step):
            self._evaluate()  # what an interruption after the state was saved has left out
        while self.step < end and (seconds is None or time.perf_counter() - started < seconds):
            loss, tokens = self._step()
            losses.append(loss)
            window_tokens += tokens
            if self.step % self.config.log_every == 0:
                elapsed = time.perf_counter() - window_start
                self._log(loss=sum(losses) / len(losses), tokens_per_second=window_tokens / elapsed)
                window_tokens, window_start, losses = 0, time.perf_counter(), []
            if self.step % self.config.save_every == 0:
                self.save_state()
            self._evaluate()
        self.save_state()

    def _evaluate(self) -> None:
        if self.held_out is not None and self.step % self.config.eval_every == 0:
            self._log(held_out_loss=self.held_out_loss())

    def _step(self) -> tuple[float, int]:
        """Make one update; return the mean loss of the text, and the number of source and target tokens."""
        self.model.train()
        # Seed dropout by the step, so that it does not depend on where a run began.
        torch.manual_seed(int(np.random.SeedSequence((self.config.seed, self.step)).generate_state(1)[0]))
        config = self.config
        factor = rate_factor(
            self.step,
            warmup=config.warmup,
            decay_start_step=config.decay_start_step,
            steps=config.steps,
            cooldown=config.cooldown,
        )
        for parameters, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            parameters["lr"] = rate * factor
        groups = self.groups(self.step)
        means, seen = [], 0
        for group in groups:
            targets = sum(_targets(batch) for batch in group)
            total = 0.0
            for batch in group:
                with self._autocast():
                    loss, _ = target_loss(self.model, batch)
                (loss / (targets * len(groups))).backward()
                total += loss.item()
                seen += int(batch["attention_mask"].sum())
            means.append(total / targets)
            seen += targets
        if not all(map(math.isfinite, means)):
            raise FloatingPointError(
                f"Got a loss of {sum(means)} at step {self.step}; expected a finite one. Lower the learning rate and resume."
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens_seen += seen
        return means[0], seen

    def groups(self, step: int) -> list[list[Batch]]:
        """Return the micro-batches of ``step``: those of text, then those of tasks. They depend only on the step."""
        config = self.config
        text = []
        for index in range(config.micro_batches):
            generator = np.random.default_rng((config.seed, step, index))
            first = (step * config.micro_batches + index) * config.rows
            rows = self.store.rows(first, config.rows, self.plan.raw_tokens, config.seed)
            text.append(self._tensors(*self._objective(rows, generator)))
        if self.tasks is None:
            return [text]
        generator = np.random.default_rng((config.seed, step, config.micro_batches))
        pairs = sorted((self.tasks.pair(generator) for _ in range(config.task_rows)), key=lambda pair: len(pair[0]))
        cuts = [pairs[first : first + TASK_ROWS_AT_ONCE] for first in range(0, len(pairs), TASK_ROWS_AT_ONCE)]
        return [text, [self._tensors(*(pad_rows(ids, -1).numpy() for ids in zip(*cut, strict=True))) for cut in cuts]]

    def _objective(self, rows: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        eos = self.tokenizer.eos_token_id
        if self.config.objective == "prefix":
            return split_prefix(rows, eos, generator)
        return corrupt(rows, self.plan, self.sentinels, eos, generator)

    def _tensors(self, source: np.ndarray, target: np.ndarray) -> Batch:
        inputs = torch.from_numpy(source).to(self.device)
        labels = torch.from_numpy(target).to(self.device)
        return {
            "input_ids": inputs.clamp_min(0),
            "attention_mask": (inputs >= 0).long(),
            "labels": labels.masked_fill(labels < 0, -100),
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @torch.no_grad()
    def held_out_loss(self, *, rows: int = 256) -> float:
        """Return the mean loss in nats per target token over ``rows`` corrupted rows, the same ones in every call."""
        if self.held_out is None:
            raise ValueError("Got no held-out text; expected one. Give held_out to Pretrainer.")
        self.model.eval()
        total, count = 0.0, 0
        for first in range(0, rows, self.config.rows):
            generator = np.random.default_rng((1, first))
            size = min(self.config.rows, rows - first)
            batch = self._tensors(*self._objective(self.held_out.rows(first, size, self.plan.raw_tokens, 0), generator))
            with self._autocast():
                loss, tokens = target_loss(self.model, batch)
            total, count = total + loss.item(), count + tokens
        return total / count

    def _log(self, **values: float) -> None:
        entry = {"step": self.step, "tokens_seen": self.tokens_seen, **{k: round(v, 4) for k, v in values.items()}}
        with (self.directory / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.report(entry)

    def save_state(self) -> None:
        """Write weights, optimizer and counters. A crash while writing leaves the previous state."""
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / (STATE_FILE + ".part")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.config.optimizer,
            "step": self.step,
            "tokens_seen": self.tokens_seen,
        }
        torch.save(state, temporary)
        os.replace(temporary, self.directory / STATE_FILE)

    def resume(self) -> bool:
        """Continue from the state in ``directory``.

        Returns:
            Whether there was a state.

        Raises:
            ValueError: The state belongs to another optimizer, or to a model of another shape.
        """
        path = self.directory / STATE_FILE
        if not path.is_file():
            self._cut_log()
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        saved, own = state.get("optimizer_name", self.config.optimizer), self.config.optimizer
        if saved != own:
            raise ValueError(
                f"Got optimizer={own!r} for {path}; expected {saved!r}, with which the run began. Use that, or another folder."
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(
                f"Got a model that does not fit {path} ({str(error).splitlines()[1].strip():.100}...); expected the backbone or "
                "the shape with which the run began. Use that, or another folder."
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens_seen = state["step"], state["tokens_seen"]
        self._cut_log()
        return True

    def _cut_log(self) -> None:
        """Drop the lines of steps after the state, which come again, and one that was not finished."""
        if lines := self._lines():
            kept = [line for line in lines if line["step"] <= self.step]
            write_whole(self.directory / LOG_FILE, "".join(f"{json.dumps(line)}\n" for line in kept))

    def _lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log, without one that was not finished.

        After an error of the disk Python writes the buffer once more, behind the part that was written.
        """
        path = self.directory / LOG_FILE
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines


def _plan(config: PretrainConfig, sentinels: int) -> Corruption:
    plan = corruption_for_source(config.source_tokens)
    if config.objective == "spans" and plan.spans > sentinels:
        raise ValueError(
            f"Got source_tokens={config.source_tokens} and a tokenizer with {sentinels} sentinels; expected {plan.spans} "
            "sentinels. Take fewer source tokens."
        )
    return plan


def _targets(batch: Batch) -> int:
    return int((batch["labels"] >= 0).sum())
