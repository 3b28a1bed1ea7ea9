"""A large file is read as a small one is, and takes no memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from t5peft import Task
from t5peft.cli import main
from t5peft.data import load_records
from t5peft.data.public import load_benchmark
from t5peft.data.sources import RecordFile
from t5peft.data.splits import hold_out
from t5peft.evaluation.scores import EvaluationSet

TASK = Task("film", "film: {text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",))
ROWS: list[dict[str, Any]] = [
    {
        "text": f"{'a  long' if i % 3 else 'a long'} film {i % 40}",
        "label": i % 2,
        "odd": [None, 1, "x", {"a": 1.5}][i % 4],
    }
    for i in range(120)
]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """Read a file as a small one and as a large one."""

    def read(path: Path | str, read_by: Callable[..., Any] = load_records, **more: Any) -> tuple[Any, Any]:
        found: list[Any] = []
        for bytes_ in (1 << 40, 1):
            monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", bytes_)
            try:
                found.append(read_by(path, **more))
            except ValueError as error:
                found.append(str(error))
        return found[0], found[1]

    return read


FILES: dict[str, bytes] = {
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "b.csv": '\ufefftext,label\r\n"one,\ntwo",1\r\n\r\nthree,0\n'.encode(),
    "c.tsv": b'text\tlabel\n"quoted\t1\nplain\t0',
    "d.txt": "one\r\ntwo\x0cthree\u2028four\n\nlast\r".encode(),
    "e.csv": b"text;label\na;1\n",
    "f.csv": b"text,label\na,1,2\nb\n",
    "g.jsonl": b'{"a": 1}\n[1]\nno\n',
    "h.csv": "text\ncaf\u00e9\n".encode("latin-1"),
    "i.txt": "some text\n".encode("utf-16-le"),
    "j.csv": b"text,text\n1,2\n",
    "k.csv": b"text,label\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_large_file_holds_the_same_records_or_gives_the_same_error(
    name: str, both: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    small, large = both(tmp_path / name)
    if isinstance(small, str):
        assert large == small
        return
    assert isinstance(large, RecordFile)
    assert list(large) == small == large[:]
    assert large[len(large) - 1] == small[-1] == large[-1]
    assert (large.origin, large.label_names) == (small.origin, small.label_names)


def test_hold_out_tokens_and_evaluation_are_the_same(both: Callable[..., tuple[Any, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(FILES["a.jsonl"])
    small, large = both(tmp_path / "a.jsonl")
    for share, at_most in ((0.1, 1000), (0.5, 1000), (0.9, 7), (1.0, 1000)):
        expected = hold_out(small, TASK.source, share=share, at_most=at_most)
        found = hold_out(large, TASK.source, share=share, at_most=at_most)
        assert [list(part) for part in found] == [list(part) for part in expected]
    with pytest.raises(ValueError, match=r"Got 120 records with 1 different keys in .*a\.jsonl"):
        hold_out(large, lambda record: "same")
    tokenizer = tiny_tokenizer()
    assert TASK.tokenize(large, tokenizer).to_list() == TASK.tokenize(small, tokenizer).to_list()
    answers = ["0"] * 120
    scores = [EvaluationSet(TASK, records, tokenizer).score_answers(answers) for records in (small, large)]
    assert scores[0] == scores[1]


def test_a_public_data_set_of_several_files_may_be_large(both: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cola").mkdir()
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        rows = "".join(f"{name}\t{i % 2}\t\tsentence {i} of {name}\n" for i in range(12))
        (tmp_path / "cola" / f"{name}.tsv").write_text(rows)
    small, large = both("cola", read_by=load_benchmark, folder=tmp_path)
    assert {split: list(rows) for split, rows in large.items()} == small
    assert [len(rows) for rows in small.values()] == [11, 1, 24]
    assert isinstance(large["train"], RecordFile)


def test_memory_does_not_grow_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    peaks = []
    for copies in (20, 200):
        path = tmp_path / f"{copies}.jsonl"
        path.write_text(
            "".join(json.dumps({"text": f"a film {i}", "label": i % 2}) + "\n" for i in range(100 * copies))
        )
        tracemalloc.start()
        records = load_records(path)
        hold_out(records, TASK.source)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 18_000 < 100  # bytes a record; a dictionary of it takes 400


def test_an_interrupted_answering_of_a_large_file_goes_on(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    monkeypatch.setattr("t5peft.cli.predict.TOKENS_AT_ONCE", 500)
    (tmp_path / "films.jsonl").write_text("".join(json.dumps({"text": f"film {i}"}) + "\n" for i in range(12)))
    TASK.to_yaml(tmp_path / "task.yaml")
    command = [
        "predict",
        backbone,
        "--task",
        str(tmp_path / "task.yaml"),
        "--data",
        str(tmp_path / "films.jsonl"),
        "--output",
    ]
    assert main([*command, str(tmp_path / "whole.jsonl")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("t5peft.cli.answer_file.AnswerFile.finish", lambda self: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            main([*command, str(tmp_path / "cut.jsonl")])
    assert main([*command, str(tmp_path / "cut.jsonl")]) == 0
    assert "holds 12 answers of 12; going on from there" in capsys.readouterr().err
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
