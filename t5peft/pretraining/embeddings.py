"""Word vectors by counting, as a start for the embedding table: positive PMI and a truncated SVD (Levy & Goldberg 2014).

    PMI(a, b) = log( #(a, b) * #total^0.75 / (#(a) * #(b)^0.75) ),  E = U_H sqrt(S_H) of max(PMI, 0)

with #(a, b) the number of times that b stands within `window` tokens of a (weight 1/distance), and contexts smoothed by the power
0.75 (Levy, Goldberg & Dagan 2015). Seconds of counting give what gradient descent needs millions of tokens for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST = 16_384
"""Tokens of the largest vocabulary whose pairs are counted."""


def cooccurrences(tokens: np.ndarray, vocabulary: int, *, window: int, block: int = 1 << 24) -> np.ndarray:
    """Symmetric counts [V, V] of pairs within `window` tokens, each weighted by 1/distance."""
    flat = np.zeros(vocabulary * vocabulary, dtype=np.float32)
    for begin in range(0, len(tokens), block):
        piece = tokens[begin : begin + block].astype(np.int64)
        for distance in range(1, window + 1):
            pairs = piece[:-distance] * vocabulary + piece[distance:]
            found = np.bincount(pairs, minlength=flat.size)
            flat += found.astype(np.float32) / distance
    counts = flat.reshape(vocabulary, vocabulary)
    return counts + counts.T


def positive_pmi(counts: np.ndarray, *, smoothing: float = 0.75) -> Tensor:
    """Positive pointwise mutual information [V, V] of symmetric counts [V, V]; rows never seen are zero."""
    matrix = torch.from_numpy(counts)
    word = matrix.sum(1)
    context = word**smoothing
    context = context / context.sum()
    expected = word[:, None] * context[None, :]
    return torch.where(matrix > 0, torch.log(matrix / expected.clamp_min(1e-9)), 0.0).clamp_min_(0.0)


def pmi_embeddings(tokens: np.ndarray, vocabulary: int, d_model: int, *, window: int = 5, seed: int = 0) -> Tensor:
    """Embeddings [V, H] with standard deviation 1, as T5 initialises its table; tokens never seen get normal noise.

    Raises:
        ValueError: a vocabulary whose counts would take more than some 5 GB.
    """
    if vocabulary > MOST:
        raise ValueError(
            f"Vectors by counting take tables of {vocabulary:,} times {vocabulary:,} numbers, {20e-9 * vocabulary**2:.0f} GB in "
            f"all; expected a vocabulary of at most {MOST:,}, or a random start (--embeddings random)."
        )
    pmi = positive_pmi(cooccurrences(tokens, vocabulary, window=window))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(pmi, q=d_model + 32, niter=4)
        table = left[:, :d_model] * values[:d_model].sqrt()
        seen = pmi.any(1)
        table = table / table[seen].std()
        return torch.where(seen[:, None], table, torch.randn(vocabulary, d_model))
