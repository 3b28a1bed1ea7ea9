"""Scores of short answers: exact match and token F1 after SQuAD's normalization (Rajpurkar et al. 2016).

Where punctuation, case or articles carry the answer, take accuracy, which compares the texts as they are.

Normalization: lower case, without ASCII punctuation and English articles, single spaces. With several accepted answers the best
one counts. Where prediction or answer is empty after it, token F1 is 1 if both are empty and otherwise 0 (as in SQuAD 2.0).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from t5peft.evaluation.classification import References, accepted_answers

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Normalize a text as SQuAD's scores do.

    Args:
        text: The text.

    Returns:
        The normalized text.
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute the fraction of predictions that equal an accepted answer after normalization.

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``exact_match``.
    """
    return {"exact_match": _mean_of_best(lambda a, b: float(a == b), predictions, references)}


def token_f1(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Average the F1 of words shared with the best accepted answer.

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``token_f1``.
    """
    return {"token_f1": _mean_of_best(_shared_words_f1, predictions, references)}


def _shared_words_f1(prediction: str, answer: str) -> float:
    predicted, accepted = prediction.split(), answer.split()
    if not predicted or not accepted:
        return float(predicted == accepted)
    shared = sum((Counter(predicted) & Counter(accepted)).values())
    return 2 * shared / (len(predicted) + len(accepted))


def _mean_of_best(score: Callable[[str, str], float], predictions: Sequence[str], references: References) -> float:
    best = (
        max(score(normalize_answer(prediction), normalize_answer(answer)) for answer in answers)
        for prediction, answers in zip(predictions, accepted_answers(references), strict=True)
    )
    return sum(best) / len(predictions)
