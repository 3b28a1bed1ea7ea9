"""Successive halving over methods and learning rates within a time, resumable after every trial.

All arms are trained for few steps, the better third for more, and the best two for most of the time (Jamieson and Talwalkar
2016). Every trial begins anew, so that its learning rate falls to zero within its own steps. ``t5peft.training.search`` draws
the rates of one method; here methods compete too, and the time is fixed and not the number of trials.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5peft.adapters import save_adapter, save_model
from t5peft.benchmark.json_lines import JsonLines
from t5peft.benchmark.statistics import paired_bootstrap
from t5peft.data import Task
from t5peft.data.sources import part_of
from t5peft.evaluation import METRICS
from t5peft.evaluation.scores import EvaluationSet
from t5peft.methods import METHODS
from t5peft.training.config import TrainConfig
from t5peft.training.run_folder import checkpoints
from t5peft.training.train import Splits, train

PROBE_STEPS, PROBE_RECORDS, PROBE_SHARE = 6, 32, 0.15
FINAL_EVALUATIONS = 4
RUNG_RECORDS = 100  # of validation, for the losses of all rungs but the last
LEAST_STEPS = 20  # of a first trial; with fewer, the losses tell nothing
MOST_EPOCHS = 30
FACTORS = (3.0, 1.0, 10.0)  # of the rate of a method, which is where published ones start; small backbones take more
FINAL_SHARE = 0.5  # of the time, for the last rung


@dataclass(frozen=True)
class Arm:
    """One method at one learning rate."""

    method: str
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.method} at {self.learning_rate:g}"


@dataclass(frozen=True)
class Trial:
    """One training run of the search.

    Attributes:
        rung: 0 for the probe of a method's speed, then from 1 on; the last rung has the finalists.
        arm: What was trained.
        steps: Optimizer steps.
        loss: The lowest loss on validation; None if it failed.
        score: The task's leading score on validation, of finalists.
        seconds: All it took.
        step_seconds: Of one step.
        evaluation_seconds: Of one evaluation.
        trained: Number of trained weights.
        examples: The score of each validation record, of finalists.
        error: Why it failed.
    """

    rung: int
    arm: Arm
    steps: int
    loss: float | None
    score: float | None
    seconds: float
    step_seconds: float
    evaluation_seconds: float
    trained: int
    examples: tuple[float, ...] = ()
    error: str | None = None


class TrialLog:
    """The finished trials and the steps of each rung in a file; a search that was killed goes on from there.

    Args:
        path: A file of JSON lines.
        identity: What trials depend on.

    Raises:
        ValueError: The file has trials of another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._lines = JsonLines(path)
        self.trials: dict[tuple[int, Arm], Trial] = {}
        self.rungs: dict[int, tuple[int, list[Arm]]] = {}
        known = False
        for _, line in self._lines.new_lines():
            entry = json.loads(line)
            known = known or "identity" in entry
            if "identity" in entry and entry["identity"] != dict(identity):
                changed = sorted(name for name in identity if entry["identity"].get(name) != identity[name])
                raise ValueError(
                    f"Got the output {path.parent}, which holds a search with another {', '.join(changed)}; expected the same, "
                    "to go on with it. Give another folder, or --overwrite to begin anew."
                )
            if "trial" in entry:
                fields = entry["trial"]
                read = {"arm": Arm(**fields["arm"]), "examples": tuple(fields["examples"])}
                self._add(Trial(**{**fields, **read}))
            if "rung" in entry:
                self.rungs[entry["rung"]] = (entry["steps"], [Arm(**arm) for arm in entry["arms"]])
        if not known:
            self._lines.append(json.dumps({"identity": dict(identity)}))

    @property
    def seconds(self) -> float:
        """The time of all finished trials."""
        return sum(trial.seconds for trial in self.trials.values())

    def add(self, trial: Trial) -> None:
        """Record a finished trial.

        Args:
            trial: The trial.
        """
        self._lines.append(json.dumps({"trial": asdict(trial)}))
        self._add(trial)

    def plan(self, rung: int, steps: int, arms: Sequence[Arm]) -> None:
        """Record what a rung trains.

        Args:
            rung: Its number.
            steps: Optimizer steps of each arm.
            arms: The arms.
        """
        self._lines.append(json.dumps({"rung": rung, "steps": steps, "arms": [asdict(arm) for arm in arms]}))
        self.rungs[rung] = (steps, list(arms))

    def _add(self, trial: Trial) -> None:
        self.trials[trial.rung, trial.arm] = trial


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
        validation = splits["validation"]
        self._few = part_of(validation, random.Random(0).sample(list(validation), min(RUNG_RECORDS, len(validation))))

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
                probes[name] = self._trial(0, Arm(name, self._rate(name)), PROBE_STEPS, math.inf)
        works = {name: probe for name, probe in probes.items() if probe.loss is not None}
        if not works:
            reasons = "; ".join(f"{name}: {probe.error}" for name, probe in probes.items())
            raise ValueError(f"Got no method that could be trained ({reasons}); expected at least one.")
        left = max(1.0, seconds - sum(probe.seconds for probe in probes.values()))
        arms = [
            Arm(name, float(f"{self._rate(name) * factor:.3g}")) for factor in FACTORS for name in works
        ]  # in the order in which they are given up where time is short
        rung = 0
        while True:
            rung += 1
            if rung not in self.log.rungs:
                arms, steps = self._affordable(arms, works, left, first=rung == 1)
                self.log.plan(rung, steps, arms)
            steps, arms = self.log.rungs[rung]
            last = len(arms) <= 2
            share = self._share(len(arms), left)
            began = [self._trial(rung, arm, steps, 1.5 * share / len(arms), final=last) for arm in arms]
            left = max(1.0, left - sum(trial.seconds for trial in began))
            done = sorted((trial for trial in began if trial.loss is not None), key=lambda one: one.loss or 0.0)
            if not done:
                raise ValueError("Got trials none of which had a finite loss; expected at least one.")
            if last:
                return self._best(done)
            arms = [trial.arm for trial in done[: max(2, math.ceil(len(arms) / 3))]]

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

    def _rate(self, method: str) -> float:
        return METHODS[method].learning_rate

    @staticmethod
    def _share(arms: int, left: float) -> float:
        """Return the part of the time that is left for a rung of so many arms: half of it goes to the last one."""
        rungs, size = 1, arms
        while size > 2:
            rungs, size = rungs + 1, max(2, math.ceil(size / 3))
        return left if rungs == 1 else left * (1 - FINAL_SHARE) / (rungs - 1)

    def _affordable(
        self, arms: Sequence[Arm], probes: Mapping[str, Trial], left: float, *, first: bool
    ) -> tuple[list[Arm], int]:
        """Return the arms that get enough steps in their share of the time, and these steps."""
        chosen = list(arms)
        examples = len(self.splits["train"])
        most = max(LEAST_STEPS, math.ceil(MOST_EPOCHS * examples / self.config.batch_size))
        while True:
            each = [probes[arm.method] for arm in chosen]
            final = len(chosen) <= 2
            records = (FINAL_EVALUATIONS + 1) * len(self.splits["validation"]) if final else len(self._few)
            evaluations = records / len(self._few[:PROBE_RECORDS])
            fixed = sum(
                max(0.0, one.seconds - PROBE_STEPS * one.step_seconds - one.evaluation_seconds)
                + evaluations * one.evaluation_seconds
                for one in each
            )
            steps = int((self._share(len(chosen), left) - fixed) / sum(one.step_seconds for one in each))
            if steps >= LEAST_STEPS or len(chosen) <= 2 or not first:
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
        resume = final and bool(checkpoints(folder))
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


def fields_of(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON holds it.

    Args:
        trial: The trial.

    Returns:
        Its fields, with those of the arm among them.
    """
    plain = {
        field.name: getattr(trial, field.name)
        for field in dataclasses.fields(trial)
        if field.name not in ("arm", "examples")
    }
    return {**asdict(trial.arm), **plain}
