"""From a suite's entries to the configurations of its runs."""

from __future__ import annotations

from collections.abc import Callable

from t5peft.benchmark.baselines import BASELINES
from t5peft.benchmark.data import backbone_fingerprint, data_of
from t5peft.benchmark.records import RunConfig
from t5peft.benchmark.suites import Suite, SuiteMethod, SuiteTask
from t5peft.methods import METHODS


def base_configs(suite: Suite, device: str) -> Callable[[SuiteTask, SuiteMethod], RunConfig]:
    """What makes the configuration of a method on a task; learning rate and seed are filled in run by run.

    Reads the data of every task once, so that what is missing is said before the first run.

    Raises:
        ValueError: methods that are not known, data or a backbone that are not there, all of them in one error.
    """
    problems = [
        f"method {entry.method!r} is unknown, expected one of {', '.join([*METHODS, *BASELINES])}"
        for entry in suite.methods
        if entry.method not in METHODS and entry.method not in BASELINES
    ]
    data = {}
    for task in suite.tasks:
        try:
            data[task.name] = data_of(task)
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(f"task {task.name!r}: {error}")
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
