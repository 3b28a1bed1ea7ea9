"""Scores by overlap with references, through their own libraries: ROUGE (rouge-score), BLEU and chrF (sacrebleu)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t5peft.evaluation.classification import References, accepted_answers

_ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Average the F-measures of ROUGE-1, -2, -L and -Lsum, with Porter stemming (Lin 2004).

    With several references the best one counts, for each type by itself. ROUGE-Lsum needs one sentence per line: a text without
    line breaks is broken after ``.``, ``!`` and ``?`` that a space follows. (The hub's ``rouge`` for ``evaluate`` neither stems
    nor breaks, so its Lsum equals its L on such texts.)

    rouge-score has only words of a-z and 0-9. Where a text has another letter, its words are runs of letters, marks and digits of
    any script, of which those of a-z are stemmed. For a script without spaces take chrF.

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL`` and ``rougeLsum`` as fractions.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(list(_ROUGE_TYPES), tokenizer=_Words(DefaultTokenizer(use_stemmer=True)))
    totals = dict.fromkeys(_ROUGE_TYPES, 0.0)
    for prediction, answers in zip(predictions, accepted_answers(references), strict=True):
        best = scorer.score_multi([one_sentence_a_line(answer) for answer in answers], one_sentence_a_line(prediction))
        for kind in _ROUGE_TYPES:
            totals[kind] += best[kind].fmeasure
    return {kind: float(total / len(predictions)) for kind, total in totals.items()}


@dataclass(frozen=True)
class _Words:
    """A tokenizer for rouge-score: its own, ``standard``, wherever that loses no letter."""

    standard: Any

    def tokenize(self, text: str) -> list[str]:
        if not any(c.isalpha() and not c.isascii() for c in text):
            return self.standard.tokenize(text)
        in_words = (c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in text.lower())
        words = "".join(in_words).split()
        return [piece for word in words for piece in (self.standard.tokenize(word) if word.isascii() else [word])]


def one_sentence_a_line(text: str) -> str:
    """Break a text after each sentence.

    Args:
        text: The text; one with line breaks is returned as it is.

    Returns:
        The text, one sentence per line.
    """
    return text if "\n" in text.strip() else re.sub(r"(?<=[.!?])\s+", "\n", text.strip())


def bleu(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute corpus BLEU as sacrebleu does by default (13a tokens, exponential smoothing; Post 2018).

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``bleu``, 0 to 100.
    """
    from sacrebleu.metrics import BLEU

    return {"bleu": float(BLEU().corpus_score(list(predictions), reference_streams(references)).score)}


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """Compute BLEU of one sentence as sacrebleu does, of the orders of n-grams that the sentence is long enough for.

    Args:
        prediction: The text.
        references: Accepted texts.

    Returns:
        The score, 0 to 100.
    """
    from sacrebleu.metrics import BLEU

    return float(BLEU(effective_order=True).sentence_score(prediction, list(references)).score)


def chrf(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute corpus chrF2 as sacrebleu does by default (character 6-grams; Popovic 2015).

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``chrf``, 0 to 100.
    """
    from sacrebleu.metrics import CHRF

    return {"chrf": float(CHRF().corpus_score(list(predictions), reference_streams(references)).score)}


def reference_streams(references: References) -> list[list[str | None]]:
    """Arrange references as sacrebleu takes them.

    Args:
        references: One text or several per example.

    Returns:
        One list per reference number, with None where an example has fewer.
    """
    answers = accepted_answers(references)
    most = max(len(accepted) for accepted in answers)
    return [[accepted[i] if i < len(accepted) else None for accepted in answers] for i in range(most)]
