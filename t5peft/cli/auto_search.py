"""Successive halving over methods and learning rates within a time, resumable after every trial.

All methods are trained for few steps at one rate each. The better half tries the next higher rate, or the next lower one where this
is not better, and so on as long as the loss falls: a rate is tried only beside the best one of its method. The better third of
all that was tried is trained for more steps, and the best two take as much time as two rungs (Jamieson and Talwalkar 2016). Every
trial begins anew, so that its learning rate falls to zero within its own steps. ``t5peft.training.search`` draws the rates of one
method; here methods compete too, and the time is fixed and not the number of trials.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5peft.adapters import save_adapter, save_model
from t5peft.adapters.checkpoints import newest_complete
from t5peft.benchmark.statistics import paired_bootstrap
from t5peft.cli.auto_trials import Arm, Trial, TrialLog
from t5peft.data import Task
from t5peft.data.sources import part_of
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import EvaluationSet
from t5peft.methods import METHODS
from t5peft.training.config import TrainConfig
from t5peft.training.train import Splits, train

PROBE_STEPS, PROBE_RECORDS, PROBE_SHARE = 6, 32, 0.15
FINAL_EVALUATIONS = 4
RUNG_RECORDS = 100  # of validation, for the losses of all rungs but the last
LEAST_STEPS = 20  # of a first trial; with fewer, the losses tell nothing
MOST_EPOCHS = 30
FACTORS = (
    1.0,
    3.0,
    10.0,
    30.0,
)  # of the rate of a method, which is where published ones start; small backbones take more
FIRST_FACTORS = {"full": 10.0, "houlsby": 10.0, "ia3": 10.0, "prefix": 10.0}
"""The factor that is tried first, which is nearest to the best rates in benchmarks/RESULTS.md; for other methods 3."""


class Halving:
    """A search over methods and learning rates.

    Args:
        task: The task.
        splits: Training and validation records.
        config: What all trials share.
        methods: Names of methods, the most promising first, with changes of the config for each.
        folder: Where the trials are kept.
        log: Finished trials.
        tell: Gets one line for each trial.
    """

    def __init__(
        self,
        task: Task,
        splits: Splits,
        config: TrainConfig,
        methods: Mapping[str, Mapping[str, Any]],
        folder: Path,
        log: TrialLog,
        tell: Callable[[str], None],
    ) -> None:
        self.task, self.splits, self.config, self.methods = task, splits, config, methods
        self.folder, self.log, self.tell = folder, log, tell
        self.lead = METRICS[task.metrics[0]].lead
        validation = [dict(record) for record in splits["validation"]]
        few = random.Random(0).sample(validation, min(RUNG_RECORDS, len(validation)))
        self._few = part_of(splits["validation"], few)

    def run(self, seconds: float) -> Trial:
        """Search for about ``seconds``, those of earlier calls included.

        Args:
            seconds: The time for all trials.

        Returns:
            The best finalist; its model is in ``saved(trial)``.

        Raises:
            ValueError: No method could be trained.
        """
        probes: dict[str, Trial] = {}
        for name in self.methods:
            if len(probes) < 2 or sum(probe.seconds for probe in probes.values()) < PROBE_SHARE * seconds:
                probes[name] = self._trial(0, Arm(name, METHODS[name].learning_rate), PROBE_STEPS, math.inf)
        works = {name: probe for name, probe in probes.items() if probe.loss is not None}
        if not works:
            reasons = "; ".join(f"{name}: {probe.error}" for name, probe in probes.items())
            raise ValueError(f"Got no method that could be trained ({reasons}); expected at least one.")
        left = max(1.0, seconds - sum(probe.seconds for probe in probes.values()))
        arms = [self._arm(name, _first_place(name)) for name in works]  # the last ones are given up where time is short
        rung, known = 0, list(works.values())
        while True:
            rung += 1
            if rung not in self.log.rungs:
                arms, steps = self._affordable(arms, known, left, first=rung == 1)
                self.log.plan(rung, steps, arms)
            steps, arms = self.log.rungs[rung]
            last = rung > 1 and len(arms) <= 2
            share = self._share(len(arms), left, first=rung == 1)
            began = [self._trial(rung, arm, steps, 1.5 * share / len(arms), final=last) for arm in arms]
            if rung == 1:
                began += self._other_rates(began, steps, share)
            left = max(1.0, left - sum(trial.seconds for trial in began))
            done = sorted((trial for trial in began if trial.loss is not None), key=_loss)
            if not done:
                raise ValueError("Got trials none of which had a finite loss; expected at least one.")
            if last:
                return self._best(done)
            known = done
            arms = [trial.arm for trial in done[: max(2, math.ceil(len(done) / 3))]]

    def _other_rates(self, first: Sequence[Trial], steps: int, seconds: float) -> list[Trial]:
        """Try other rates of the better half of the methods, the best one first, for about ``seconds``.

        Args:
            first: The trial of each method.
            steps: As many as those took.
            seconds: The time.

        Returns:
            The trials.
        """
        tried: list[Trial] = []
        better = sorted((trial for trial in first if trial.loss is not None), key=_loss)
        for start in better[: max(1, math.ceil(len(first) / 2))]:
            best, place = start, _first_place(start.arm.method)
            for direction in (1, -1):
                while 0 <= place + direction < len(FACTORS):
                    if sum(trial.seconds for trial in tried) + start.seconds > seconds:
                        return tried
                    arm = self._arm(start.arm.method, place + direction)
                    tried.append(self._trial(1, arm, steps, max(2 * start.seconds, 1.0)))
                    if _loss(tried[-1]) >= _loss(best):
                        break
                    best, place = tried[-1], place + direction
                if best is not start:
                    break  # higher rates are better, so lower ones are not
        return tried

    def _best(self, finalists: Sequence[Trial]) -> Trial:
        """Return the finalist with the lowest loss, unless one scores clearly better on the validation records.

        The loss tells more of few records than a score does.
        """
        best = finalists[0]
        for other in finalists[1:]:
            scores = np.array([other.examples]), np.array([best.examples])
            if paired_bootstrap(scores).low > 0:
                best = other
        return best

    def saved(self, trial: Trial) -> Path:
        """Return the folder of a finalist's adapter or model.

        Args:
            trial: A finalist.

        Returns:
            The folder.
        """
        return self._run_folder(trial.rung, trial.arm) / "saved"

    @staticmethod
    def _arm(method: str, place: int) -> Arm:
        return Arm(method, float(f"{METHODS[method].learning_rate * FACTORS[place]:.3g}"))

    @staticmethod
    def _share(arms: int, left: float, *, first: bool) -> float:
        """Return the part of the time that is left for a rung of so many arms. All rungs take the same, the last one twice.

        Of the first rung it is half, as other rates take the other half, with as many arms again.
        """
        size, rungs = (max(2, math.ceil(2 * arms / 3)), 2) if first else (arms, 1)
        while size > 2:
            rungs, size = rungs + 1, max(2, math.ceil(size / 3))
        share = left if rungs == 1 else left / (rungs + 1)
        return share / 2 if first else share

    def _affordable(
        self, arms: Sequence[Arm], known: Sequence[Trial], left: float, *, first: bool
    ) -> tuple[list[Arm], int]:
        """Return the arms that get enough steps in their share of the time, and these steps.

        Args:
            arms: Those that could be trained.
            known: The trials before, which tell the times. An evaluation, and what stands beside training, takes about the same
                time for all methods; the median leaves out what only the first trials pay.
            left: The time.
            first: Whether it is the first rung.
        """
        chosen = list(arms)
        examples = len(self.splits["train"])
        most = max(LEAST_STEPS, math.ceil(MOST_EPOCHS * examples / self.config.batch_size))
        step_seconds = {trial.arm.method: trial.step_seconds for trial in known}
        evaluation = statistics.median(trial.evaluation_seconds for trial in known)
        evaluation /= len(self._few[:PROBE_RECORDS] if first else self._few)
        beside = statistics.median(
            max(0.0, trial.seconds - trial.steps * trial.step_seconds - trial.evaluation_seconds) for trial in known
        )
        while True:
            final = len(chosen) <= 2 and not first
            records = (FINAL_EVALUATIONS + 1) * len(self.splits["validation"]) if final else len(self._few)
            fixed = len(chosen) * (beside + records * evaluation)
            share = self._share(len(chosen), left, first=first)
            steps = int((share - fixed) / sum(step_seconds[arm.method] for arm in chosen))
            if steps >= LEAST_STEPS or len(chosen) == 1 or not first:
                return chosen, max(LEAST_STEPS, min(steps, most))
            chosen.pop()

    def _trial(self, rung: int, arm: Arm, steps: int, seconds: float, *, final: bool = False) -> Trial:
        """Return the trial, which is run unless the log has it."""
        if (rung, arm) in self.log.trials:
            return self.log.trials[rung, arm]
        folder = self._run_folder(rung, arm)
        evaluations = FINAL_EVALUATIONS if final else 1
        config = replace(
            self.config,
            method=arm.method,
            learning_rate=arm.learning_rate,
            steps=steps,
            evaluations=evaluations,
            **self.methods[arm.method],
        )
        trial = self._run(rung, arm, config, folder, seconds, final=final)
        if not final:
            shutil.rmtree(folder, ignore_errors=True)
        self.log.add(trial)
        name = "probe" if rung == 0 else f"rung {rung}"
        found = trial.error or f"validation loss {trial.loss:.4f}"
        score = "" if trial.score is None else f", {self.lead} {trial.score:.4f}"
        self.tell(f"{name}: {arm}, {steps} steps, {trial.seconds:.0f} s: {found}{score}")
        return trial

    def _run(self, rung: int, arm: Arm, config: TrainConfig, folder: Path, seconds: float, *, final: bool) -> Trial:
        watch, began, trained = _Watch(seconds), time.monotonic(), 0
        result = error = None
        few = self._few if rung else self._few[:PROBE_RECORDS]
        splits = self.splits if final else {**self.splits, "validation": few}
        resume = final and newest_complete(folder) is not None
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a line for each step
                model, tokenizer = train(
                    self.task, splits, config, folder, resume=resume, overwrite=not resume, callbacks=[watch]
                )
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            if final:
                result = EvaluationSet(self.task, self.splits["validation"], tokenizer).score(model)
                if METHODS[arm.method].has_adapter:
                    save_adapter(cast(PeftModel, model), folder / "saved")
                else:
                    save_model(cast(PreTrainedModel, model), folder / "saved", tokenizer=tokenizer)
        except (FloatingPointError, torch.OutOfMemoryError, ValueError, ImportError) as problem:
            error = " ".join(str(problem).split())[:200]
        loss = watch.loss if error is None and math.isfinite(watch.loss) else None
        return Trial(
            rung=rung,
            arm=arm,
            steps=watch.step or cast(int, config.steps),
            loss=loss,
            score=None if result is None else result.scores[self.lead],
            examples=() if result is None else tuple(result.per_example),
            seconds=time.monotonic() - began,
            step_seconds=watch.step_seconds,
            evaluation_seconds=watch.evaluation_seconds,
            trained=trained,
            error=error if error or loss is not None else "the loss is not finite",
        )

    def _run_folder(self, rung: int, arm: Arm) -> Path:
        return self.folder / f"{rung}-{arm.method}-{arm.learning_rate:g}"


class _Watch(TrainerCallback):
    """Times the steps, keeps the lowest loss, and ends a training that takes longer than it may."""

    def __init__(self, seconds: float) -> None:
        self.loss, self.step, self.step_seconds, self.evaluation_seconds = math.inf, 0, 0.0, 0.0
        self._until, self._last, self._times = time.monotonic() + seconds, 0.0, list[float]()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time."""
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; ask for the end when the time is over."""
        self._times.append(time.monotonic() - self._last)
        self.step = state.global_step
        # The first step also builds what later ones use.
        self.step_seconds = sum(self._times[1:]) / max(1, len(self._times) - 1) or self._times[0]
        if time.monotonic() > self._until:
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the lowest loss, of earlier parts of a resumed training too."""
        self.evaluation_seconds = (metrics or {}).get("eval_runtime", 0.0)
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        self.loss = min([self.loss, *losses, (metrics or {}).get("eval_loss", math.inf)])


def _first_place(method: str) -> int:
    return FACTORS.index(FIRST_FACTORS.get(method, 3.0))


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss
