"""The configurations of a suite's runs."""

from __future__ import annotations

from collections.abc import Callable

from t5peft.benchmark.baselines import BASELINES
from t5peft.benchmark.data import backbone_fingerprint, describe_data
from t5peft.benchmark.records import RunConfig
from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask
from t5peft.methods import METHODS


def base_configs(suite: Suite, device: str) -> Callable[[SuiteTask, SuiteMethod], RunConfig]:
    """Return the function that makes the configuration of a method on a task.

    Each run replaces the configuration's learning rate and seed. The data of every task are read here, so that an error
    in them comes before the first run.

    Args:
        suite: The suite.
        device: "cpu" or "cuda".

    Raises:
        ValueError: A method is unknown, or data or a backbone were not found; all problems in one error.
    """
    problems = [
        f"Got the method {entry.method!r}; expected one of {', '.join([*METHODS, *BASELINES])}."
        for entry in suite.methods
        if entry.method not in METHODS and entry.method not in BASELINES
    ]
    data = {}
    for task in suite.tasks:
        try:
            data[task.name] = describe_data(task)
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(f"Task {task.name!r}: {error}")
    try:
        fingerprint = backbone_fingerprint(suite.backbone)
    except OSError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))

    def base(task: SuiteTask, method: SuiteMethod) -> RunConfig:
        return RunConfig(
            task=task.name,
            backbone=suite.backbone,
            backbone_fingerprint=fingerprint,
            method=method.method,
            learning_rate=method.learning_rates[0],
            seed=suite.seeds[0],
            steps=task.steps or suite.steps,
            examples_per_step=suite.examples_per_step,
            device=device,
            data=data[task.name],
            evaluations=suite.evaluations,
            limits=suite.limits if task.limits is None else task.limits,
            method_options=method.options,
            training_options=suite.training_options,
        )

    return base
