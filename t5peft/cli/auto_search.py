"""Choose a method and a learning rate within a time, resumable after every trial.

Most of the time belongs to the model that is kept; two fifths of it choose. Every method that there is time for is trained for few
steps at one rate. The better half tries the next higher rate, or the next lower one where this is not better, and so on as long as
the loss falls. A high rate is ahead in short trials and behind in long ones, so higher rates are tried only where the best one will
not train much longer. The better third of all that was tried is trained for at least twice as many steps, if there is time for them
(successive halving, Jamieson and Talwalkar 2016). The best one then takes all that is left. Where its training ends earlier, the
next ones are trained as long, and the one with the best score is kept. Every trial begins anew, so that its learning rate falls to
zero within its own steps. ``t5peft.training.search`` draws the rates of one method; here methods compete too, and the time is fixed
and not the number of trials.
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

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5peft.adapters import save_adapter, save_model
from t5peft.adapters.checkpoints import newest_complete
from t5peft.cli.auto_trials import Arm, Trial, TrialLog
from t5peft.data import Task
from t5peft.data.sources import part_of
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import EvaluationSet
from t5peft.methods import METHODS
from t5peft.training.config import TrainConfig
from t5peft.training.train import Splits, train

PROBE_STEPS, PROBE_RECORDS = 6, 32
CHOOSING = 0.4  # of the time: a quarter of it for methods, one for rates, and half for more steps
EVALUATING = 0.25  # of the time of a finalist, at most, for its score on validation
MOST_EVALUATIONS, LEAST_SCORED = 4, 30  # checkpoints of a finalist, and records that tell them apart
PROBE_SCORED = 8
HIGHER_RATES = 4  # times the steps of a trial: as many may follow where a higher rate that won it is taken
RUNG_RECORDS = 100  # of validation, for the losses of all trials but the finalists
LEAST_STEPS = 20  # of a first trial; with fewer, the losses tell nothing
MOST_EPOCHS = 15
# Of the rate of a method, which is where published ones start; small backbones take more.
FACTORS = (1.0, 3.0, 10.0, 30.0)
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
        self._validation = random.Random(0).sample(validation, len(validation))
        self._few = part_of(splits["validation"], self._validation[:RUNG_RECORDS])
        self._final, self._evaluations = self._few, MOST_EVALUATIONS

    def run(self, seconds: float) -> Trial:
        """Search for about ``seconds``, those of earlier calls included.

        Args:
            seconds: The time for all trials.

        Returns:
            The best finalist; its model is in ``saved(trial)``.

        Raises:
            ValueError: No method could be trained.
        """
        probes = self._probes()
        left = max(1.0, seconds - sum(probe.seconds for probe in probes))
        share = CHOOSING * left / 4
        failed = {probe.arm.method for probe in probes[:-1]}
        arms = [self._arm(name, _first_place(name)) for name in self.methods if name not in failed]
        steps, arms = self._plan(1, arms, probes[-1:], share, LEAST_STEPS)
        tried = [self._trial(1, arm, steps, 1.5 * share / len(arms)) for arm in arms]
        tried += self._other_rates(tried, steps, share, left - 4 * share)
        left -= sum(trial.seconds for trial in tried)
        ranked = _ranked(tried)
        better = [trial.arm for trial in ranked[: max(2, math.ceil(len(ranked) / 3))]]
        steps, arms = self._plan(2, better, ranked, 2 * share, 2 * steps)
        if len(arms) > 1:
            tried = [self._trial(2, arm, steps, 3 * share / len(arms)) for arm in arms]
            left -= sum(trial.seconds for trial in tried)
            ranked = _ranked(tried)
        return max(self._finalists(ranked, left), key=self._quality)

    def _probes(self) -> list[Trial]:
        """Return trials of a few steps, up to the first method that can be trained: it tells how long a step takes."""
        probes: list[Trial] = []
        for name in self.methods:
            probes.append(self._trial(0, Arm(name, METHODS[name].learning_rate), PROBE_STEPS, math.inf))
            if probes[-1].loss is not None:
                return probes
        reasons = "; ".join(f"{probe.arm.method}: {probe.error}" for probe in probes)
        raise ValueError(f"Got no method that could be trained ({reasons}); expected at least one.")

    def _other_rates(self, first: Sequence[Trial], steps: int, seconds: float, left: float) -> list[Trial]:
        """Try other rates of the better half of the methods, the best one first, for about ``seconds``.

        Args:
            first: The trial of each method.
            steps: As many as those took.
            seconds: The time.
            left: The time of the best one, which tells how many steps it will take.

        Returns:
            The trials.
        """
        tried: list[Trial] = []
        better = sorted((trial for trial in first if trial.loss is not None), key=_loss)
        for start in better[: max(1, math.ceil(len(first) / 2))]:
            best, place = start, _first_place(start.arm.method)
            to_come = min(self._most_steps, left / start.step_seconds)
            for direction in (1, -1) if to_come <= HIGHER_RATES * steps else (-1,):
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

    def _finalists(self, ranked: Sequence[Trial], left: float) -> list[Trial]:
        """Train the best arm in all of the time that is left, and then the next ones as long as there is time for as many steps.

        Args:
            ranked: The arms, the best one first.
            left: The time in seconds.

        Returns:
            The finalists.
        """
        done: list[Trial] = []
        steps = 0
        self._evaluations, records = self._affordable_evaluations(left)
        self._final = part_of(self.splits["validation"], self._validation[:records])
        for trial in ranked:
            fixed = self._beside(ranked) + (self._evaluations + 1) * records * self._scoring
            affordable = min(self._most_steps, int((left - fixed) / trial.step_seconds))
            if any(finalist.loss is not None for finalist in done) and affordable < steps:
                break
            steps = steps or max(LEAST_STEPS, affordable)
            done.append(self._trial(3, trial.arm, steps, max(left, 1.0), final=True))
            left -= done[-1].seconds
        return _ranked(done)

    def _affordable_evaluations(self, seconds: float) -> tuple[int, int]:
        """Return the checkpoints of a finalist and the validation records that score each, for its share of the time.

        Long answers take seconds each, so that all records would leave no time to train.

        Args:
            seconds: The time of the finalist.

        Returns:
            The number of checkpoints and of records.
        """
        for evaluations in range(MOST_EVALUATIONS, 0, -1):
            records = int(EVALUATING * seconds / ((evaluations + 1) * self._scoring))
            if records >= min(LEAST_SCORED, len(self._validation)):
                break
        return evaluations, min(len(self._validation), max(LEAST_SCORED, records))

    @property
    def _scoring(self) -> float:
        """The seconds that the score of a record takes, as the probe found."""
        probe = next(trial for trial in self.log.trials.values() if trial.rung == 0 and trial.loss is not None)
        return max(probe.score_seconds / min(PROBE_SCORED, len(self._validation)), 1e-6)

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

    def _quality(self, finalist: Trial) -> tuple[float, float]:
        """Return what is higher for the better finalist: its score on validation, and the loss where scores are equal."""
        score = math.nan if finalist.score is None else finalist.score
        return (score if METRICS[self.task.metrics[0]].greater_is_better else -score), -_loss(finalist)

    @property
    def _most_steps(self) -> int:
        return max(LEAST_STEPS, math.ceil(MOST_EPOCHS * len(self.splits["train"]) / self.config.batch_size))

    def _evaluation(self, known: Sequence[Trial]) -> float:
        """Return the seconds of an evaluation for each record, which all methods need about alike."""
        records = PROBE_RECORDS if known[0].rung == 0 else RUNG_RECORDS
        return statistics.median(trial.evaluation_seconds for trial in known) / len(self._few[:records])

    @staticmethod
    def _beside(known: Sequence[Trial]) -> float:
        """Return the seconds that stand beside steps and evaluations; the median leaves out what only a first trial pays."""
        return statistics.median(
            max(0.0, trial.seconds - trial.steps * trial.step_seconds - trial.evaluation_seconds - trial.score_seconds)
            for trial in known
        )

    def _plan(
        self, rung: int, arms: Sequence[Arm], known: Sequence[Trial], seconds: float, least: int
    ) -> tuple[int, list[Arm]]:
        """Return as many steps as fit into the time, and the first arms, as many as get at least ``least`` steps.

        One arm takes no more than half of the time: with few steps, there are others to try.

        Args:
            rung: Its number.
            arms: Those that could be trained, the most promising first.
            known: The trials before, which tell the times. A method that was not tried yet takes those of the slowest.
            seconds: The time.
            least: Of the steps, unless one arm is left.

        Returns:
            The steps and the arms.
        """
        if rung not in self.log.rungs:
            chosen = list(arms)
            times = {trial.arm.method: trial.step_seconds for trial in known}
            fixed = self._beside(known) + len(self._few) * self._evaluation(known)
            while True:
                step = statistics.mean(times.get(arm.method, max(times.values())) for arm in chosen)
                steps = min(self._most_steps, int((seconds / max(2, len(chosen)) - fixed) / step))
                if steps >= least or len(chosen) == 1:
                    break
                chosen.pop()
            self.log.plan(rung, max(LEAST_STEPS, steps), chosen)
        return self.log.rungs[rung]

    def _trial(self, rung: int, arm: Arm, steps: int, seconds: float, *, final: bool = False) -> Trial:
        """Return the trial, which is run unless the log has it."""
        if (rung, arm) in self.log.trials:
            return self.log.trials[rung, arm]
        folder = self._run_folder(rung, arm)
        # In a long training the loss of labels rises again while more of them are right, so the score decides.
        kept = {"evaluations": self._evaluations, "best_metric": self.task.metrics[0]} if final else {"evaluations": 1}
        config = replace(
            self.config,
            method=arm.method,
            learning_rate=arm.learning_rate,
            steps=steps,
            **kept,
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
        watch, began, trained, score_seconds = _Watch(seconds), time.monotonic(), 0, 0.0
        result = error = None
        few = self._final if final else self._few if rung else self._few[:PROBE_RECORDS]
        splits = {**self.splits, "validation": few}
        resume = final and newest_complete(folder) is not None
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a line for each step
                model, tokenizer = train(
                    self.task, splits, config, folder, resume=resume, overwrite=not resume, callbacks=[watch]
                )
            trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            if rung == 0:
                scored, before = EvaluationSet(self.task, few[:PROBE_SCORED], tokenizer), time.monotonic()
                scored.score(model)
                score_seconds = time.monotonic() - before
            if final:
                result = EvaluationSet(self.task, few, tokenizer).score(model)
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
            seconds=time.monotonic() - began,
            step_seconds=watch.step_seconds,
            evaluation_seconds=watch.evaluation_seconds,
            score_seconds=score_seconds,
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


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials with a finite loss, the lowest first."""
    done = sorted((trial for trial in trials if trial.loss is not None), key=_loss)
    if not done:
        raise ValueError("Got trials none of which had a finite loss; expected at least one.")
    return done
