"""Data, tasks, errors and versions, as all commands share them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import transformers
from datasets import Dataset

import t5peft
from t5peft.benchmark.data import describe_data, load_data
from t5peft.cli import bench, main
from t5peft.cli.data import add_data_arguments, load_saved_task, read_data, save_task
from t5peft.data import Task, load_records, preset_task


def test_a_saved_task_comes_back_whatever_letters_and_locale_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("größe", "{text} ☺", "{label}", {"a\x85b": "schön", "c": "\u2028 d"}, metrics=("accuracy",))
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "latin-1")  # as where the locale has it
    save_task(task, tmp_path)
    assert load_saved_task(tmp_path) == task


def test_the_packages_task_of_a_familys_name_is_reached_without_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--task", "correction"]) == 0
    assert "correction" in capsys.readouterr().out


@pytest.mark.parametrize("origin", ["folder", "here", "hub"])
def test_a_folder_and_a_data_set_of_the_hub_give_the_split_that_is_asked_for(
    origin: str, data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, config: str | None, split: str) -> Dataset:
        return Dataset.from_list(load_records(data_set, split))

    monkeypatch.setattr("t5peft.data.files.load_dataset", load)
    monkeypatch.chdir(data_set)
    path = {"folder": data_set, "here": ".", "hub": "someone/reviews"}[origin]
    given = ["--task", "classification", "--train", path, "--test", path]
    for_training, for_bench = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_data_arguments(for_training)
    _, splits = read_data(for_training.parse_args(given))
    bench.add_arguments(for_bench)
    (own,) = bench.suite_of(for_bench.parse_args(given)).tasks
    assert own.name == ("reviews" if origin == "hub" else Path(data_set).name)
    _, of_bench = load_data(describe_data(own), {})
    for found in (splits, of_bench):
        said = {split: {record["text"].split()[0] for record in records} for split, records in found.items()}
        assert said == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}


def test_the_version_names_the_stack_for_a_report_of_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"t5peft {t5peft.__version__}" in printed
    assert f"transformers {transformers.__version__}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "Got the command 'tune'; expected one of auto, train, evaluate"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "--task", "classification", "--train", "no.csv", "--output", "x"], "no.csv"),
        (["train", "--task", "classification", "--output", "x"], "without records; expected files, with --train"),
        (
            ["lint", "--task", "finance", "--template", "{text}", "--column", "text=x"],
            "Got --column, --template with 'finance'; expected a preset",
        ),
        (["bench", "--task", "finance", "--template", "{text}"], "Got --template, which need your own files"),
        (["evaluate", "nowhere"], "Got no folder nowhere"),
        (["plan", "--micro-batch", "0"], "Got 0 as micro_batch; expected at least 1"),
    ],
)
def test_wrong_input_ends_in_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_a_report_names_a_command_that_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/t5peft", "bench", "--template", "intent: {text}"])
    assert bench._command() == "t5peft bench --template 'intent: {text}'"


def test_labels_that_are_empty_are_named_by_row() -> None:
    records = [{"text": "a", "label": "x"}, {"text": "b", "label": ""}, {"text": "c", "label": "y"}]
    with pytest.raises(
        ValueError, match="Got a column 'label' of labels that is empty in row 1 of the training records"
    ):
        preset_task("classification", records)


def test_bench_takes_every_method_by_name_and_columns_as_train_does(data_set: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    asked = bench.suite_of(parser.parse_args(["--methods", "lora", "full"]))
    assert {entry.method: len(entry.learning_rates) for entry in asked.methods} == {"lora": 3, "full": 1}
    with pytest.raises(ValueError, match="lroa"):
        bench.suite_of(parser.parse_args(["--methods", "lroa"]))
    files = ["--task", "classification", "--train", data_set, "--test", data_set]
    for words in (
        ["--column", "text=label", "--column", "label=text"],
        ["--source-column", "label", "--label-column", "text"],
    ):
        (own,) = bench.suite_of(parser.parse_args([*files, *words])).tasks
        assert own.own is not None
        assert (own.own["template"], own.own["target"]) == ("classify: {label}", "{text}")
