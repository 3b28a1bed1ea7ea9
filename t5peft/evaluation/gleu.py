"""Two scores that both go by the name GLEU.

``gleu`` is GLEU for grammatical error correction (Napoles et al. 2015, "Ground Truth for Grammatical Error Correction
Metrics", in the form without tuning of 2016, arXiv:1605.02592). It needs the uncorrected sources, and it is what
JFLEG's tables print (times 100). Over the sentences of a corpus, for n = 1..4,

    p_n  = sum max(0, |H & R| - |H & (S without R)|) / sum |H|
    GLEU = min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)

with the n-grams of hypothesis H, reference R and source S as multisets, ``S without R`` those n-grams of the source that
do not occur in the reference at all, and c and r the numbers of words in hypotheses and references. With several
references the score is the average over 500 draws of one reference per sentence, the same draws every time. The paper's
formula counts how often an n-gram occurs in S beyond R; the authors' script, which printed every published figure,
takes whole n-grams, and so do we.

``google_bleu`` is the GLEU of Google's translation system (Wu et al. 2016, arXiv:1609.08144), without sources:
shared n-grams over the larger of the two n-gram counts, summed over the corpus with the best reference of each
sentence. nltk calls it ``corpus_gleu``.

Both are fractions over words split at spaces. Tokenize first where punctuation is attached to words.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from t5peft.evaluation.classification import References, accepted_answers

_ORDERS = (1, 2, 3, 4)
_DRAWS = 500


def gleu(predictions: Sequence[str], references: References, sources: Sequence[str]) -> dict[str, float]:
    """Compute GLEU for correction.

    Args:
        predictions: One text per example.
        references: One corrected text or several per example.
        sources: The uncorrected texts.

    Returns:
        ``gleu``, 0 to 1.
    """
    statistics = [
        [_gleu_statistics(prediction.split(), answer.split(), source.split()) for answer in answers]
        for prediction, answers, source in zip(predictions, accepted_answers(references), sources, strict=True)
    ]
    if all(len(rows) == 1 for rows in statistics):
        return {"gleu": _gleu_of(np.sum([rows[0] for rows in statistics], axis=0))}
    counts = np.array([len(rows) for rows in statistics])
    first_rows, every_row = np.cumsum(counts) - counts, np.concatenate(statistics)
    scores = []
    for draw in range(_DRAWS):
        generator = random.Random(101 * draw)  # the authors' draws, so that their figures are met
        drawn = np.array([int(generator.random() * count) for count in counts])
        scores.append(_gleu_of(every_row[first_rows + drawn].sum(axis=0)))
    return {"gleu": float(np.mean(scores))}


def _gleu_statistics(hypothesis: list[str], reference: list[str], source: list[str]) -> list[int]:
    """Return words in the hypothesis and in the reference, then for each n: hits less penalties, n-grams of the hypothesis."""
    numbers = [len(hypothesis), len(reference)]
    for n in _ORDERS:
        h, r, s = _ngrams(hypothesis, n), _ngrams(reference, n), _ngrams(source, n)
        left_as_it_was = Counter({ngram: count for ngram, count in s.items() if ngram not in r})
        numbers += [max(0, (h & r).total() - (h & left_as_it_was).total()), h.total()]
    return numbers


def _gleu_of(totals: np.ndarray) -> float:
    """Return the score of summed statistics; 0 where any of them is 0."""
    if not np.all(totals > 0):
        return 0.0
    hypothesis_words, reference_words = totals[:2]
    precisions = totals[2::2] / totals[3::2]
    brevity = min(0.0, 1.0 - reference_words / hypothesis_words)
    return float(np.exp(brevity + np.log(precisions).mean()))


def sentence_gleu(prediction: str, references: Sequence[str], source: str) -> float:
    """Compute GLEU of one sentence, averaged over references.

    It takes the orders of n-grams that the prediction is long enough for, with sacrebleu's exponential smoothing where none of an
    order counts. GLEU itself is 0 for any text of fewer than four words.

    Args:
        prediction: The text.
        references: Corrected texts.
        source: The uncorrected text.

    Returns:
        The score, 0 to 1.
    """
    scores = []
    for reference in references:
        totals = np.array(_gleu_statistics(prediction.split(), reference.split(), source.split()), dtype=float)
        hits, found = totals[2::2][totals[3::2] > 0], totals[3::2][totals[3::2] > 0]
        if not hits.any():
            scores.append(0.0)
            continue
        missed = hits == 0
        hits[missed] = 0.5 ** np.arange(1, missed.sum() + 1)
        brevity = min(0.0, 1.0 - totals[1] / totals[0])
        scores.append(float(np.exp(brevity + np.log(hits / found).mean())))
    return float(np.mean(scores))


def google_bleu(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute Google's GLEU.

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``google_bleu``, 0 to 1.
    """
    shared_total = larger_total = 0
    for prediction, answers in zip(predictions, accepted_answers(references), strict=True):
        h = _all_ngrams(prediction.split())
        pairs = []
        for answer in answers:
            r = _all_ngrams(answer.split())
            pairs.append(((h & r).total(), max(h.total(), r.total())))
        shared, larger = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1))
        shared_total += shared
        larger_total += larger
    return {"google_bleu": shared_total / larger_total if larger_total else 0.0}


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) + 1 - n))


def _all_ngrams(words: list[str]) -> Counter[tuple[str, ...]]:
    return sum((_ngrams(words, n) for n in _ORDERS), Counter())
