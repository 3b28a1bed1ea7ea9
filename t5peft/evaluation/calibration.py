"""How far probabilities can be trusted: perplexity, expected calibration error, and temperature scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SMALLEST_TEMPERATURE, _LARGEST_TEMPERATURE = 0.01, 100.0


def perplexity(negative_log_likelihoods: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """exp of the mean loss over all target tokens, from each example's summed loss [nats] and its number of tokens."""
    total = sum(tokens)
    if total <= 0:
        raise ValueError(f"perplexity needs target tokens, {total} came; are all targets empty or masked?")
    return {"perplexity": math.exp(sum(negative_log_likelihoods) / total)}


def expected_calibration_error(probabilities: Tensor, labels: Sequence[int] | Tensor, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their size (Guo et al. 2017).

    Args:
        probabilities: [N, C]; the confidence of an example is its largest.
        labels: [N], the column that is right.
        bins: number of bins over (0, 1].
    """
    probabilities, right = probabilities.double().cpu(), torch.as_tensor(labels).cpu()
    _check_labels(probabilities, right)
    confidence, best = probabilities.max(dim=-1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins).numpy() - 1
    hits = np.bincount(bin_of, weights=(best == right).numpy(), minlength=bins)
    confidences = np.bincount(bin_of, weights=confidence.numpy(), minlength=bins)
    return float(np.abs(hits - confidences).sum() / len(right))


def fit_temperature(log_probabilities: Tensor, labels: Sequence[int] | Tensor) -> float:
    """The temperature T for which softmax(log_probabilities / T) has the least cross-entropy on held-out examples.

    The choice of the best candidate does not change, only how sure it looks; `Ranking.at_temperature` applies it.

    Args:
        log_probabilities: [N, C], as `rank` gives them.
        labels: [N], the column that is right.

    Returns:
        T between 0.01 and 100; an end of that range means that no temperature inside is best, e.g. where all are right.
    """
    scores, right = log_probabilities.double().cpu(), torch.as_tensor(labels).cpu()
    _check_labels(scores, right)
    low, high = 1 / _LARGEST_TEMPERATURE, 1 / _SMALLEST_TEMPERATURE
    # Cross-entropy is convex in 1 / T, so the sign of its slope says on which side the minimum lies.
    for _ in range(100):
        middle = math.sqrt(low * high)
        if _slope_in_inverse_temperature(scores, right, middle) > 0:
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
            f"scores of shape {list(scores.shape)} came with labels of shape {list(labels.shape)}; expected [N, C] and "
            "[N] with at least one example"
        )
    outside = (labels < 0) | (labels >= scores.shape[1])
    if outside.any():
        raise ValueError(f"labels must be columns 0 to {scores.shape[1] - 1}; {labels[outside][:5].tolist()} came")
