"""Token ids of words that have a label each: the residues of a protein, the words of a sentence.

The first token of a word has its label, and all others have none (-100). A protein is a list of its residues, ``list("MKV")``;
the tokenizer of ProtT5 has one token a residue where there are spaces between them, as there are between words.

Letters: S source tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.data.sources import items_of, read_texts
from t5peft.nn.loss import IGNORED_LABEL


def tokenize_words(
    sentences: Iterable[Iterable[str]],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Return features for a model with a token classification head.

    Args:
        sentences: The words of each sentence.
        tokenizer: The tokenizer of the model.
        labels: A label ID for each word, or -100 to ignore it; None for data without labels.

    Returns:
        ``input_ids`` [S], ``first``, the position of the first token of each word, and ``labels`` [S] if labels are given.

    Raises:
        ValueError: A sentence has no words, an empty word, or different numbers of labels and words.
    """
    sentences = _read(sentences)
    _check(sentences, labels)
    features = []
    for index, words in enumerate(sentences):
        ids, first = _ids_of(words, tokenizer)
        feature: dict[str, Any] = {"input_ids": ids, "first": first}
        if labels is not None:
            feature["labels"] = [IGNORED_LABEL] * len(ids)
            for place, label in zip(first, labels[index], strict=True):
                feature["labels"][place] = int(label)
        features.append(feature)
    return features


def _read(values: object) -> list[list[str]]:
    """Return sentences as lists of words."""
    sentences = []
    for number, item in enumerate(items_of(values, "sentences")):
        if isinstance(item, str):
            raise ValueError(
                f"Got the text {item[:60]!r} as sentence {number}; expected its words. Use item.split() for words, "
                "or list(item) for single letters."
            )
        words = read_texts(item, f"sentence {number}")
        if not words or not all(word.strip() for word in words):
            raise ValueError(f"Got {words[:5]} as sentence {number}; expected non-empty words. Remove it.")
        sentences.append(words)
    return sentences


def _check(sentences: Sequence[Sequence[str]], labels: Sequence[Sequence[int]] | None) -> None:
    if labels is None:
        return
    problems = []
    if len(labels) != len(sentences):
        problems.append(f"labels for {len(labels)} of {len(sentences)} sentences")
    counts = [(len(words), len(own)) for words, own in zip(sentences, labels, strict=False)]
    if unequal := [i for i, (words, own) in enumerate(counts) if words != own]:
        problems.append(f"sentences {unequal[:5]} whose number of labels differs from the number of words")
    if problems:
        raise ValueError(f"Got {', and '.join(problems)}; expected a label for each word.")


def _ids_of(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the token ids of words, with what the tokenizer adds to a text, and the place of each word's first token."""
    space, before, after = _added(tokenizer)
    ids, first = list(before), []
    for i, word in enumerate(words):
        piece = tokenizer((" " if i else "") + word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id]
        # Tokenizers of bytes write the space as a token of its own.
        first.append(len(ids) + (len(piece) > 1 and piece[0] in space))
        ids += piece
    return [*ids, *after], first


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Return the token ids of a space, and those that the tokenizer adds before and after a text."""
    space, bare = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" ", "a"))
    ids = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
    return space, ids[:start], ids[start + len(bare) :]
