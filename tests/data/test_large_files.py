"""A large file is read as a small one is, and takes no memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from tiny import tiny_tokenizer

from t5peft import Task
from t5peft.cli import main
from t5peft.data import formats, load_records
from t5peft.data.augmentation import augment
from t5peft.data.lint import lint
from t5peft.data.public import load_benchmark
from t5peft.data.rewording import WordSwap
from t5peft.data.sources import RecordFile, read_records
from t5peft.data.splits import fingerprint_of_data, hold_out
from t5peft.evaluation import compute
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


NAMED = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["bad", "good"]),
        "more": List(ClassLabel(names=["x", "y"])),
        "inner": {"a": Value("int64")},
    }
)
TABLE = Dataset.from_list(
    [{"text": f"film {i}", "label": i % 2 - (i == 9), "more": [i % 2], "inner": {"a": i}} for i in range(12)],
    features=NAMED,
)


def arrow_bytes(of: Callable[[io.BytesIO, pa.Schema], Any]) -> bytes:
    table, sink = TABLE.data.table, io.BytesIO()
    with of(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


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
    "l.jsonl.gz": gzip.compress("\n".join(map(json.dumps, ROWS)).encode()),
    "m.csv.bz2": bz2.compress('\ufefftext,label\r\n"one,\ntwo",1\r\n'.encode()),
    "n.csv.gz": gzip.compress(b"text,label\n" + b"a,1\n" * 999)[:-9],
    "o.csv.gz": b"text,label\na,1\n",
    "p.parquet": arrow_bytes(lambda sink, schema: pq.ParquetWriter(sink, schema)),
    "q.arrow": arrow_bytes(pa.ipc.new_file),
    "r.arrow": arrow_bytes(pa.ipc.new_stream),
    "s.parquet": arrow_bytes(lambda sink, schema: pq.ParquetWriter(sink, schema))[:-40],
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


def files(folder: Path) -> str:
    for number in range(3):
        TABLE.select(range(4 * number, 4 * number + 4)).to_parquet(folder / f"train-0000{number}-of-00003.parquet")
    return str(folder)


def saved(folder: Path) -> str:
    TABLE.save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("made", [files, saved])
def test_many_records_of_a_folder_are_those_of_a_few(
    made: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path)
    small = load_records(folder, "train")
    monkeypatch.setattr("t5peft.data.sources.ROWS_IN_MEMORY", 5)
    large = load_records(folder, "train")
    assert isinstance(large, RecordFile)
    assert not isinstance(small, RecordFile)
    assert (list(large), large.label_names, large.origin) == (small, small.label_names, small.origin)


KINDS: dict[str, Callable[[], Iterable[Any]]] = {
    "Dataset": lambda: TABLE,
    "stream": TABLE.to_iterable_dataset,
    "generator": lambda: iter(ROWS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_many_records_of_a_data_set_or_a_stream_are_those_of_a_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("t", "{label} {text}", "{text}")
    small, named = read_records(KINDS[kind]()), task.with_names(KINDS[kind]())
    monkeypatch.setattr("t5peft.data.sources.ROWS_IN_MEMORY", 5)
    large, many = read_records(KINDS[kind]()), task.with_names(KINDS[kind]())
    assert isinstance(large, RecordFile)
    assert isinstance(many, RecordFile)
    assert list(large) == list(small)
    assert list(many) == list(named)
    assert task.source(many[-1]) == task.source(named[-1])
    assert [task.source(record) for record in many[1:3]] == [task.source(record) for record in named[1:3]]
    if kind != "generator":
        assert task.source(many[1]) == "good film 1"
        assert task.source(many[9]) != task.source({"label": "good", "text": "film 9"})
    assert many.label_names == {}
    tokens = [task.tokenize(records, tiny_tokenizer()).to_list() for records in (large, small)]
    assert tokens[0] == tokens[1]


def test_augmented_records_and_reports_are_the_same(
    both: Callable[..., tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.data.augmentation.BATCH_ROWS", 7)
    rows = [{**row, "odd": row["odd"] if isinstance(row["odd"], int) else None} for row in ROWS]
    rows[20]["late"] = ["only here"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small, large = both(tmp_path / "a.jsonl")
    found = [
        augment(given, TASK, WordSwap(0.3), copies=2, cache_folder=tmp_path / name)
        for given, name in ((small, "small"), (large, "large"))
    ]
    assert found[0].dataset.to_list() == found[1].dataset.to_list()
    assert found[0].report == found[1].report
    originals = [row for row in found[1].dataset.to_list() if not row["copy"]]
    assert [row["text"] for row in originals] == [row["text"] for row in rows]
    assert [row["late"] for row in originals] == [row.get("late") for row in rows]
    assert fingerprint_of_data(TASK, {"train": small}) == fingerprint_of_data(TASK, {"train": large})
    assert str(lint(TASK, small, tiny_tokenizer())) == str(lint(TASK, large, tiny_tokenizer()))


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


@pytest.mark.parametrize("ending", ["json", "jsonl", "jsonl.gz", "parquet"])
def test_memory_does_not_grow_with_a_file(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    peaks = []
    for copies in (20, 120):
        path = tmp_path / f"{copies}.{ending}"
        rows = [{"text": f"a film {i}", "label": i % 2} for i in range(100 * copies)]
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == "json":
            path.write_text(json.dumps(rows))
        else:
            path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
        del rows, text
        tracemalloc.start()
        records = load_records(path)
        if ending == "jsonl":
            hold_out(records, TASK.source)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 10_000 < 100  # bytes a record; a dictionary of it takes 400


def test_a_parquet_file_is_not_held_as_a_whole(tmp_path: Path) -> None:
    path, draw = tmp_path / "films.parquet", random.Random(0)
    table = pa.table({"text": [f"{draw.getrandbits(800):x}" for _ in range(20_000)]})
    pq.write_table(table, path, row_group_size=1000)
    del table
    before, held = pa.total_allocated_bytes(), []
    with formats._arrow(path, ".parquet") as (_, batches):
        for _ in batches:
            held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 20
    assert max(held) < path.stat().st_size / 4


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
    assert "holds 12 answers of 12; resuming from there" in capsys.readouterr().err
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("at_most", [1, 2, 7, 1000])
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_large_file_holds_out_what_a_small_one_does(
    share: float, at_most: int, both: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.data.splits._PART", 50)
    draw = random.Random(at_most)
    rows = [{"text": f"a{' ' * draw.choice((1, 2))}film {draw.randrange(60)}", "label": 0} for _ in range(400)]
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small, large = both(tmp_path / "films.jsonl")
    wanted, found = (hold_out(read, TASK.source, share=share, at_most=at_most) for read in (small, large))
    assert [list(part) for part in found] == [list(part) for part in wanted]
    assert isinstance(large, RecordFile)


def test_scoring_many_answers_copies_none_of_them() -> None:
    answers, references = ["0", "1"] * 10_000, [["0"], ["0"]] * 10_000
    tracemalloc.start()
    assert compute("accuracy", answers, references)["accuracy"] == 0.5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / len(answers) < 60  # bytes an answer; a list of one text takes 64
