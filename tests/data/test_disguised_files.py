"""Files whose bytes are not what their names say, and tables that name a column twice."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from t5peft.data import load_records, preset_task


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (gzip.compress(b"text\nword\n"), "first bytes are those of gzip: unpack it"),
        (lzma.compress(b"text\nword\n"), "first bytes are those of xz: unpack it"),
        (b"PK\x03\x04\xff\xfe", "first bytes are those of a ZIP or Excel file: unpack it"),
        ("text\nword\n".encode("utf-32"), "give encoding='utf-32'"),
    ],
)
def test_bytes_under_the_name_of_a_table_are_told_by_their_start(content: bytes, advice: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=advice):
        load_records(tmp_path / "a.csv")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["x"]), pa.array(["z"])], names=["text", "label", "label"])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    with pytest.raises(ValueError, match="with several columns 'label'; expected one each"):
        load_records(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a"], "Got only the label 'a' in the column 'label'"),
        ([None, None], "Got no label in the column 'label'"),
    ],
)
def test_labels_that_are_no_choice_are_told_of_the_column(labels: list[str | None], message: str) -> None:
    records = [{"text": "x", "label": label} for label in labels]
    with pytest.raises(ValueError, match=f"{message}; expected two or more in the training records"):
        preset_task("classification", records)
    with pytest.raises(ValueError, match="Its verbalizer has a word for 'a' only; give two or more labels a word"):
        preset_task("classification", records, verbalizer={"a": "b"})
