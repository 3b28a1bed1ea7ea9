"""Pretraining: the corruption by its invariants, the vocabulary, the token store, and a loop that resumes exactly."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration

import t5peft
from t5peft.cli import main
from t5peft.pretraining.corruption import (
    Corruption,
    corrupt,
    corruption_for_source,
    corruption_of,
    noise_mask,
    split_prefix,
)
from t5peft.pretraining.embeddings import cooccurrences, pmi_embeddings, positive_pmi
from t5peft.pretraining.init import Shape, new_model, step_flops
from t5peft.pretraining.matching_head import set_matching_head
from t5peft.pretraining.optimizers import Muon, make_optimizer, orthogonalized, rate_factor
from t5peft.pretraining.pretrainer import PretrainConfig, Pretrainer
from t5peft.pretraining.questions import KINDS, Questions
from t5peft.pretraining.selfsupervised import TASKS, SelfSupervised, cola, rte, sst2
from t5peft.pretraining.sentences import Sentences
from t5peft.pretraining.sentiment import Sentiment, read_valences
from t5peft.pretraining.text import deduplicated, pieces_of_documents, plain, read_documents
from t5peft.pretraining.tokenizer import sentinel_ids, train_tokenizer
from t5peft.pretraining.tokens import TokenStore, open_store, shuffled_documents, store_of_files, write_store

MINI = Path(t5peft.__file__).parent / "mini"
EOS = 1
SENTINELS = np.arange(10_000, 10_100)
TINY = Shape(d_model=32, d_ff=64, layers=2, heads=2, d_kv=16)
_PLACES = ("river", "harbour", "castle", "market", "forest", "island", "village", "bridge", "garden", "mountain")
_NAMES = ("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas")


def _document(number: int) -> list[str]:
    name, place, other = _NAMES[number % 10], _PLACES[number % 7], _PLACES[(number * 3 + 1) % 10]
    sentiment = "good" if number % 2 else "bad"
    return [
        f"{name} Miller was born near the old {place} in {1900 + number} and walked to the {other} every morning.",
        f"The {other} was built by {number + 2} workers from the {place}. It still stands there, and people like it. "
        f"Nobody remembers why {name} left the quiet {place} so early. A {sentiment} road leads to the {other}.",
    ]


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    return [_document(number) for number in range(120)]


@pytest.fixture(scope="module")
def tokenizer(documents: list[list[str]]) -> PreTrainedTokenizerFast:
    return train_tokenizer(documents, vocabulary=620, sentinels=100, share=1.0, threads=1)


@pytest.fixture(scope="module")
def store(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> TokenStore:
    return write_store(documents, tokenizer, tmp_path_factory.mktemp("store"))


def _runs(mask: np.ndarray) -> int:
    return int(mask[0]) + int((np.diff(mask.astype(int)) == 1).sum())


# Span corruption


@pytest.mark.parametrize(
    ("length", "noise", "spans"),
    # Counted by hand: 15 % of the tokens and a third of those, rounded half to even, at least 1, at most what is there.
    [(2, 1, 1), (3, 1, 1), (10, 2, 1), (20, 3, 1), (30, 4, 1), (31, 5, 2), (100, 15, 5), (512, 77, 26), (568, 85, 28)],
)
def test_the_counts_are_the_published_ones(length: int, noise: int, spans: int) -> None:
    assert corruption_of(length) == Corruption(length, noise, spans)


@settings(deadline=None, max_examples=60)
@given(length=st.integers(2, 400), rows=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_noise_has_the_planned_tokens_and_spans_and_stands_at_the_end(length: int, rows: int, seed: int) -> None:
    plan = corruption_of(length)
    mask = noise_mask(plan, rows, np.random.default_rng(seed))
    for row in mask:
        assert row.sum() == plan.noise_tokens
        assert _runs(row) == plan.spans
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
    assert tokenizer.decode(ids[:-1]) == text


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


def test_a_store_of_other_text_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    for number, path in enumerate((first, second)):
        path.write_text("\n".join(_document(number)), encoding="utf-8")
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
    assert tokenizer.decode(third) == "\n ".join(documents[2])


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
            options = tokenizer.decode(source).split("options:")[1]
            assert tokenizer.decode(target).strip() in options
    if name == "find":
        for source, target in pairs:
            sentence, options = tokenizer.decode(source).split("options:")
            here = [word.strip() in sentence.replace(".", " ").split() for word in options.strip(" ,").split(",")]
            assert sum(here) == 1
            assert tokenizer.decode(target).strip() in sentence
    if name == "strange":
        for source, target in pairs:
            sentence, claim = tokenizer.decode(source).split("claim:")
            assert tokenizer.decode(target).strip() in claim.split()
            assert tokenizer.decode(target).strip() not in sentence.replace(".", " ").split()
    if name in ("follows", "order", "kind", "same", "rte sentence1", "cola sentence", "sst2 sentence"):
        assert len({tuple(target) for _, target in pairs}) >= 2


def test_a_passage_at_the_end_of_the_text_is_one(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = SelfSupervised(store, tokenizer)
    last = len(tasks.sentences) - 1
    draw, monkey = tasks.sentences.draw, monkeypatch
    monkey.setattr(tasks.sentences, "documents", np.zeros_like(tasks.sentences.documents))
    for seed in range(60):
        drawn = iter([last - seed % 2])
        monkey.setattr(tasks.sentences, "draw", lambda g, d=drawn, **k: next(d, None) or draw(g, **k))
        assert all(rte(tasks, np.random.default_rng(seed)))


def test_a_vocabulary_too_large_to_count_pairs_of_is_told() -> None:
    with pytest.raises(ValueError, match=r"32,000 tokens, whose counts take 20 GB.*--embeddings random"):
        pmi_embeddings(np.zeros(4, dtype=np.uint16), 32_000, 8)


def test_a_hypothesis_that_holds_has_the_content_words_of_the_passage_in_their_order(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = SelfSupervised(store, tokenizer)
    sentences, mark = tasks.sentences, tasks.text["sentence2:"]

    def content(ids: list[int]) -> list[list[int]]:
        return [sentences.bare(word) for word in sentences.words(ids) if sentences.is_content(word)]

    held = {True: 0, False: 0}
    for seed in range(60):
        source, target = rte(tasks, np.random.default_rng(seed))
        cut = next(at for at in range(len(source)) if source[at : at + len(mark)] == mark)
        passage, words = content(source[:cut]), content(source[cut + len(mark) :])
        answer = tokenizer.decode(target).strip()
        if answer == "entailment":
            place = iter(passage)
            held[True] += all(word in place for word in words)
        else:
            held[False] += any(word not in passage for word in words)
    answers = [tokenizer.decode(rte(tasks, np.random.default_rng(seed))[1]).strip() for seed in range(60)]
    assert (
        held[True] >= 0.8 * answers.count("entailment") > 10
    )  # the beginning of a sentence may stand before a part of it twice
    assert held[False] >= 0.5 * answers.count("not_entailment") > 10  # this text says the same words often


def test_a_sentence_is_acceptable_as_it_stands_in_the_text(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = SelfSupervised(store, tokenizer)
    whole = {tuple(tasks.sentences[index]) for index in range(len(tasks.sentences))}
    for seed in range(40):
        source, target = cola(tasks, np.random.default_rng(seed))
        assert (tuple(source) in whole) == (tokenizer.decode(target).strip() == "acceptable")


def test_a_vocabulary_of_bytes_has_no_words_for_the_tasks(documents: list[list[str]], tmp_path: Path) -> None:
    store = write_store(documents[:3], ByT5Tokenizer(), tmp_path)
    with pytest.raises(ValueError, match="without pieces that begin with"):
        SelfSupervised(store, ByT5Tokenizer())


def test_a_text_without_praise_and_blame_gives_the_other_tasks(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    store = write_store(
        [[text.replace("good", "long").replace("bad", "long") for text in found] for found in documents],
        tokenizer,
        tmp_path,
    )
    tasks, generator = SelfSupervised(store, tokenizer), np.random.default_rng(0)
    headings = {tokenizer.decode(tasks.pair(generator)[0]).split(":")[0] for _ in range(300)}
    assert headings == TASKS.keys() - {"sst2 sentence"}
    with pytest.raises(ValueError, match=r"no sentence .* with a word of the lexicon"):
        sst2(tasks, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda texts: "a " + texts[1], {"title"}),  # no document begins with a capital
        (lambda texts: " ".join(texts[0].split()[:9]), {"order", "same"}),  # one short sentence a document
    ],
    ids=["no capital", "one sentence"],
)
def test_a_text_whose_documents_do_not_give_a_task_gives_the_others(
    change: Callable[[list[str]], str],
    missing: set[str],
    documents: list[list[str]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    changed = [[change(found)] for found in documents]
    tasks, generator = SelfSupervised(write_store(changed, tokenizer, tmp_path), tokenizer), np.random.default_rng(0)
    headings = {tokenizer.decode(tasks.pair(generator)[0]).split(":")[0] for _ in range(300)}
    assert headings & {"order", "same", "title"} == {"order", "same", "title"} - missing
    for name in missing:
        with pytest.raises(ValueError, match="in 1,000 draws"):
            TASKS[name][0](tasks, np.random.default_rng(0))


def test_a_sentence_praises_by_its_words_unless_they_are_denied_or_outweighed(tmp_path: Path) -> None:
    documents = [
        ["The soup was good and the room was plain. We came on foot."],
        ["The soup was not good and the room was plain. We came by boat."],
        ["The waiter was rude and the room was plain. We came by train."],
        ["The soup was good but the rude waiter was a horror to all. We came by car."],
        ["The goodness of the plain room was known to all. We came by bus."],
    ] * 20
    tokenizer = train_tokenizer(documents, vocabulary=520, sentinels=100, share=1.0, threads=1)
    sentences = Sentences(write_store(documents, tokenizer, tmp_path), tokenizer)
    sentiment = Sentiment(sentences, tokenizer, {"good": 2.0, "rude": -2.0, "horror": -2.5})
    drawn = [sentiment.draw(np.random.default_rng(seed)) for seed in range(200)]
    seen = [(tokenizer.decode(ids).lower(), praise) for ids, praise in drawn]
    assert {praise for text, praise in seen if "not good" in text} == {False}
    assert {praise for text, praise in seen if "good and" in text and "not" not in text} == {True}
    assert {praise for text, praise in seen if "rude" in text or "horror" in text} == {False}
    assert not any("goodness" in text for text, _ in seen)
    gaps = [(text, praise) for text, praise in seen if "<extra_id_0>" in text]
    assert 20 < len(gaps) < 100
    assert not any("good" in text and praise for text, praise in gaps)
    assert any(text.startswith("the ") and "we came" not in text for text, _ in seen)


def test_valences_are_read_from_lines_of_word_and_number(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("good\t1.9\t0.9\t[2, 2]\nrude\t-2.0\nfine\t0.8\n:-)\t2.1\nok\t1.2\n", encoding="utf-8")
    assert read_valences(path) == {"good": 1.9, "rude": -2.0}
    path.write_text("good\t1.9\nrude", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Got 'rude' in line 2 .* expected word<TAB>valence"):
        read_valences(path)
    path.write_text(":-)\t1.9\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Got no word in"):
        read_valences(path)


def test_questions_ask_for_what_their_beginning_says(store: TokenStore, tokenizer: PreTrainedTokenizerFast) -> None:
    questions = Questions(Sentences(store, tokenizer), tokenizer)
    drawn = [questions.draw(np.random.default_rng(seed)) for seed in range(3000)]
    texts = [(tokenizer.decode(ids).strip(), kind) for ids, kind in drawn]
    assert {kind for _, kind in texts} == set(KINDS)
    assert all(text.endswith("?") for text, _ in texts)
    for beginning, kind in (("Who", "human"), ("Where", "location"), ("How many", "number"), ("Why", "description")):
        assert {found for text, found in texts if re.match(rf"{beginning}\b", text)} == {kind}
    assert {kind for text, kind in texts if re.match(r"(Which|What|In which|Name the) river\b", text)} == {"location"}
    assert all(re.search(r"\b[A-Z]{2,5}\b|letters|of|for", text) for text, kind in texts if kind == "abbreviation")


# Embeddings


def test_cooccurrences_and_pmi_are_those_by_hand() -> None:
    counts = cooccurrences(np.array([0, 1, 2, 0]), 3, window=2, block=100)
    assert counts.tolist() == [[0, 1 + 0.5, 0.5 + 1], [1.5, 0, 1], [1.5, 1, 0]]
    word = counts.sum(1)
    context = word**0.75 / (word**0.75).sum()
    expected = max(0.0, float(np.log(counts[0, 1] / (word[0] * context[1]))))
    assert float(positive_pmi(counts)[0, 1]) == pytest.approx(expected, abs=1e-6)


def test_tokens_in_the_same_company_get_similar_embeddings() -> None:
    generator = np.random.default_rng(0)
    first = np.array([[4, 6 + i % 2, 5] for i in generator.integers(0, 2, 300)]).reshape(-1)
    second = np.array([[8, 10 + i % 2, 9] for i in generator.integers(0, 2, 300)]).reshape(-1)
    table = pmi_embeddings(np.concatenate([first, second]), 40, 4, window=2)
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(table[6], table[7], dim=0) > 0.9 > similarity(table[6], table[10], dim=0)
    assert table[[4, 5, 6, 7, 8, 9, 10, 11]].std() == pytest.approx(1.0, abs=0.05)


# Optimizers


@pytest.mark.parametrize("shape", [(3, 32, 16), (2, 16, 48), (1, 24, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalized(torch.randn(shape, generator=torch.Generator().manual_seed(1)), steps=8)
    )
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_turns_matrices_and_leaves_tables_to_adamw(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY)
    optimizer = make_optimizer(model, "muon")
    assert isinstance(optimizer, Muon)
    sizes = [{tuple(p.shape) for p in group["params"]} for group in optimizer.param_groups]
    assert sizes[1] == {(32, 32)}
    assert (len(tokenizer), 32) in sizes[2]
    assert (len(tokenizer), 32) not in sizes[0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=torch.tensor([[5, 6, 1]]), labels=torch.tensor([[7, 1]])).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if p.grad.abs().sum() > 0)


def test_the_learning_rate_rises_stays_falls_and_cools_down() -> None:
    def rate(step: int) -> float:
        return rate_factor(step, warmup=10, decay_start_step=100, steps=1000, cooldown=200)

    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == rate(100) == 1.0
    assert rate(400) == pytest.approx(0.5)
    assert rate(900) == pytest.approx(1 / 6), "half of the cool-down, times the root of 100 / 900"
    assert rate(1000) == 0


# The loop


def _pretrainer(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, directory: Path, **changes: object
) -> Pretrainer:
    options = {
        "source_tokens": 32,
        "rows": 4,
        "task_rows": 4,
        "steps": 7,
        "warmup": 3,
        "log_every": 1,
        "eval_every": 100,
    }
    config = PretrainConfig(**{**options, **changes})  # type: ignore[arg-type]
    return Pretrainer(new_model(tokenizer, TINY), tokenizer, store, config, directory, held_out=store)


def _losses(directory: Path) -> list[float]:
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "adamw"])
def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(
    optimizer: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = _pretrainer(store, tokenizer, tmp_path / "whole", optimizer=optimizer)
    whole.train()
    _pretrainer(store, tokenizer, tmp_path / "parts", optimizer=optimizer).train(until=3)
    resumed = _pretrainer(store, tokenizer, tmp_path / "parts", optimizer=optimizer)
    assert resumed.resume()
    assert resumed.step == 3
    resumed.train()
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert resumed.tokens_seen == whole.tokens_seen
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_dropout_is_that_of_the_seed_and_the_step(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def run(name: str, until: int | None = None) -> list[float]:
        run = _pretrainer(store, tokenizer, tmp_path / name, steps=4)
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        run.resume()
        run.train(until=until)
        return _losses(tmp_path / name)

    whole = run("whole")
    run("parts", until=2)
    torch.rand(3)
    assert run("parts") == whole


def test_a_state_of_another_optimizer_is_not_resumed(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _pretrainer(store, tokenizer, tmp_path, optimizer="adafactor").train(until=1)
    with pytest.raises(ValueError, match=r"Got optimizer='adamw' for .*state\.pt; expected 'adafactor'"):
        _pretrainer(store, tokenizer, tmp_path, optimizer="adamw").resume()


def test_a_state_of_another_model_is_not_resumed(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _pretrainer(store, tokenizer, tmp_path).train(until=1)
    other = new_model(tokenizer, dataclasses.replace(TINY, d_model=48))
    with pytest.raises(ValueError, match=r"does not fit .*state\.pt .*expected the backbone or the shape"):
        Pretrainer(other, tokenizer, store, PretrainConfig(source_tokens=32), tmp_path).resume()


def test_a_held_out_text_that_is_too_short_is_told_before_the_training(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = write_store([_document(0)[:1]], tokenizer, tmp_path / "short")
    with pytest.raises(ValueError, match=r"held-out text that is too short.* Got \d+ tokens; expected at least \d+"):
        Pretrainer(new_model(tokenizer, TINY), tokenizer, store, PretrainConfig(), tmp_path, held_out=short)


def test_a_state_is_saved_before_it_is_evaluated(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path, eval_every=2, save_every=2)
    monkeypatch.setattr(run, "held_out_loss", None)
    with pytest.raises(TypeError):
        run.train()
    assert _pretrainer(store, tokenizer, tmp_path).resume()


@pytest.mark.parametrize("objective", ["spans", "prefix"])
def test_the_held_out_loss_falls(
    objective: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(
        store, tokenizer, tmp_path, objective=objective, optimizer="muon", steps=30, task_rows=0, log_every=30
    )
    before = run.held_out_loss(rows=16)
    assert before == run.held_out_loss(rows=16)
    run.train()
    assert run.held_out_loss(rows=16) < before - 0.5


def test_nothing_is_padded_and_labels_end_in_eos(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    text, tasks = run.groups(0)
    assert text[0]["attention_mask"].all()
    assert text[0]["input_ids"].shape == (4, 32)
    for batch in (*text, *tasks):
        last = (batch["labels"] != -100).sum(1) - 1
        assert (batch["labels"].gather(1, last[:, None]) == EOS).all()
        assert (batch["input_ids"] >= 0).all()


def test_a_state_that_broke_off_while_writing_changes_nothing(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    run.train(until=2)

    def broken(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        run.train(until=4)
    monkeypatch.undo()
    again = _pretrainer(store, tokenizer, tmp_path)
    assert again.resume()
    assert again.step == 2


def test_a_loss_that_is_not_finite_stops_the_run(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    run.model.shared.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        run.train()


def test_a_loss_of_tasks_that_is_not_finite_stops_the_run_before_the_update(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(
        "t5peft.pretraining.pretrainer.target_loss", lambda model, batch: (model.shared.weight.sum() * next(losses), 1)
    )
    before = run.model.shared.weight.clone()
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        run.train()
    assert torch.equal(run.model.shared.weight, before)


def test_config_names_all_its_problems() -> None:
    with pytest.raises(ValueError, match=r"rows=0.*decay_start_step=0.*warmup=-2.*cooldown=-1"):
        PretrainConfig(rows=0, decay_start_step=0, warmup=-2, cooldown=-1)


def test_step_flops_counts_every_matrix_once_for_the_tokens_that_meet_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY)
    matrices = [p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "relative" not in n]
    assert step_flops(model.config, source_tokens=7, target_tokens=7) == 6 * 7 * sum(matrices)


def test_a_matching_head_finds_the_same_piece_elsewhere_and_not_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY, seed=3).eval()
    model.set_attn_implementation("eager")
    source = torch.tensor([[300, 301, 302, 303, 304, 305, 306, 301, 307, 308]])

    def attention() -> torch.Tensor:
        return model.encoder(source, output_attentions=True).attentions[0][0].detach()

    plain = attention()
    assert plain[:, 1, 7].max() < 0.5, "without it, one head does so already"
    head = set_matching_head(model)
    found = attention()
    assert found[head, 1].argmax() == 7
    assert found[head, 7].argmax() == 1
    assert found[head, 1, 7] > 0.5
    assert found[head, [1, 7], [1, 7]].max() < 0.01
    others = [number for number in range(TINY.heads) if number != head]
    assert torch.equal(found[others], plain[others])


# The command and the shipped files


def test_the_command_makes_a_model_resumes_it_and_adapts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(_document(number)) for number in range(80)), encoding="utf-8")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n\n".join("\n".join(_document(number)) for number in range(80, 110)), encoding="utf-8")
    shape = [
        "--d-model",
        "32",
        "--d-ff",
        "64",
        "--layers",
        "2",
        "--heads",
        "2",
        "--d-kv",
        "16",
        "--vocabulary",
        "600",
        "--vocabulary-share",
        "1",
    ]
    common = ["--source-tokens", "32", "--rows", "4", "--log-every", "1", "--eval-every", "2"]
    first = ["pretrain", "--text", str(text), "--held-out", str(held_out), "--output", str(tmp_path / "run")]
    assert main([*first, *shape, *common, "--task-rows", "2", "--steps", "2"]) == 0
    assert main([*first, *shape, *common, "--task-rows", "2", "--steps", "4"]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 2" in out
    assert "% of matmul speed" in out
    assert "held-out loss" in out
    again = [
        "pretrain",
        "--text",
        str(text),
        "--output",
        str(tmp_path / "lm"),
        "--backbone",
        str(tmp_path / "run/model"),
    ]
    assert main([*again, *common, "--objective", "prefix", "--matching-head", "--steps", "2"]) == 0
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "lm" / "model")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "lm" / "model")) == model.config.vocab_size


def test_options_of_a_new_model_beside_a_backbone_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backbone", "mini", "--d-model", "64", "--vocabulary-share", "1"]
    assert main(["pretrain", "--text", "no.txt", "--output", "no", *options]) == 2
    assert "Got --vocabulary-share, --d-model, of a new model, with --backbone mini" in capsys.readouterr().err


def test_the_shipped_files_are_those_of_the_card() -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", card, flags=re.MULTILINE))
    assert set(listed) == {path.name for path in MINI.iterdir() if path.is_file()} - {"README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((MINI / name).read_bytes()).hexdigest() == digest, name


def test_the_shipped_weights_are_small_enough() -> None:
    assert (MINI / "model.safetensors").stat().st_size <= 24 * 2**20
