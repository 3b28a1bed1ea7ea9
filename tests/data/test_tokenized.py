"""Tokens of many records: batch by batch, on disk, with the same results and errors as all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from tiny import tiny_tokenizer

from t5peft.data import Task, tokenized
from t5peft.data.files import load_records
from t5peft.data.sources import RecordList
from t5peft.data.truncation import encode

LABELS = {"0": "good", "1": "bad"}
FILM = Task("film", "film: {text}", "{label}", LABELS, max_source_length=24)
COPY = Task("copy", "copy: {text}", "{text}", max_source_length=24, max_target_length=20)
SIZES = {"BATCH_ROWS": 4, "ROWS_IN_MEMORY": 10, "SHARD_ROWS": 12}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small batches and shards, and a cache folder of this test only."""
    for name, value in SIZES.items():
        monkeypatch.setattr(tokenized, name, value)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    return tmp_path / "t5peft"


def films(count: int) -> list[dict[str, Any]]:
    texts = ["a film", "a play of </s> words", "one two three four five six seven eight nine ten", "no"]
    return [{"text": f"{texts[i % 4]} {i}", "label": i % 2} for i in range(count)]


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.arrow")) if cache.is_dir() else []


KINDS: dict[str, Callable[[list[dict[str, Any]]], Iterable[Any]]] = {
    "list": lambda records: records,
    "RecordList": lambda records: RecordList(records, "films.csv"),
    "generator": iter,
    "Dataset": Dataset.from_list,
    "IterableDataset": lambda records: Dataset.from_list(records).to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [FILM, COPY], ids=["labels", "free"])
@pytest.mark.parametrize("count", [3, 9, 10, 30])
def test_batches_give_the_tokens_of_all_records_at_once(
    task: Task, kind: str, count: int, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, tokenizer = films(count), tiny_tokenizer()
    whole = task.encode(records, tokenizer)
    for _ in range(2):  # once made, once found on the disk
        caplog.clear()
        found = task.tokenize(KINDS[kind](records), tokenizer)
        assert found.to_dict() == {"input_ids": whole.sources.ids, "labels": whole.targets.ids}
        assert found.features == tokenized.FEATURES
        messages = [record.getMessage() for record in caplog.records]
        cut = f"{len(whole.sources.cut)} of {count} sources were longer than 24 tokens"
        assert any(cut in message for message in messages) == bool(whole.sources.cut)
        broken = f"spelled out in {len(whole.sources.escaped)} of {count} sources"
        assert any(broken in message for message in messages) == bool(whole.sources.escaped)
    assert len(shards(cache)) == {3: 0, 9: 0, 10: 1, 30: 3}[count]


def test_an_error_names_the_rows_of_all_batches_as_one_check_would(cache: Path) -> None:
    tokenizer, records = tiny_tokenizer(), films(30)
    changes: dict[int, dict[str, Any]] = {2: {"label": 7}, 9: {"text": None}, 21: {"label": 8}, 25: {"label": 7}}
    for row, change in changes.items():
        records[row] = records[row] | change
    del records[17]["text"]
    messages = []
    for tokenize in (FILM.encode, FILM.tokenize):
        with pytest.raises(ValueError) as error:
            tokenize(RecordList(records, "films.csv"), tokenizer)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "row 17;" in messages[1]
    assert "rows 2, 25 has no word" in messages[1]
    assert "films.csv" in messages[1]
    assert not shards(cache)


def test_empty_rows_of_all_shards_are_named_and_no_shard_is_kept(cache: Path) -> None:
    records = [{"text": "" if row in (1, 27) else f"film {row}"} for row in range(30)]
    with pytest.raises(ValueError, match=r"The source is empty in rows 1, 27 .*\n.*The target is empty in rows 1, 27 "):
        COPY.tokenize(records, tiny_tokenizer())
    assert not shards(cache)


@pytest.mark.parametrize(
    "change", [{"max_source_length": 23}, {"template": "movie: {text}"}, {"target": "a {label}"}, {"verbalizer": None}]
)
def test_another_task_makes_other_shards(change: dict[str, Any], cache: Path) -> None:
    fields = {
        "name": "film",
        "template": "film: {text}",
        "target": "{label}",
        "verbalizer": LABELS,
        "max_source_length": 24,
    }
    records, tokenizer = films(10), tiny_tokenizer()
    for task in (Task(**fields), Task(**(fields | change))):  # type: ignore[arg-type]
        found = task.tokenize(records, tokenizer)
        assert found["labels"][:] == task.encode(records, tokenizer).targets.ids
    assert len(shards(cache)) == 2


def test_another_tokenizer_makes_other_shards(cache: Path) -> None:
    records = films(10)
    for tokens in (["film"], ["film", "play"]):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(tokens)
        found = FILM.tokenize(records, tokenizer)
        assert found["input_ids"][:] == FILM.encode(records, tokenizer).sources.ids
    assert len(shards(cache)) == 2


def test_texts_that_are_parted_otherwise_are_other_records(cache: Path) -> None:
    task, tokenizer = Task("two", "{a}{b}", "{a}", max_source_length=4), tiny_tokenizer()
    for first, second in (("ab", "c"), ("a", "bc")):
        task.tokenize([{"a": f"{first} 1", "b": second}] * 10, tokenizer)
    assert len(shards(cache)) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "counts"])
def test_a_damaged_shard_is_made_anew(damage: str, cache: Path) -> None:
    records, tokenizer = films(10), tiny_tokenizer()
    expected = FILM.tokenize(records, tokenizer).to_dict()
    [shard] = shards(cache)
    content = shard.read_bytes()
    if damage == "foreign":
        Dataset.from_dict({"input_ids": [[1]] * 9}).save_to_disk(cache / "other")
        content = next((cache / "other").glob("*.arrow")).read_bytes()
    elif damage == "counts":
        shard.with_suffix(".json").write_text("{")
    shard.unlink()
    shard.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert FILM.tokenize(records, tokenizer).to_dict() == expected


def test_where_the_cache_cannot_be_written_tokens_stay_in_memory(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache.parent / "file"))
    records, tokenizer = films(30), tiny_tokenizer()
    assert FILM.tokenize(records, tokenizer)["input_ids"][:] == FILM.encode(records, tokenizer).sources.ids
    assert "cannot be stored on disk" in caplog.text


def test_no_shard_is_kept_where_caching_is_off(cache: Path) -> None:
    datasets.disable_caching()
    try:
        assert len(FILM.tokenize(films(30), tiny_tokenizer())) == 30
    finally:
        datasets.enable_caching()
    assert not shards(cache)


def test_labels_of_a_stream_have_their_names(cache: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["sad", "merry"])})
    stream = Dataset.from_list(films(12), features=features).to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    task, tokenizer = Task("free", "{text}", "{label}"), tiny_tokenizer()
    named = [record | {"label": ["sad", "merry"][record["label"]]} for record in films(12)]
    assert task.tokenize(stream, tokenizer).to_dict() == task.tokenize(named, tokenizer).to_dict()


def test_a_head_gets_the_labels_of_a_generator(cache: Path) -> None:
    found = FILM.tokenize_for_head(iter(films(30)), tiny_tokenizer())
    assert found["labels"][:] == [0, 1] * 15


def test_a_file_without_records_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n')
    assert len(FILM.tokenize(load_records(tmp_path / "a.jsonl"), tiny_tokenizer())) == 1
    nothing: tuple[Any, ...] = ([], iter([]))
    for records in nothing:
        with pytest.raises(ValueError, match="There are no records"):
            FILM.tokenize(records, tiny_tokenizer())


def test_many_texts_are_encoded_as_each_of_them() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["", *(f"a film </s> {'long ' * (i % 5)}{i}" for i in range(40))]
    expected = [encode([text], tokenizer)[0] for text in texts]
    tokenizer(
        texts[:2], padding="max_length", max_length=6, truncation=True
    )  # which the tokenizer keeps for later calls
    assert encode(texts, tokenizer) == expected
