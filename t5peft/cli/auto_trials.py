"""The trials of ``auto`` and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t5peft.benchmark.json_lines import JsonLines


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
        evaluation_seconds: Of one evaluation of the loss.
        trained: Number of trained weights.
        error: Why it failed.
        score_seconds: Of the score of a few records, in the probe.
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
    error: str | None = None
    score_seconds: float = 0.0


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
                    f"Got the output {path.parent}, which holds a search with another {', '.join(changed)}; expected the "
                    "same, to resume it. Choose another folder, or use --overwrite to start again."
                )
            if "trial" in entry:
                fields = entry["trial"]
                trial = Trial(**{**fields, "arm": Arm(**fields["arm"])})
                self.trials[trial.rung, trial.arm] = trial
            if "rung" in entry:
                self.rungs[entry["rung"]] = (entry["steps"], [Arm(**arm) for arm in entry["arms"]])
        if not known:
            self._lines.append(json.dumps({"identity": dict(identity)}))

    def add(self, trial: Trial) -> None:
        """Record a finished trial.

        Args:
            trial: The trial.
        """
        self._lines.append(json.dumps({"trial": asdict(trial)}))
        self.trials[trial.rung, trial.arm] = trial

    def plan(self, rung: int, steps: int, arms: Sequence[Arm]) -> None:
        """Record what a rung trains.

        Args:
            rung: Its number.
            steps: Optimizer steps of each arm.
            arms: The arms.
        """
        self._lines.append(json.dumps({"rung": rung, "steps": steps, "arms": [asdict(arm) for arm in arms]}))
        self.rungs[rung] = (steps, list(arms))


def fields_of(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON holds it.

    Args:
        trial: The trial.

    Returns:
        Its fields, with those of the arm among them.
    """
    plain = asdict(trial)
    return {**plain.pop("arm"), **plain}
