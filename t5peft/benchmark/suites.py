"""Suites as data: which tasks, methods, learning rates, steps and seeds; and the runs that they ask for.

A suite is a YAML file in `t5peft/benchmark/suites/` (by name) or anywhere (by path):

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

`options` are those of the method's wrap, `quantize` and `quantize_wo` of `load_backbone`, and `activation_cache_bytes` and
`lora_plus_ratio` of the trainer's arguments.

Equal effort: every method gets the same examples, steps and seeds, and a grid of as many rates as every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from t5peft.deprecated import current_options
from t5peft.methods.registry import method_label

SUITES = Path(__file__).parent / "suites"
_FIELDS = {
    "about", "backbone", "seeds", "steps", "examples_per_step", "evaluations", "limits", "tasks", "methods",
    "training_options",
}  # fmt: skip
_REQUIRED = {"tasks", "methods", "steps"}
_FIXED = {
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "seed",
}  # fmt: skip
"""Training arguments on which the examples of a step, and so equal effort, depend."""
_LEAST = {"steps": 1, "examples_per_step": 1, "evaluations": 0}


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite: a definition of the library or a YAML file, or the user's own files.

    `own` holds the fields of a `Task` and "files" (split to path); it comes from the command line. `steps` and `limits`
    stand before those of the suite.
    """

    name: str
    own: Mapping[str, Any] | None = None
    steps: int | None = None
    limits: Mapping[str, int] | None = None


@dataclass(frozen=True)
class SuiteMethod:
    """One row of the table: a method, its options, and the learning rates that are tried for it.

    One rate alone means that the suite fixes it (tuned before); with more, the grid grows while one of its ends wins.
    """

    method: str
    learning_rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`prefix (prefix_length=64)`: the row's name in tables."""
        return method_label(self.method, self.options)


@dataclass(frozen=True)
class Suite:
    """What is run: every method on every task."""

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

    def narrowed(
        self,
        *,
        tasks: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        backbone: str | None = None,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> Suite:
        """The part of the suite with these tasks and methods (by method name), on another backbone, with other seeds.

        Raises:
            ValueError: names that the suite does not hold.
        """
        problems = _not_in(tasks, {task.name for task in self.tasks}, "task")
        problems += _not_in(methods, {method.method for method in self.methods}, "method")
        if steps is not None and steps < 1:
            problems.append(f"steps is {steps}; expected at least 1")
        if problems:
            raise ValueError("\n".join(problems))
        return replace(
            self,
            tasks=tuple(
                replace(task, steps=steps or task.steps) for task in self.tasks if tasks is None or task.name in tasks
            ),
            methods=tuple(method for method in self.methods if methods is None or method.method in methods),
            backbone=backbone or self.backbone,
            seeds=tuple(seeds) if seeds else self.seeds,
            steps=steps or self.steps,
        )


def _not_in(asked: Sequence[str] | None, known: set[str], what: str) -> list[str]:
    missing = [name for name in asked or () if name not in known]
    return [f"the suite has no {what} {name!r}, it has: {', '.join(sorted(known))}" for name in missing]


def suite_names() -> list[str]:
    """Names of the suites that come with the library."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(name_or_path: str) -> Suite:
    """Reads a suite by its name or from a YAML file.

    Raises:
        FileNotFoundError: neither a suite's name nor a file.
        ValueError: everything wrong in the file, in one error.
    """
    path = SUITES / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name_or_path!r} is neither a suite ({', '.join(suite_names())}) nor a YAML file: give one of them"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a mapping with {', '.join(sorted(_FIELDS))}")
    return suite_from(path.stem, content)


def suite_from(name: str, content: Mapping[str, Any]) -> Suite:
    """A suite from its YAML content.

    Raises:
        ValueError: everything wrong in it, in one error.
    """
    problems = [f"unknown field {key!r}, fields are {', '.join(sorted(_FIELDS))}" for key in content.keys() - _FIELDS]
    problems += [f"field {key!r} is missing" for key in sorted(_REQUIRED - content.keys())]
    for key in ("tasks", "methods", "seeds"):
        if not isinstance(content.get(key) or [], list):
            problems.append(f"field {key!r} holds {content[key]!r}, expected a list")
            content = {**content, key: []}
    problems += _wrong_numbers(content)
    fixed = sorted(_FIXED & (content.get("training_options") or {}).keys())
    problems += [f"training_options has {name!r}, which the suite's own fields or learning_rates say" for name in fixed]
    problems += [problem for seed in content.get("seeds") or () for problem in _no_number("seed", seed, 0)]
    tasks = [_task(entry, problems) for entry in content.get("tasks") or ()]
    methods = [_method(entry, problems) for entry in content.get("methods") or ()]
    for what, entries in (("task", tasks), ("method", methods)):
        if not entries:
            problems.append(f"it has no {what}")
    names = [Path(task.name).name for task in tasks]  # by which its records know a task
    problems += [f"task {name!r} is named twice" for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if problems:
        raise ValueError(f"suite {name!r}:\n" + "\n".join(f"  - {problem}" for problem in problems))
    others = {key: value for key, value in content.items() if key not in ("tasks", "methods", "seeds")}
    seeds = tuple(content.get("seeds") or (0,))
    return Suite(name=name, tasks=tuple(tasks), methods=tuple(methods), seeds=seeds, **others)


def _wrong_numbers(content: Mapping[str, Any]) -> list[str]:
    """What is no number among the numbers of a suite or of a task."""
    problems = [p for name, least in _LEAST.items() if name in content for p in _no_number(name, content[name], least)]
    limits = content.get("limits", {})
    if not isinstance(limits, dict):
        return [*problems, f"limits is {limits!r}, expected a mapping of splits to numbers"]
    unknown = sorted(map(str, limits.keys() - {"train", "validation", "test"}))
    problems += [f"limits are of train, validation and test, but {split!r} came" for split in unknown]
    return problems + [p for split, limit in limits.items() for p in _no_number(f"limit of {split}", limit, 1)]


def _no_number(name: str, value: Any, least: int) -> list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return []
    return [f"{name} is {value!r}, expected a whole number of at least {least}"]


def _task(entry: Any, problems: list[str]) -> SuiteTask:
    if isinstance(entry, str):
        return SuiteTask(entry)
    if not isinstance(entry, dict) or "task" not in entry:
        problems.append(f"task {entry!r}: expected a name, or a mapping with task, and maybe steps and limits")
        return SuiteTask("")
    unknown = entry.keys() - {"task", "steps", "limits"}
    problems += [f"task {entry['task']!r}: unknown field {key!r}" for key in sorted(unknown)]
    problems += [f"task {entry['task']!r}: {problem}" for problem in _wrong_numbers(entry)]
    return SuiteTask(entry["task"], steps=entry.get("steps"), limits=entry.get("limits"))


def _method(entry: Any, problems: list[str]) -> SuiteMethod:
    if not isinstance(entry, dict) or "method" not in entry or not entry.get("learning_rates"):
        problems.append(f"method {entry!r}: expected a mapping with method and learning_rates")
        return SuiteMethod("", ())
    unknown = entry.keys() - {"method", "learning_rates", "options"}
    problems += [f"method {entry['method']!r}: unknown field {key!r}" for key in sorted(unknown)]
    if not isinstance(entry["learning_rates"], list):
        problems.append(
            f"method {entry['method']!r}: learning_rates holds {entry['learning_rates']!r}, expected a list"
        )
        return SuiteMethod(entry["method"], ())
    try:
        rates = tuple(float(rate) for rate in entry["learning_rates"])
    except (TypeError, ValueError):
        problems.append(
            f"method {entry['method']!r}: learning_rates holds {entry['learning_rates']!r}, expected numbers"
        )
        return SuiteMethod(entry["method"], ())
    if list(rates) != sorted(set(rates)) or rates[0] <= 0:
        problems.append(f"method {entry['method']!r}: learning rates {list(rates)} must be positive and rise")
    return SuiteMethod(entry["method"], rates, current_options(entry.get("options") or {}))
