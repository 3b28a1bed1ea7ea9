"""Files that are read wrongly in silence elsewhere, or whose error named the wrong cause."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from t5peft.compat.yaml_files import parse_yaml
from t5peft.data import load_records


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"text,label\na,b\ntext,label\nc,d\n", "line 3 repeats the header"),
        ("a.tsv", b"text\tlabel\na\tb\n\ntext\tlabel\n", "line 4 repeats the header"),
        ("a.csv", "text,label\n日本語,b\n".encode("iso2022_jp"), r"encoding='iso2022_jp' \(--encoding iso2022_jp\)"),
        ("a.txt", "안녕\n".encode("iso2022_kr"), r"encoding='iso2022_kr' \(--encoding iso2022_kr\)"),
    ],
)
def test_a_file_that_would_be_read_wrongly_is_refused(
    name: str, data: bytes, message: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path / name)


def test_cells_that_are_like_a_header_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nfilm\ntext\n")
    assert load_records(tmp_path / "a.csv") == [{"text": "film"}, {"text": "text"}]
    (tmp_path / "b.csv").write_text("text,label\nlabel,text\n\x1b[31mtext,label\n")
    assert len(load_records(tmp_path / "b.csv")) == 2
    (tmp_path / "c.csv").write_text("a,b\na,b\n")
    assert len(load_records(tmp_path / "c.csv", header=["a", "b"])) == 2
    (tmp_path / "d.csv").write_bytes("text\n日本語\n".encode("iso2022_jp"))
    assert load_records(tmp_path / "d.csv", encoding="iso2022_jp") == [{"text": "日本語"}]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"text": ["a"], "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))},
            "that datasets does not read",
        ),
        ({"a.b": ["x"], "a": [{"b": "y"}]}, r"have the name of another one, of 'a\.b'"),
    ],
)
def test_columns_that_cannot_be_read_are_no_damage(table: dict[str, object], message: str, tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message) as error:
        load_records(tmp_path / "a.parquet")
    assert "expected a complete file" not in str(error.value)


@pytest.mark.parametrize("name", ["", "https://example.org/a.csv", "file:///tmp/a.csv"])
def test_what_is_not_the_name_of_records_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.csv").write_text("text\na\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"Got '{name}' as the name of records; expected a file"):
        load_records(name)


def test_a_key_that_stands_twice_in_yaml_is_named_with_its_line() -> None:
    with pytest.raises(yaml.YAMLError, match=r"(?s)the key 'b' stands more than once.*line 3, column 1"):
        parse_yaml("a: 1\nb: 2\nb: 3\n", as_texts=True)
