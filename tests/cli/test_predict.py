"""Answers on the command line: their files grow, and an interrupted command goes on."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from commands import own_task
from fresh import start_fresh
from tiny import tiny_t5, tiny_tokenizer

from t5peft import load_backbone
from t5peft.cli import main
from t5peft.cli.answer_file import AnswerFile
from t5peft.cli.predict import answer
from t5peft.data import Task, load_records
from t5peft.evaluation import rank


def flat(chunks: Iterable[list[tuple[dict[str, Any], dict[str, Any]]]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [pair for chunk in chunks for pair in chunk]


def test_evaluate_and_predict_take_the_test_records_of_a_folder(
    backbone: str, data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = own_task(tmp_path, "own", "test")
    assert main(["evaluate", backbone, "--task", task, "--data", data_set]) == 0
    assert "own, 6 records" in capsys.readouterr().out
    assert main(["predict", backbone, "--task", task, "--data", data_set]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [
        f"test {i}" for i in range(6)
    ]


def test_an_answer_is_the_likeliest_label_also_where_the_printed_shares_are_equal() -> None:
    words = {str(i): f"{i:04}" for i in range(200)}
    task, records = Task("number", "{text}", "{label}", words), [{"text": text} for text in ("a", "bc", "def")]
    model, tokenizer = tiny_t5(), tiny_tokenizer()
    model.lm_head.weight.data *= 1e-4
    best = rank(model, tokenizer, task.sources(records, tokenizer), task.candidates).best
    answers = [found["answer"] for _, found in flat(answer(model, tokenizer, task, records))]
    assert answers == [task.labels[i] for i in best] != ["0"] * 3


def test_columns_that_an_answer_would_take_the_place_of_are_told() -> None:
    for target, taken in (("{name}", "answer"), ("{answer}", "prediction")):
        task = Task("question", "{question}", target, max_target_length=4)
        records = [{"question": "who?", "name": "Bob", "answer": "Bob", "prediction": "Eve"}]
        with pytest.raises(ValueError, match=rf"columns that predict adds \({taken}\); .* Rename them"):
            list(answer(tiny_t5(), tiny_tokenizer(), task, records))


def test_predict_writes_dates_and_takes_one_kind_of_input(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "dated.parquet")
    parquet.write_table(pa.Table.from_pylist([{"text": "film", "seen": date(2020, 1, 2)}]), path)
    task = own_task(tmp_path, "own", "test")
    assert main(["predict", backbone, "--task", task, "--data", path]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == "2020-01-02"
    assert main(["predict", backbone, "--task", task, "--data", path, "--text", "film"]) == 2
    assert "Got both --data and --text; expected one of them" in capsys.readouterr().err


def test_answers_are_json_whatever_the_other_columns_hold(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "film", "scores": [NaN, 1.5], "cut": "\\ud83d"}\n')
    output = tmp_path / "answers.jsonl"
    arguments = ["predict", backbone, "--task", own_task(tmp_path, "own", "test"), "--data", str(tmp_path / "a.jsonl")]
    assert main([*arguments, "--output", str(output)]) == 0
    answer = json.loads(output.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (answer["scores"], answer["cut"]) == ([None, 1.5], "\ud83d")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert main(arguments) == 0
    sys.stdout.seek(0)
    assert json.loads(sys.stdout.read())["cut"] == "\ud83d"


def test_texts_that_are_cut_before_they_are_answered_are_told(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("echo", "{text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",), max_source_length=8)
    model, tokenizer = load_backbone(backbone)
    assert len(flat(answer(model, tokenizer, task, [{"text": "far too long"}, {"text": "short"}]))) == 2
    assert "Task echo: 1 of 2 sources were longer than 8 tokens" in caplog.text


def test_the_file_of_answers_is_made_before_a_model_is_loaded_and_so_is_its_folder(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", backbone, "--task", own_task(tmp_path, "own", "test"), "--text", "film", "--output"]
    output = tmp_path / "new" / "answers.jsonl"
    assert main([*arguments, str(output)]) == 0
    assert json.loads(output.read_text())["text"] == "film"
    monkeypatch.setattr("t5peft.cli.predict.load_tuned", lambda folder: pytest.fail("the model was loaded"))
    assert main([*arguments, str(tmp_path)]) == 2
    assert f"Got the output {tmp_path}, which is a folder" in capsys.readouterr().err


def test_predictions_stand_beside_the_answers_of_question_answering(backbone: str) -> None:
    model, tokenizer = load_backbone(backbone)
    task = Task("qa", "question: {question}", "{answer}", metrics=("exact_match",))
    record = {"question": "who?", "answer": "me"}
    ((given, found),) = flat(answer(model, tokenizer, task, [record]))
    assert given == record
    assert found.keys() == {"prediction"}


# --- files of answers that grow

SLOW = """
import sys, time
import t5peft.cli.predict as command
from t5peft.cli import main
from t5peft.cli.answer_file import AnswerFile
from t5peft.cli.predict import answer
command.TOKENS_AT_ONCE = 200
write = command.AnswerFile.write
def slowly(self, answers):
    write(self, answers)
    time.sleep(0.3)
command.AnswerFile.write = slowly
sys.exit(main(sys.argv[1:]))
"""


def films(folder: Path, count: int = 40) -> str:
    path = folder / "films.jsonl"
    rows = [{"text": "film " * (1 + i * 7 % 5) + str(i), "note": 'a "b",\nc', "n": i} for i in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def kill_after(answers: int, arguments: list[str], growing: Path) -> None:
    """Kill -9 the command once so many lines are in the file."""
    with start_fresh(SLOW, *arguments) as process:
        while process.is_alive and not (growing.is_file() and growing.read_bytes().count(b"\n") >= answers):
            time.sleep(0.02)
        assert process.is_alive, process.stderr


@pytest.mark.parametrize("ending", ["jsonl", pytest.param("csv", marks=pytest.mark.slow), "parquet"])
@pytest.mark.processes
def test_an_answering_that_was_killed_goes_on_and_ends_as_one_that_was_not(
    ending: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 200)
    task, data = own_task(tmp_path, "own", "test"), films(tmp_path)
    arguments = ["predict", backbone, "--task", task, "--data", data, "--output"]
    whole, killed = tmp_path / f"whole.{ending}", tmp_path / f"killed.{ending}"
    assert main([*arguments, str(whole)]) == 0
    growing = tmp_path / ".killed.parquet.part" if ending == "parquet" else killed
    kill_after(9, [*arguments, str(killed)], growing)
    with growing.open("ab") as file:  # half of a line that was not yet counted
        file.write(b'{"text": "fi')
    capsys.readouterr()
    answered: list[int] = []
    write = AnswerFile.write

    def counted(file: AnswerFile, rows: Sequence[Any]) -> None:
        answered.append(len(rows))
        write(file, rows)

    monkeypatch.setattr(AnswerFile, "write", counted)
    assert main([*arguments, str(killed)]) == 0
    assert 0 < sum(answered) < 40
    assert f"holds {40 - sum(answered)} answers of 40; resuming from there" in capsys.readouterr().err
    assert killed.read_bytes() == whole.read_bytes()
    assert [row["n"] for row in load_records(killed)] == [str(i) if ending == "csv" else i for i in range(40)]
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_an_unfinished_file_is_gone_on_with_only_by_the_same_command(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 200)
    output = tmp_path / "answers.jsonl"

    def interrupt(self: AnswerFile) -> None:
        raise KeyboardInterrupt

    task, data = own_task(tmp_path, "own", "test"), films(tmp_path, 6)
    arguments = ["predict", backbone, "--task", task, "--data", data, "--output", str(output)]
    with monkeypatch.context() as broken:
        broken.setattr(AnswerFile, "finish", interrupt)
        assert main(arguments) == 130
    before = output.read_bytes()
    other_model = tmp_path / "other"
    shutil.copytree(backbone, other_model)
    tiny_t5(seed=1).save_pretrained(other_model)
    other_data = shutil.copy(films(make(tmp_path / "seven"), 7), tmp_path / "more.jsonl")
    other_task = tmp_path / "other.yaml"
    other_task.write_text(Path(task).read_text().replace("film: ", "a film: "))
    for place, other, name in (
        (1, str(other_model), "model"),
        (3, str(other_task), "task"),
        (5, str(other_data), "records"),
    ):
        changed = [*arguments[:place], other, *arguments[place + 1 :]]
        assert main(changed) == 2
        assert (
            f"holds 6 answers of an interrupted command with other {name}; expected the same" in capsys.readouterr().err
        )
    output.write_bytes(before.replace(b"film", b"Film", 1))
    assert main(arguments) == 2
    assert "was changed since an interrupted command wrote it" in capsys.readouterr().err
    output.write_bytes(before)
    (tmp_path / ".answers.jsonl.progress").write_text("{")
    assert main(arguments) == 2
    assert ".answers.jsonl.progress, which is damaged" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0
    assert output.read_bytes() == before
    assert main(arguments) == 2
    assert f"Got the output {output}, which exists already; expected a new file" in capsys.readouterr().err


def test_the_batches_of_an_answering_are_written_while_it_runs(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 200)
    output, seen = tmp_path / "answers.jsonl", []

    def watch(self: AnswerFile, rows: list[Any], write: Any = AnswerFile.write) -> None:
        write(self, rows)
        seen.append(output.read_bytes().count(b"\n"))

    monkeypatch.setattr(AnswerFile, "write", watch)
    task = own_task(tmp_path, "own", "test")
    assert main(["predict", backbone, "--task", task, "--data", films(tmp_path), "--output", str(output)]) == 0
    assert len(seen) > 3
    assert seen == sorted(set(seen))
    assert seen[-1] == 40


@pytest.mark.parametrize("left", [".answers.parquet.part", ".answers.parquet.progress"])
def test_the_same_command_goes_on_where_left_overs_could_not_be_deleted(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, records, unlink = tmp_path / "answers.parquet", [{"text": "a"}, {"text": "b"}], Path.unlink

    def write() -> None:
        file = AnswerFile(path, records, ["answer"], {"task": "t"})
        file.write([(record, {"answer": record["text"]}) for record in records[file.done :]])
        file.finish()

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.name == left:
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(OSError, match="Read-only"):
            write()
    write()
    assert parquet.read_table(path).to_pylist() == [{"text": "a", "answer": "a"}, {"text": "b", "answer": "b"}]
    assert list(tmp_path.iterdir()) == [path]


def test_csv_has_a_column_for_each_label_and_parquet_keeps_types(backbone: str, tmp_path: Path) -> None:
    task, data = own_task(tmp_path, "own", "test"), films(tmp_path, 3)
    for ending in ("csv", "parquet", "jsonl"):
        output = str(tmp_path / f"answers.{ending}")
        assert main(["predict", backbone, "--task", task, "--data", data, "--output", output]) == 0
    with (tmp_path / "answers.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows = parquet.read_table(tmp_path / "answers.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert rows == lines
    assert [row["n"] for row in rows] == [0, 1, 2]
    for cells, row in zip(table, rows, strict=True):
        assert list(cells) == ["text", "note", "n", "answer", "probability.0", "probability.1"]
        assert (cells["note"], cells["answer"]) == (row["note"], row["answer"])
        assert float(cells["probability.1"]) == row["probability"]["1"]


@pytest.mark.parametrize("ending", ["csv.gz", "xlsx", "tsv"])
def test_an_ending_of_no_format_that_is_written_is_refused(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "mini", "--text", "a", "--output", str(tmp_path / f"a.{ending}")]) == 2
    assert "expected a file whose name ends in .jsonl, .csv or .parquet" in capsys.readouterr().err


def test_records_come_from_the_standard_input(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = own_task(tmp_path, "own", "test")
    arguments = ["predict", backbone, "--task", task, "--data", "-", "--output", "-"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(films(tmp_path, 3)).read_bytes())))
    assert main(arguments) == 0
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a film\n")))
    assert main(arguments) == 2
    assert "standard input" in capsys.readouterr().err


@pytest.mark.processes
def test_a_file_that_another_command_writes_is_refused(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, data, output = own_task(tmp_path, "own", "test"), films(tmp_path), tmp_path / "answers.jsonl"
    arguments = ["predict", backbone, "--task", task, "--data", data, "--output", str(output)]
    with start_fresh(SLOW, *arguments) as process:
        while process.is_alive and not (output.is_file() and output.stat().st_size):
            time.sleep(0.02)
        assert main(arguments) == 4
    assert f"Got the file {output}, which another run holds (process {process.pid}" in capsys.readouterr().err


# --- engines


@pytest.mark.parametrize("engine", ["torch", "ct2", "onnx"])
def test_an_export_answers_as_its_model_does(engine: str, backbone: str, tmp_path: Path) -> None:
    pytest.importorskip({"torch": "torch", "ct2": "ctranslate2", "onnx": "onnxruntime"}[engine])
    exported = str(tmp_path / "exported")
    target = {"torch": "transformers"}.get(engine, engine)
    assert main(["export", backbone, "--to", target, "--output", exported]) == 0
    task, data = own_task(tmp_path, "own", "test"), films(tmp_path, 6)
    free = tmp_path / "free.yaml"
    free.write_text(
        "name: free\ntemplate: 'film: {text}'\ntarget: '{summary}'\nmax_target_length: 6\nmetrics: [rouge]\n"
    )
    for name in (task, str(free)):
        answers = []
        for folder, *options in ([backbone], [exported], [exported, "--engine", engine]):
            output = tmp_path / "answers.jsonl"
            command = ["predict", folder, "--task", name, "--data", data, "--output", str(output), "--overwrite"]
            assert main([*command, *options]) == 0
            answers.append(output.read_text())
        assert len(set(answers)) == 1


def test_an_engine_that_does_not_go_with_the_folder_is_told(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = own_task(tmp_path, "own", "test")
    command = ["predict", backbone, "--task", task, "--text", "film", "--engine"]
    assert main([*command, "ct2"]) == 2
    assert f"Run `t5peft export {backbone} --to ct2 --output DIR`, and use DIR" in capsys.readouterr().err
    assert main([*command, "torch"]) == 0
    command[1] = str(tmp_path / "exported")
    assert main(["export", backbone, "--to", "transformers", "--output", command[1]]) == 0
    assert main([*command, "onnx"]) == 2
    assert "an export to transformers; expected that engine, or none" in capsys.readouterr().err


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_the_time_left(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 50)
    monkeypatch.setattr("t5peft.cli.predict.AnswerFile.write", slow_write(AnswerFile.write))
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    task, output = own_task(tmp_path, "own", "test"), str(tmp_path / "answers.jsonl")
    assert main(["predict", backbone, "--task", task, "--data", films(tmp_path, 5), "--output", output]) == 0
    assert re.search(r"predict: .* [1-4]/5 \[\d\d:\d\d<\d\d:\d\d, .*record", screen.getvalue())


def slow_write(write: Any) -> Any:
    def slowly(self: AnswerFile, rows: list[Any]) -> None:
        write(self, rows)
        time.sleep(0.11)  # longer than tqdm waits between two pictures

    return slowly
