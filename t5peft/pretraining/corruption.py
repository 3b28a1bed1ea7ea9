"""Span corruption, T5's pretraining objective (Raffel et al. 2020, 3.1.4), for a batch of rows at once.

A row of n tokens gets round(0.15 n) noise tokens in round(noise / 3) spans, at random places but never at its
beginning. In the source each span becomes a sentinel, in the target each stretch that was kept:

    thank you for inviting me to your party  ->  source  thank you <extra_id_0> me to your <extra_id_1> </s>
                                                 target  <extra_id_0> for inviting <extra_id_1> party </s>

Every row has the same number of noise tokens and spans, so all sources have one length and all targets another, and
nothing is ever padded. The draws follow the published `random_spans_noise_mask`; there is no sentinel after the last
span, as in the published code (the paper's figure shows one).

Letters: B rows, n tokens of a row, S source tokens, T target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Corruption:
    """Lengths that follow from a row of `raw_tokens` tokens; both source and target count their `</s>`."""

    raw_tokens: int
    noise_tokens: int
    spans: int

    @property
    def source_tokens(self) -> int:
        """S: what was kept, the sentinels, `</s>`."""
        return self.raw_tokens - self.noise_tokens + self.spans + 1

    @property
    def target_tokens(self) -> int:
        """T: the noise, the sentinels, `</s>`."""
        return self.noise_tokens + self.spans + 1


def corruption_of(raw_tokens: int, *, noise_density: float = 0.15, mean_span: float = 3.0) -> Corruption:
    """The counts for a row of `raw_tokens`, rounded as published.

    Raises:
        ValueError: a row of fewer than 2 tokens, a density outside (0, 1), a mean span below 1.
    """
    if raw_tokens < 2 or not 0 < noise_density < 1 or mean_span < 1:
        raise ValueError(
            f"raw_tokens={raw_tokens}, noise_density={noise_density}, mean_span={mean_span} came; expected at least 2"
            " tokens, a density between 0 and 1 and a mean span of at least 1."
        )
    noise = min(max(round(raw_tokens * noise_density), 1), raw_tokens - 1)
    spans = min(max(round(noise / mean_span), 1), noise, raw_tokens - noise)
    return Corruption(raw_tokens, noise, spans)


def corruption_for_source(source_tokens: int, *, noise_density: float = 0.15, mean_span: float = 3.0) -> Corruption:
    """The longest row whose corrupted source has at most `source_tokens`; for usual settings exactly as many.

    Raises:
        ValueError: no row is short enough.
    """
    if source_tokens < 3:
        raise ValueError(f"source_tokens={source_tokens} came; expected at least 3: a token, a sentinel and </s>.")
    found = corruption_of(2, noise_density=noise_density, mean_span=mean_span)
    while True:
        longer = corruption_of(found.raw_tokens + 1, noise_density=noise_density, mean_span=mean_span)
        if longer.source_tokens > source_tokens:
            return found
        found = longer


def random_lengths(total: int, parts: int, rows: int, generator: np.random.Generator) -> np.ndarray:
    """`rows` random cuts of `total` into `parts` positive lengths, every cut equally likely: [rows, parts]."""
    order = np.argsort(generator.random((rows, total - 1)), axis=1)[:, : parts - 1]
    ends = np.sort(order + 1, axis=1)
    border = np.zeros((rows, 1), dtype=ends.dtype)
    return np.diff(np.concatenate([border, ends, border + total], axis=1), axis=1)


def noise_mask(plan: Corruption, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Boolean [B, n]: True where a token is noise. Rows begin with kept tokens and end with noise."""
    kept = random_lengths(plan.raw_tokens - plan.noise_tokens, plan.spans, rows, generator)
    noise = random_lengths(plan.noise_tokens, plan.spans, rows, generator)
    lengths = np.stack([kept, noise], axis=2).reshape(rows, -1)
    flags = np.tile(np.array([False, True]), rows * plan.spans)
    return np.repeat(flags, lengths.reshape(-1)).reshape(rows, plan.raw_tokens)


def collapse(tokens: np.ndarray, masked: np.ndarray, sentinels: np.ndarray, eos: int) -> np.ndarray:
    """Rows [B, n] with each masked stretch replaced by the next sentinel, and `</s>` at the end."""
    starts = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
    ranks = np.cumsum(starts, axis=1) - 1
    replaced = np.where(starts, sentinels[ranks.clip(min=0)], tokens)
    rows = replaced[~masked | starts].reshape(len(tokens), -1)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=eos)


def corrupt(
    tokens: np.ndarray, plan: Corruption, sentinels: np.ndarray, eos: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Source [B, S] and target [B, T] of rows [B, n].

    Raises:
        ValueError: rows of another length than the plan's, or more spans than sentinels.
    """
    if tokens.ndim != 2 or tokens.shape[1] != plan.raw_tokens:
        raise ValueError(f"rows of shape {list(tokens.shape)} came; expected [B, {plan.raw_tokens}].")
    if plan.spans > len(sentinels):
        raise ValueError(
            f"{plan.spans} spans need as many sentinels, the tokenizer has {len(sentinels)}; take shorter rows."
        )
    mask = noise_mask(plan, len(tokens), generator)
    wide = tokens.astype(np.int64)
    return collapse(wide, mask, sentinels, eos), collapse(wide, ~mask, sentinels, eos)


def split_prefix(tokens: np.ndarray, eos: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Prefix language modelling ("LM adaptation", Lester et al. 2021): rows [B, n] cut at one random place.

    Source [B, k + 1] and target [B, n - k + 1], both ending in `</s>`; k is uniform in n/4 ... 3n/4 and the same for
    all rows of the batch, so that nothing is padded. Lester et al. draw it for each row.
    """
    length = tokens.shape[1]
    cut = int(generator.integers(max(1, length // 4), max(2, 3 * length // 4 + 1)))
    wide = np.pad(tokens.astype(np.int64), ((0, 0), (0, 1)), constant_values=eos)
    source = np.pad(wide[:, :cut], ((0, 0), (0, 1)), constant_values=eos)
    return source, wide[:, cut:]
