"""Files of answers that grow while a model answers, and that an interrupted command goes on with.

JSON Lines and CSV grow in place. Parquet cannot: its answers are kept in ``.NAME.part`` and written when all are there. Beside a
file that is not finished lies ``.NAME.progress``: what the answers belong to, and how many bytes of the file are whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t5peft.cli.output import json_line
from t5peft.compat.filesystem import unfinished, write_whole

Record = dict[str, Any]
Kind = Literal["jsonl", "csv", "parquet"]
_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "jsonl",
    "": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


def kind_of(path: Path) -> Kind:
    """Return the format that the ending of a file asks for.

    Args:
        path: The file.

    Returns:
        The format.

    Raises:
        ValueError: The ending is of no format that is written.
    """
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"Got the output {path}; expected a file whose name ends in .jsonl, .csv or .parquet.")
    return _KINDS[path.suffix.lower()]


def fingerprint(content: object) -> str:
    """Return a hash of what JSON can hold; anything else is hashed as its text.

    Args:
        content: Lists and dictionaries.

    Returns:
        Hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class Answers(ABC):
    """Where answers go, in the order of the records.

    Attributes:
        done: Answers that an interrupted command has written.
    """

    done = 0

    @abstractmethod
    def write(self, answers: Sequence[tuple[Record, Record]]) -> None:
        """Write the next answers, so that an interruption does not lose them.

        Args:
            answers: The next records in their order, each with the columns of its answer.
        """

    def finish(self) -> None:  # noqa: B027  (nothing is left to do for a stream)
        """Do what is left when all answers are written."""

    def close(self) -> None:  # noqa: B027
        """Close what is open."""


class AnswerStream(Answers):
    """Answers as JSON Lines on the standard output."""

    def write(self, answers: Sequence[tuple[Record, Record]]) -> None:
        """Print the next answers.

        Args:
            answers: The next records in their order, each with the columns of its answer.
        """
        encoding = sys.stdout.encoding or "utf-8"
        text = "".join(f"{json_line(record | answer)}\n" for record, answer in answers)
        # JSON writes half of a character, which UTF-8 does not have, as \ud83d.
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


class AnswerFile(Answers):
    """A file of answers.

    Args:
        path: The file; the ending of its name chooses the format.
        records: All records that are answered, in their order.
        columns: Names of the columns of an answer, those of labels as ``probability.LABEL``.
        identity: What the answers depend on, by name: hashes of the records, the model and the task.
        overwrite: Whether to replace a file that exists.

    Attributes:
        done: Answers of an interrupted command that are in the file.

    Raises:
        ValueError: The file exists and is not an unfinished one of the same identity.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[Record],
        columns: Sequence[str],
        identity: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path, self.kind, self.records = path, kind_of(path), records
        self._identity = dict(identity)
        self._columns = list(dict.fromkeys([*(name for record in records for name in record), *columns]))
        self._progress = path.with_name(f".{path.name}.progress")
        self._growing = path.with_name(f".{path.name}.part") if self.kind == "parquet" else path
        if path.is_dir():
            raise ValueError(f"Got the output {path}, which is a folder; expected a file.")
        if self.kind == "parquet":
            self._check_columns()
        if overwrite:
            self._progress.unlink(missing_ok=True)
            self._growing.unlink(missing_ok=True)
        self._hash, self.done = hashlib.sha256(), 0
        length = 0
        if self._progress.is_file():
            length = self._resume()
        else:
            self._check_new(overwrite)
            self._save_progress(0)
        self._file = self._growing.open("r+b" if self._growing.is_file() else "w+b")
        self._file.truncate(length)
        self._file.seek(length)
        if self.kind == "csv" and length == 0:
            self._append(self._csv([self._columns]))

    def _check_new(self, overwrite: bool) -> None:
        if self.path.is_file() and self.path.stat().st_size and not overwrite:
            raise ValueError(
                f"Got the output {self.path}, which exists already; expected a new file. Choose another file, or use --overwrite "
                "to replace it."
            )

    def _resume(self) -> int:
        """Read the progress of an interrupted command; return how many bytes of its file are whole."""
        remedy = "Choose another file, or use --overwrite to start again."
        try:
            state = json.loads(self._progress.read_text(encoding="utf-8"))
            identity, done, length, digest = (state[name] for name in ("identity", "done", "bytes", "sha256"))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"Got {self._progress}, which is damaged; expected the progress of {self.path}. {remedy}"
            ) from None
        if others := [name for name, value in self._identity.items() if identity.get(name) != value]:
            raise ValueError(
                f"Got the output {self.path}, which holds {done} answers of an interrupted command with other {', '.join(others)}; "
                f"expected the same, to resume it. {remedy}"
            )
        whole = self._growing.read_bytes()[:length] if self._growing.is_file() else b""
        if not whole and (length == 0 or not self._growing.is_file()):
            self._save_progress(0)
            return 0
        self._hash.update(whole)
        if self._hash.hexdigest() != digest:
            raise ValueError(
                f"Got {self._growing}, which was changed since an interrupted command wrote it; expected it as it was. {remedy}"
            )
        self.done = done
        return int(length)

    def _check_columns(self) -> None:
        import pyarrow as pa

        try:
            pa.Table.from_pylist(self.records)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise ValueError(
                f"Got records that Parquet cannot hold ({error}); expected one type per column. Use an output file .jsonl."
            ) from error

    def write(self, answers: Sequence[tuple[Record, Record]]) -> None:
        """Append the next answers, and record that they are on the disk.

        Args:
            answers: The next records in their order, each with the columns of its answer.
        """
        if self.kind == "csv":
            rows = [_flat(record | answer) for record, answer in answers]
            text = self._csv([[_cell(row.get(name)) for name in self._columns] for row in rows])
        elif self.kind == "parquet":
            text = "".join(f"{json_line(answer)}\n" for _, answer in answers)
        else:
            text = "".join(f"{json_line(record | answer)}\n" for record, answer in answers)
        self._append(text)
        self.done += len(answers)
        self._save_progress(self._file.tell())

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self._hash.update(data)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _save_progress(self, length: int) -> None:
        state = {"identity": self._identity, "done": self.done, "bytes": length, "sha256": self._hash.hexdigest()}
        write_whole(self._progress, json.dumps(state))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def finish(self) -> None:
        """Write the file of Parquet, and delete the record of the progress."""
        self.close()
        if self.kind == "parquet":
            self._write_parquet()
        # Without its answers the progress begins anew. Answers without the progress would be another command's.
        if self._growing != self.path:
            self._growing.unlink()
        self._progress.unlink()

    def _write_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        answers = map(json.loads, self._growing.read_text(encoding="utf-8").splitlines())
        table = pa.Table.from_pylist([record | answer for record, answer in zip(self.records, answers, strict=True)])
        parquet.write_table(table, unfinished(self.path))
        unfinished(self.path).replace(self.path)

    @staticmethod
    def _csv(rows: Sequence[Sequence[object]]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _flat(row: Record) -> Record:
    """Return ``row`` with the shares of the labels in a column each."""
    shares = row.get("probability")
    if not isinstance(shares, Mapping):
        return row
    return {name: value for name, value in row.items() if name != "probability"} | {
        f"probability.{label}": share for label, share in shares.items()
    }


def _cell(value: object) -> object:
    """Return what a cell of a CSV file holds: nothing for None, JSON for lists and dictionaries."""
    if isinstance(value, (Mapping, list, tuple)):
        return json_line(value)
    return "" if value is None else value
