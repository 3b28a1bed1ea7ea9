"""A method outside of the package is a method like any other, without a change of the package."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_laws
import test_laws_of_adapters
import test_wrap_errors
import torch
from cases import Case, base_of, ready_t5, stir, trained, wrap
from fresh import run_fresh
from laws import BEAMS, GREEDY
from own_method import METHOD, NAME, register_own_method
from tiny import Geometry, tiny_batch, tiny_records, tiny_t5

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, load_adapter, lora_wrap, save_adapter
from t5peft.benchmark.configs import base_configs
from t5peft.benchmark.records import RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.runner import run
from t5peft.benchmark.suites import suite_from
from t5peft.methods.registry import method_of, register_method
from t5peft.models.unwrap import unwrap_t5
from t5peft.planning.job import Job
from t5peft.planning.plan import plan_lines, step_bytes
from t5peft.training.train import TrainConfig

CASE = Case(NAME, {"groups": 5})
OTHERS: dict[str, list[Any]] = {"side": ["right", "left"], "search": [GREEDY, BEAMS]}
LAW_FILES = vars(test_laws) | vars(test_laws_of_adapters) | vars(test_wrap_errors)
GIVEN = {"case", "geometry", "make_base", "tmp_path", "folders", *OTHERS}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_own_method()
    yield
    del METHODS[NAME]


def laws() -> list[Any]:
    """Every law with a case and nothing else that is not given here, once for each of its other parameters."""
    found = []
    for name, law in LAW_FILES.items():
        wanted = set(inspect.signature(law).parameters) if name.startswith("test_") else set()
        if "case" not in wanted or not wanted <= GIVEN:
            continue
        others: list[dict[str, Any]] = [{}]
        for parameter, values in OTHERS.items():
            if parameter in wanted:
                others = [{parameter: value} for value in values]
        found += [pytest.param(law, other, id=f"{name}-{index}") for index, other in enumerate(others)]
    return found


LAWS = laws()


def test_all_laws_are_found() -> None:
    """A law of another form would be left out in silence."""
    left_out = {
        name
        for name, law in LAW_FILES.items()
        if name.startswith("test_") and "case" in inspect.signature(law).parameters
    } - {entry.values[0].__name__ for entry in LAWS}
    assert left_out == {"test_every_method_is_trained_and_generates_beside_quantized_weights_in_bfloat16"}
    assert len(LAWS) >= 20


@pytest.mark.parametrize("geometry", ["v1.0", "wide"])
@pytest.mark.parametrize(("law", "others"), LAWS)
def test_it_obeys_the_laws(
    law: Any, others: dict[str, Any], geometry: Geometry, folders: dict[Geometry, Path], tmp_path: Path
) -> None:
    if law.__name__ == "test_what_cannot_be_merged_says_so":
        pytest.skip("it merges")
    given = {
        "case": CASE,
        "geometry": geometry,
        "make_base": partial(base_of, CASE, geometry, folders[geometry]),
        "tmp_path": tmp_path,
        "folders": folders,
        **others,
    }
    law(**{name: given[name] for name in inspect.signature(law).parameters})


def test_its_row_is_read() -> None:
    assert (METHOD.has_adapter, METHOD.merges, METHOD.identity_at_start) == (True, True, True)
    assert METHOD.options == {"groups": int}
    assert method_of(wrap(CASE, ready_t5("v1.0"))) == NAME
    assert method_of(lora_wrap(tiny_t5())) == "lora"


@pytest.mark.parametrize("name", ["lora", "full", "", "Own", "own scale", "own_scale", "-own"])
def test_a_name_that_is_taken_or_of_another_form_is_refused(name: str) -> None:
    before = dict(METHODS)
    with pytest.raises(ValueError, match=rf"Got the name {name!r}; expected lower-case letters.* lora"):
        register_method(name, METHOD)
    assert before == METHODS


def test_registering_it_once_more_changes_nothing_and_another_one_is_refused() -> None:
    register_own_method()
    with pytest.raises(ValueError, match=f"Got the name '{NAME}'"):
        register_method(NAME, replace(METHOD, learning_rate=1.0))
    assert METHODS[NAME] is METHOD


@pytest.mark.processes
def test_it_is_trained_saved_and_loaded_in_a_fresh_process(folders: dict[Geometry, Path], tmp_path: Path) -> None:
    model = wrap(CASE, ready_t5("v1.0"))
    unwrap_t5(model).name_or_path = str(folders["v1.0"])
    model.peft_config["default"].base_model_name_or_path = str(folders["v1.0"])
    before = {name: tensor.clone() for name, tensor in trained(model).items()}
    args = T5PeftTrainingArguments(
        str(tmp_path / "run"), max_steps=3, learning_rate=1e-1, save_strategy="no", report_to="none", disable_tqdm=True
    )
    T5PeftTrainer(model, args, train_dataset=tiny_records(8)).train()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in trained(model).items())
    save_adapter(model, tmp_path / "adapter")
    torch.save(tiny_batch(), tmp_path / "batch.pt")
    code = """
import sys, torch
import own_method, t5peft
own_method.register_own_method()
model, _ = t5peft.load_adapter(sys.argv[1] + "/adapter")
merged, _, parity = t5peft.merge(sys.argv[1] + "/adapter")
with torch.no_grad():
    print(*(float(one.eval()(**torch.load(sys.argv[1] + "/batch.pt")).loss) for one in (model, merged)), parity.unmerged)
"""
    done = run_fresh(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, merged, parity = map(float, done.stdout.split())
    with torch.no_grad():
        expected = model.eval()(**tiny_batch()).loss.item()
    assert loaded == pytest.approx(expected, abs=1e-6)
    assert merged == pytest.approx(expected, abs=1e-4)
    assert parity < 1e-4


def test_a_file_damaged_by_hand_is_found_as_for_any_method(folders: dict[Geometry, Path], tmp_path: Path) -> None:
    model = stir(wrap(CASE, ready_t5("v1.0")))
    save_adapter(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_adapter(tmp_path / "adapter", model=ready_t5("v1.0"))


def test_it_is_planned(folders: dict[Geometry, Path]) -> None:
    job = Job(
        str(folders["v1.0"]),
        NAME,
        source_tokens=16,
        target_tokens=8,
        batch=4,
        micro_batch=2,
        method_options=(("groups", 3),),
    )
    found = step_bytes(job)
    assert found.trainable_parameters == 4 * 3
    assert NAME in "\n".join(plan_lines(job, 10**9))


def test_it_is_searched() -> None:
    assert METHOD.options == {"groups": int}
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import suggest

    trial = optuna.trial.FixedTrial({"learning_rate": 2e-2, "weight_decay": 0.0, "label_smoothing": 0.0, "groups": 2})
    drawn = suggest(trial, TrainConfig(method=NAME))
    assert (drawn.learning_rate, drawn.options) == (2e-2, {"groups": 2})


@pytest.mark.processes
def test_it_is_run_and_reported_by_the_benchmark(tmp_path: Path) -> None:
    suite = suite_from(
        "own",
        {
            "steps": 2,
            "backbone": "mini",
            "examples_per_step": 4,
            "evaluations": 1,
            "limits": {"train": 8, "validation": 4, "test": 4},
            "tasks": ["support_intent"],
            "methods": [
                {"method": name, "learning_rates": [METHODS[name].learning_rate], "options": options}
                for name, options in ((NAME, {"groups": 2}), ("full", {}), ("norm", {}))
            ],
        },
    )
    base, records = base_configs(suite, "cpu"), RunRecords(tmp_path / "records")
    for entry in suite.methods:
        config = base(suite.tasks[0], entry)
        record = run(config, lambda step, steps: None)
        assert record["outcome"] == "finished", record.get("reason")
        records.append(config, record)
    write_report(tmp_path / "records", tmp_path / "report", title="own", about="", command="")
    lines = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith(("| full", "| norm", f"| {NAME}"))]
    # Methods come in the order of the table, and one that was registered comes last.
    assert rows[:3] == ["full", "norm", f"{NAME} (groups=2)"]
