"""Tasks that plain text gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import narrow
import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from t5peft.pretraining.embeddings import cooccurrences, pmi_embeddings, positive_pmi
from t5peft.pretraining.questions import KINDS, Questions
from t5peft.pretraining.selfsupervised import TASKS, SelfSupervised, cola, rte, sst2
from t5peft.pretraining.sentences import Sentences
from t5peft.pretraining.sentiment import Sentiment, read_valences
from t5peft.pretraining.tokenizer import train_tokenizer
from t5peft.pretraining.tokens import TokenStore, write_store


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
        answer = narrow.text(tokenizer.decode(target)).strip()
        if answer == "entailment":
            place = iter(passage)
            held[True] += all(word in place for word in words)
        else:
            held[False] += any(word not in passage for word in words)
    answers = [narrow.text(tokenizer.decode(rte(tasks, np.random.default_rng(seed))[1])).strip() for seed in range(60)]
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
        assert (tuple(source) in whole) == (narrow.text(tokenizer.decode(target)).strip() == "acceptable")


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
    headings = {narrow.text(tokenizer.decode(tasks.pair(generator)[0])).split(":")[0] for _ in range(300)}
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
    headings = {narrow.text(tokenizer.decode(tasks.pair(generator)[0])).split(":")[0] for _ in range(300)}
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
    seen = [(narrow.text(tokenizer.decode(ids)).lower(), praise) for ids, praise in drawn]
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
    texts = [(narrow.text(tokenizer.decode(ids)).strip(), kind) for ids, kind in drawn]
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
