"""Adapters are loaded when they are asked for, verified, bounded in memory, and never mixed up with another version."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mixed import saved
from tiny import tiny_t5, tiny_tokenizer

from t5peft.adapters import load_adapter, manifest_sha256
from t5peft.methods import METHODS
from t5peft.serving import adapter as adapter_module
from t5peft.serving import pool as pool_module
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import QueueFullError, UnknownAdapterError, UnusableAdapterError

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for i, name in enumerate(NAMES):
        saved(METHODS["lora"].wrap(tiny_t5(), rank=4), folder / name)
        load_and_change(folder / name, i)
    return folder


def load_and_change(path: Path, by: float) -> None:
    """Save the adapter again with other numbers."""
    from t5peft.adapters import save_adapter

    model, _ = load_adapter(path, model=tiny_t5(), trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * by)
    save_adapter(model, path)


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    shutil.copytree(originals, tmp_path / "adapters")
    return tmp_path / "adapters"


def open_pool(folder: Path, **options: Any) -> AdapterPool:
    return AdapterPool(tiny_t5(), folder, tokenizer=tiny_tokenizer(), **options)


def size(folder: Path) -> int:
    pool = open_pool(folder)
    weights = pool.acquire("a")
    assert weights is not None
    return weights.num_bytes


def test_adapters_are_loaded_when_they_are_asked_for(folder: Path) -> None:
    pool = open_pool(folder)
    assert pool.names() == list(NAMES)
    assert pool.loaded() == {}
    first, second = pool.acquire("a"), pool.acquire("a")
    assert first is not None
    assert first is second
    assert pool.loaded() == {"a": first.num_bytes}
    assert pool.num_bytes == first.num_bytes
    assert pool.acquire(None) is None
    pool.release(None)


def test_the_adapter_of_a_run_counts_by_the_name_of_the_run(folder: Path) -> None:
    shutil.move(folder / "a", folder / "moved")
    (folder / "run").mkdir()
    shutil.move(folder / "moved", folder / "run" / "adapter")
    (folder / "notes").mkdir()
    pool = open_pool(folder)
    assert pool.names() == ["b", "c", "d", "run"]
    assert pool.path("run") == folder / "run" / "adapter"
    assert pool.acquire("run") is not None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../adapters/a", "a/", "/etc", "no such", ".hidden", "a\0b", "x:y", "a\\b"]
)
def test_a_name_is_never_a_path(folder: Path, name: str) -> None:
    pool = open_pool(folder)
    for ask in (pool.acquire, pool.path, pool.task):
        with pytest.raises(UnknownAdapterError):
            ask(name)


def test_the_least_recently_used_goes_first_and_pinned_ones_stay(folder: Path) -> None:
    one = size(folder)
    pool = open_pool(folder, max_bytes=3 * one + one // 2, pinned=["a"])
    for name in ("b", "c", "b", "d"):
        pool.release(pool.acquire(name))
    assert set(pool.loaded()) == {"a", "b", "d"}
    assert pool.num_bytes <= 3 * one + one // 2


def test_what_is_held_is_not_dropped_and_a_full_pool_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_WAIT_SECONDS", 0.05)
    one = size(folder)
    pool = open_pool(folder, max_bytes=one + one // 2)
    held = pool.acquire("a")
    with pytest.raises(QueueFullError, match="others use all"):
        pool.acquire("b")
    assert set(pool.loaded()) == {"a"}
    pool.release(held)
    assert pool.acquire("b") is not None
    assert set(pool.loaded()) == {"b"}


def test_one_that_waits_for_memory_gets_it_when_it_is_free(folder: Path) -> None:
    one = size(folder)
    pool = open_pool(folder, max_bytes=one + one // 2)
    held, found = pool.acquire("a"), []
    thread = threading.Thread(target=lambda: found.append(pool.acquire("b")))
    thread.start()
    thread.join(0.2)
    assert not found
    pool.release(held)
    thread.join(10)
    assert [one.name for one in found if one is not None] == ["b"]


def test_one_that_never_fits_is_refused(folder: Path) -> None:
    with pytest.raises(UnusableAdapterError, match=r"expected at most the 10 bytes"):
        open_pool(folder, max_bytes=10).acquire("a")


def test_a_folder_that_changes_is_loaded_anew_and_the_earlier_version_stays_whole(folder: Path) -> None:
    pool = open_pool(folder)
    old = pool.acquire("a")
    assert old is not None
    before = next(iter(old.maps.values())).a
    assert before is not None
    copy = before.clone()
    load_and_change(folder / "a", 7)
    new = pool.acquire("a")
    assert new is not None
    assert new is not old
    assert torch.equal(before, copy)
    after = next(iter(new.maps.values())).a
    assert after is not None
    torch.testing.assert_close(after, copy + 0.07)
    assert pool.num_bytes == old.num_bytes + new.num_bytes  # the earlier one counts as long as it is held
    pool.release(old)
    assert pool.num_bytes == new.num_bytes
    pool.release(new)


def test_a_damaged_folder_is_refused_and_nothing_is_kept(folder: Path) -> None:
    pool = open_pool(folder)
    pool.release(pool.acquire("a"))
    path = folder / "a" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnusableAdapterError, match="changed or damaged"):
        pool.acquire("a")
    assert pool.loaded() == {}
    assert pool.num_bytes == 0
    (folder / "b" / "task.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(UnusableAdapterError, match="task beside b that cannot be read"):
        pool.acquire("b")
    shutil.rmtree(folder / "c")
    with pytest.raises(UnknownAdapterError):
        pool.acquire("c")


def test_a_pinned_hash_refuses_another_adapter_that_is_whole(folder: Path) -> None:
    pins = {name: manifest_sha256(folder / name) for name in NAMES}
    pool = open_pool(folder, sha256=pins)
    pool.release(pool.acquire("a"))
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    with pytest.raises(UnusableAdapterError, match="not the adapter that was pinned"):
        pool.acquire("a")
    model, _ = load_adapter(folder / "b", model=tiny_t5(), sha256=pins["b"].upper())
    assert model.active_adapter == "default"
    with pytest.raises(ValueError, match="not the adapter that was pinned"):
        load_adapter(folder / "b", model=tiny_t5(), sha256=pins["a"])


def test_unloading_frees_memory_once_nobody_holds_it(folder: Path) -> None:
    pool = open_pool(folder)
    held = pool.acquire("a")
    assert held is not None
    assert pool.unload("a")
    assert not pool.unload("a")
    assert pool.loaded() == {}
    assert pool.num_bytes == held.num_bytes
    pool.release(held)
    assert pool.num_bytes == 0


def test_many_threads_load_an_adapter_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = pool_module.read_adapter

    def count(name: str, *arguments: Any) -> object:
        reads.append(name)
        return read(name, *arguments)

    monkeypatch.setattr(pool_module, "read_adapter", count)
    pool = open_pool(folder)
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(pool.acquire(name))) for name in NAMES for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 16
    assert sorted(reads) == list(NAMES)
    assert len({id(one) for one in found}) == len(NAMES)


def test_a_pool_needs_a_folder_and_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected one whose folders are adapters"):
        open_pool(tmp_path / "nothing")
    with pytest.raises(ValueError, match="without a tokenizer"):
        AdapterPool(tiny_t5(), tmp_path)
    with pytest.raises(UnknownAdapterError):
        open_pool(tmp_path, pinned=["missing"])


def test_a_pool_answers_sources_by_their_adapters(folder: Path) -> None:
    from t5peft.evaluation import predict, rank

    pool = open_pool(folder, max_bytes=10**7)
    sources = [f"the text number {i} {'and more' * (i % 3)}" for i in range(9)]
    names = [(*NAMES, None)[i % 5] for i in range(9)]
    texts = pool.predict(sources, names, max_new_tokens=6, num_beams=2, tokens_per_batch=256)
    lists = [["yes", "no", "maybe"][: 2 + i % 2] for i in range(9)]
    scores = pool.rank(sources, lists, names)
    shared = pool.rank(sources, ["yes", "no"], names)
    for i, name in enumerate(names):
        model = tiny_t5() if name is None else load_adapter(folder / name, model=tiny_t5())[0]
        assert texts[i] == predict(model, pool.tokenizer, [sources[i]], max_new_tokens=6, num_beams=2)[0]
        own = rank(model, pool.tokenizer, [sources[i]], [lists[i]]).log_probabilities[0]
        torch.testing.assert_close(scores.log_probabilities[i, : len(own)], own, rtol=0, atol=3e-5)
        torch.testing.assert_close(shared.log_probabilities[i], own[:2], rtol=0, atol=3e-5)
    assert all(pool.unload(name) for name in NAMES)
    assert pool.num_bytes == 0  # nothing is held any more
    with pytest.raises(ValueError, match="Got 1 sources and 2 adapters"):
        pool.predict(["a"], ["a", "b"], max_new_tokens=2)


def test_a_file_that_cannot_be_read_is_told_with_its_folder_and_read_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(folder)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(adapter_module, "stored_state", fail)
    expected = rf"Got {folder / 'a'}, in which a file cannot be read \(Input/output error\); expected readable files"
    with pytest.raises(UnusableAdapterError, match=expected):
        pool.acquire("a")
    monkeypatch.undo()
    assert pool.acquire("a") is not None
