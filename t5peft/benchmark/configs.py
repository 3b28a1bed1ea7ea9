"""The configurations of a suite's runs."""

from __future__ import annotations

from collections.abc import Callable

from t5peft.benchmark.baselines import baselines_of
from t5peft.benchmark.data import backbone_fingerprint, definition_of, describe_data
from t5peft.benchmark.peers import PEERS
from t5peft.benchmark.records import RunConfig
from t5peft.benchmark.schedule import Sweep
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
        f"Got the method {entry.method!r}; expected one of {', '.join([*METHODS, *PEERS])}."
        for entry in suite.methods
        if entry.method not in METHODS and entry.method not in PEERS
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


def baseline_runs(suite: Suite, base: Callable[[SuiteTask, SuiteMethod], RunConfig]) -> list[Sweep]:
    """Return the runs of the baselines of every task: one each, because they have neither a learning rate nor a seed.

    Args:
        suite: The suite.
        base: From ``base_configs``.
    """
    return [
        Sweep(base(task, SuiteMethod(name, (0.0,))), (0.0,), suite.seeds[:1])
        for task in suite.tasks
        for name in baselines_of(definition_of(task))
    ]
