"""Read JSON whose objects name each key once: the ``json`` module keeps the last one of several, in silence."""

from __future__ import annotations

from collections.abc import Callable
from json import JSONDecodeError, JSONDecoder, detect_encoding
from json.decoder import JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

REPEATED = "stands more than once"


class RepeatedKeyError(JSONDecodeError):
    """An object names a key more than once. ``msg`` says which, and ``lineno`` where."""


class _RepeatedError(Exception):
    """Carries the key and its number in the object out of the scanner, which knows no place."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedError(*next((key, number) for number, key in enumerate(keys) if key in keys[:number]))
    return values


class UniqueKeyDecoder(JSONDecoder):
    """A decoder that refuses objects that name a key more than once.

    Args:
        parse_constant: Called with NaN, Infinity and -Infinity.
    """

    def __init__(self, parse_constant: Callable[[str], Any] | None = None) -> None:
        super().__init__(object_pairs_hook=_once, parse_constant=parse_constant)

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """Return the value that begins at ``idx``, and where it ends.

        Raises:
            RepeatedKeyError: An object names a key more than once.
            JSONDecodeError: It is not JSON.
        """
        try:
            return super().raw_decode(s, idx)
        except _RepeatedError as error:
            key, number = error.args
        raise RepeatedKeyError(f"the key {key[:80]!r} {REPEATED}", s, _place_of_value(s, idx, number))


def _place_of_value(text: str, start: int, number: int) -> int:
    """Return where the value of the repeated key begins, by the scanner of ``json`` in Python, which tells."""
    begun: list[list[int]] = []  # the places of the values of each open object

    def parse_object(place: tuple[str, int], strict: bool, scan: Callable[..., Any], *settings: Any) -> Any:
        places: list[int] = []

        def scan_value(text: str, place: int) -> Any:
            places.append(place)
            return scan(text, place)

        begun.append(places)
        found = JSONObject(place, strict, scan_value, *settings)
        begun.pop()
        return found

    decoder = JSONDecoder(object_pairs_hook=_once)
    decoder.parse_object = parse_object  # type: ignore[attr-defined]
    try:
        py_make_scanner(decoder)(text, start)
    except _RepeatedError:
        return begun[-1][number]
    except RecursionError:  # it is deeper than Python can follow
        return start
    return start


_FAST = JSONDecoder(object_pairs_hook=_once)


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Return what JSON holds.

    Args:
        text: JSON, as text or as bytes in UTF-8, UTF-16 or UTF-32.
        parse_constant: Called with NaN, Infinity and -Infinity.

    Raises:
        RepeatedKeyError: An object names a key more than once.
        ValueError: It is not JSON.
    """
    if not isinstance(text, str):
        text = text.decode(detect_encoding(text), "surrogatepass")
    try:
        return _FAST.decode(text) if parse_constant is None else UniqueKeyDecoder(parse_constant).decode(text)
    except JSONDecodeError:
        if text.startswith("\ufeff"):
            raise JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0) from None
        raise
    except _RepeatedError:
        return UniqueKeyDecoder().decode(text)  # which tells where
