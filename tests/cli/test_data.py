"""The options that say which records: their encoding, delimiter and references, standard input, folders."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tiny import tiny_t5
from transformers import ByT5Tokenizer

from t5peft.cli import main
from t5peft.cli.data import add_data_arguments, read_data, save_task
from t5peft.data import Task
from t5peft.data.splits import Splits

REVIEWS = "review;stars\n" + "".join(f"café {i} – “ok”;{i % 2}\n" for i in range(20))


def read(*given: str) -> tuple[Task, Splits]:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    return read_data(parser.parse_args(given))


def family(path: Path | str, *more: str) -> list[str]:
    return [
        "--task",
        "classification",
        "--train",
        str(path),
        "--column",
        "text=review",
        "--column",
        "label=stars",
        *more,
    ]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_t5().save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    save_task(Task("echo", "say: {text}", "{out}", metrics=("accuracy",), max_target_length=4), folder)
    return str(folder)


def test_a_table_is_read_as_the_errors_say(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(REVIEWS.encode("cp1252"))
    with pytest.raises(ValueError, match=r"train.csv, which is not utf-8.*\(--encoding cp1252\)"):
        read(*family(path))
    with pytest.raises(ValueError, match=r"train.csv with one column.*\(--delimiter ';'\)"):
        read(*family(path, "--encoding", "cp1252"))
    task, splits = read(*family(path, "--encoding", "cp1252", "--delimiter", ";"))
    assert {split: len(records) for split, records in splits.items()} == {"train": 18, "validation": 2}
    assert "– “ok”" in splits["train"][0]["review"]
    path.write_text(REVIEWS.replace(";", "\t"))
    assert read(*family(path, "--delimiter", "tab"))[0] == task


def test_standard_input_is_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(REVIEWS.encode())))
    assert len(read(*family("-", "--delimiter", ";"))[1]["train"]) == 18
    with pytest.raises(ValueError, match="Got '-', standard input, for several files; expected it for only one"):
        read(*family("-", "--test", "-"))


def test_references_are_named(tmp_path: Path) -> None:
    rows = [{"mr": f"m{i}", "ref": "a", "others": ["a", "b"]} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, splits = read("--task", "data_to_text", "--train", str(tmp_path / "a.jsonl"), "--references", "others")
    assert task.answers(splits["validation"][0]) == ["a", "b"]


def test_a_sharded_folder_brings_its_splits_and_the_names_of_labels(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    for i in range(2):
        rows = [{"text": f"film {i} {j}", "label": j % 2} for j in range(10)]
        dataset = Dataset.from_list(rows, features=features)
        dataset.to_parquet(tmp_path / f"train-{i:05d}-of-00002.parquet")
    task, splits = read("--task", "classification", "--train", str(tmp_path))
    assert task.verbalizer == {"0": "bad", "1": "good"}
    assert {split: len(records) for split, records in splits.items()} == {"train": 18, "validation": 2}
    words = ["--target-word", "bad=poor", "--target-word", "good=fine"]
    assert read("--task", "classification", "--train", str(tmp_path), *words)[0].verbalizer == {
        "0": "poor",
        "1": "fine",
    }


def test_an_error_has_the_row_of_the_file_before_records_are_held_out(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "x" if i != 17 else None} for i in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "b", "label": "y"}]))
    with pytest.raises(ValueError, match=r"a.jsonl .*\n  - The column 'label' holds NoneType in row 17"):
        read("--task", "classification", "--train", str(path))


def test_predict_and_evaluate_read_standard_input(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"text;out\na;b\nc;d\n")))
    assert main(["predict", model, "--data", "-", "--delimiter", ";"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a", "c"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a", "out": "b", "refs": ["b"]}\n')))
    assert main(["evaluate", model, "--data", "-", "--references", "refs"]) == 0
    assert "echo, 1 records" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a", "out": "b"}\n')))
    assert main(["evaluate", model, "--data", "-", "--references", "refs"]) == 2
    assert (
        "Got --references refs, of which no record of the data has any; expected one of the columns 'text'"
        in capsys.readouterr().err
    )


def test_a_wrong_delimiter_ends_in_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert main(["predict", model, "--data", str(tmp_path / "a.csv"), "--delimiter", "::"]) == 2
    assert "Got the delimiter '::'; expected one character" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "meant"), [("clasification", "classification"), ("finanse", "finance")])
@pytest.mark.parametrize("column", [[], ["--column", "text=text"]])
def test_an_unknown_task_gets_the_nearest_as_a_suggestion(
    name: str, meant: str, column: list[str], data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--task", name, "--train", data_set, *column, "--output", str(tmp_path / "run")]) == 2
    assert f"Did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [("train",), ("train", "validation"), ("train", "validation", "test"), ("test",)])
@pytest.mark.parametrize("references", ["nope", "empty"])
def test_references_that_no_scored_record_has_are_refused(
    splits: tuple[str, ...], references: str, tmp_path: Path
) -> None:
    rows = [{"text": f"he go {i}", "corrected": f"he goes {i}", "empty": None, "refs": ["a", "b"]} for i in range(9)]
    plain = [{"text": row["text"], "corrected": row["corrected"]} for row in rows]
    files = []
    for split in splits:
        written = rows if split == splits[-1] else plain
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        files += [f"--{split}", str(tmp_path / f"{split}.jsonl")]
    with pytest.raises(
        ValueError, match=f"Got --references {references}, of which no record of .* has any; expected one"
    ):
        read("--task", "correction", *files, "--references", references)
    Task("own", "{text}", "{corrected}", metrics=("gleu",)).to_yaml(tmp_path / "own.yaml")
    with pytest.raises(ValueError, match=f"Got --references {references}"):
        read("--task", str(tmp_path / "own.yaml"), *files, "--references", references)
    assert read("--task", "correction", *files, "--references", "refs")[0].references == "refs"


def test_references_that_only_the_training_records_have_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"he go {i}", "corrected": f"he goes {i}", "refs": ["a"]} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.csv").write_text("text,corrected\na,b\n")
    files = ["--train", str(tmp_path / "train.jsonl"), "--validation", str(tmp_path / "test.csv")]
    with pytest.raises(
        ValueError, match="no record of validation has any; expected one of the columns 'text', 'corrected'"
    ):
        read("--task", "correction", *files, "--references", "refs")


@pytest.mark.parametrize("command", ["evaluate", "auto"])
def test_references_that_are_missing_are_told_before_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.csv").write_text("text,out\na,b\nc,d\n")
    Task("echo", "say: {text}", "{out}", metrics=("accuracy",)).to_yaml(tmp_path / "task.yaml")
    monkeypatch.setattr("t5peft.cli.evaluate.load_tuned", lambda folder: pytest.fail("the model was loaded"))
    words = {
        "evaluate": ["evaluate", str(tmp_path), "--data", str(tmp_path / "own.csv")],
        "auto": ["auto", str(tmp_path / "own.csv"), "--output", str(tmp_path / "out")],
    }[command]
    assert main([*words, "--references", "nope"]) == 2
    assert "Got --references nope, of which no record of " in capsys.readouterr().err


def test_an_empty_column_of_references_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lint", "--task", "correction", "--references", ""])
    assert "Got an empty --references; expected a name." in capsys.readouterr().err


def test_a_file_that_is_given_for_two_splits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(20)))
    for test, told in (("test.csv", False), ("train.csv", True)):
        files = ["--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / test)]
        read("--task", "classification", *files)
        assert ("train, test are the same file" in caplog.text) == told
    read("--task", "classification", "--train", str(tmp_path), "--test", str(tmp_path))
    assert caplog.text.count("the same file") == 1


def test_the_lint_refuses_a_metric_that_training_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(20)))
    Task("own", "{text}", "{label}", metrics=("acuracy",)).to_yaml(tmp_path / "own.yaml")
    assert main(["lint", "--task", str(tmp_path / "own.yaml"), "--train", str(tmp_path / "train.csv")]) == 2
    assert "Got metrics ['acuracy'] of the task 'own'" in capsys.readouterr().err
