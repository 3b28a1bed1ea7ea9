"""Scores of label predictions: accuracy, F1, Matthews correlation, the report per class and its picture.

Written with numpy, and equal to scikit-learn's functions of the same names (tests/evaluation/test_metrics.py). Labels are
compared as strings. The classes of a score are those of the references and of the predictions. An answer outside the target words
is therefore a class of its own without references: it lowers recall and macro F1 and stays visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from t5peft.data.on_disk import ValueFile

Answer = str | int | None
Labels = Sequence[Answer] | NDArray[Any]
References = Labels | Sequence[Sequence[Answer] | NDArray[Any]]


def accepted_answers(references: References) -> Sequence[Sequence[str]]:
    """Return one list of accepted answers per example.

    Args:
        references: One answer or several per example.

    Returns:
        The answers as text.
    """
    if are_answers(references):
        return references
    return [
        reference if are_texts(reference) else [str(answer) for answer in answers_of(reference)]
        for reference in references
    ]


def are_texts(values: Any) -> TypeGuard[Sequence[str]]:
    """Return whether the values are texts in a list or a file, which need no copy: ten million of them are 80 MB and more."""
    return type(values) in (list, ValueFile) and all(type(value) is str for value in values)


def are_answers(references: Any) -> TypeGuard[Sequence[list[str]]]:
    """Return whether references are lists of texts in a list or a file, which need no copy either."""
    return type(references) in (list, ValueFile) and all(map(are_texts, references))


def answers_of(reference: Any) -> list[Any]:
    """Return the answers of one example in plain Python types.

    Args:
        reference: One answer or several; None, a missing one, is left out.

    Returns:
        The answers.
    """
    if getattr(reference, "ndim", None) == 0:
        return [reference.item()]  # an element of an array or a tensor
    several = isinstance(reference, Iterable) and not isinstance(reference, str | Mapping)
    answers = list(reference) if several else [reference]
    return [answer.item() if getattr(answer, "ndim", None) == 0 else answer for answer in answers if answer is not None]


def single_labels(references: References) -> Iterable[str]:
    """Return the one label of each example.

    Args:
        references: One label per example.

    Returns:
        The labels as text, to be read once.

    Raises:
        ValueError: An example has several labels or none.
    """
    if are_texts(references):
        return references
    answers = accepted_answers(references)
    wrong = [i for i, labels in enumerate(answers) if len(labels) != 1]
    if wrong:
        raise ValueError(
            f"Got {len(wrong)} of {len(answers)} examples without exactly one label, the first of them example {wrong[0]}: "
            f"{answers[wrong[0]]!r}; expected one label per example. Take accuracy, which accepts several."
        )
    return (labels[0] for labels in answers)


def accuracy(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute the fraction of predictions that equal one of their references.

    Args:
        predictions: One text per example.
        references: One text or several per example.

    Returns:
        ``accuracy``.
    """
    pairs = zip(predictions, accepted_answers(references), strict=True)
    right = np.fromiter((prediction in answers for prediction, answers in pairs), dtype=bool)
    return {"accuracy": float(right.mean())}


def confusion_matrix(predictions: Labels, references: References, labels: Labels = ()) -> tuple[list[str], np.ndarray]:
    """Count predictions by reference label and predicted label.

    Args:
        predictions: One label per example.
        references: One label per example.
        labels: Labels that come first, in this order; others follow, sorted.

    Returns:
        The labels, and counts [C, C] with a row per reference label and a column per predicted one.
    """
    pairs = Counter(zip(single_labels(references), single_labels(predictions), strict=True))
    first = [str(label) for label in labels]
    names = [*first, *sorted(set(chain.from_iterable(pairs)) - set(first))]
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (truth, prediction), count in pairs.items():
        counts[index[truth], index[prediction]] = count
    return names, counts


@dataclass(frozen=True)
class ClassificationReport:
    """Precision, recall and F1 per class; ``str()`` makes the table.

    Attributes:
        labels: The C classes.
        precision: Fractions [C].
        recall: Fractions [C].
        f1: Fractions [C].
        support: Number of references [C].
        accuracy: Fraction of correct predictions.
    """

    labels: list[str]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    accuracy: float

    def macro(self) -> tuple[float, float, float]:
        """Return precision, recall and F1, each averaged over classes."""
        return float(self.precision.mean()), float(self.recall.mean()), float(self.f1.mean())

    def weighted(self) -> tuple[float, float, float]:
        """Return precision, recall and F1, each averaged over classes with their numbers of references as weights."""
        weights = self.support / self.support.sum()
        return float(self.precision @ weights), float(self.recall @ weights), float(self.f1 @ weights)

    def __str__(self) -> str:
        total = int(self.support.sum())
        rows: list[tuple[str, ...]] = [
            (label, f"{self.precision[i]:.4f}", f"{self.recall[i]:.4f}", f"{self.f1[i]:.4f}", str(int(self.support[i])))
            for i, label in enumerate(self.labels)
        ]
        rows.append(("accuracy", "", "", f"{self.accuracy:.4f}", str(total)))
        for name, values in (("macro mean", self.macro()), ("weighted mean", self.weighted())):
            rows.append((name, *(f"{value:.4f}" for value in values), str(total)))
        width = max(len(row[0]) for row in rows)
        header = f"{'':{width}}  {'precision':>9}  {'recall':>9}  {'F1':>9}  {'count':>9}"
        return "\n".join(
            [header, *(f"{name:{width}}" + "".join(f"  {cell:>9}" for cell in cells) for name, *cells in rows)]
        )


def classification_report(predictions: Labels, references: References, labels: Labels = ()) -> ClassificationReport:
    """Compute precision, recall and F1 per class.

    Args:
        predictions: One label per example.
        references: One label per example.
        labels: Labels that come first, in this order.

    Returns:
        The report. A class that is never predicted has precision 0, one without references recall 0.
    """
    names, counts = confusion_matrix(predictions, references, labels)
    hits, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return ClassificationReport(
        labels=names,
        precision=hits / np.maximum(predicted, 1),
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + predicted, 1),
        support=support,
        accuracy=float(hits.sum() / counts.sum()),
    )


def f1(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute F1 as macro, micro and weighted average over classes, and per class.

    Args:
        predictions: One label per example.
        references: One label per example.

    Returns:
        ``f1_macro``, ``f1_micro``, ``f1_weighted``, and ``f1/LABEL`` for each class.
    """
    report = classification_report(predictions, references)
    per_class = {f"f1/{label}": float(value) for label, value in zip(report.labels, report.f1, strict=True)}
    # With one label per example every false positive is another class's false negative: micro F1 is accuracy.
    return {
        "f1_macro": report.macro()[2],
        "f1_micro": report.accuracy,
        "f1_weighted": report.weighted()[2],
        **per_class,
    }


def f1_binary(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute the F1 of label 1 where labels are 0 and 1, as GLUE's F1 and scikit-learn's ``average="binary"``.

    Args:
        predictions: One label per example.
        references: One label per example, 0 or 1.

    Returns:
        ``f1_binary``.

    Raises:
        ValueError: References have other labels.
    """
    if other := set(single_labels(references)) - {"0", "1"}:
        raise ValueError(
            f"Got the labels {sorted(other)[:5]} for f1_binary; expected 0 and 1. Take f1, which has every label's own "
            "beside their average."
        )
    return {"f1_binary": f1(predictions, references).get("f1/1", 0.0)}


def matthews(predictions: Sequence[str], references: References) -> dict[str, float]:
    """Compute the Matthews correlation for any number of classes (Gorodkin 2004).

    Args:
        predictions: One label per example.
        references: One label per example.

    Returns:
        ``matthews``, -1 to 1; 0 where predictions or references are constant.
    """
    _, counts = confusion_matrix(predictions, references)
    total, truths, predicted = float(counts.sum()), counts.sum(axis=1).astype(float), counts.sum(axis=0).astype(float)
    covariance = np.trace(counts) * total - truths @ predicted
    spread = (total**2 - truths @ truths) * (total**2 - predicted @ predicted)
    return {"matthews": float(covariance / np.sqrt(spread)) if spread > 0 else 0.0}


def confusion_picture(predictions: Labels, references: References, path: str | Path, labels: Labels = ()) -> Path:
    """Draw the confusion matrix: counts, colored by fraction of the reference class.

    Args:
        predictions: One label per example.
        references: One label per example.
        path: The file (.png, .svg or .pdf).
        labels: Labels that come first, in this order.

    Returns:
        The path.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError('Got no matplotlib, which a picture needs. Run `pip install "t5peft[plots]"`.') from error
    names, counts = confusion_matrix(predictions, references, labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side_inches = 2.0 + 0.6 * len(names)
    figure = Figure(figsize=(side_inches + 1, side_inches), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("reference")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="fraction of the reference class")
    figure.savefig(path, dpi=150)
    return Path(path)
