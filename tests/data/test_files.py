"""Records from files: every kind of file, and what every broken one is told."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from t5peft.data import load_aligned, load_records

PACKED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
ROWS = [{"text": 'a "b", c', "label": "0"}, {"text": "d\u2028e", "label": "1"}]


def write(path: Path) -> Path:
    kind = path.name.split(".")[1]
    if kind == "csv":
        content = 'text,label\n"a ""b"", c",0\nd\u2028e,1\n'
    elif kind == "tsv":
        content = 'text\tlabel\na "b", c\t0\nd\u2028e\t1\n'
    elif kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    else:
        content = json.dumps({"data": ROWS})
    data = content.encode()
    path.write_bytes(PACKED.get(path.suffix.removeprefix("."), bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.xz"])
def test_every_kind_of_file_gives_the_same_records(name: str, tmp_path: Path) -> None:
    assert load_records(write(tmp_path / name)) == ROWS


def test_parquet_gives_the_same_records(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert load_records(tmp_path / "a.parquet") == ROWS


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_columns_of_columns_get_the_names_that_they_have_from_the_hub(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    rows = Dataset.from_list([{"q": "who?", "answers": {"text": ["Bob"], "at": {"start": 1}}}])
    rows.to_parquet(path) if kind == "parquet" else rows.to_json(path, lines=kind == "jsonl")
    expected = rows.flatten().to_list()
    assert load_records(path) == expected == [{"q": "who?", "answers.text": ["Bob"], "answers.at.start": 1}]


def test_windows_line_ends_and_a_byte_order_mark_leave_no_trace(tmp_path: Path) -> None:
    for name, separator in (("a.csv", b","), ("a.tsv", b"\t")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + separator.join([b"x", b"y"]) + b"\r\n1" + separator + b"2\r\n")
        assert load_records(tmp_path / name) == [{"x": "1", "y": "2"}]


def test_a_table_without_a_header_takes_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\t1\ny\t0\n")
    assert load_records(tmp_path / "a.tsv", header=["text", "label"])[0] == {"text": "x", "label": "1"}


def test_a_spreadsheets_tsv_is_read_with_its_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines"\t1\n')
    assert load_records(tmp_path / "a.tsv", quoted=True) == [{"text": "two\nlines", "label": "1"}]


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    assert load_records(tmp_path, "train") == ROWS
    with pytest.raises(FileNotFoundError, match=r"has train.*; expected a folder with a file of the split 'test'"):
        load_records(tmp_path, "test")


def test_the_file_of_a_split_has_its_name_and_an_ending_and_is_the_only_one(tmp_path: Path) -> None:
    for name in ("test.csv", "train.csv", "train.raw.csv", "train.csv.bak"):
        (tmp_path / name).write_text(f"x\n{name}\n")
    assert load_records(tmp_path, "train") == [{"x": "train.csv"}]
    assert load_records(tmp_path, "test") == [{"x": "test.csv"}]
    write(tmp_path / "test.jsonl")
    with pytest.raises(
        ValueError,
        match=r"several files of split 'test': test.csv, test.jsonl; expected one. Give the path of one of them",
    ):
        load_records(tmp_path, "test")


def test_aligned_files_become_columns(tmp_path: Path) -> None:
    (tmp_path / "en.gz").write_bytes(gzip.compress(b"a\x0cb\nc\n"))
    (tmp_path / "de.txt").write_text("x\n\n")
    both = {"english": tmp_path / "en.gz", "german": tmp_path / "de.txt"}
    assert load_aligned(both) == [{"english": "a\x0cb", "german": "x"}, {"english": "c", "german": ""}]
    (tmp_path / "de.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"with different numbers of lines: .*en.gz has 2, .*de.txt has 1"):
        load_aligned(both)


def test_a_missing_file_is_told_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    with pytest.raises(
        FileNotFoundError, match=r"Got .*trian.csv, which does not exist; expected a file of .*, which has train.csv"
    ):
        load_records(tmp_path / "trian.csv")
    with pytest.raises(FileNotFoundError, match=r"which does not exist, nor does its folder .*nowhere;"):
        load_records(tmp_path / "nowhere" / "a.csv")


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", "\n")])
def test_an_empty_file_is_told(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"is empty: it has no (bytes|records)"):
        load_records(tmp_path / name)


def test_a_missing_column_is_told_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no columns 'sentence', 'gold'; expected it beside 'text', 'label'"):
        load_records(write(tmp_path / "a.csv"), required=["sentence", "label", "gold"])


def test_all_broken_lines_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1\n2,3\n4,5,6\n")
    with pytest.raises(ValueError, match="line 2 has 1 cells, expected 2\n  - line 4 has 3 cells, expected 2"):
        load_records(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{x}\n[1]\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON .*\n  - line 3 holds list, expected an object"):
        load_records(tmp_path / "a.jsonl")


def test_the_wrong_encoding_and_a_broken_archive_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("x\né\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not utf-8: byte 2, in line 2, .* give encoding='latin-1'"):
        load_records(tmp_path / "a.csv")
    assert load_records(tmp_path / "a.csv", encoding="latin-1") == [{"x": "é"}]
    (tmp_path / "b.csv").write_bytes("x\né\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"is not utf-8: .* Its first bytes .* give encoding='utf-16'"):
        load_records(tmp_path / "b.csv")
    assert load_records(tmp_path / "b.csv", encoding="utf-16") == [{"x": "é"}]
    with pytest.raises(ValueError, match="Got the encoding 'utf-17'"):
        load_records(tmp_path / "a.csv", encoding="utf-17")
    packed = bytearray(gzip.compress(b"".join(b"line %d\n" % number for number in range(500))))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a.txt.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        load_records(tmp_path / "a.txt.gz")
    (tmp_path / "a.csv.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be decompressed"):
        load_records(tmp_path / "a.csv.gz")


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ",")])
def test_cells_separated_by_something_else_are_told(name: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"text{mark}label\nyes, well{mark}1\n")
    with pytest.raises(ValueError, match=r"with one column by its header.* seem to be separated by") as error:
        load_records(tmp_path / name)
    assert repr(mark) in str(error.value)


def test_an_unknown_ending_is_told_with_those_known(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"whose extension is unknown .*; expected .csv, .tsv"):
        load_records(tmp_path / "a.xlsx")


def test_a_hub_data_set_without_a_network_names_local_files() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'nyu-mll/glue', which is not a file here.* Without a network, give a local file"
    ):
        load_records("nyu-mll/glue", "train", config="sst2")


@pytest.mark.parametrize(
    ("name", "is_file"),
    [("train.csv", True), ("data/train.jsonl.gz", True), ("./x", True), ("a/b/c", True), ("train.en", True),
     ("imdb", False), ("nyu-mll/glue", False), ("org/name-v1.0", False)],
)  # fmt: skip
def test_names_of_files_and_of_the_hub_are_told_apart(
    name: str, is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(path: str, config: str | None, split: str) -> Dataset:
        asked.append(path)
        return Dataset.from_list([{"text": "a"}])

    monkeypatch.setattr("t5peft.data.files.load_dataset", load)
    if is_file:
        with pytest.raises(FileNotFoundError, match="which does not exist"):
            load_records(name)
    else:
        assert load_records(name) == [{"text": "a"}]
    assert asked == ([] if is_file else [name])


# Encodings


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("x\n€5 – “ok”\n".encode("cp1252"), "encoding='cp1252' (--encoding cp1252)"),
        ("x\nit’s\n".encode("cp1252"), "encoding='cp1252' (--encoding cp1252)"),
        ("x\nété\n".encode("latin-1"), "encoding='latin-1' (--encoding latin-1)"),
        ("x\nпривет\n".encode("cp866") + b"\x81\x8d\n", "encoding='cp866' (--encoding cp866)"),
        (b"x\n\x81\x8d\xfe\xff\n", "such as cp1252, mac_roman, cp437, cp1251, shift_jis"),
        ("x\n" + "übung öl äße\n" * 3, "Most of it is UTF-8, so line 5 is damaged"),
        ("x\né\n".encode("utf-16"), "encoding='utf-16' (--encoding utf-16)"),
        ("x\nabcdef\n".encode("utf-16-le"), "encoding='utf-16-le' (--encoding utf-16-le)"),
        ("x\nabcdef\n".encode("utf-16-be"), "encoding='utf-16-be' (--encoding utf-16-be)"),
    ],
)  # fmt: skip
def test_the_encoding_that_a_file_seems_to_have_is_named(data: bytes | str, advice: str, tmp_path: Path) -> None:
    raw = data if isinstance(data, bytes) else data.encode() + b"caf\xe9\n"
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(advice)) as error:
        load_records(tmp_path / "a.csv")
    assert str(tmp_path / "a.csv") in str(error.value)


def test_a_file_is_read_in_the_encoding_that_was_advised(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("x\n€5 – “ok”\n".encode("cp1252"))
    assert load_records(tmp_path / "a.csv", encoding="cp1252") == [{"x": "€5 – “ok”"}]
    (tmp_path / "b.csv").write_bytes("x\nabc\n".encode("utf-16-le"))
    assert load_records(tmp_path / "b.csv", encoding="utf-16-le") == [{"x": "abc"}]


def test_an_encoding_that_needs_a_mark_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x\nabc\n1")
    with pytest.raises(ValueError, match=r"a.csv, which is not utf-16"):
        load_records(tmp_path / "a.csv", encoding="utf-16")


# Delimiters


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", ",")])
def test_a_table_is_read_with_its_delimiter(name: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"text{mark}label\nyes{mark}1\n")
    assert load_records(tmp_path / name, delimiter=mark) == [{"text": "yes", "label": "1"}]


def test_quotation_marks_enclose_cells_but_not_between_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text;n\n"a;b";1\n')
    assert load_records(tmp_path / "a.csv", delimiter=";") == [{"text": "a;b", "n": "1"}]
    (tmp_path / "b.csv").write_text('text\tn\n"a\t1\n')
    assert load_records(tmp_path / "b.csv", delimiter="\t") == [{"text": '"a', "n": "1"}]


@pytest.mark.parametrize("mark", ["", ";;", '"', "\n"])
def test_a_delimiter_is_one_character(mark: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Got the delimiter .* expected one character"):
        load_records(write(tmp_path / "a.csv"), delimiter=mark)


# Standard input


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "mark"),
    [
        (b'{"text": "a", "label": "1"}\n', None),
        (b'\xef\xbb\xbf{"text": "a", "label": "1"}\n', None),
        (b'[{"text": "a", "label": "1"}]', None),
        (b"text,label\na,1\n", None),
        (b"text;label\na;1\n", ";"),
        (b"text\tlabel\na\t1\n", "\t"),
    ],
)
def test_standard_input_is_read(data: bytes, mark: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, data)
    assert load_records("-", delimiter=mark) == [{"text": "a", "label": "1"}]


def test_standard_input_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, message in (
        (b"", "Got standard input, which is empty"),
        (b'{"a": 1}\n{"a"', "Got standard input, which is damaged"),
        (b"a;b\n1;2\n", "Got standard input with one column by its header"),
        (b"x\n\x80\n", r"Got standard input, which is not utf-8.*--encoding cp1252"),
    ):
        standard_input(monkeypatch, data)
        with pytest.raises(ValueError, match=message):
            load_records("-")


# Damaged files


def packed(kind: str, path: Path) -> Path:
    rows = [{"text": f"words {i} of many", "label": i % 2} for i in range(300)]
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "arrow":
        table = Dataset.from_list(rows).data.table
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(PACKED.get(kind, bytes)(text))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "a.jsonl.bz2"])
def test_a_damaged_file_is_read_or_named(name: str, tmp_path: Path) -> None:
    path = packed(name.rsplit(".", 1)[1], tmp_path / name)
    whole = path.read_bytes()
    expected = load_records(path)
    assert len(expected) == 300
    generator = random.Random(0)
    told: list[str] = []
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[generator.randrange(1, len(whole)) :]
        else:
            for _ in range(generator.choice((1, 8))):
                damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            load_records(path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 10
    assert [text for text in told if not (text.startswith("Got ") and str(path) in text)] == []


@pytest.mark.parametrize("content", ["[" * 200_000, '{"x": ' + "1" * 5000 + "}"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_python_does_not_read_is_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"Got .*{name}"):
        load_records(tmp_path / name)


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ValueError, match=r"a pointer of Git LFS; expected the data. Run `git lfs pull`"):
        load_records(tmp_path / "a.parquet")


# Labels, lists, dates


FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["negative", "positive"]),
        "topics": List(ClassLabel(names=["art", "war", "sea"])),
    }
)
LABELED = [{"text": "a", "label": 1, "topics": [2, 0]}, {"text": "b", "label": 0, "topics": [1]}]


def test_the_names_of_labels_come_with_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.from_list(LABELED, features=FEATURES)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr("t5peft.data.files.load_dataset", lambda *args, **kwargs: dataset)
    for records in (load_records(tmp_path / "a.parquet"), load_records(tmp_path / "saved"), load_records("a/b")):
        assert records.label_names == {"label": ["negative", "positive"]}
        assert records == [
            {"text": "a", "label": 1, "topics": ["sea", "art"]},
            {"text": "b", "label": 0, "topics": ["war"]},
        ]


def test_a_folder_named_like_a_column_adds_none(tmp_path: Path) -> None:
    folder = tmp_path / "year=2020"
    folder.mkdir()
    Dataset.from_list(ROWS).to_parquet(folder / "a.parquet")
    assert load_records(folder / "a.parquet") == ROWS
