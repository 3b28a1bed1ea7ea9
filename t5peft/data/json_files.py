"""JSON files: an array of objects, or an object with one such array. A large array is read object by object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from t5peft.compat.json_text import RepeatedKeyError, UniqueKeyDecoder, parse_json
from t5peft.data.sources import Records

CHUNK = 1 << 20  # characters that are read at a time
_SPACES = re.compile(r"[ \t\r\n]*")
_CUT = 16  # characters before the end of what was read; an error there may be that of a value that goes on


def objects_of(origin: str, text: str) -> Records:
    """Return the objects of a JSON text.

    Args:
        origin: The file's name, for errors.
        text: An array of objects, or an object with one array of objects.

    Raises:
        ValueError: It is not JSON, or holds something else.
    """
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise _repeated(origin, error.msg, error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(origin, str(error)) from None
    if isinstance(content, dict) and len(lists := [v for v in content.values() if isinstance(v, list)]) == 1:
        content = lists[0]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise _not_objects(origin, content)
    return content


def objects_of_array(origin: str, text: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array, each as soon as it was read.

    Args:
        origin: The file's name, for errors.
        text: The file.

    Raises:
        ValueError: It is not a JSON array, or an entry is not an object.
    """
    file = _Scanner(origin, text)
    file.take("[")
    if file.next() != "]":
        yield file.object()
        while file.next() == ",":
            file.take(",")
            yield file.object()
    file.take("]")
    if file.next():
        raise file.error("Extra data", 0)


class _Scanner:
    """Reads one value after the other; holds what was read since the last one."""

    def __init__(self, origin: str, text: TextIO) -> None:
        self._origin, self._text, self._decoder = origin, text, UniqueKeyDecoder()
        self._read, self._place, self._before, self._lines = "", 0, 0, 1

    def next(self) -> str:
        """Return the next character that is not a space, without taking it; empty at the end."""
        while True:
            match = _SPACES.match(self._read, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._read) or not self._read_on():
                return self._read[self._place : self._place + 1]

    def take(self, mark: str) -> None:
        """Take a character, which has to be the next one."""
        if self.next() != mark:
            raise self.error(f"Expecting {mark!r}", 0)
        self._place += 1

    def object(self) -> dict[str, Any]:
        """Take an object."""
        self.next()
        while True:
            try:
                row, self._place = self._decoder.raw_decode(self._read, self._place)
            except RecursionError as error:
                raise self.error(str(error), 0) from None
            except json.JSONDecodeError as error:
                ahead, left = error.pos - self._place, len(self._read) - error.pos
                if (left <= _CUT or error.msg.startswith("Unterminated string")) and self._read_on():
                    continue
                if isinstance(error, RepeatedKeyError):
                    line = self._lines + self._read.count("\n", 0, error.pos)
                    raise _repeated(self._origin, error.msg, line) from None
                raise self.error(error.msg, ahead) from None
            if not isinstance(row, dict):
                raise _not_objects(self._origin, [row])
            return row

    def error(self, message: str, ahead: int) -> ValueError:
        """Return the error of a character that is so far ahead."""
        return _not_json(self._origin, f"{message}: char {self._before + self._place + ahead}")

    def _read_on(self) -> bool:
        kept = self._read[self._place :]
        self._lines += self._read.count("\n", 0, self._place)
        more = self._text.read(max(CHUNK, len(kept)))  # at least doubled, as a value is decoded again from its start
        self._read, self._before, self._place = kept + more, self._before + self._place, 0
        return bool(more)


def _not_json(origin: str, problem: str) -> ValueError:
    return ValueError(
        f"Got {origin}, which is not JSON ({problem}); expected JSON. For one object per line, use the extension .jsonl."
    )


def _repeated(origin: str, problem: str, line: int) -> ValueError:
    return ValueError(
        f"Got {origin}, where in line {line} {problem}; expected each key once. Rename or remove one of them."
    )


def _not_objects(origin: str, content: Any) -> ValueError:
    held = type(content).__name__
    return ValueError(f"Got {origin}, which holds {held}; expected a list of objects, one per record.")
