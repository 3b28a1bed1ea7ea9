"""The table of metrics and the one function that computes them.

Each metric is also an ``evaluate`` module in ``modules/``: a file that ``evaluate.load`` takes by its path, offline too.

    import evaluate
    from t5peft.evaluation import METRICS

    rouge = evaluate.load(str(METRICS["rouge"].module))

``compute`` calls the function itself, without evaluate's import and its files in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from t5peft.data.sources import items_of
from t5peft.evaluation.calibration import perplexity
from t5peft.evaluation.classification import (
    References,
    accepted_answers,
    accuracy,
    answers_of,
    are_answers,
    are_texts,
    f1,
    f1_binary,
    matthews,
)
from t5peft.evaluation.gleu import gleu, google_bleu, sentence_gleu
from t5peft.evaluation.overlap import bleu, chrf, rouge, sentence_bleu
from t5peft.evaluation.squad import exact_match, token_f1


@dataclass(frozen=True)
class Metric:
    """One entry of ``METRICS``.

    Attributes:
        name: The key in ``METRICS``.
        function: Maps predictions and references, with ``needs_sources`` also sources, to scores.
        lead: The key of the score that tables show.
        highest: The lead score of a perfect model.
        needs_sources: Whether the texts that the predictions were made from are needed.
        greater_is_better: False only for perplexity.
        sentence: The lead score of one example, where the function's own, made for a corpus, is 0 for most short ones.
    """

    name: str
    function: Callable[..., dict[str, float]]
    lead: str
    highest: float = 1.0
    needs_sources: bool = False
    greater_is_better: bool = True
    sentence: Callable[..., float] | None = None

    @property
    def module(self) -> Path:
        """Return the file for ``evaluate.load``."""
        return Path(__file__).parent / "modules" / f"{self.name}.py"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, lead="accuracy"),
        Metric("f1", f1, lead="f1_macro"),
        Metric("f1_binary", f1_binary, lead="f1_binary"),
        Metric("matthews", matthews, lead="matthews"),
        Metric("exact_match", exact_match, lead="exact_match"),
        Metric("token_f1", token_f1, lead="token_f1"),
        Metric("rouge", rouge, lead="rougeL"),
        Metric("bleu", bleu, lead="bleu", highest=100.0, sentence=sentence_bleu),
        Metric("chrf", chrf, lead="chrf", highest=100.0),
        Metric("gleu", gleu, lead="gleu", needs_sources=True, sentence=sentence_gleu),
        Metric("google_bleu", google_bleu, lead="google_bleu"),
        Metric("perplexity", perplexity, lead="perplexity", greater_is_better=False),
    )
}


def compute(
    name: str,
    predictions: Sequence[Any] | NDArray[Any],
    references: References,
    *,
    sources: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compute the scores of one metric.

    Args:
        name: A key of ``METRICS``.
        predictions: One text per example; a whole number is the label of its digits. For perplexity: summed negative
            log-likelihoods.
        references: One text per example, or a list or array of accepted texts per example, likewise; None among them is left
            out. For perplexity: numbers of target tokens.
        sources: The texts that the predictions were made from; only gleu needs them.

    Returns:
        Fractions, but BLEU and chrF from 0 to 100, Matthews from -1 to 1, and perplexity from 1.

    Raises:
        ValueError: The name is unknown, one text stands for many, examples are missing, their numbers differ, an example has
            no reference, an answer is neither text nor a whole number, or gleu gets no sources.
    """
    if name not in METRICS:
        raise ValueError(f"Got the metric {name!r}; expected one of {', '.join(METRICS)}.")
    metric = METRICS[name]
    if not are_texts(predictions):
        predictions = items_of(predictions, "predictions")
    if not are_answers(references):
        references = cast(References, items_of(references, "references"))
    problems = _problems(metric, predictions, references, sources)
    if problems:
        raise ValueError(
            f"Got inputs that the metric {name!r} cannot take: {'; '.join(problems)}; expected inputs without these problems."
        )
    if name != "perplexity":
        if not are_texts(predictions):
            predictions = [str(answers_of([prediction])[0]) for prediction in predictions]
        references = accepted_answers(references)
    if metric.needs_sources:
        return metric.function(predictions, references, sources)
    return metric.function(predictions, references)


def _problems(
    metric: Metric,
    predictions: Sequence[Any] | NDArray[Any],
    references: References,
    sources: Sequence[str] | None,
) -> list[str]:
    problems = []
    if len(predictions) == 0:
        problems.append("no predictions, expected at least one")
    if len(predictions) != len(references):
        problems.append(f"{len(predictions)} predictions and {len(references)} references, expected equal numbers")
    without = [i for i, reference in enumerate(references) if not answers_of(reference)]
    if without:
        problems.append(
            f"{len(without)} examples without a reference, the first of them example {without[0]}, expected at least one each"
        )
    if metric.name == "perplexity":
        wrong = next(
            (
                one
                for one in chain(predictions, chain.from_iterable(map(answers_of, references)))
                if not isinstance(one, Real)
            ),
            None,
        )
        if wrong is not None:
            problems.append(f"{wrong!r}, expected numbers")
    else:
        problems += [
            f"{side} such as {found[0]!r}, the first of them example {found[1]}, expected texts or whole numbers"
            for side, found in (
                ("predictions", _other(answers_of([prediction]) or [None] for prediction in predictions)),
                ("references", _other(map(answers_of, references))),
            )
            if found
        ]
    if metric.needs_sources and sources is None:
        problems.append("no sources, expected the uncorrected texts as sources=")
    elif metric.needs_sources and sources is not None and len(sources) != len(predictions):
        problems.append(f"{len(predictions)} predictions and {len(sources)} sources, expected equal numbers")
    return problems


def _other(answers: Iterable[list[Any]]) -> tuple[Any, int] | None:
    """Return the first answer that is neither text nor a whole number, with its example."""
    wrong = (
        (answer, i) for i, several in enumerate(answers) for answer in several if not isinstance(answer, str | Integral)
    )
    return next(wrong, None)
