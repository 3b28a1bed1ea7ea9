"""A large JSON array gives the records, and the errors, of one that is read at once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5peft.data import json_files, load_records
from t5peft.data.json_files import objects_of, objects_of_array
from t5peft.data.sources import RecordFile

CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARRAYS = st.lists(st.dictionaries(st.text(max_size=5), CELLS, max_size=4), max_size=5)


def outcome(read: Callable[[], Any]) -> Any:
    """The records, or the start of the error."""
    try:
        return list(read())
    except ValueError as error:
        return str(error).split("(")[0]


def both(text: str, chunk: int) -> tuple[Any, Any]:
    """Return the records of a text, read at once and in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "CHUNK", chunk)
        pieces = outcome(lambda: objects_of_array("a.json", io.StringIO(text, newline="")))
    return outcome(lambda: objects_of("a.json", text)), pieces


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ARRAYS, chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_any_array_is_read_in_pieces(rows: Any, chunk: int, indent: int | None, ascii_only: bool) -> None:
    whole, pieces = both(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), chunk)
    assert pieces == whole == rows


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ARRAYS, chunk=st.integers(1, 40), place=st.integers(0, 200), mark=st.sampled_from([*',:[]{}"\\ 1e-t', ""]))
def test_a_damaged_array_is_refused_where_json_refuses_it(rows: Any, chunk: int, place: int, mark: str) -> None:
    text = json.dumps(rows)
    place %= len(text)
    damaged = "[" + text[1:place] + mark + text[place + 1 :] if place else text[: len(text) // 2]
    whole, pieces = both(damaged, chunk)
    assert pieces == whole or (isinstance(pieces, str) and isinstance(whole, str))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"a": 2}]', r"which is not JSON \(Expecting '\]': char 10\)"),
        ('[{"a": 1},]', "Expecting value: char 10"),
        ('[{"a": 1}', r"Expecting '\]': char 9"),
        ('[{"a": 1}] x', "Extra data: char 11"),
        ('[{"a": "b', "Unterminated string starting at: char 7"),
        ('[{"a": 1}, [2]]', "which holds list; expected a list of objects"),
        ('[{"a": ' + "[" * 100_000, "which is not JSON"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_an_error_names_the_character(text: str, message: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    with pytest.raises(ValueError, match=message):
        list(objects_of_array("a.json", io.StringIO(text)))


def test_a_damaged_value_is_found_before_the_rest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "CHUNK", 100)
    text = io.StringIO('[{"a": 1}, {"b" 2}, ' + '{"c": 3}, ' * 10_000)
    with pytest.raises(ValueError, match="Expecting ':' delimiter: char 16"):
        list(objects_of_array("a.json", text))
    assert text.tell() < 1000


@pytest.mark.parametrize(
    ("content", "is_large"), [('[{"a": 1}]', True), ('\ufeff \n[{"a": 1}]', True), ('{"x": [{"a": 1}]}', False)]
)
def test_an_array_is_read_in_pieces_and_an_object_at_once(
    content: str, is_large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    records = load_records(tmp_path / "a.json")
    assert list(records) == [{"a": 1}]
    assert isinstance(records, RecordFile) == is_large
