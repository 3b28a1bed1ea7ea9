"""The benchmark's machinery: records, suites, the schedule of a sweep, and what happens when it is killed."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic
from paths import ROOT
from transformers import set_seed

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.benchmark.configs import base_configs
from t5peft.benchmark.data import backbone_fingerprint, data_of, load_data
from t5peft.benchmark.process import RunProcesses
from t5peft.benchmark.records import RunConfig, find_record, load_records, write_record
from t5peft.benchmark.report import write_report
from t5peft.benchmark.runner import run
from t5peft.benchmark.schedule import Plan, Progress, best_rate, next_rate, run_suite
from t5peft.benchmark.scoring import Split
from t5peft.benchmark.suites import SuiteMethod, SuiteTask, load_suite, suite_from, suite_names
from t5peft.cli import bench
from t5peft.cli.bench import _device, _grids
from t5peft.data import Task
from t5peft.evaluation import METRICS, evaluate_task, loss_and_perplexity

TESTS = Path(__file__).parent


def record_of(made: RunConfig, accuracy: float = 0.9) -> dict[str, Any]:
    return synthetic.finished(made, accuracy, parameters=1000, peak=100, seconds=0.1)


# --- records


def test_a_record_is_found_by_what_was_asked_for_and_by_nothing_else(tmp_path: Path) -> None:
    made = synthetic.config()
    write_record(tmp_path, made, record_of(made))
    assert find_record(tmp_path, synthetic.config())["metric"] == "accuracy"
    for other in (
        synthetic.config(rate=2e-3),
        synthetic.config(seed=1),
        synthetic.config(steps=301),
        synthetic.config(backbone_fingerprint="other"),
        synthetic.config(method_options={"rank": 4}),
    ):
        assert find_record(tmp_path, other) is None


def test_a_record_of_files_of_ones_own_names_them_without_their_folder(tmp_path: Path) -> None:
    made, moved = (
        synthetic.config(data={"own": {"name": "mine", "files": {"train": f"{folder}/train.csv"}}, "fingerprint": "f"})
        for folder in ("/home/somebody/films", "elsewhere")
    )
    path = write_record(tmp_path, made, record_of(made))
    assert "somebody" not in path.read_text(encoding="utf-8")
    assert find_record(tmp_path, moved)["config"]["data"]["own"]["files"] == {"train": "train.csv"}
    assert made.data["own"]["files"]["train"].startswith("/home")  # the run itself still finds its file


def test_a_tasks_file_is_one_task_by_whatever_path(tmp_path: Path) -> None:
    made, moved = (
        synthetic.config(task=path, data={"task": path, "fingerprint": "f"})
        for path in ("/home/somebody/films.yaml", "films.yaml")
    )
    path = write_record(tmp_path / "records", made, record_of(made))
    assert "somebody" not in path.name + path.read_text(encoding="utf-8")
    assert find_record(tmp_path / "records", moved)["config"]["task"] == "films.yaml"
    assert made.data["task"].startswith("/home")  # the run itself still finds its file
    report = write_report(
        tmp_path / "records", tmp_path, title="", about="", command="", tasks=["/home/somebody/films.yaml"]
    )
    assert "**films.yaml**" in report.text


def test_a_record_is_never_edited(tmp_path: Path) -> None:
    made = synthetic.config()
    path = write_record(tmp_path, made, record_of(made, 0.9))
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="never edited: delete it to run this configuration again"):
        write_record(tmp_path, made, record_of(made, 0.1))
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    made = synthetic.config()
    with pytest.raises(ValueError, match="Out of range float values"):
        write_record(tmp_path, made, {"outcome": "finished", "score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_an_outcome_needs_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'diverged' must give its reason"):
        write_record(tmp_path, synthetic.config(), {"outcome": "diverged"})
    with pytest.raises(ValueError, match="is 'fine', expected one of finished, out_of_memory, diverged, failed"):
        write_record(tmp_path, synthetic.config(), {"outcome": "fine"})


def test_files_that_are_no_records_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"outcome": "finished", "schema": 99}')
    with pytest.raises(ValueError, match=r"(?s)a\.json is no run record.*b\.json has schema 99"):
        load_records(tmp_path)
    with pytest.raises(FileNotFoundError, match="run `t5peft bench` first"):
        load_records(tmp_path / "nowhere")


# --- suites


@pytest.mark.parametrize("name", suite_names())
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
        "unknown field 'epochs'",
        "field 'steps' is missing",
        "task {'steps': 3}: expected a name",
        "unknown field 'rank'",
        "limits are of train, validation and test, but 'valid' came",
        "training_options has 'gradient_accumulation_steps', which the suite's own fields",
        "learning rates [0.01, 0.001] must be positive and rise",
        "method {'method': 'full'}: expected a mapping with method and learning_rates",
    ):
        assert problem in str(error.value)


def test_a_suite_that_is_nowhere_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"'quik' is neither a suite \(.*quick.*\) nor a YAML file"):
        load_suite("quik")


def test_a_part_of_a_suite_by_names_that_it_has() -> None:
    suite = load_suite("quick")
    part = suite.narrowed(methods=["full", "lora-all"], seeds=[3, 4], backbone="other")
    assert [entry.method for entry in part.methods] == ["full", "lora-all"]
    assert (part.seeds, part.backbone) == ((3, 4), "other")
    with pytest.raises(ValueError, match=r"(?s)no task 'x'.*no method 'y'"):
        suite.narrowed(tasks=["x"], methods=["y"])


def test_steps_that_are_asked_for_stand_before_those_of_a_task() -> None:
    content = {"steps": 100, "tasks": [{"task": "a", "steps": 60}], "backbone": "mini", "examples_per_step": 16}
    suite = suite_from("own", content | {"methods": [{"method": "full", "learning_rates": [1e-3]}]})
    assert (suite.tasks[0].steps, suite.narrowed(steps=2).tasks[0].steps) == (60, 2)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps is {steps}; expected at least 1"):
            suite.narrowed(steps=steps)


def test_single_values_in_place_of_lists_are_named() -> None:
    content = {"steps": 3, "tasks": "a", "methods": [{"method": "full", "learning_rates": 0.001}], "seeds": 3}
    with pytest.raises(ValueError) as error:
        suite_from("own", content)
    for problem in (
        "field 'tasks' holds 'a', expected a list",
        "field 'seeds' holds 3, expected a list",
        "learning_rates holds 0.001, expected a list",
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
        "steps is '6e2', expected a whole number of at least 1",
        "examples_per_step is 0, expected a whole number of at least 1",
        "seed is 'first', expected a whole number of at least 0",
        "seed is -1, expected a whole number of at least 0",
        "limits is 100, expected a mapping of splits to numbers",
        "task 'a': steps is 0, expected a whole number of at least 1",
        "task 'a': limit of test is 'all', expected a whole number of at least 1",
        "task 'a' is named twice",
        "method 'full': learning_rates holds ['fast'], expected numbers",
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
            ValueError, match=rf"(?s)method 'lara' is unknown.*'{backbone}' is neither a model's folder nor"
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
    with pytest.raises(ValueError, match="--device cuda came, but torch finds no CUDA device here"):
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


# --- the sweep


def sweep(best_at: float, rates: tuple[float, ...], seeds: tuple[int, ...] = (0,), **kwargs: Any) -> list[RunConfig]:
    """Runs of a method whose score falls with the distance of the rate from `best_at`."""
    asked: list[RunConfig] = []

    def execute(made: RunConfig) -> dict[str, Any]:
        asked.append(made)
        ratio = max(made.learning_rate / best_at, best_at / made.learning_rate)
        return record_of(made, round(0.9 / ratio, 4))

    run_suite([Plan(synthetic.config(), rates, seeds)], kwargs["folder"], execute, say=lambda text: None)
    return asked


def test_the_rate_is_chosen_on_validation_and_every_seed_runs_at_it(tmp_path: Path) -> None:
    asked = sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1, 2), folder=tmp_path)
    assert [(made.learning_rate, made.seed) for made in asked] == [
        (3e-4, 0), (1e-3, 0), (3e-3, 0), (1e-3, 1), (1e-3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("best_at", "tried"), [(1e-2, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]), (4e-4, [1e-3, 2e-3, 5e-4, 2.5e-4])]
)
def test_a_grid_whose_end_won_grows_until_it_does_not(tmp_path: Path, best_at: float, tried: list[float]) -> None:
    asked = sweep(best_at, (1e-3, 2e-3), folder=tmp_path)
    assert [made.learning_rate for made in asked] == pytest.approx(tried)


def test_a_single_rate_is_fixed_and_does_not_grow(tmp_path: Path) -> None:
    assert len(sweep(1.0, (1e-3,), (0, 1), folder=tmp_path)) == 2


def test_the_rate_is_that_of_the_lowest_loss_whatever_chance_the_score_had() -> None:
    low, high = (record_of(synthetic.config(rate=rate), score) for rate, score in ((1e-3, 0.7), (1e-2, 0.74)))
    assert best_rate({1e-3: low | {"validation_loss": 0.27}, 1e-2: high | {"validation_loss": 0.33}}) == 1e-3
    assert best_rate({1e-3: low | {"validation_loss": 0.3}, 1e-2: high | {"validation_loss": 0.3}}) == 1e-3
    assert best_rate({1e-3: {"outcome": "diverged", "reason": "nan"}}) is None
    assert next_rate([1e-3, 1e-2], None) is None


def test_a_method_that_never_finishes_runs_no_further_seeds(tmp_path: Path) -> None:
    asked: list[RunConfig] = []

    def execute(made: RunConfig) -> dict[str, Any]:
        asked.append(made)
        return {"outcome": "diverged", "reason": "the loss is nan"}

    said: list[str] = []
    plan = Plan(synthetic.config(), (1e-3, 1e-2), (0, 1, 2))
    records = run_suite([plan], tmp_path, execute, say=said.append)
    assert len(asked) == len(records) == 2
    assert "diverged: the loss is nan" in said[0]


def test_what_is_recorded_is_not_run_again(tmp_path: Path) -> None:
    first = sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1), folder=tmp_path)
    assert len(first) == 4
    assert sweep(1e-3, (3e-4, 1e-3, 3e-3), (0, 1), folder=tmp_path) == []


def test_a_run_that_another_process_recorded_meanwhile_stands(tmp_path: Path) -> None:
    def execute(made: RunConfig) -> dict[str, Any]:
        write_record(tmp_path, made, record_of(made, 0.7))
        return record_of(made, 0.8)

    records = run_suite([Plan(synthetic.config(), (1e-3,), (0, 1))], tmp_path, execute, say=lambda text: None)
    assert [record["scores"]["validation"]["accuracy"] for record in records] == [0.7, 0.7]


def test_the_time_left_follows_from_the_runs_that_were_timed() -> None:
    progress = Progress(runs=10, done=4)
    assert progress.line() == "4/10 runs"
    progress.seconds += [10.0, 30.0]
    assert progress.line() == "4/10 runs, about 2 min left"


# --- one process a run


SUITE_SCRIPT = """
import sys
from pathlib import Path
import synthetic
from fake_worker import work
from t5peft.benchmark.process import RunProcesses
from t5peft.benchmark.schedule import Plan, run_suite

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    execute = RunProcesses(work, log=folder / "log.txt", threads=1)
    plan = Plan(synthetic.config(), (1e-3, 2e-3, 4e-3), (0, 1, 2))
    run_suite([plan], folder / "records", execute, say=lambda text: print(text, flush=True))
"""


def start_suite(folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "suite.py"
    script.write_text(SUITE_SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", TESTS)))}
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def records_of(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (folder / "records").glob("*.json")}


def test_a_suite_that_is_killed_twice_ends_with_the_same_records(tmp_path: Path) -> None:
    """Once in the middle of a run, once right after one; the third call finishes what is left."""
    whole = start_suite(tmp_path / "whole")
    output, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, output
    expected = records_of(tmp_path / "whole")
    assert len(expected) == 8  # three rates, three more as the upper end won each time, two more seeds

    cut = tmp_path / "cut"
    for kill_after in ("start of run 2", "record 3"):
        suite = start_suite(cut)
        wait_for(cut, kill_after)
        suite.send_signal(signal.SIGKILL)
        suite.communicate()
        assert wait_until(lambda: not running_workers(cut)), "a run outlived the suite that asked for it"
    found = records_of(cut)
    assert 3 <= len(found) < len(expected)
    last = start_suite(cut)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    assert records_of(cut) == expected
    assert not list((cut / "records").glob(".*"))
    starts = (cut / "starts").read_text().split()
    assert len(set(starts)) == len(expected)
    assert len(starts) - len(expected) in (1, 2), "only what was cut off is run again"


def wait_for(folder: Path, moment: str) -> None:
    what, number = moment.rsplit(" ", 1)
    starts = folder / "starts"
    if what == "record":
        done = lambda: len(list((folder / "records").glob("*.json"))) >= int(number)  # noqa: E731
    else:
        done = lambda: starts.exists() and len(starts.read_text().split()) >= int(number)  # noqa: E731
    assert wait_until(done), f"{moment} never came"


def wait_until(done: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.01)
    return False


def running_workers(folder: Path) -> list[int]:
    """Processes of fake runs that are still at work."""
    pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("how", "outcome", "reason"),
    [
        ("killed", "out_of_memory", "the system killed the process (signal 9)"),
        ("exits", "failed", "the process ended with exit code 7 and no record"),
    ],
)
def test_a_run_that_dies_is_an_outcome_with_a_reason(tmp_path: Path, how: str, outcome: str, reason: str) -> None:
    from fake_worker import WORKERS

    record = RunProcesses(WORKERS[how], log=tmp_path / "log.txt", threads=1)(synthetic.config())
    assert record["outcome"] == outcome
    assert reason in record["reason"]


# --- a run


def run_in_its_process(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A run of four steps of the embedded task support_intent by the real worker."""
    fields: dict[str, Any] = {"steps": 4, "evaluations": 2, "limits": {"validation": 10, "test": 20}}
    fields["data"] = data_of(SuiteTask("support_intent"))
    made = synthetic.config(task="support_intent", **(fields | changes))
    return RunProcesses(run, log=tmp_path / "log.txt", threads=1)(made)


def test_a_run_records_what_the_trainer_and_the_evaluation_give_by_hand(tmp_path: Path) -> None:
    record = run_in_its_process(tmp_path, rate=1e-2)
    assert record["outcome"] == "finished", record
    task, data = load_data(data_of(SuiteTask("support_intent")), {"validation": 10, "test": 20})
    set_seed(0)
    model, tokenizer = load_backbone("mini")
    train = task.tokenize(random.Random(0).sample(data["train"], 4 * 16), tokenizer)
    set_seed(0)
    model = lora_wrap(model)
    arguments = T5PeftTrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=16, learning_rate=1e-2, lr_scheduler_type="linear",
        warmup_steps=1, report_to="none", save_strategy="no", use_cpu=True, dataloader_drop_last=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()
    scores = evaluate_task(model, tokenizer, task, data["test"])
    assert record["scores"]["test"]["accuracy"] == scores["accuracy"]
    assert sum(record["test_score_by_example"]) == pytest.approx(20 * scores["accuracy"])
    loss = loss_and_perplexity(model, task.tokenize(data["validation"], tokenizer).to_list())["loss"]
    assert record["validation_loss"] == pytest.approx(loss, abs=1e-4)
    assert [point["step"] for point in record["curve"]] == [2, 4]
    assert record["parameters"]["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < record["seconds"]["test_scoring"] < record["seconds"]["total"] - record["curve"][-1]["seconds"]


@pytest.mark.parametrize("verbalizer", [None, {"a": "yes", "b": "no"}])
def test_a_split_has_the_scores_of_evaluate_task_perplexity_and_gleu_among_them(
    verbalizer: dict[str, str] | None,
) -> None:
    records = [{"text": "he go there", "answer": "a"}, {"text": "a much longer line than the first one", "answer": "b"}]
    task = Task(
        "t", "correct this: {text}", "{answer}", verbalizer, metrics=("gleu", "perplexity"), max_target_length=6
    )
    model, tokenizer = load_backbone("mini")
    expected = evaluate_task(model, tokenizer, task, records)
    split = Split(task, records, tokenizer)
    assert split.texts == [record["text"] for record in records]
    found = split.score(model)
    assert found.scores == {name: pytest.approx(expected[name]) for name in ("loss", "perplexity", "gleu")}


def test_matthews_correlation_of_one_example_is_whether_it_is_right() -> None:
    """Of one example there is none: 0 for each would make all methods the same."""
    _, tokenizer = load_backbone("mini")
    task = Task(name="free", template="{text}", target="{answer}", metrics=["matthews"])
    split = Split(task, [{"text": "a", "answer": "b"}], tokenizer)
    assert [split._lead_by_example([answer]) for answer in ("b", "c")] == [[1.0], [0.0]]


@pytest.mark.parametrize("metric", ["bleu", "gleu"])
def test_a_short_example_alone_has_the_score_of_a_sentence(metric: str) -> None:
    _, tokenizer = load_backbone("mini")
    task = Task(name="short", template="{text}", target="{answer}", metrics=[metric])
    split = Split(task, [{"text": "I is here", "answer": "I am here"}], tokenizer)
    highest = METRICS[metric].highest
    assert [split._lead_by_example([answer]) for answer in ("I am here", "no")] == [[pytest.approx(highest)], [0.0]]


def test_files_of_ones_own_are_looked_through_before_the_first_run(tmp_path: Path) -> None:
    for name, rows in {
        "train": [{"text": f"t{i}", "label": "a"} for i in range(20)],
        "test": [{"text": "t", "label": "a"}],
        "empty": [{"text": "t", "label": None}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"name": "t", "template": "{text}", "target": "{label}", "metrics": ["accuracy"]}
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    assert data_of(SuiteTask("t", own={**own, "files": files}))["fingerprint"]
    for changes, message in (
        ({"references": "labels", "files": files}, "references are in the column 'labels', which is in none"),
        ({"files": {"train": files["train"]}}, "has no test records"),
        ({"files": {**files, "test": str(tmp_path / "empty.jsonl")}}, "The column 'label' holds NoneType in row 0"),
    ):
        with pytest.raises(ValueError, match=message):
            data_of(SuiteTask("t", own={**own, **changes}))


def test_a_metric_of_which_less_is_better_does_not_lead() -> None:
    own = {"name": "t", "template": "{text}", "target": "{label}", "metrics": ["perplexity"], "files": {}}
    with pytest.raises(ValueError, match="leads with perplexity, of which less is better"):
        data_of(SuiteTask("t", own=own))


def test_a_run_whose_loss_is_no_number_has_diverged(tmp_path: Path) -> None:
    record = run_in_its_process(tmp_path, method="full", rate=1e30)
    assert record["outcome"] == "diverged"
    assert "loss is nan at step 4" in record["reason"]


# --- memory


HOLDING = """
from t5peft.benchmark.memory import MemoryMeter
held = []
def hold():
    held.append(bytearray(b"x") * (1 << 26))
with MemoryMeter("cpu") as meter:
    before = meter.peak_bytes
    hold()
    meter.pause()
    hold()
    hold()
    meter.go_on()
    hold()
print(meter.left_bytes, meter.peak_bytes - before)
"""


def test_the_meter_leaves_out_what_a_paused_span_left_held() -> None:
    """In a process of its own: this one hands memory back when it likes."""
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=True)
    left, taken = map(int, done.stdout.split())
    assert left == pytest.approx(2 << 26, rel=0.05)
    assert taken == pytest.approx(2 << 26, rel=0.05)
