"""Suites as data, and the part of one that the command line asks for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5peft import METHODS
from t5peft.benchmark.configs import base_configs
from t5peft.benchmark.data import backbone_fingerprint
from t5peft.benchmark.suites import SuiteMethod, load_suite, suite_from, suite_names, suite_parts
from t5peft.cli import bench
from t5peft.cli.bench import _device, _grids


@pytest.mark.parametrize("name", [part for name in suite_names() for part in suite_parts(name)])
def test_every_suite_gives_each_method_the_same_effort(name: str) -> None:
    suite = load_suite(name)
    ours = [entry for entry in suite.methods if not entry.options]
    assert ours[0].method == "full"
    assert len({len(entry.learning_rates) for entry in ours}) == 1


def test_a_wrong_suite_is_refused_with_everything_that_is_wrong() -> None:
    content = {
        "tasks": ["a", {"steps": 3}],
        "methods": [{"method": "lora", "learning_rates": [1e-2, 1e-3], "rank": 8}, {"method": "full"}],
        "epochs": 3,
        "limits": {"valid": 20},
        "training_options": {"gradient_accumulation_steps": 4, "weight_decay": 0.1},
    }
    with pytest.raises(ValueError) as error:
        suite_from("wrong", content)
    assert "weight_decay" not in str(error.value)
    for problem in (
        "Got field 'epochs'; expected one of about, backbone",
        "Field 'steps' is missing.",
        "Got task {'steps': 3}; expected a name",
        "Method 'lora': Got field 'rank'; expected method, learning_rates or options.",
        "Got a limit of 'valid'; expected train, validation or test.",
        "Got 'gradient_accumulation_steps' in training_options; expected it in the suite's own fields",
        "Got learning_rates [0.01, 0.001]; expected positive numbers that rise.",
        "Got method {'method': 'full'}; expected a mapping with method and learning_rates.",
    ):
        assert problem in str(error.value)


def test_a_suite_that_is_nowhere_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"Got suite 'quik'; expected one of .*quick.*, or a YAML file"):
        load_suite("quik")


def test_a_part_of_a_suite_by_names_that_it_has() -> None:
    suite = load_suite("quick")
    part = suite.narrowed(methods=["full", "lora-all"], seeds=[3, 4], backbone="other")
    assert [entry.method for entry in part.methods] == ["full", "lora-all"]
    assert (part.seeds, part.backbone) == ((3, 4), "other")
    with pytest.raises(ValueError, match=r"(?s)Got task 'x'; expected one of.*Got method 'y'; expected one of"):
        suite.narrowed(tasks=["x"], methods=["y"])


def test_steps_that_are_asked_for_stand_before_those_of_a_task() -> None:
    content = {"steps": 100, "tasks": [{"task": "a", "steps": 60}], "backbone": "mini", "examples_per_step": 16}
    suite = suite_from("own", content | {"methods": [{"method": "full", "learning_rates": [1e-3]}]})
    assert (suite.tasks[0].steps, suite.narrowed(steps=2).tasks[0].steps) == (60, 2)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"Got {steps} steps; expected at least 1"):
            suite.narrowed(steps=steps)


def test_single_values_in_place_of_lists_are_named() -> None:
    content = {"steps": 3, "tasks": "a", "methods": [{"method": "full", "learning_rates": 0.001}], "seeds": 3}
    with pytest.raises(ValueError) as error:
        suite_from("own", content)
    for problem in (
        "Got 'a' in field 'tasks'; expected a list.",
        "Got 3 in field 'seeds'; expected a list.",
        "Got learning_rates 0.001; expected a list of numbers.",
    ):
        assert problem in str(error.value)


def test_what_is_no_number_of_a_suite_is_named() -> None:
    content = {
        "steps": "6e2",
        "examples_per_step": 0,
        "seeds": ["first", -1],
        "limits": 100,
        "tasks": ["a", {"task": "a", "steps": 0, "limits": {"test": "all"}}],
        "methods": [{"method": "full", "learning_rates": ["fast"]}],
    }
    with pytest.raises(ValueError) as error:
        suite_from("own", content)
    for problem in (
        "Got '6e2' as steps; expected a whole number of at least 1.",
        "Got 0 as examples_per_step; expected a whole number of at least 1.",
        "Got 'first' as seed; expected a whole number of at least 0.",
        "Got -1 as seed; expected a whole number of at least 0.",
        "Got 100 as limits; expected a mapping of splits to numbers.",
        "Task 'a': Got 0 as steps; expected a whole number of at least 1.",
        "Task 'a': Got 'all' as limit of test; expected a whole number of at least 1.",
        "Got task 'a' twice; expected it once.",
        "Method 'full': Got learning_rates ['fast']; expected a list of numbers.",
    ):
        assert problem in str(error.value)


def test_a_task_may_lift_the_limits_of_its_suite() -> None:
    content = {"steps": 3, "limits": {"test": 5}, "methods": [{"method": "full", "learning_rates": [1e-3]}]}
    suite = suite_from("own", content | {"tasks": ["support_intent", {"task": "finance", "limits": {}}]})
    base = base_configs(suite, "cpu")
    assert [base(task, suite.methods[0]).limits for task in suite.tasks] == [{"test": 5}, {}]


def test_a_backbone_that_is_nowhere_is_told_before_the_first_run(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    for backbone in ("google/flan-t5-bse", str(tmp_path)):
        suite = replace(load_suite("quick"), backbone=backbone, methods=(SuiteMethod("lara", (1.0,)),))
        with pytest.raises(
            ValueError,
            match=rf"(?s)Got the method 'lara'; expected.*'{backbone}', which is neither a model's folder nor",
        ):
            base_configs(suite, "cpu")


def test_a_backbone_of_the_hub_is_known_by_its_commit_from_the_first_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is asked for where it is not in the cache yet: else the runs of the first call would not be found by the second."""
    cached: list[str] = []

    def of_the_hub(name: str, file: str, *, local_files_only: bool = False, **_: Any) -> str | None:
        cached.extend([] if local_files_only else [name])
        return str(tmp_path / "commit" / file) if name in cached else None

    monkeypatch.setattr("t5peft.benchmark.data.cached_file", of_the_hub)
    assert [backbone_fingerprint("google/flan-t5-small") for _ in range(2)] == ["commit", "commit"]


def test_a_gpu_that_is_not_there_is_told_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _device(None) == "cpu"
    with pytest.raises(ValueError, match="Got --device cuda, but torch finds no CUDA device"):
        _device("cuda")


def test_the_quick_suites_rates_are_not_taken_to_another_backbone() -> None:
    """They were tuned on "mini"; grids of other suites stand, as they grow."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    for suite, alone, grown in (("quick", 1, 3), ("embedded", 3, 3)):
        for backbone, rates in (("mini", alone), ("google/flan-t5-small", grown)):
            found = bench.suite_of(parser.parse_args(["--suite", suite, "--backbone", backbone]))
            assert {len(entry.learning_rates) for entry in found.methods} == {rates}


def test_rates_around_those_of_a_method_are_a_peers_too() -> None:
    methods = (SuiteMethod("lora", (1.0,)), SuiteMethod("peft-lora", (1.0,)))
    ours, peers = _grids(methods)
    assert ours.learning_rates == peers.learning_rates
    assert ours.learning_rates[1] == METHODS["lora"].learning_rate
    assert _grids((SuiteMethod("lara", (1.0,)),)) == (SuiteMethod("lara", (1.0,)),)  # which is refused later
