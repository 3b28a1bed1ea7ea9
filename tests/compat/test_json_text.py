"""JSON whose objects name a key more than once is refused wherever it is read, with the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5peft.benchmark.records import RunRecords
from t5peft.compat.json_text import RepeatedKeyError, UniqueKeyDecoder, parse_json
from t5peft.data import load_records
from t5peft.data.rewording import Thesaurus
from t5peft.models.manifest import read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES, st.sampled_from(["utf-8", "utf-16", "utf-32-le"]))
def test_other_json_is_read_as_by_json(value: Any, encoding: str) -> None:
    text = json.dumps(value, ensure_ascii=True, indent=1)
    assert parse_json(text) == parse_json(text.encode(encoding)) == json.loads(text)
    assert UniqueKeyDecoder().raw_decode(f" {text}", 1) == (json.loads(text), len(text) + 1)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('{"a": 1, "a": 1}', "a", 1),
        ('{"a": 1,\n "b": [{"c": {}},\n {"d": "\\"", "d": 2}]}', "d", 3),
        ('{"a": {"x": {"y": 1}},\n\n"b": {"x": 1}, "a": 2}', "a", 3),
        ('[{"a": 1},\n{"b": 1,\n"\\u0062": 2}]', "b", 3),
    ],
)
def test_the_repeated_key_is_named_with_its_line(text: str, key: str, line: int) -> None:
    for read in (parse_json, lambda text: parse_json(text.encode()), UniqueKeyDecoder().decode):
        with pytest.raises(RepeatedKeyError, match=f"the key '{key}' stands more than once") as error:
            read(text)
        assert error.value.lineno == line


def test_an_object_too_deep_to_follow_is_refused_too() -> None:
    inner = '{"b": ' * 900 + "1" + "}" * 900
    with pytest.raises(ValueError, match="the key 'a' stands more than once"):
        parse_json(f'{{"a": {inner}, "a": 2}}')


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": "a", "text": "b"}\n', 3),
        ("a.jsonl", '{"text": "a", "meta": {"id": 1, "id": 2}}\n', 1),
        ("a.json", '[{"text": "a"},\n {"text": "a",\n "text": "b"}]', 3),
        ("a.json", '{"data": [{"text": "a"}],\n "data": [{"text": "b"}]}', 2),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_records_with_a_key_twice_are_refused(
    name: str, content: str, line: int, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("t5peft.data.formats.LARGE_BYTES", 1)
        monkeypatch.setattr("t5peft.data.json_files.CHUNK", 9)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*(?s:.*)in line {line} the key '\w+' stands more than once"):
        load_records(tmp_path / name)


@pytest.mark.parametrize("content", ['{"a": {"b": 1}, "a.b": 2}', '{"a.b": 2, "a": {"b": 1}}'])
def test_a_nested_column_with_the_name_of_another_one_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"have the name of another one, of 'a\.b'; expected each name once"):
        load_records(tmp_path / "a.jsonl")


def test_files_of_models_runs_and_synonyms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text('{"r": 4,\n "r": 8}')
    with pytest.raises(ValueError, match=r"damaged file .*: in line 2 the key 'r' stands more than once"):
        read_json(path)
    path.write_text('{"film": ["movie"], "film": ["picture"]}')
    with pytest.raises(ValueError, match="the key 'film' stands more than once"):
        Thesaurus.load(path)
    records = RunRecords(tmp_path)
    records.path.write_text('{"outcome": "ok", "outcome": "failed"}\n')
    with pytest.raises(ValueError, match="the key 'outcome' stands more than once"):
        records.load()
