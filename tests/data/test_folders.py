"""Folders as people, ``datasets`` and the hub lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from t5peft.data import load_records


def shards(folder: Path, split: str, count: int = 2, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rows = [{"text": f"{split} {i} {j}"} for j in range(2)]
        Dataset.from_list(rows).to_parquet(folder / f"{split}-{i:05d}-of-{count:05d}{suffix}.parquet")


def texts(split: str, count: int = 2) -> list[dict[str, str]]:
    return [{"text": f"{split} {i} {j}"} for i in range(count) for j in range(2)]


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("suffix", ["", "-b42a775f407cee45"])
def test_shards_are_read_in_their_order(place: str, suffix: str, tmp_path: Path) -> None:
    shards(tmp_path / place, "train", 12, suffix)
    shards(tmp_path / place, "test", 1, suffix)
    assert load_records(tmp_path, "train") == texts("train", 12)
    assert load_records(tmp_path, "test") == texts("test", 1)
    assert "11 more files" in (load_records(tmp_path, "train").origin or "")
    with pytest.raises(
        FileNotFoundError, match="has test, train; expected a folder with a file of the split 'validation'"
    ):
        load_records(tmp_path, "validation")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, "train", 4)
    (tmp_path / "train-00002-of-00004.parquet").unlink()
    with pytest.raises(ValueError, match=r"with 3 of 4 shards of split 'train'; expected all, but number 2"):
        load_records(tmp_path, "train")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, "train")
    (tmp_path / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet, which cannot be read as Parquet"):
        load_records(tmp_path, "train")


@pytest.mark.parametrize("several", [False, True])
def test_what_save_to_disk_wrote_is_read(several: bool, tmp_path: Path) -> None:
    dataset = Dataset.from_list(texts("train"))
    whole = DatasetDict({"train": dataset, "test": Dataset.from_list(texts("test"))}) if several else dataset
    whole.save_to_disk(tmp_path / "saved", **({} if several else {"num_shards": 2}))
    assert load_records(tmp_path / "saved", "train") == texts("train")
    if several:
        assert load_records(tmp_path / "saved" / "test") == texts("test")
        with pytest.raises(
            FileNotFoundError, match="has train, test; expected a folder with a file of the split 'dev'"
        ):
            load_records(tmp_path / "saved", "dev")
    for path in (tmp_path / "saved").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"Got {tmp_path}/saved, which save_to_disk wrote and which cannot be read"):
        load_records(tmp_path / "saved", "train")


def test_a_folder_of_the_hubs_cache_is_read_by_its_newest_snapshot(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--me--mine"
    shards(cache / "snapshots" / "abc" / "data", "train")
    shards(cache / "snapshots" / "old" / "data", "train", 1)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert load_records(cache, "train") == texts("train")
    assert load_records(cache / "snapshots" / "old", "train") == texts("train", 1)


def test_configurations_are_folders_of_which_one_is_given(tmp_path: Path) -> None:
    shards(tmp_path / "sst2", "train")
    shards(tmp_path / "cola" / "train", "0000", 1)
    with pytest.raises(ValueError, match="with the configurations cola, sst2; expected one"):
        load_records(tmp_path, "train")
    assert load_records(tmp_path, "train", config="sst2") == texts("train")
    assert load_records(tmp_path / "cola", "train") == texts("0000", 1)


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: parts/one-*
  - split: test
    path: [parts/two-00000-of-00001.parquet]
- config_name: other
  data_files: other/*.jsonl
---
# Mine
"""


def test_a_card_says_which_files_are_a_split(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    shards(tmp_path / "parts", "one")
    shards(tmp_path / "parts", "two", 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jsonl").write_text('{"text": "x"}\n')
    assert load_records(tmp_path, "train", config="main") == texts("one")
    assert load_records(tmp_path, "test", config="main") == texts("two", 1)
    assert load_records(tmp_path, "train", config="other") == [{"text": "x"}]
    for config, message in (
        (None, "Got no configuration of .*; expected one of main, other"),
        ("x", "configuration 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_records(tmp_path, "train", config=config)
    (tmp_path / "README.md").write_text(CARD.replace("main", "default"))
    assert load_records(tmp_path, "train") == texts("one")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    shards(tmp_path / "data", "train")
    assert load_records(tmp_path, "train") == texts("train")
