"""Suites as data: tasks, methods, learning rates, steps and seeds.

A suite is a YAML file in ``t5peft/benchmark/suites/`` (by name) or anywhere (by path):

    about: one line, printed above the table
    backbone: mini
    seeds: [0, 1, 2]            # the first one also tunes the learning rate
    steps: 600                  # optimizer steps, the same for every method
    examples_per_step: 16
    evaluations: 6              # points of the learning curve
    limits: {validation: 200, test: 500}
    tasks:
      - finance                 # a task that the library defines, or the path of a task's YAML file
      - {task: e2e, steps: 1200}
    methods:
      - {method: full, learning_rates: [3.0e-4, 1.0e-3, 3.0e-3]}
      - {method: prefix, options: {length: 64}, learning_rates: [1.0e-3, 3.0e-3, 1.0e-2]}

A suite that repeats a published table has ``expected`` figures, which ``published.py`` compares with those of the runs. A folder
of suites is run suite by suite. The path of a task may be relative to the suite's file.

``options`` are those of the method's wrap, ``quantize`` and ``quantize_wo`` of ``load_backbone``, and
``activation_cache_bytes`` and ``lora_plus_ratio`` of the trainer's arguments.

Equal effort: every method gets the same examples, steps and seeds, and a grid of as many rates as every other method.
"""  # noqa: D214, D405, D411 - the key of the YAML is not a section

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from t5peft.compat.yaml_files import parse_yaml
from t5peft.deprecated import current_options
from t5peft.methods.registry import method_label

SUITES = Path(__file__).parent / "suites"
_FIELDS = {
    "about", "backbone", "seeds", "steps", "examples_per_step", "evaluations", "limits", "tasks", "methods",
    "training_options", "expected",
}  # fmt: skip
_REQUIRED = {"tasks", "methods", "steps"}
_FIXED = {
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed",
}  # fmt: skip
"""Training arguments on which the examples of a step, and so equal effort, depend."""
_LEAST = {"steps": 1, "examples_per_step": 1, "evaluations": 0}


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite: a task of the library, a YAML file, or the user's own files.

    Attributes:
        name: The task's name, or the path of its YAML file.
        own: The fields of a ``Task`` and its ``files`` (split to path), for the user's own files.
        steps: Replaces the suite's.
        limits: Replaces the suite's.
    """

    name: str
    own: Mapping[str, Any] | None = None
    steps: int | None = None
    limits: Mapping[str, int] | None = None


@dataclass(frozen=True)
class SuiteMethod:
    """One row of the table: a method, its options, and the learning rates that are tried for it.

    A single rate is fixed. A grid of several rates grows while the best rate is one of its ends.
    """

    method: str
    learning_rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row's name in tables, such as ``prefix (length=64)``."""
        return method_label(self.method, self.options)


@dataclass(frozen=True)
class Expected:
    """A published figure.

    Attributes:
        method: The method that it is of, or the baseline "untuned".
        metric: Its name in the task's scores; "loss" on validation; or "difference", to full fine-tuning in leading metrics.
        low: The lowest published figure, in points or nats.
        high: The highest published figure.
        tolerance: How far outside of these a figure still confirms them.
        task: The task; None for the mean over the suite's tasks.
        options: Those of the method.
    """

    method: str
    metric: str
    low: float
    high: float
    tolerance: float = 0.0
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A set of runs: every method on every task."""

    name: str
    tasks: tuple[SuiteTask, ...]
    methods: tuple[SuiteMethod, ...]
    steps: int
    about: str = ""
    backbone: str = "mini"
    seeds: tuple[int, ...] = (0,)
    examples_per_step: int = 16
    evaluations: int = 4
    limits: Mapping[str, int] = field(default_factory=dict)
    training_options: Mapping[str, Any] = field(default_factory=dict)
    expected: tuple[Expected, ...] = ()

    def narrowed(
        self,
        *,
        tasks: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        backbone: str | None = None,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> Suite:
        """Return the part of the suite with these tasks and methods, on another backbone or with other seeds or steps.

        Args:
            tasks: Names of tasks; of a task's YAML file, the path or its last part. None: all.
            methods: Names of methods. None: all.
            backbone: Replaces the suite's.
            seeds: Replaces the suite's.
            steps: Replaces the suite's and those of its tasks.

        Raises:
            ValueError: The suite does not have these tasks or methods, or ``steps`` is below 1.
        """
        asked = None if tasks is None else {Path(name).name for name in tasks}
        problems = _missing_names(asked, {Path(task.name).name for task in self.tasks}, "task")
        problems += _missing_names(methods, {method.method for method in self.methods}, "method")
        if steps is not None and steps < 1:
            problems.append(f"Got {steps} steps; expected at least 1.")
        if problems:
            raise ValueError("\n".join(problems))
        return replace(
            self,
            tasks=tuple(
                replace(task, steps=steps or task.steps)
                for task in self.tasks
                if asked is None or Path(task.name).name in asked
            ),
            methods=tuple(method for method in self.methods if methods is None or method.method in methods),
            backbone=backbone or self.backbone,
            seeds=tuple(seeds) if seeds else self.seeds,
            steps=steps or self.steps,
        )


def _missing_names(asked: Iterable[str] | None, known: set[str], kind: str) -> list[str]:
    missing = [name for name in asked or () if name not in known]
    return [f"Got {kind} {name!r}; expected one of the suite's: {', '.join(sorted(known))}." for name in missing]


def suite_names() -> list[str]:
    """Return the names of the library's suites, folders of suites among them."""
    return sorted(path.stem for path in SUITES.iterdir())


def suite_parts(name_or_path: str) -> list[str]:
    """Return the names or paths of the suites of a folder, or the one that is given.

    Args:
        name_or_path: A suite's name, a file, or a folder of either kind.
    """
    if (SUITES / name_or_path).is_dir():
        return [f"{name_or_path}/{path.stem}" for path in sorted((SUITES / name_or_path).glob("*.yaml"))]
    if Path(name_or_path).is_dir():
        return [str(path) for path in sorted(Path(name_or_path).glob("*.yaml"))]
    return [name_or_path]


def load_suite(name_or_path: str) -> Suite:
    """Load a suite of the library, or one from a YAML file.

    Args:
        name_or_path: A suite's name or a file.

    Raises:
        FileNotFoundError: It is neither a suite's name nor a file.
        ValueError: The file is not a suite; all problems in one error.
    """
    path = SUITES / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Got suite {name_or_path!r}; expected one of {', '.join(suite_names())}, or a YAML file."
        )
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), as_texts=False)
    # ValueError: of UTF-8, or a number of thousands of digits
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"Got {path}, which is not YAML in UTF-8 ({error}); expected the YAML of a suite.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"Got {type(content).__name__} in {path}; expected a mapping with {', '.join(sorted(_FIELDS))}."
        )
    suite = suite_from(path.stem, content)
    tasks = (
        replace(task, name=str(own)) if (own := path.parent / task.name).is_file() else task for task in suite.tasks
    )
    return replace(suite, tasks=tuple(tasks))


def suite_from(name: str, content: Mapping[str, Any]) -> Suite:
    """Make a suite from the content of its YAML file.

    Args:
        name: The suite's name.
        content: Its fields.

    Raises:
        ValueError: Fields are missing, unknown or wrong; all problems in one error.
    """
    problems = [
        f"Got field {key!r}; expected one of {', '.join(sorted(_FIELDS))}." for key in sorted(content.keys() - _FIELDS)
    ]
    problems += [f"Field {key!r} is missing." for key in sorted(_REQUIRED - content.keys())]
    for key in ("tasks", "methods", "seeds", "expected"):
        if not isinstance(content.get(key) or [], list):
            problems.append(f"Got {content[key]!r} in field {key!r}; expected a list.")
            content = {**content, key: []}
    problems += _wrong_numbers(content)
    training_options = content.get("training_options") or {}
    problems += [
        f"Got {name!r} in training_options; expected it in the suite's own fields or learning_rates."
        for name in sorted(_FIXED & training_options.keys())
    ]
    problems += [problem for seed in content.get("seeds") or () for problem in _wrong_number("seed", seed, 0)]
    tasks = [_task(entry, problems) for entry in content.get("tasks") or ()]
    methods = [_method(entry, problems) for entry in content.get("methods") or ()]
    expected = [_expected(entry, problems) for entry in content.get("expected") or ()]
    problems += [
        f"Got no {kind}; expected at least one." for kind, found in (("task", tasks), ("method", methods)) if not found
    ]
    names = [Path(task.name).name for task in tasks]  # the name by which records know a task
    problems += [
        f"Got task {name!r} twice; expected it once." for name in dict.fromkeys(names) if name and names.count(name) > 1
    ]
    if problems:
        raise ValueError(f"Suite {name!r} has problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
    others = {
        key: value
        for key, value in content.items()
        if key not in ("tasks", "methods", "seeds", "training_options", "expected")
    }
    return Suite(
        name=name,
        tasks=tuple(tasks),
        methods=tuple(methods),
        seeds=tuple(content.get("seeds") or (0,)),
        training_options=current_options(training_options),
        expected=tuple(one for one in expected if one),
        **others,
    )


def _wrong_numbers(content: Mapping[str, Any]) -> list[str]:
    """Return the problems with the numbers of a suite or of a task."""
    problems = [
        p for name, least in _LEAST.items() if name in content for p in _wrong_number(name, content[name], least)
    ]
    limits = content.get("limits", {})
    if not isinstance(limits, dict):
        return [*problems, f"Got {limits!r} as limits; expected a mapping of splits to numbers."]
    unknown = sorted(map(str, limits.keys() - {"train", "validation", "test"}))
    problems += [f"Got a limit of {split!r}; expected train, validation or test." for split in unknown]
    return problems + [p for split, limit in limits.items() for p in _wrong_number(f"limit of {split}", limit, 1)]


def _wrong_number(name: str, value: Any, least: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"Got {value!r} as {name}; expected a whole number of at least {least}."]


def _task(entry: Any, problems: list[str]) -> SuiteTask:
    if isinstance(entry, str):
        return SuiteTask(entry)
    if not isinstance(entry, dict) or "task" not in entry:
        problems.append(
            f"Got task {entry!r}; expected a name, or a mapping with task, and optionally steps and limits."
        )
        return SuiteTask("")
    unknown = sorted(entry.keys() - {"task", "steps", "limits"})
    problems += [f"Task {entry['task']!r}: Got field {key!r}; expected task, steps or limits." for key in unknown]
    problems += [f"Task {entry['task']!r}: {problem}" for problem in _wrong_numbers(entry)]
    return SuiteTask(entry["task"], steps=entry.get("steps"), limits=entry.get("limits"))


def _expected(entry: Any, problems: list[str]) -> Expected | None:
    try:
        return Expected(**entry)
    except TypeError as error:
        problems.append(f"Got the expected figure {entry!r} ({error}); expected method, metric, low and high.")
        return None


def _method(entry: Any, problems: list[str]) -> SuiteMethod:
    if not isinstance(entry, dict) or "method" not in entry or not entry.get("learning_rates"):
        problems.append(f"Got method {entry!r}; expected a mapping with method and learning_rates.")
        return SuiteMethod("", ())
    name, given = entry["method"], entry["learning_rates"]
    unknown = sorted(entry.keys() - {"method", "learning_rates", "options"})
    problems += [f"Method {name!r}: Got field {key!r}; expected method, learning_rates or options." for key in unknown]
    try:
        rates = tuple(float(rate) for rate in given) if isinstance(given, list) else ()
    except (TypeError, ValueError):
        rates = ()
    if not rates:
        problems.append(f"Method {name!r}: Got learning_rates {given!r}; expected a list of numbers.")
    elif list(rates) != sorted(set(rates)) or rates[0] <= 0:
        problems.append(f"Method {name!r}: Got learning_rates {list(rates)}; expected positive numbers that rise.")
    return SuiteMethod(name, rates, current_options(entry.get("options") or {}))
