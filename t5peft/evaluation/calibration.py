"""Perplexity, expected calibration error, and temperature scaling: how far probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SMALLEST_TEMPERATURE, _LARGEST_TEMPERATURE = 0.01, 100.0


def perplexity(negative_log_likelihoods: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """Compute the exponential of the mean loss over all target tokens.

    Args:
        negative_log_likelihoods: The summed loss of each example [nats].
        tokens: The number of target tokens of each example.

    Returns:
        ``perplexity``.

    Raises:
        ValueError: All targets are empty.
    """
    total = sum(tokens)
    if total <= 0:
        raise ValueError(
            f"Got {total} target tokens; expected at least one. Look for targets that are empty or masked."
        )
    return {"perplexity": math.exp(sum(negative_log_likelihoods) / total)}


def expected_calibration_error(probabilities: Tensor, labels: Sequence[int] | Tensor, *, bins: int = 15) -> float:
    """Average the gap between confidence and accuracy over equal bins of confidence, weighted by size (Guo et al. 2017).

    Args:
        probabilities: One row per example [N, C]; its confidence is the largest.
        labels: The correct column of each example [N].
        bins: Number of bins over (0, 1].

    Returns:
        The error, 0 to 1.

    Raises:
        ValueError: The shapes do not match, or a label is not a column.
    """
    probabilities, targets = probabilities.double().cpu(), torch.as_tensor(labels).cpu()
    _check_labels(probabilities, targets)
    confidence, best = probabilities.max(dim=-1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins).numpy() - 1
    hits = np.bincount(bin_of, weights=(best == targets).numpy(), minlength=bins)
    confidences = np.bincount(bin_of, weights=confidence.numpy(), minlength=bins)
    return float(np.abs(hits - confidences).sum() / len(targets))


def fit_temperature(log_probabilities: Tensor, labels: Sequence[int] | Tensor) -> float:
    """Find the temperature T for which softmax(log_probabilities / T) has the lowest cross-entropy on held-out examples.

    The best candidate does not change, only its probability. ``Ranking.at_temperature`` applies the temperature.

    Args:
        log_probabilities: One row per example [N, C], as ``rank`` returns them.
        labels: The correct column of each example [N].

    Returns:
        T between 0.01 and 100. An end of that range means that no temperature inside is best, e.g. where all are correct.

    Raises:
        ValueError: The shapes do not match, or a label is not a column.
    """
    scores, targets = log_probabilities.double().cpu(), torch.as_tensor(labels).cpu()
    _check_labels(scores, targets)
    low, high = 1 / _LARGEST_TEMPERATURE, 1 / _SMALLEST_TEMPERATURE
    # Cross-entropy is convex in 1 / T, so the sign of its slope shows on which side the minimum is.
    for _ in range(100):
        middle = math.sqrt(low * high)
        if _slope_in_inverse_temperature(scores, targets, middle) > 0:
            high = middle
        else:
            low = middle
    return 1 / math.sqrt(low * high)


def _slope_in_inverse_temperature(scores: Tensor, labels: Tensor, inverse_temperature: float) -> float:
    probabilities = (scores * inverse_temperature).softmax(dim=-1)
    finite = scores.masked_fill(probabilities == 0, 0.0)  # columns of -inf are candidates that an example does not have
    return float(((probabilities * finite).sum(dim=-1) - scores.gather(1, labels[:, None]).squeeze(1)).mean())


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            f"Got scores of shape {list(scores.shape)} and labels of shape {list(labels.shape)}; expected [N, C] and [N] with at "
            "least one example."
        )
    outside = (labels < 0) | (labels >= scores.shape[1])
    if outside.any():
        raise ValueError(f"Got the labels {labels[outside][:5].tolist()}; expected columns 0 to {scores.shape[1] - 1}.")
