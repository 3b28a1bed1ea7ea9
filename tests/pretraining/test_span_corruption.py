"""Span corruption, the vocabulary and the token store."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import narrow
import numpy as np
import pytest
from documents import EOS, SENTINELS, document, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from t5peft.pretraining.corruption import (
    corrupt,
    corruption_for_source,
    corruption_of,
    noise_mask,
    split_prefix,
)
from t5peft.pretraining.selfsupervised import TASKS, SelfSupervised
from t5peft.pretraining.text import deduplicated, pieces_of_documents, plain, read_documents
from t5peft.pretraining.tokenizer import sentinel_ids, train_tokenizer
from t5peft.pretraining.tokens import TokenStore, open_store, shuffled_documents, store_of_files, write_store


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 400), rows=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_noise_has_the_planned_tokens_and_spans_and_stands_at_the_end(length: int, rows: int, seed: int) -> None:
    plan = corruption_of(length)
    mask = noise_mask(plan, rows, np.random.default_rng(seed))
    for row in mask:
        assert row.sum() == plan.noise_tokens
        assert runs(row) == plan.spans
        assert not row[0]
        assert row[-1]


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 400), seed=st.integers(0, 2**32 - 1))
def test_every_token_is_in_source_or_target_once_and_sentinels_stand_in_order(length: int, seed: int) -> None:
    plan = corruption_of(length)
    tokens = np.arange(100, 100 + length)[None]
    source, target = corrupt(tokens, plan, SENTINELS, EOS, np.random.default_rng(seed))
    assert source.shape == (1, plan.source_tokens)
    assert target.shape == (1, plan.target_tokens)
    for ids in (source[0], target[0]):
        assert ids[-1] == EOS
        assert EOS not in ids[:-1]
        assert list(ids[ids >= SENTINELS[0]]) == list(SENTINELS[: plan.spans])
    kept = [token for token in (*source[0], *target[0]) if 100 <= token < SENTINELS[0]]
    assert sorted(kept) == list(tokens[0])
    assert _restored(source[0], target[0]) == list(tokens[0])


def _restored(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The row that a source and its target came from: each sentinel of the source gives way to its span."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= SENTINELS[0]:
            spans[current := int(token)] = []
        else:
            spans[current].append(int(token))
    return [i for token in source[:-1] for i in (spans[int(token)] if token >= SENTINELS[0] else [int(token)])]


@pytest.mark.parametrize(("source_tokens", "raw_tokens"), [(512, 568), (256, 284), (128, 141)])
def test_a_corrupted_source_has_exactly_the_asked_length(source_tokens: int, raw_tokens: int) -> None:
    plan = corruption_for_source(source_tokens)
    assert (plan.source_tokens, plan.raw_tokens) == (source_tokens, raw_tokens)


def test_512_source_tokens_have_114_target_tokens_as_published() -> None:
    assert corruption_for_source(512).target_tokens == 114


def test_span_lengths_average_three_and_every_length_occurs() -> None:
    plan = corruption_of(200)
    mask = noise_mask(plan, 500, np.random.default_rng(0))
    lengths = [len(run) for row in mask for run in re.findall("1+", "".join(map(str, row.astype(int))))]
    assert np.mean(lengths) == pytest.approx(3.0, abs=1e-9)
    assert set(range(1, 9)) <= set(lengths)


def test_corruption_names_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        corruption_of(1)
    with pytest.raises(ValueError, match=r"expected \[B, 50\]"):
        corrupt(np.zeros((2, 40)), corruption_of(50), SENTINELS, EOS, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected 25, one for each span"):
        corrupt(np.zeros((1, 500)), corruption_of(500), SENTINELS[:3], EOS, np.random.default_rng(0))


def test_a_prefix_and_its_continuation_make_the_row() -> None:
    tokens = np.arange(10, 50).reshape(2, 20)
    source, target = split_prefix(tokens, EOS, np.random.default_rng(3))
    assert (source[:, -1] == EOS).all()
    assert (target[:, -1] == EOS).all()
    assert (np.concatenate([source[:, :-1], target[:, :-1]], axis=1) == tokens).all()


# Text and vocabulary


def test_text_is_read_plainly_from_xz_and_repeated_paragraphs_go(tmp_path: Path) -> None:
    path = tmp_path / "text.txt.xz"
    path.write_bytes(
        lzma.compress('“It’s  here”, said Anna of 1999.\nShort.\n\n"It\'s here", said Anna of 2001.\n'.encode())
    )
    read = list(read_documents([path]))
    assert read == [['"It\'s here", said Anna of 1999.', "Short."], ['"It\'s here", said Anna of 2001.']]
    assert list(deduplicated(read)) == [['"It\'s here", said Anna of 1999.']]
    assert plain("a\u00a0b\u200b") == "a b"
    with pytest.raises(FileNotFoundError, match="expected UTF-8 text"):
        list(read_documents([tmp_path / "absent.txt"]))


@pytest.mark.parametrize(("ending", "pack"), [(".bz2", bz2.compress), (".GZ", gzip.compress)])
def test_packed_text_is_unpacked_and_told_where_it_broke_off(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"text.txt{ending}"
    packed = pack(b"".join(b"Line %d is here.\n" % number for number in range(500)))
    path.write_bytes(packed)
    assert next(read_documents([path]))[0] == "Line 0 is here."
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"cannot be unpacked .* expected a complete file"):
        list(read_documents([path]))


def test_text_of_another_encoding_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("Köln am Rhein\nplain\nGrüße".encode("latin-1"))
    ((_, second, _),) = read_documents([path])
    assert second == "plain"
    assert re.search(r"2 lines of .*text\.txt are not UTF-8", caplog.text)


def test_long_documents_are_cut_between_paragraphs() -> None:
    pieces = list(pieces_of_documents([["a" * 6, "b" * 6, "c" * 6]], max_characters=12))
    assert pieces == [["a" * 6, "b" * 6], ["c" * 6]]


@given(text=st.text(max_size=40).filter(lambda text: not text.startswith(" ") and not set("\r<▁") & set(text)))
@settings(deadline=None, max_examples=60)
def test_nothing_is_unknown_and_decoding_gives_the_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert ids[-1] == EOS
    assert narrow.text(tokenizer.decode(ids[:-1])) == text


def test_too_little_text_for_a_vocabulary_is_told(documents: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no vocabulary of 520 pieces can be trained .* take all of it"):
        train_tokenizer(documents, vocabulary=620, share=0.0, threads=1)
    with pytest.raises(ValueError, match=r"no vocabulary of 100 pieces can be trained .* 100 vs 355"):
        train_tokenizer(documents, vocabulary=200, share=1.0, threads=1)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"Got no text in .*empty\.txt"):
        shuffled_documents([tmp_path / "empty.txt"])


def test_special_ids_are_those_of_t5(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert sentinel_ids(tokenizer) == [len(tokenizer) - 1 - i for i in range(100)]
    assert tokenizer.convert_ids_to_tokens(tokenizer("{2024}\nx").input_ids)[-2:] != ["<unk>", "</s>"]
    digits = [piece for piece in tokenizer.get_vocab() if re.search(r"\d\d", piece) and not re.search("[<>]", piece)]
    assert digits == []


# Token store


def test_rows_of_a_pass_cover_the_text_once_and_depend_on_their_number_alone(store: TokenStore) -> None:
    length = 16
    per_pass = len(store.tokens) // length - 1
    numbered = TokenStore(np.arange(len(store.tokens)), store.offsets)
    rows = numbered.rows(0, per_pass, length, seed=5)
    assert len(np.unique(rows)) == per_pass * length
    assert (np.diff(rows, axis=1) == 1).all()
    assert (numbered.rows(7, 3, length, seed=5) == rows[7:10]).all()
    following = numbered.rows(per_pass, per_pass, length, seed=5)
    assert len(np.unique(following)) == per_pass * length
    assert not (following == rows).all()
    with pytest.raises(ValueError, match=r"Got \d+ tokens; expected at least"):
        store.rows(0, 1, len(store.tokens), seed=0)


def test_a_store_of_another_vocabulary_is_refused(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write_store(documents[:3], tokenizer, tmp_path)
    other = train_tokenizer(documents, vocabulary=620, sentinels=50, share=1.0, threads=1)
    with pytest.raises(ValueError, match="another vocabulary"):
        open_store(tmp_path, other)
    with pytest.raises(FileNotFoundError, match="expected a finished token store"):
        open_store(tmp_path / "empty", tokenizer)


def test_a_store_of_other_text_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    for number, path in enumerate((first, second)):
        path.write_text("\n".join(document(number)), encoding="utf-8")
    store_of_files([first], tokenizer, tmp_path / "store")
    with pytest.raises(ValueError, match=r"Got the files .*second\.txt.* expected .*first\.txt.* another folder"):
        store_of_files([second], tokenizer, tmp_path / "store")
    first.unlink()
    assert len(store_of_files([first], tokenizer, tmp_path / "store").tokens)


def test_no_text_is_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got no text to write"):
        write_store([], tokenizer, tmp_path / "store")
    (tmp_path / "short.txt").write_text("Hello.\n\nBye.")
    with pytest.raises(ValueError, match="paragraphs of 20 characters or more"):
        store_of_files([tmp_path / "short.txt"], tokenizer, tmp_path / "store")


def test_the_store_holds_the_text(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, store: TokenStore
) -> None:
    third = store.tokens[store.offsets[2] : store.offsets[3]]
    assert narrow.text(tokenizer.decode(third)) == "\n ".join(documents[2])


# Tasks that text gives


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_of_the_text_and_repeat_with_the_generator(
    name: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = SelfSupervised(store, tokenizer)
    pairs = [TASKS[name][0](tasks, np.random.default_rng(seed)) for seed in range(20)]
    assert pairs == [TASKS[name][0](tasks, np.random.default_rng(seed)) for seed in range(20)]
    assert all(source and target for source, target in pairs)
    if name == "choose":
        for source, target in pairs:
            options = narrow.text(tokenizer.decode(source)).split("options:")[1]
            assert narrow.text(tokenizer.decode(target)).strip() in options
    if name == "find":
        for source, target in pairs:
            sentence, options = narrow.text(tokenizer.decode(source)).split("options:")
            here = [word.strip() in sentence.replace(".", " ").split() for word in options.strip(" ,").split(",")]
            assert sum(here) == 1
            assert narrow.text(tokenizer.decode(target)).strip() in sentence
    if name == "strange":
        for source, target in pairs:
            sentence, claim = narrow.text(tokenizer.decode(source)).split("claim:")
            assert narrow.text(tokenizer.decode(target)).strip() in claim.split()
            assert narrow.text(tokenizer.decode(target)).strip() not in sentence.replace(".", " ").split()
    if name in ("follows", "order", "kind", "same", "rte sentence1", "cola sentence", "sst2 sentence"):
        assert len({tuple(target) for _, target in pairs}) >= 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("store.json", b'{"tokens": 7'),
        ("store.json", b"\xff\xfe"),
        ("store.json", b"[]"),
        ("store.json", b'{"tokens": 7}'),
        ("store.json", b'{"tokens": "7", "vocabulary": "a"}'),
        ("tokens.u16", b""),
        ("tokens.u16", b"\0\0\0"),
        ("tokens.u16", b"\0\0"),
        ("tokens.u16", None),
        ("offsets.npy", b"\x93NUMPY\x01"),
        ("offsets.npy", b""),
        ("offsets.npy", None),
    ],
)
def test_a_damaged_store_is_told_in_words(
    name: str, content: bytes | None, documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(documents[0]), encoding="utf-8")
    store_of_files([tmp_path / "text.txt"], tokenizer, tmp_path / "store")
    (tmp_path / "store" / name).unlink()
    if content is not None:
        (tmp_path / "store" / name).write_bytes(content)
    for read in (
        lambda: open_store(tmp_path / "store", tokenizer),
        lambda: store_of_files([tmp_path / "text.txt"], tokenizer, tmp_path / "store"),
    ):
        with pytest.raises(ValueError, match=r"Got a damaged (file|token store) .*; expected"):
            read()


@pytest.mark.parametrize("changed", ["order", "another text"])
def test_offsets_that_do_not_fit_are_told(
    changed: str, documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    store = write_store(documents[:3], tokenizer, tmp_path)
    offsets = np.array(store.offsets)
    offsets = offsets[[0, 2, 1, 3]] if changed == "order" else offsets[:-1]
    np.save(tmp_path / "offsets.npy", offsets)
    with pytest.raises(ValueError, match="Got a damaged token store"):
        open_store(tmp_path, tokenizer)
