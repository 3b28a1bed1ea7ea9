"""Records from the bytes of one file, by the kind that its name says.

Cells of CSV and TSV stay text: a label 0 is ``"0"``, as a verbalizer has it.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

import psutil
import pyarrow
import pyarrow.parquet
from datasets.fingerprint import get_temporary_cache_files_directory

from t5peft.compat.json_text import RepeatedKeyError, parse_json
from t5peft.data.columns import ColumnsError, features_of, flat
from t5peft.data.encodings import advice_on_encoding, advice_on_zeros, encoding_of_shifts
from t5peft.data.json_files import objects_of, objects_of_array
from t5peft.data.sources import RecordFile, RecordList, Records, label_names_of, labeled_records

OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}  # type: ignore[dict-item]
KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".txt")
ENDING = re.compile(rf"({'|'.join(map(re.escape, KINDS))})({'|'.join(map(re.escape, OPENERS))})?$", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs.github.com"
MARKS = ",;\t|"
# Text is packed to a tenth or a fiftieth. xz packs zeros to a seven-thousandth.
_LARGEST_UNPACKED = 64 << 20
_HIGHEST_RATIO = 200
LARGE_BYTES = 32 << 20
"""Files of so many bytes are not read into memory."""
_PACKED_TO = 10  # a packed file is large from a tenth of that
_BYTES_PER_CELL = 100  # of a list of dictionaries, at least
_BYTES_PER_CELL_ON_DISK = 10  # at least
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class TextFormat:
    """How a text file is written.

    Args:
        encoding: One of Python's.
        delimiter: Between the cells of a table; a comma for CSV and a tab for TSV by default.
        header: Names of the columns of a table that has none of its own.
        quoted: Whether quotation marks enclose cells of a table; by default they do, but not between tabs.
    """

    encoding: str = "utf-8"
    delimiter: str | None = None
    header: Sequence[str] | None = None
    quoted: bool | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(
                f"Got the delimiter {self.delimiter!r}; expected one character, such as ';' (--delimiter ';'), or a tab "
                "(--delimiter tab)."
            )


def read_file(path: Path, form: TextFormat) -> RecordList | RecordFile:
    """Read the records of a file, with the names of its labels where it holds them. Those of a large one stay on the disk.

    Raises:
        ValueError: The file is empty, of an unknown kind, damaged, or not written as ``form`` says.
    """
    kind = _kind(path)
    if path.stat().st_size == 0:
        raise ValueError(f"Got {path}, which is empty: it has no bytes; expected at least one record.")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"Got {path}, which is a pointer of Git LFS; expected the data. Run `git lfs pull`.")
    if kind in (".parquet", ".arrow"):
        return _read_arrow(path, kind)
    packed_to = _PACKED_TO if path.suffix.lower() in OPENERS else 1
    if path.stat().st_size >= LARGE_BYTES // packed_to and (kind != ".json" or _begins_with_an_array(path)):
        return _read_large(path, kind, form)
    return RecordList(map(flat, read_text(read_bytes(path), kind, str(path), form)), str(path))


def read_text(data: bytes, kind: str, origin: str, form: TextFormat) -> Records:
    """Return the records in the bytes of a text file.

    Args:
        data: The bytes, unpacked.
        kind: ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.txt``.
        origin: The file's name, for errors.
        form: How it is written.

    Raises:
        ValueError: See ``read_file``; all bad lines at once.
    """
    text = decoded(data, origin, form.encoding)
    if kind == ".json":
        return objects_of(origin, text)
    return list(_READERS[kind](origin, io.StringIO(text, newline="" if kind in (".csv", ".tsv") else "\n"), form))


def _read_large(path: Path, kind: str, form: TextFormat) -> RecordFile:
    """Read a text file row by row, so that memory does not grow with it."""
    newline = "" if kind in (".csv", ".tsv") else "\n"
    try:
        with _unpacked(path) as data, io.TextIOWrapper(data, form.encoding, newline=newline) as text:
            start = text.read(1000)
        if start.count("\0") > len(start) // 4 or encoding_of_shifts(start):
            raise UnicodeError("another encoding")
        with _unpacked(path) as data, io.TextIOWrapper(data, form.encoding, newline=newline) as text:
            if start.startswith("\ufeff"):
                text.read(1)
            return RecordFile.written(map(flat, _READERS[kind](str(path), text, form)), str(path))
    except (UnicodeError, LookupError):
        decoded(read_bytes(path), str(path), form.encoding)  # which raises the error that names the place
        raise


def _begins_with_an_array(path: Path) -> bool:
    with _unpacked(path) as data:
        return data.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a text file, unpacked.

    Raises:
        ValueError: It cannot be read or unpacked.
    """
    with _unpacked(path) as file:
        return file.read()


def _unpacked(path: Path) -> io.BufferedReader:
    """Open a text file for reading its bytes, unpacked."""
    return io.BufferedReader(_Unpacked(path), 1 << 20)


class _Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked; a file that cannot be unpacked or that grows too much gives one clear error."""

    def __init__(self, path: Path) -> None:
        opener = OPENERS.get(path.suffix.lower())
        self._path = path
        self._limit = None if opener is None else max(_LARGEST_UNPACKED, _HIGHEST_RATIO * path.stat().st_size)
        self._read, self._file = 0, path.open("rb") if opener is None else opener(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except (OSError, EOFError, ValueError, MemoryError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"Got {self._path}, which cannot be decompressed ({error}); expected a complete file whose format matches its "
                "extension. Copy it again, or rename it."
            ) from None
        self._read += len(data)
        if self._limit is not None and self._read > self._limit:
            raise ValueError(
                f"Got {self._path}, which grows to more than {self._limit >> 20} MiB, {_HIGHEST_RATIO} times its size; expected "
                "text, which compresses less. Decompress it yourself if you trust it."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def decoded(data: bytes, origin: str, encoding: str) -> str:
    """Return the text of a file.

    Raises:
        ValueError: The bytes are not in this encoding; the error names the one that they seem to have.
    """
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        byte = data[start : start + 1].hex() or "missing"
        raise ValueError(
            f"Got {origin}, which is not {encoding}: byte {start}, in line {line}, is {byte}; expected the encoding of the file. "
            + advice_on_encoding(data, start, line)
        ) from None
    except LookupError:
        raise ValueError(
            f"Got the encoding {encoding!r}; expected one of Python's, such as 'utf-8' or 'cp1252' (--encoding cp1252)."
        ) from None
    if shift := encoding_of_shifts(text):
        raise ValueError(
            f"Got {origin}, which has escape sequences of {shift}; expected text. Give encoding='{shift}' (--encoding {shift})."
        )
    if text.count("\0", 0, 1000) > len(text[:1000]) // 4:
        raise ValueError(f"Got {origin}, which contains NUL characters; expected text. {advice_on_zeros(data)}")
    return text


def lines_of(text: str) -> list[str]:
    """Return the lines of a text; form feeds and U+2028 are part of them, as they are of aligned files."""
    return list(_lines(io.StringIO(text, newline="\n")))


def _lines(text: TextIO) -> Iterator[str]:
    for line in text:
        yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def _kind(path: Path) -> str:
    ending = ENDING.search(path.name)
    plain = Path(path.name[: -len(path.suffix)]) if path.suffix.lower() in OPENERS else path
    if ending is None or (ending[2] and ending[1].lower() in (".parquet", ".arrow")):
        raise ValueError(
            f"Got {path}, whose extension is unknown ({plain.suffix or 'none'}); expected {', '.join(KINDS)}; text files "
            f"may also be compressed, with {', '.join(OPENERS)} after it. Rename the file."
        )
    return ending[1].lower()


def _read_arrow(path: Path, kind: str) -> RecordList | RecordFile:
    cells = _cells(path) if kind == ".parquet" else 0
    large = path.stat().st_size >= LARGE_BYTES or cells * _BYTES_PER_CELL >= LARGE_BYTES
    free = psutil.disk_usage(get_temporary_cache_files_directory()).free if large else 0
    if large and cells * _BYTES_PER_CELL_ON_DISK > free:  # a small file may hold billions of equal cells
        raise ValueError(
            f"Got {path}, whose {cells:,} cells need more than the {free >> 20:,} MiB that are free on the disk of temporary "
            "files; expected fewer. Split the file, or set TMPDIR to a folder on a larger disk."
        )
    with _arrow(path, kind) as (schema, batches):
        if not (twice := sorted({name for name in schema.names if schema.names.count(name) > 1})):
            features = features_of(path, schema)
            parts = (labeled_records([flat(record) for record in batch.to_pylist()], features) for batch in batches)
            records, names = chain.from_iterable(parts), label_names_of(features)
            return (RecordFile.written if large else RecordList)(records, str(path), names)
    raise ValueError(f"Got {path} with several columns {', '.join(map(repr, twice))}; expected one each. Rename them.")


@contextmanager
def _arrow(path: Path, kind: str) -> Iterator[tuple[pyarrow.Schema, Iterable[pyarrow.RecordBatch]]]:
    """Open a file as its schema and its batches, which are read one by one."""
    try:
        if kind == ".parquet":
            # not read_table, which adds columns for folders named key=value; not pre-buffered, which holds the whole file
            with pyarrow.parquet.ParquetFile(
                path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False
            ) as file:
                yield file.schema_arrow, file.iter_batches(_ROWS_AT_ONCE)
        else:
            with pyarrow.memory_map(str(path)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
                whole = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
                yield reader.schema, chain.from_iterable(map(_parts, whole))
    except ColumnsError:
        raise
    except Exception as error:  # a damaged file makes pyarrow raise whatever its bytes lead to
        raise ValueError(
            f"Got {path}, which cannot be read as {kind[1:].capitalize()} ({str(error) or type(error).__name__}); expected a "
            "complete file. Copy or write it again."
        ) from None


def _parts(batch: pyarrow.RecordBatch) -> Iterator[pyarrow.RecordBatch]:
    for start in range(0, len(batch), _ROWS_AT_ONCE):
        part = batch.slice(start, _ROWS_AT_ONCE)
        part.validate(full=True)  # of a damaged file, an offset may point outside of it
        yield part


def _cells(path: Path) -> int:
    """Return the number of cells of a Parquet file by its metadata; 0 where these cannot be read."""
    try:
        metadata = pyarrow.parquet.ParquetFile(path).metadata
        groups = range(metadata.num_row_groups)
        return sum(metadata.row_group(i).column(j).num_values for i in groups for j in range(metadata.num_columns))
    except Exception:  # a damaged file makes pyarrow raise whatever its bytes lead to; reading it will tell
        return 0


def _table(origin: str, text: TextIO, form: TextFormat, *, mark: str) -> Iterator[dict[str, Any]]:
    """Read a table whose cells are separated by ``mark``, if ``form`` names no delimiter."""
    csv.field_size_limit(2**31 - 1)
    delimiter = form.delimiter or mark
    quoted = delimiter != "\t" if form.quoted is None else form.quoted
    reader = csv.reader(
        text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
    )
    problems, names = [], list(form.header or ())
    try:
        for cells in reader:
            if not names:
                names = cells
            elif cells == names and len(names) > 1 and form.header is None:
                problems.append(f"line {reader.line_num} repeats the header")
            elif len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            elif cells:
                problems.append(f"line {reader.line_num} has {len(cells)} cells, expected {len(names)}")
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        problems.append(f"the header has columns of the same name: {', '.join(map(repr, repeated))}")
    if form.header is None and len(names) == 1 and (others := [mark for mark in MARKS if mark in names[0]]):
        shown = "tab" if others[0] == "\t" else repr(others[0])
        raise ValueError(
            f"Got {origin} with one column by its header, {names[0]!r}, whose cells seem to be separated by {others[0]!r}; "
            f"expected {delimiter!r}. Give delimiter={others[0]!r} (--delimiter {shown})."
        )
    _raise_lines(
        origin,
        problems,
        "Fix those lines. If quotation marks are the cause, save the file as JSONL, or pass quoted=True or quoted=False to "
        "load_records",
    )


def _json_lines(origin: str, text: TextIO, form: TextFormat) -> Iterator[dict[str, Any]]:
    problems = []
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except RepeatedKeyError as error:
            problems.append(f"in line {number} {error.msg}")
            continue
        except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
            problems.append(f"line {number} is not JSON ({getattr(error, 'msg', error)})")
            continue
        if isinstance(row, dict):
            yield row
        else:
            problems.append(f"line {number} holds {type(row).__name__}, expected an object with columns")
    _raise_lines(origin, problems, "Mend those lines")


def _plain_lines(origin: str, text: TextIO, form: TextFormat) -> Iterator[dict[str, Any]]:
    return ({"text": line} for line in _lines(text))


_READERS: dict[str, Callable[[str, TextIO, TextFormat], Iterator[dict[str, Any]]]] = {
    ".csv": partial(_table, mark=","),
    ".tsv": partial(_table, mark="\t"),
    ".json": lambda origin, text, form: objects_of_array(origin, text),
    ".jsonl": _json_lines,
    ".txt": _plain_lines,
}


def _raise_lines(origin: str, problems: list[str], advice: str) -> None:
    if problems:
        more = f"\n  - and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n".join(f"  - {problem}" for problem in problems[:5])
        raise ValueError(f"Got {origin}, which is damaged; expected complete lines:\n{listed}{more}\n{advice}.")
