"""Span corruption, T5's pretraining objective (Raffel et al. 2020, 3.1.4), for a batch of rows at once.

A row of n tokens gets round(0.15 n) noise tokens in round(noise / 3) spans. Their places are random, but a row never begins
with noise. In the source, each span becomes a sentinel. In the target, each kept stretch does:

    thank you for inviting me to your party  ->  source  thank you <extra_id_0> me to your <extra_id_1> </s>
                                                 target  <extra_id_0> for inviting <extra_id_1> party </s>

Every row has the same number of noise tokens and spans. So all sources have one length, all targets have another, and nothing
is padded. The draws follow the published ``random_spans_noise_mask``; no sentinel follows the last
span, as in the published code (the paper's figure shows one).

Letters: B rows, n tokens of a row, S source tokens, T target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Corruption:
    """The lengths of a corrupted row of ``raw_tokens`` tokens. Source and target both count their ``</s>``."""

    raw_tokens: int
    noise_tokens: int
    spans: int

    @property
    def source_tokens(self) -> int:
        """Number of source tokens S: the kept tokens, the sentinels and ``</s>``."""
        return self.raw_tokens - self.noise_tokens + self.spans + 1

    @property
    def target_tokens(self) -> int:
        """Number of target tokens T: the noise tokens, the sentinels and ``</s>``."""
        return self.noise_tokens + self.spans + 1


def corruption_of(raw_tokens: int, *, noise_density: float = 0.15, mean_span: float = 3.0) -> Corruption:
    """Return the counts for a row of ``raw_tokens``, rounded as published.

    Raises:
        ValueError: The row has fewer than 2 tokens, the density is outside (0, 1), or the mean span is below 1.
    """
    if raw_tokens < 2 or not 0 < noise_density < 1 or mean_span < 1:
        raise ValueError(
            f"Got raw_tokens={raw_tokens}, noise_density={noise_density} and mean_span={mean_span}; expected at least 2 tokens, "
            "a density between 0 and 1 and a mean span of at least 1."
        )
    noise = min(max(round(raw_tokens * noise_density), 1), raw_tokens - 1)
    spans = min(max(round(noise / mean_span), 1), noise, raw_tokens - noise)
    return Corruption(raw_tokens, noise, spans)


def corruption_for_source(source_tokens: int, *, noise_density: float = 0.15, mean_span: float = 3.0) -> Corruption:
    """Return the counts of the longest row whose corrupted source has at most ``source_tokens`` tokens.

    With the usual settings the source has exactly that many.

    Raises:
        ValueError: No row is short enough.
    """
    if source_tokens < 3:
        raise ValueError(f"Got source_tokens={source_tokens}; expected at least 3: a token, a sentinel and </s>.")
    found = corruption_of(2, noise_density=noise_density, mean_span=mean_span)
    while True:
        longer = corruption_of(found.raw_tokens + 1, noise_density=noise_density, mean_span=mean_span)
        if longer.source_tokens > source_tokens:
            return found
        found = longer


def random_lengths(total: int, parts: int, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Cut ``total`` into ``parts`` positive lengths, ``rows`` times; every cut is equally likely.

    Returns:
        Lengths [rows, parts].
    """
    order = np.argsort(generator.random((rows, total - 1)), axis=1)[:, : parts - 1]
    ends = np.sort(order + 1, axis=1)
    border = np.zeros((rows, 1), dtype=ends.dtype)
    return np.diff(np.concatenate([border, ends, border + total], axis=1), axis=1)


def noise_mask(plan: Corruption, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a mask [B, n] that is True for noise tokens. Rows begin with kept tokens and end with noise."""
    kept = random_lengths(plan.raw_tokens - plan.noise_tokens, plan.spans, rows, generator)
    noise = random_lengths(plan.noise_tokens, plan.spans, rows, generator)
    lengths = np.stack([kept, noise], axis=2).reshape(rows, -1)
    flags = np.tile(np.array([False, True]), rows * plan.spans)
    return np.repeat(flags, lengths.reshape(-1)).reshape(rows, plan.raw_tokens)


def collapse(tokens: np.ndarray, masked: np.ndarray, sentinels: np.ndarray, eos: int) -> np.ndarray:
    """Replace each masked span of the rows [B, n] by the next sentinel, and append ``</s>``."""
    starts = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
    ranks = np.cumsum(starts, axis=1) - 1
    replaced = np.where(starts, sentinels[ranks.clip(min=0)], tokens)
    rows = replaced[~masked | starts].reshape(len(tokens), -1)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=eos)


def corrupt(
    tokens: np.ndarray, plan: Corruption, sentinels: np.ndarray, eos: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt rows [B, n] into source [B, S] and target [B, T].

    Raises:
        ValueError: The rows do not have the length of the plan, or there are more spans than sentinels.
    """
    if tokens.ndim != 2 or tokens.shape[1] != plan.raw_tokens:
        raise ValueError(f"Got rows of shape {list(tokens.shape)}; expected [B, {plan.raw_tokens}].")
    if plan.spans > len(sentinels):
        raise ValueError(
            f"Got a tokenizer with {len(sentinels)} sentinels; expected {plan.spans}, one for each span. Take shorter rows."
        )
    mask = noise_mask(plan, len(tokens), generator)
    wide = tokens.astype(np.int64)
    return collapse(wide, mask, sentinels, eos), collapse(wide, ~mask, sentinels, eos)


def split_prefix(tokens: np.ndarray, eos: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows [B, n] at one random place k, for prefix language modeling ("LM adaptation", Lester et al. 2021).

    k is uniform in n/4 ... 3n/4. It is the same for all rows of the batch, so that nothing is padded; Lester et al. draw it
    for each row.

    Returns:
        Source [B, k + 1] and target [B, n - k + 1], both ending in ``</s>``.
    """
    length = tokens.shape[1]
    cut = int(generator.integers(max(1, length // 4), max(2, 3 * length // 4 + 1)))
    wide = np.pad(tokens.astype(np.int64), ((0, 0), (0, 1)), constant_values=eos)
    source = np.pad(wide[:, :cut], ((0, 0), (0, 1)), constant_values=eos)
    return source, wide[:, cut:]
