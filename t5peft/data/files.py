"""Records from files, folders, standard input and the hub: ``load_records("train.csv")`` is a sequence of dictionaries.

The extension determines the format: ``.csv .tsv .jsonl .json .parquet .arrow .txt``. Text files may also be compressed, with
``.gz``, ``.xz`` or ``.bz2`` after it (``formats.py``). Folders are read by split (``folders.py``). Nested columns of files and of
the hub become ``"translation.de"``, which a template can name.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import load_dataset

from t5peft.data.columns import flat
from t5peft.data.folders import files_of_split, saved_dataset
from t5peft.data.formats import (
    KINDS,
    OPENERS,
    TextFormat,
    decoded,
    lines_of,
    read_bytes,
    read_file,
    read_text,
)
from t5peft.data.sources import RecordFile, RecordList, Records, gathered, of_dataset

STANDARD_INPUT = "-"


def load_records(
    path_or_name: str | Path,
    split: str | None = None,
    *,
    config: str | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
    quoted: bool | None = None,
    required: Sequence[str] = (),
) -> RecordList | RecordFile:
    """Read records from a file, a folder, standard input or a hub data set.

    Args:
        path_or_name: A file, a folder, the name of a data set on the hub, such as ``"nyu-mll/glue"``, or ``"-"`` for standard
            input: JSON Lines, JSON, or else a table with a header.
        split: The split of a folder or hub data set.
        config: The configuration of a folder or hub data set with several, such as ``"sst2"``.
        encoding: The encoding of text files.
        delimiter: The delimiter of table cells; by default a comma for CSV and a tab for TSV.
        header: Column names of a table without a header.
        quoted: Whether quotation marks in a table enclose cells. By default they do in CSV but not in TSV (GLUE's files have
            single ones as text). Pass ``True`` for a TSV file from a spreadsheet.
        required: Columns that must exist.

    Returns:
        The records, with ``origin`` and the ``label_names`` of columns with label numbers. Large data are stored on disk and
        read as a sequence: files from 32 MiB (compressed, 3 MiB; Parquet, also from 335,000 cells), and folders and hub data
        sets from 10,000 records. A JSON object and standard input are always read into memory.

    Raises:
        FileNotFoundError: The file, split or data set does not exist, or the hub cannot be reached.
        ValueError: The file is empty, of an unknown type, damaged (all bad lines at once), or lacks a required column, or the
            folder has several files for the split.
    """
    if not str(path_or_name) or "://" in str(path_or_name):
        raise FileNotFoundError(
            f"Got {str(path_or_name)!r} as the name of records; expected a file, a folder or a data set of the hub. Download "
            "what is elsewhere."
        )
    form = TextFormat(encoding, delimiter, header, quoted)
    path = Path(path_or_name)
    records: RecordList | RecordFile
    if str(path_or_name) == STANDARD_INPUT:
        records = _from_standard_input(form)
    elif path.is_dir():
        records = _from_folder(path, split, config, form)
    elif path.is_file():
        records = read_file(path, form)
    elif _looks_like_a_file(str(path_or_name)):
        raise FileNotFoundError(_no_such_file(path))
    else:
        records = _from_hub(str(path_or_name), config, split)
    if not records:
        raise ValueError(f"Got {records.origin}, which is empty: it has no records; expected at least one.")
    require_columns(records, required, records.origin or "the data")
    return records


def load_aligned(paths: Mapping[str, str | Path], *, encoding: str = "utf-8") -> Records:
    """Read line-aligned text files: ``{"english": "train.en.gz", "german": "train.de.gz"}``.

    Args:
        paths: The file of each column.
        encoding: The encoding of all files.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: The files are empty or have different numbers of lines.
    """
    columns = {}
    for column, path in paths.items():
        if not Path(path).is_file():
            raise FileNotFoundError(_no_such_file(Path(path)))
        columns[column] = lines_of(decoded(read_bytes(Path(path)), str(path), encoding))
    counts = {column: len(lines) for column, lines in columns.items()}
    listed = ", ".join(f"{paths[column]} has {count}" for column, count in counts.items())
    if len(set(counts.values())) > 1:
        raise ValueError(f"Got aligned files with different numbers of lines: {listed}; expected equal numbers.")
    if not any(counts.values()):
        raise ValueError(
            f"Got {', '.join(map(str, paths.values()))}, which are empty; expected at least one line in each."
        )
    return RecordList(
        (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)),
        ", ".join(map(str, paths.values())),
    )


def require_columns(records: Sequence[Mapping[str, Any]], required: Sequence[str], origin: str) -> None:
    """Check that the first record has the columns.

    Raises:
        ValueError: Columns are missing; names them all, and those that are there.
    """
    missing = [column for column in required if column not in records[0]]
    if missing:
        raise ValueError(
            f"Got {origin}, which has no {'columns' if len(missing) > 1 else 'column'} {', '.join(map(repr, missing))}; "
            f"expected it beside {', '.join(map(repr, records[0]))}. Rename a column."
        )


def _from_standard_input(form: TextFormat) -> RecordList:
    data = sys.stdin.buffer.read()
    if not data:
        raise ValueError("Got standard input, which is empty; expected records. Give '-' for only one file.")
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    kind = ".jsonl" if start == b"{" else ".json" if start == b"[" else ".tsv" if form.delimiter == "\t" else ".csv"
    return RecordList(map(flat, read_text(data, kind, "standard input", form)), "standard input")


def _from_folder(folder: Path, split: str | None, config: str | None, form: TextFormat) -> RecordList | RecordFile:
    saved = saved_dataset(folder, split)
    if saved is not None:
        return of_dataset(saved.flatten(), str(folder))
    files = files_of_split(folder, split, config)
    first = read_file(files[0], form)
    if len(files) == 1:
        return first
    others = (read_file(path, form) for path in files[1:])
    origin = f"{files[0]} and {len(files) - 1} more files"
    return gathered(chain(first, chain.from_iterable(others)), origin, first.label_names)


def _looks_like_a_file(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    known = suffix in KINDS or suffix in OPENERS
    return (
        known
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or bool("/" not in name and suffix)
    )


def _no_such_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"Got {path}, which does not exist, nor does its folder {folder}; expected a file. Check the path."
    names = sorted(other.name for other in folder.iterdir() if other.is_file())
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"Got {path}, which does not exist; expected a file of {folder.resolve()}, which has {there or 'no files'}."


def _from_hub(name: str, config: str | None, split: str | None) -> RecordList | RecordFile:
    try:
        dataset = load_dataset(name, config, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Got {name!r}, which is not a file here, and cannot be read as a data set on the hub: {error}. Without a network, "
            f"give a local file ({', '.join(KINDS)}), a folder in the format of the hub, or a built-in task."
        ) from error
    return of_dataset(dataset.flatten(), f"{name}, split {split or 'train'}")
