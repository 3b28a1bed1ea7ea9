"""Means, deviations and bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t5peft.benchmark.statistics import mean_std, paired_bootstrap

# --- statistics


def test_a_spread_is_mean_and_sample_deviation() -> None:
    found = mean_std([0.8, 0.9, 1.0])
    assert (found.mean, found.n) == (pytest.approx(0.9), 3)
    assert found.deviation == pytest.approx(np.std([0.8, 0.9, 1.0], ddof=1))
    assert found.text(1, 100) == "90.0 ± 10.0 (3)"
    assert mean_std([0.5]).text(1, 100) == "50.0 (1)"
    with pytest.raises(ValueError, match="at least one value, all finite"):
        mean_std([float("nan")])


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says() -> None:
    """400 draws of 120 examples with a true difference of 5 points: 95 % of the intervals hold it, within chance."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        reference = (generator.random(120) < 0.8).astype(float)
        ours = np.where(generator.random(120) < 0.1, (generator.random(120) < 0.3).astype(float), reference)
        found = paired_bootstrap((ours[None], reference[None]), resamples=400)
        covered += found.low <= 0.1 * (0.3 - 0.8) <= found.high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_holds_the_chance_of_training() -> None:
    """A method whose seeds deviate by 3 points, against itself: three seeds each, 200 examples."""
    generator = np.random.default_rng(1)
    right = generator.beta(4, 1.5, size=200)

    def seeds() -> np.ndarray:
        return generator.random((3, 200)) < right + generator.normal(0, 0.03, size=(3, 1))

    found = [paired_bootstrap((seeds().astype(float), seeds().astype(float)), resamples=400) for _ in range(300)]
    assert sum(difference.clear for difference in found) / 300 < 0.08


def test_equal_methods_do_not_differ_and_the_interval_repeats() -> None:
    scores = np.array([[0.0, 1.0, 1.0, 0.0]])
    found = paired_bootstrap((scores, scores))
    assert (found.mean, found.low, found.high, found.clear) == (0, 0, 0, False)
    other = paired_bootstrap((scores, 1 - scores))
    assert other == paired_bootstrap((scores, 1 - scores))
    with pytest.raises(ValueError, match="scores of the same examples"):
        paired_bootstrap((scores, scores[:, :2]))


def test_the_interval_of_a_mean_over_tasks_covers_it_as_often_as_it_says() -> None:
    """Three tasks with true differences of 0, 5 and 10 points and two seeds; their examples are drawn apart."""
    generator = np.random.default_rng(1)

    def task(gain: float) -> tuple[np.ndarray, np.ndarray]:
        better, worse = ((generator.random((2, 80)) < chance).astype(float) for chance in (0.7 + gain, 0.7))
        return better, worse

    found = [paired_bootstrap(task(0.0), task(0.05), task(0.1), resamples=400) for _ in range(400)]
    assert 0.91 <= sum(difference.low <= 0.05 <= difference.high for difference in found) / 400 <= 0.99
    widths = [difference.high - difference.low for difference in found]
    alone = [paired_bootstrap(task(0.05), resamples=400) for _ in range(400)]
    ratio = np.mean([difference.high - difference.low for difference in alone]) / np.mean(widths)
    assert ratio == pytest.approx(math.sqrt(3), rel=0.1)
    with pytest.raises(ValueError, match="Got no task; expected the scores of at least one"):
        paired_bootstrap()
