"""Text-to-text tasks made from plain text, to mix with span corruption as T5 mixes supervised tasks.

With only span corruption, a small model needs millions of tokens until it looks at its source, because it first learns to guess
frequent words. These tasks cannot be answered without the source:

    correct  a sentence with words dropped, swapped or replaced              -> the sentence
    compose  some of its words in any order                                  -> the sentence
    choose   a sentence with a gap, and four words                           -> the word
    kind     a sentence with a gap                                           -> number, name or word
    find     a sentence and four words, of which it has one                  -> the word
    strange  a sentence and a claim, words of it with one from elsewhere     -> that word
    follows  a sentence and a claim: a part of it, or altered, or another's  -> true or false
    order    two sentences that stand together                               -> right or wrong
    same     two passages, of one document or of two                         -> yes or no
    title    the beginning of an article without its subject                 -> the subject
    rte sentence1   a passage and a hypothesis                               -> entailment or not_entailment
    cola sentence   a sentence, whole or damaged                             -> acceptable or unacceptable
    sst2 sentence   one that praises or blames, maybe a gap for the word     -> positive or negative (``sentiment.py``)
    trec question   a question made of words of the text                     -> what it asks for (``questions.py``)

The last four have the form of RTE, CoLA, SST-2 and TREC; they contain nothing of those data sets. The last two need word lists: a
sentiment lexicon, and nouns by the kind of thing that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from t5peft.pretraining.questions import KINDS, Questions
from t5peft.pretraining.sentences import Ids, Sentences, joined
from t5peft.pretraining.sentiment import VALENCES, Sentiment
from t5peft.pretraining.tokens import TokenStore

Pair = tuple[Ids, Ids]
_ANSWERS = (
    "number", "name", "word", "true", "false", "right", "wrong", "yes", "no", "positive", "negative",
    "entailment", "not_entailment", "acceptable", "unacceptable", *KINDS,
)  # fmt: skip


class SelfSupervised:
    """Draw pairs of source and target, both ending in ``</s>``, from the text of a token store."""

    def __init__(
        self, store: TokenStore, tokenizer: PreTrainedTokenizerBase, valences: Mapping[str, float] = VALENCES
    ) -> None:
        self.sentences = Sentences(store, tokenizer)
        self.eos: int = tokenizer.eos_token_id
        (self.gap,) = cast(Ids, tokenizer.convert_tokens_to_ids(["<extra_id_0>"]))
        names = [*_ANSWERS, "options:", "claim:", "other:", "sentence2:", ","]
        self.text: dict[str, Ids] = {name: tokenizer(name, add_special_tokens=False).input_ids for name in names}
        self.heading = {name: tokenizer(f"{name}:", add_special_tokens=False).input_ids for name in TASKS}
        weights = np.array([weight for _, weight in TASKS.values()], dtype=float)
        self.questions = Questions(self.sentences, tokenizer)
        self.sentiment = Sentiment(self.sentences, tokenizer, valences)
        if not self.sentiment:  # for example a text in another language
            weights[list(TASKS).index("sst2 sentence")] = 0
        # These need documents of several sentences, or with a capital at their beginning, say.
        for name in ("order", "same", "title"):
            try:
                TASKS[name][0](self, np.random.default_rng(0))
            except ValueError:
                weights[list(TASKS).index(name)] = 0
        self._shares = weights / weights.sum()

    def pair(self, generator: np.random.Generator) -> Pair:
        """Draw a task by the weights, and an example of it."""
        name = list(TASKS)[generator.choice(len(TASKS), p=self._shares)]
        source, target = TASKS[name][0](self, generator)
        return [*self.heading[name], *source, self.eos], [*target, self.eos]


def _sentence(tasks: SelfSupervised, generator: np.random.Generator, longest: int = 40) -> list[Ids]:
    sentences = tasks.sentences
    for _ in range(1000):
        words = sentences.words(sentences[sentences.draw(generator, longest=longest)])
        if len(words) >= 4:
            return words
    raise ValueError(
        "Got no sentence of four words in 1,000 draws; expected prose with spaces between its words. Check the text."
    )


def _altered(words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator) -> list[Ids]:
    """Drop some words, swap some with the next, and replace some by words of another sentence."""
    others = _sentence(tasks, generator)
    result: list[Ids] = []
    held: Ids | None = None
    for word in words:
        roll = generator.random()
        if roll < 0.06:
            continue
        if roll < 0.12:
            word = others[int(generator.integers(len(others)))]
        if held is not None:
            result += [word, held]
            held = None
        elif roll > 0.92:
            held = word
        else:
            result.append(word)
    return result + ([held] if held is not None else [])


def correct(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a damaged sentence, and the sentence."""
    words = _sentence(tasks, generator)
    return joined(_altered(words, tasks, generator)), joined(words)


def compose(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw the content words of a sentence in random order, and the sentence."""
    words = _sentence(tasks, generator, longest=28)
    content = [tasks.sentences.bare(word) for word in words if tasks.sentences.is_content(word)]
    order = generator.permutation(len(content))
    return joined([[*content[i], *tasks.text[","]] for i in order]), joined(words)


def _with_gap(words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """Replace one content word of a sentence by the first sentinel; return the sentence and the word."""
    places = [i for i, word in enumerate(words) if tasks.sentences.is_content(word)] or [len(words) - 1]
    place = places[int(generator.integers(len(places)))]
    answer = tasks.sentences.bare(words[place])
    rest = words[place][len(answer) :]
    return joined([*words[:place], [tasks.gap, *rest], *words[place + 1 :]]), answer


def choose(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence with a gap and four words, one of which fills it."""
    source, answer = _with_gap(_sentence(tasks, generator), tasks, generator)
    options = [answer] + [_with_gap(_sentence(tasks, generator), tasks, generator)[1] for _ in range(3)]
    listed = joined([[*options[i], *tasks.text[","]] for i in generator.permutation(4)])
    return [*source, *tasks.text["options:"], *listed], answer


def kind(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence with a gap, and the kind of the missing word: number, name or word."""
    words = _sentence(tasks, generator)
    source, answer = _with_gap(words, tasks, generator)
    return source, tasks.text[tasks.sentences.kind(answer)]


def find(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence and four words, one of which is in it."""
    words = _sentence(tasks, generator)
    answer = _content_word(words, tasks, generator)
    options = [answer] + [_strange_word(words, tasks, generator) for _ in range(3)]
    listed = joined([[*options[i], *tasks.text[","]] for i in generator.permutation(4)])
    return [*joined(words), *tasks.text["options:"], *listed], answer


def strange(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence and a claim: some of its words in order, with one replaced by a word of another sentence."""
    words = _sentence(tasks, generator, longest=60)
    claim, word = _with_strange_word(_claim(words, generator), words, tasks, generator)
    return [*joined(words), *tasks.text["claim:"], *joined(claim)[:60]], word


def follows(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence and a claim. A true claim is words of it in order; a false one has a strange word or is of another."""
    sentences = tasks.sentences
    index = sentences.draw(generator, shortest=16, longest=70)
    words = sentences.words(sentences[index])
    claim, holds = _claim(words, generator), generator.random() < 0.5
    if not holds:
        how = int(generator.integers(3))
        if how == 0:
            claim, _ = _with_strange_word(claim, words, tasks, generator)
        else:
            neighbor = sentences.words(sentences[index + 1])
            claim = _claim(neighbor if how == 1 and len(neighbor) > 3 else _sentence(tasks, generator), generator)
    answer = tasks.text["true" if holds else "false"]
    return [*joined(words), *tasks.text["claim:"], *joined(claim)[:60]], answer


def rte(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a passage of up to four sentences, and a hypothesis with other function words.

    A true hypothesis has the names, numbers and longer words of one sentence of the passage, in order. In a false one, one of these
    words is strange, or they come from the sentence after the passage or from elsewhere.
    """
    sentences = tasks.sentences
    first = sentences.draw(generator, shortest=16, longest=70)
    last = first
    while (
        last < min(first + int(generator.integers(4)), len(sentences) - 1)  # one sentence stays after the passage
        and sentences.documents[last + 1] == sentences.documents[first]
        and sentences.ends[last + 1] - sentences.ends[first - 1] <= 110
    ):
        last += 1
    passage = sentences.words([token for index in range(first, last + 1) for token in sentences[index]])
    holds, how = generator.random() < 0.5, generator.random()
    source = sentences.words(sentences[int(generator.integers(first, last + 1))])
    if not holds and how < 0.5:
        following = sentences.words(sentences[last + 1]) if how < 0.25 else []
        source = following if len(following) > 3 else _sentence(tasks, generator)
    words = _hypothesis(source, tasks, generator)
    if not holds and how >= 0.5:
        words, _ = _with_strange_word(words, passage, tasks, generator)
    answer = tasks.text["entailment" if holds else "not_entailment"]
    return [*joined(passage), *tasks.text["sentence2:"], *joined(words)[:40]], answer


def _hypothesis(words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator) -> list[Ids]:
    """Take a part of a sentence, at random after its first words, and drop, keep or replace its function words."""
    length = int(generator.integers(5, 16))
    begin = int(generator.integers(max(1, len(words) - length + 1)))
    part = words[: int(generator.integers(1, 4))] if begin > 3 and generator.random() < 0.5 else []
    small = [word for word in _sentence(tasks, generator) if not tasks.sentences.is_content(word)]
    kept: list[Ids] = []
    for word in [*part, *words[begin : begin + length]]:
        roll = generator.random()
        if not tasks.sentences.is_content(word) and roll < 0.4:
            if roll < 0.2 and small:
                kept.append(small[int(generator.integers(len(small)))])
        elif roll < 0.9:
            kept.append(word)
    return kept or words[:3]


def cola(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence, or one with words dropped, swapped or replaced."""
    words = _sentence(tasks, generator, longest=24)
    if generator.random() < 0.5:
        return joined(words), tasks.text["acceptable"]
    damaged = words
    while damaged == words:
        damaged = _altered(words, tasks, generator)
    return joined(damaged), tasks.text["unacceptable"]


def _claim(words: list[Ids], generator: np.random.Generator) -> list[Ids]:
    """Take most words of a part of a sentence, in order."""
    length = max(3, int(len(words) * generator.uniform(0.3, 0.8)))
    begin = int(generator.integers(max(1, len(words) - length + 1)))
    return [word for word in words[begin : begin + length] if generator.random() > 0.15] or words[:3]


def _content_word(words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator) -> Ids:
    content = [word for word in words if tasks.sentences.is_content(word)] or words
    return tasks.sentences.bare(content[int(generator.integers(len(content)))])


def _strange_word(
    words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator, *, like: Ids | None = None
) -> Ids:
    """Draw a word of another sentence that is not among ``words``, preferably of the kind of ``like``.

    Raises:
        ValueError: None was found in 1,000 draws.
    """
    sentences = tasks.sentences
    bare = [sentences.bare(word) for word in words]
    for attempt in range(1000):
        word = _content_word(_sentence(tasks, generator), tasks, generator)
        alike = like is None or sentences.kind(word) == sentences.kind(like)
        if word not in bare and (alike or attempt >= 500):
            return word
    raise ValueError("Got the same words in all of 1,000 sentences; expected prose. Check the text.")


def _with_strange_word(
    claim: list[Ids], words: list[Ids], tasks: SelfSupervised, generator: np.random.Generator
) -> tuple[list[Ids], Ids]:
    """Replace a content word of the claim by one of its kind that is not among ``words``; return claim and word."""
    places = [i for i, word in enumerate(claim) if tasks.sentences.is_content(word)] or [0]
    place = places[int(generator.integers(len(places)))]
    word = _strange_word(words, tasks, generator, like=tasks.sentences.bare(claim[place]))
    return [*claim[:place], word, *claim[place + 1 :]], word


def order(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw two consecutive sentences, in their order or not.

    Raises:
        ValueError: No two of one document were found in 1,000 draws.
    """
    sentences = tasks.sentences
    for _ in range(1000):
        index = sentences.draw(generator)
        if sentences.documents[index] == sentences.documents[index + 1]:
            break
    else:
        raise ValueError(
            "Got no two sentences of one document in 1,000 draws; expected documents of several sentences. Check the text."
        )
    pair = [sentences[index][:48], sentences[index + 1][:48]]
    right = generator.random() < 0.5
    return joined(pair if right else pair[::-1]), tasks.text["right" if right else "wrong"]


def same(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw two passages that do not overlap, of one document or of two.

    Raises:
        ValueError: No document was long enough in 1,000 draws.
    """
    sentences, length = tasks.sentences, 48
    for index in generator.integers(1, len(sentences), size=1000):
        first, last = np.searchsorted(sentences.documents, sentences.documents[index] + np.array([0, 1]), side="left")
        one, two = sorted(int(i) for i in generator.integers(first, last, size=2))
        if sentences.ends[two - 1] - sentences.ends[one - 1] >= length and one > 0:
            break
    else:
        raise ValueError(
            f"Got no document of {2 * length} tokens in 1,000 draws; expected longer documents. Check the text."
        )
    alike = generator.random() < 0.5
    if not alike:
        two = int(generator.integers(1, len(sentences)))
        alike = bool(sentences.documents[two] == sentences.documents[index])
    passages = [sentences.tokens[sentences.ends[at - 1] :][:length] for at in (one, two)]
    left, right = ([int(token) for token in passage if token != sentences.newline] for passage in passages)
    return [*left, *tasks.text["other:"], *right], tasks.text["yes" if alike else "no"]


def sst2(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a sentence with its sentiment."""
    source, praise = tasks.sentiment.draw(generator)
    return source, tasks.text["positive" if praise else "negative"]


def trec(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw a question, and the kind of thing that it asks for."""
    source, kind = tasks.questions.draw(generator)
    return source, tasks.text[kind]


def title(tasks: SelfSupervised, generator: np.random.Generator) -> Pair:
    """Draw the beginning of a document without its first capitalized words, and those words.

    Raises:
        ValueError: No document began with such words in 1,000 draws.
    """
    sentences = tasks.sentences
    for _ in range(1000):
        index = int(generator.integers(1, len(sentences)))
        first = int(np.searchsorted(sentences.documents, sentences.documents[index], side="left"))
        words = sentences.words(sentences[first])
        subject = 0
        while subject < min(len(words), 6) and sentences.capital[words[subject][0]]:
            subject += 1
        if subject > 0 and subject + 3 < len(words):
            answer = joined(words[:subject])
            following = sentences[first + 1] if first + 1 < len(sentences) else []
            return [tasks.gap, *joined(words[subject:]), *following][:72], answer[:24]
    raise ValueError(
        "Got no document that begins with a capital in 1,000 draws; expected articles that begin with their subject. Check the "
        "text."
    )


TASKS: dict[str, tuple[Callable[[SelfSupervised, np.random.Generator], Pair], float]] = {
    "correct": (correct, 3.0),
    "compose": (compose, 2.0),
    "choose": (choose, 2.0),
    "kind": (kind, 1.0),
    "find": (find, 2.0),
    "strange": (strange, 2.0),
    "follows": (follows, 2.0),
    "order": (order, 1.0),
    "same": (same, 2.0),
    "title": (title, 1.0),
    "rte sentence1": (rte, 5.0),
    "cola sentence": (cola, 2.0),
    "sst2 sentence": (sst2, 3.0),
    "trec question": (trec, 2.0),
}
