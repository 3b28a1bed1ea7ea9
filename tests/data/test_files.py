"""Records from files: every kind of file, and what every broken one is told."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
from datasets import Dataset

from t5peft.data import load_aligned, load_records

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
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
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
    with pytest.raises(FileNotFoundError, match="no file of split 'test'; it has train"):
        load_records(tmp_path, "test")


def test_the_file_of_a_split_has_its_name_and_an_ending_and_is_the_only_one(tmp_path: Path) -> None:
    for name in ("test.csv", "train.csv", "train.raw.csv", "train.csv.bak"):
        (tmp_path / name).write_text(f"x\n{name}\n")
    assert load_records(tmp_path, "train") == [{"x": "train.csv"}]
    assert load_records(tmp_path, "test") == [{"x": "test.csv"}]
    write(tmp_path / "test.jsonl")
    with pytest.raises(ValueError, match=r"several files of split 'test': test.csv, test.jsonl; expected one. Give one of them"):
        load_records(tmp_path, "test")


def test_aligned_files_become_columns(tmp_path: Path) -> None:
    (tmp_path / "en.gz").write_bytes(gzip.compress(b"a\x0cb\nc\n"))
    (tmp_path / "de.txt").write_text("x\n\n")
    both = {"english": tmp_path / "en.gz", "german": tmp_path / "de.txt"}
    assert load_aligned(both) == [{"english": "a\x0cb", "german": "x"}, {"english": "c", "german": ""}]
    (tmp_path / "de.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"must have as many lines each: .*en.gz has 2, .*de.txt has 1"):
        load_aligned(both)


def test_a_missing_file_is_told_with_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*trian.csv; .* has train.csv"):
        load_records(tmp_path / "trian.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere either"):
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
    with pytest.raises(ValueError, match=r"is not utf-8: .* By its first bytes .* give encoding='utf-16'"):
        load_records(tmp_path / "b.csv")
    assert load_records(tmp_path / "b.csv", encoding="utf-16") == [{"x": "é"}]
    with pytest.raises(ValueError, match="Got the encoding 'utf-17'"):
        load_records(tmp_path / "a.csv", encoding="utf-17")
    packed = bytearray(gzip.compress(b"".join(b"line %d\n" % number for number in range(500))))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a.txt.gz").write_bytes(packed)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        load_records(tmp_path / "a.txt.gz")
    (tmp_path / "a.csv.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        load_records(tmp_path / "a.csv.gz")


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ",")])
def test_cells_separated_by_something_else_are_told(name: str, mark: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"text{mark}label\nyes, well{mark}1\n")
    with pytest.raises(ValueError, match=r"with one column by its header.* seem to be separated by") as error:
        load_records(tmp_path / name)
    assert repr(mark) in str(error.value)


def test_an_unknown_ending_is_told_with_those_known(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"no ending that says what it is .*; expected .csv, .tsv"):
        load_records(tmp_path / "a.xlsx")


def test_a_hub_data_set_without_a_network_names_local_files() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'nyu-mll/glue', which is not a file here.* Without a network give a local file"
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
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_records(name)
    else:
        assert load_records(name) == [{"text": "a"}]
    assert asked == ([] if is_file else [name])
