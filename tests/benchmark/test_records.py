"""Records of runs: found again, whole or not there, and those of version 0.1 among them."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic
from paths import ROOT

from t5peft.benchmark.configs import base_configs
from t5peft.benchmark.json_lines import JsonLines
from t5peft.benchmark.records import RunConfig, RunRecords
from t5peft.benchmark.report import write_report
from t5peft.benchmark.schedule import Sweep, run_suite, sweeps
from t5peft.benchmark.suites import load_suite

BENCH = ROOT / "benchmarks" / "records" / "bench"


def found(records: RunRecords, config: RunConfig) -> dict[str, Any]:
    record = records.find(config)
    assert record is not None
    return record


def record_of(made: RunConfig, accuracy: float = 0.9) -> dict[str, Any]:
    return synthetic.finished(made, accuracy, parameters=1000, peak=100, seconds=0.1)


def write_as_0_1(folder: Path, made: RunConfig, **old: Any) -> Path:
    """A record as version 0.1 wrote it: a JSON file of its own, with the names it had then."""
    config = made.content() | old
    path = folder / "records" / f"{made.task}-{made.method}-lr{made.learning_rate:g}-s{made.seed}-0123456789ab.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "config": config, **record_of(made)}) + "\n", encoding="utf-8")
    return path


def test_a_record_is_found_by_what_was_asked_for_and_by_nothing_else(tmp_path: Path) -> None:
    made = synthetic.config()
    RunRecords(tmp_path).append(made, record_of(made))
    records = RunRecords(tmp_path)
    assert found(records, synthetic.config())["metric"] == "accuracy"
    for other in (
        synthetic.config(rate=2e-3),
        synthetic.config(seed=1),
        synthetic.config(steps=301),
        synthetic.config(backbone_fingerprint="other"),
        synthetic.config(data={"task": "intents", "fingerprint": "other"}),
        synthetic.config(method_options={"rank": 4}),
        synthetic.config(training_options={"bucket_by_length": False}),
    ):
        assert records.find(other) is None


def test_a_record_of_files_of_ones_own_names_them_without_their_folder(tmp_path: Path) -> None:
    made, moved = (
        synthetic.config(data={"own": {"name": "mine", "files": {"train": f"{folder}/train.csv"}}, "fingerprint": "f"})
        for folder in ("/home/somebody/films", "elsewhere")
    )
    records = RunRecords(tmp_path)
    records.append(made, record_of(made))
    assert "somebody" not in records.path.read_text(encoding="utf-8")
    assert found(records, moved)["config"]["data"]["own"]["files"] == {"train": "train.csv"}
    assert made.data["own"]["files"]["train"].startswith("/home")  # the run itself still finds its file


def test_a_tasks_file_is_one_task_by_whatever_path(tmp_path: Path) -> None:
    made, moved = (
        synthetic.config(task=path, data={"task": path, "fingerprint": "f"})
        for path in ("/home/somebody/films.yaml", "films.yaml")
    )
    records = RunRecords(tmp_path)
    records.append(made, record_of(made))
    assert "somebody" not in records.path.read_text(encoding="utf-8")
    assert found(records, moved)["config"]["task"] == "films.yaml"
    assert made.data["task"].startswith("/home")  # the run itself still finds its file
    report = write_report(tmp_path, tmp_path, title="", about="", command="", tasks=["/home/somebody/films.yaml"])
    assert "**films.yaml**" in report.text


def test_records_are_one_line_each_and_come_sorted(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    for seed in (2, 0, 1):
        made = synthetic.config(seed=seed)
        records.append(made, record_of(made))
    text = records.path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert [json.loads(line)["config"]["seed"] for line in text.splitlines()] == [2, 0, 1]
    assert [record["config"]["seed"] for record in RunRecords(tmp_path).load()] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_record_is_never_edited(tmp_path: Path) -> None:
    made = synthetic.config()
    one, other = RunRecords(tmp_path), RunRecords(tmp_path)
    assert other.find(made) is None
    one.append(made, record_of(made, 0.9))
    before = one.path.read_bytes()
    for records in (one, other, RunRecords(tmp_path)):
        with pytest.raises(FileExistsError, match=r"never edited\. Delete it to run"):
            records.append(made, record_of(made, 0.1))
    assert one.path.read_bytes() == before


def test_a_record_that_cannot_be_written_is_not_there(tmp_path: Path) -> None:
    made = synthetic.config()
    with pytest.raises(ValueError, match="Out of range float values"):
        RunRecords(tmp_path).append(made, {"outcome": "finished", "score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_records_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = RunRecords(tmp_path)
    first, second = synthetic.config(), synthetic.config(seed=1)
    records.append(first, record_of(first))
    before = records.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("t5peft.benchmark.json_lines.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            records.append(second, record_of(second))
    assert records.path.read_bytes() == before
    records.append(second, record_of(second))
    assert len(RunRecords(tmp_path).load()) == 2


def test_an_outcome_needs_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got the outcome 'diverged' without a reason"):
        RunRecords(tmp_path).append(synthetic.config(), {"outcome": "diverged"})
    with pytest.raises(
        ValueError, match="Got the outcome 'fine'; expected one of finished, out_of_memory, diverged, failed"
    ):
        RunRecords(tmp_path).append(synthetic.config(), {"outcome": "fine"})


def test_lines_and_files_that_are_not_records_are_named_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("{")
    (tmp_path / "records" / "b.json").write_text('{"outcome": "finished", "schema": 99}')
    with pytest.raises(
        ValueError, match=r"(?s)a\.json, which is not a run record.*b\.json, which is not a run record \(Got schema 99"
    ):
        RunRecords(tmp_path).load()
    made = synthetic.config()
    records = RunRecords(tmp_path / "lines")
    records.append(made, record_of(made))
    with records.path.open("ab") as file:
        file.write(b'\n[1]\n{"outcome": "finished", "schema": 1}\n\xff\n')
    with pytest.raises(ValueError, match=r"(?s)line 3, which is not.*line 4, which is not.*line 5, which is not"):
        RunRecords(tmp_path / "lines").load()
    with pytest.raises(FileNotFoundError, match="Run `t5peft bench` first"):
        RunRecords(tmp_path / "nowhere").load()


# --- kills, and two processes at once


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_a_kill_cut_off_is_dropped_and_its_run_repeated(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    grid = [Sweep(synthetic.config(), (1e-3,), (0, 1, 2))]
    run_suite(grid, RunRecords(tmp_path), record_of, log=lambda text: None)
    path = RunRecords(tmp_path).path
    whole = path.read_bytes()
    *kept, last = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(kept) + last.rstrip(b"\n")[:cut])
    asked: list[int] = []

    def execute(made: RunConfig) -> dict[str, Any]:
        asked.append(made.seed)
        return record_of(made)

    with caplog.at_level(logging.WARNING):
        run_suite(grid, RunRecords(tmp_path), execute, log=lambda text: None)
    assert asked == [2]
    assert [record.getMessage() for record in caplog.records] == [
        f"Dropped the last line of {path}: it is incomplete, so that its run is repeated."
    ]
    assert path.read_bytes() == whole


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    """As an editor leaves it; the next record begins on a line of its own."""
    first, second = synthetic.config(), synthetic.config(seed=1)
    RunRecords(tmp_path).append(first, record_of(first))
    path = RunRecords(tmp_path).path
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    RunRecords(tmp_path).append(second, record_of(second))
    assert [record["config"]["seed"] for record in RunRecords(tmp_path).load()] == [0, 1]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_file_that_was_put_in_its_place_is_read_anew(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    for number in range(3):
        lines.append(f'{{"number": {number}}}')
    lines.path.write_text('{"other": 1}\n')
    assert lines.new_lines() == [(1, b'{"other": 1}')]
    lines.append('{"other": 2}')
    assert lines.path.read_text() == '{"other": 1}\n{"other": 2}\n'


def append_many(folder: Path, first: int) -> None:
    records = RunRecords(folder)
    for seed in range(first, first + 40):
        made = synthetic.config(seed=seed)
        records.append(made, {"outcome": "failed", "reason": "x" * (1000 * (seed % 5) + 1)})


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(tmp_path, 40 * number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    seeds = [record["config"]["seed"] for record in RunRecords(tmp_path).load()]
    assert sorted(seeds) == list(range(160))


# --- version 0.1


OLD_NAMES = [
    ("prefix", "method_options", {"reparametrise": 64}, {"projection_size": 64}),
    ("lora", "method_options", {"targets": ["q"], "rank_stabilised": True}, {"target_modules": ["q"], "rank_stabilized": True}),
    ("ladder", "method_options", {"keep_activations": 10}, {"activation_cache_bytes": 10}),
    ("prompt", "method_options", {"initialise": "random"}, {"initialize": "random"}),
    ("lora", "training_options", {"cut_by_length": False}, {"bucket_by_length": False}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "field", "old", "new"), OLD_NAMES)
@pytest.mark.parametrize("in_lines", [True, False])
def test_a_record_with_old_option_names_is_found_and_shown_with_the_current_ones(
    tmp_path: Path, method: str, field: str, old: dict[str, Any], new: dict[str, Any], in_lines: bool
) -> None:
    fields: list[dict[str, Any]] = [{field: new}, {field: old}]
    made, asked_before = (synthetic.config(method, **changes) for changes in fields)
    path = write_as_0_1(tmp_path, made, **{field: old})
    if in_lines:
        path.rename(tmp_path / "records.jsonl")
    for asked in (made, asked_before):
        assert found(RunRecords(tmp_path), asked)["config"][field] == new
    with pytest.raises(FileExistsError):
        RunRecords(tmp_path).append(made, record_of(made))


@pytest.mark.parametrize("folder_of", [lambda path: path, lambda path: path / "records"])
def test_a_folder_of_one_file_a_run_loads_and_takes_new_runs(tmp_path: Path, folder_of: Callable[[Path], Path]) -> None:
    old, new = synthetic.config(), synthetic.config(seed=1)
    before = write_as_0_1(tmp_path, old).read_bytes()
    records = RunRecords(folder_of(tmp_path))
    assert [record["config"]["seed"] for record in records.load()] == [0]
    records.append(new, record_of(new))
    with pytest.raises(FileExistsError):
        records.append(old, record_of(old))
    assert [record["config"]["seed"] for record in RunRecords(folder_of(tmp_path)).load()] == [0, 1]
    assert [path.read_bytes() for path in (tmp_path / "records").glob("*.json")] == [before]


def test_a_record_of_own_files_whose_tasks_fields_have_other_names_now_is_found(tmp_path: Path) -> None:
    own = {"name": "mine", "template": "{text}", "files": {"train": "train.csv"}}
    made = synthetic.config(data={"own": own | {"verbalizer": {"0": "bad"}}, "fingerprint": "f"})
    write_as_0_1(tmp_path, made, data={"own": own | {"target_words": {"0": "bad"}}, "fingerprint": "f"})
    assert RunRecords(tmp_path).find(made) is not None


@pytest.mark.parametrize("suite", ["quick", "embedded"])
def test_no_run_of_the_repositorys_records_is_asked_for_again(suite: str) -> None:
    """They were made by version 0.1: neither the names in it nor the fingerprint of the data may have changed."""
    records, loaded = RunRecords(BENCH / suite), load_suite(suite)

    def execute(made: RunConfig) -> dict[str, Any]:
        raise AssertionError(f"{made} would be run again")

    found = run_suite(sweeps(loaded, base_configs(loaded, "cpu")), records, execute, log=lambda text: None)
    assert len(found) >= len(loaded.tasks) * len(loaded.methods)


def test_old_options_of_training_in_a_suite_have_their_current_names() -> None:
    from t5peft.benchmark.suites import suite_from

    content = {"steps": 3, "tasks": ["a"], "methods": [{"method": "full", "learning_rates": [1e-3]}]}
    suite = suite_from("own", content | {"training_options": {"cut_by_length": False}})
    assert suite.training_options == {"bucket_by_length": False}


@pytest.mark.parametrize("field", ["task", "method", "learning_rate", "seed"])
def test_a_record_without_a_part_of_its_configuration_is_not_one(field: str, tmp_path: Path) -> None:
    made = synthetic.config()
    RunRecords(tmp_path).append(made, record_of(made))
    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    record = json.loads(line)
    del record["config"][field]
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=rf"line 1, which is not a run record \('{field}'\)"):
        RunRecords(tmp_path).load()
