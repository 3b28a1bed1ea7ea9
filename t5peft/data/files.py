"""Records from files and from the hub: ``load_records("train.csv")`` is a list of dictionaries, one a row.

The kind of file is read from its name: ``.csv .tsv .jsonl .json .parquet .txt``, the text ones also with ``.gz``,
``.xz`` or ``.bz2`` after it. A folder with a file ``train``, ``validation`` or ``test`` of such an ending is read by ``split``.
Cells of CSV and TSV stay text: a label 0 is ``"0"``, as target words have it. Columns of columns become
``"translation.de"``, which a template can name, of files and of the hub alike.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]
from datasets import load_dataset

from t5peft.data.splits import Records

OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}  # type: ignore[dict-item]
KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
ENDING = re.compile(rf"({'|'.join(map(re.escape, KINDS))})({'|'.join(map(re.escape, OPENERS))})?$", re.IGNORECASE)


def load_records(
    path_or_name: str | Path,
    split: str | None = None,
    *,
    config: str | None = None,
    encoding: str = "utf-8",
    header: Sequence[str] | None = None,
    quoted: bool | None = None,
    required: Sequence[str] = (),
) -> Records:
    """Read records from a file, a folder with one file a split, or a hub data set.

    Args:
        path_or_name: a file, a folder, or the name of a data set on the hub, such as ``"nyu-mll/glue"``.
        split: of a folder or hub data set.
        config: of a hub data set, such as ``"sst2"``.
        encoding: of text files.
        header: names of the columns of a CSV or TSV file that has none of its own.
        quoted: whether quotation marks in a CSV or TSV file enclose cells. As a rule they do in CSV and do not in TSV
            (GLUE's files hold single ones as text); say ``True`` for a TSV file that a spreadsheet has written.
        required: columns that must be there.

    Raises:
        FileNotFoundError: there is no such file, or the hub cannot be reached or has no such data set.
        ValueError: the folder has several files of the split.
        ValueError: the file is empty, of no known kind, broken (all bad lines at once), or lacks a required column.
    """
    path = Path(path_or_name)
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.is_file():
        records = [_flat(record) for record in _read(path, encoding, header, quoted)]
        origin = str(path)
    elif _looks_like_a_file(str(path_or_name)):
        raise FileNotFoundError(_no_such_file(path))
    else:
        records = _from_hub(str(path_or_name), config, split)
        origin = f"{path_or_name}, split {split}"
    if not records:
        raise ValueError(f"{origin} is empty: it has no records; at least one was expected")
    require_columns(records, required, origin)
    return records


def load_aligned(paths: Mapping[str, str | Path], *, encoding: str = "utf-8") -> Records:
    """Records from text files whose lines belong together: ``{"english": "train.en.gz", "german": "train.de.gz"}``.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: the files are empty or have different numbers of lines.
    """
    columns = {}
    for column, path in paths.items():
        if not Path(path).is_file():
            raise FileNotFoundError(_no_such_file(Path(path)))
        columns[column] = _lines(_text(Path(path), encoding))
    counts = {column: len(lines) for column, lines in columns.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{paths[column]} has {count}" for column, count in counts.items())
        raise ValueError(f"aligned files must have as many lines each: {listed}; see where they part")
    if not any(counts.values()):
        raise ValueError(f"{', '.join(map(str, paths.values()))} are empty: at least one line each was expected")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def require_columns(records: Records, required: Sequence[str], origin: str) -> None:
    """Check that the first record has the columns.

    Raises:
        ValueError: columns are missing; names them all, and those that are there.
    """
    missing = [column for column in required if column not in records[0]]
    if missing:
        raise ValueError(
            f"{origin} has no {'columns' if len(missing) > 1 else 'column'} {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, records[0]))}"
        )


def _read(path: Path, encoding: str, header: Sequence[str] | None, quoted: bool | None) -> Records:
    kind = _kind(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: it has no bytes; at least one record was expected")
    if kind == ".parquet":
        return parquet.read_table(path).to_pylist()
    text = _text(path, encoding)
    if kind in (".csv", ".tsv"):
        return _table(path, text, "\t" if kind == ".tsv" else ",", header, kind == ".csv" if quoted is None else quoted)
    if kind == ".jsonl":
        return _json_lines(path, text)
    if kind == ".json":
        return _json(path, text)
    return [{"text": line} for line in _lines(text)]


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in KINDS:
        raise ValueError(
            f"{path} has no ending that says what it is; expected {', '.join(KINDS)}, the text ones also with "
            f"{', '.join(OPENERS)} after it: rename the file"
        )
    return suffixes[-1]


def _text(path: Path, encoding: str) -> str:
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); is it whole, and is its ending right?") from None
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        guess = "by its first bytes is encoding='utf-16'" if marked else "in older files is often encoding='latin-1'"
        raise ValueError(
            f"{path} is not {encoding} (byte {error.start} is {data[error.start]:#04x}); save it as UTF-8, or give load_records "
            f"the encoding that it has, which {guess}"
        ) from None
    except LookupError:
        raise ValueError(
            f"there is no encoding {encoding!r}; expected one of Python's, such as 'utf-8' or 'latin-1'"
        ) from None


def _lines(text: str) -> list[str]:
    # Not splitlines(): texts hold form feeds and U+2028, which would put aligned files out of step.
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _table(path: Path, text: str, delimiter: str, header: Sequence[str] | None, quoted: bool) -> Records:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=quoted,
    )
    rows, problems, names = [], [], list(header or ())
    try:
        for cells in reader:
            if not names:
                names = cells
            elif len(cells) == len(names):
                rows.append(dict(zip(names, cells, strict=True)))
            elif cells:
                problems.append(f"line {reader.line_num} has {len(cells)} cells, expected {len(names)}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        problems.append(f"the header has columns of the same name: {', '.join(map(repr, repeated))}")
    others = [mark for mark in ",;\t|" if mark != delimiter and header is None and len(names) == 1 and mark in names[0]]
    if others:
        raise ValueError(
            f"{path} has one column by its header, {names[0]!r}: its cells seem to be separated by {others[0]!r}; by its ending "
            f"{delimiter!r} was expected: save it so, or as JSONL"
        )
    _raise_lines(
        path,
        problems,
        "Mend those lines; if it is the quotation marks, save the file as JSONL, or give load_records quoted=True or False",
    )
    return rows


def _json_lines(path: Path, text: str) -> Records:
    rows, problems = [], []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number} is not JSON ({error.msg})")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"line {number} holds {type(row).__name__}, expected an object with columns")
    _raise_lines(path, problems, "Mend those lines")
    return rows


def _json(path: Path, text: str) -> Records:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); one object a line is .jsonl") from None
    if isinstance(content, dict) and len(lists := [v for v in content.values() if isinstance(v, list)]) == 1:
        content = lists[0]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path} holds {type(content).__name__}; expected a list of objects, one a record")
    return content


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for column, cell in record.items():
        inner = {f"{column}.{name}": value for name, value in _flat(cell).items()} if isinstance(cell, dict) else {}
        flat |= inner or {column: cell}
    return flat


def _raise_lines(path: Path, problems: list[str], advice: str) -> None:
    if problems:
        more = f"\n  - and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n".join(f"  - {problem}" for problem in problems[:5])
        raise ValueError(f"{path} is broken:\n{listed}{more}\n{advice}.")


def _file_of_split(folder: Path, split: str | None) -> Path:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if ending := ENDING.search(path.name):
            found.setdefault(path.name[: ending.start()], []).append(path)
    files = found.get(split or "", [])
    if len(files) > 1:
        listed = ", ".join(path.name for path in files)
        raise ValueError(f"{folder} has several files of split {split!r}: {listed}; give one of them itself")
    if files:
        return files[0]
    given = f"no file of split {split!r}" if split else "no split was named for the folder"
    raise FileNotFoundError(f"{folder}: {given}; it has {', '.join(found) or 'no file of a known kind'}")


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
        return f"no such file: {path}; there is no folder {folder} either"
    names = sorted(other.name for other in folder.iterdir() if other.is_file())
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"no such file: {path}; {folder.resolve()} has {there or 'no files'}"


def _from_hub(name: str, config: str | None, split: str | None) -> Records:
    try:
        dataset = load_dataset(name, config, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name!r} is no file here, and as a data set of the hub it could not be read: {error}. Without a network "
            f"give a local file ({', '.join(KINDS)}) or a task of the package, whose data it holds"
        ) from error
    return dataset.flatten().to_list()
