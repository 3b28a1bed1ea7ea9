"""Initialize an embedding table by counting: positive PMI and a truncated SVD (Levy & Goldberg 2014).

    PMI(a, b) = log( #(a, b) * #total^0.75 / (#(a) * #(b)^0.75) ),  E = U_H sqrt(S_H) of max(PMI, 0)

#(a, b) counts how often b stands within ``window`` tokens of a, with weight 1/distance. Contexts are smoothed by the power 0.75
(Levy, Goldberg & Dagan 2015). Seconds of counting replace millions of tokens of gradient descent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_VOCABULARY = 16_384
"""Size of the largest vocabulary whose pairs are counted."""


def cooccurrences(tokens: np.ndarray, vocabulary: int, *, window: int, block: int = 1 << 24) -> np.ndarray:
    """Count the pairs within ``window`` tokens, each weighted by 1/distance: a symmetric matrix [V, V]."""
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
    """Return the positive pointwise mutual information [V, V] of symmetric counts [V, V]; unseen rows are zero."""
    matrix = torch.from_numpy(counts)
    word = matrix.sum(1)
    context = word**smoothing
    context = context / context.sum()
    expected = word[:, None] * context[None, :]
    return torch.where(matrix > 0, torch.log(matrix / expected.clamp_min(1e-9)), 0.0).clamp_min_(0.0)


def pmi_embeddings(tokens: np.ndarray, vocabulary: int, d_model: int, *, window: int = 5, seed: int = 0) -> Tensor:
    """Return embeddings [V, H] with standard deviation 1, like T5's initial table. Unseen tokens get normal noise.

    Raises:
        ValueError: The counts of the vocabulary would take more than about 5 GB.
    """
    if vocabulary > MAX_VOCABULARY:
        raise ValueError(
            f"Got a vocabulary of {vocabulary:,} tokens, whose counts take {20e-9 * vocabulary**2:.0f} GB; expected at most "
            f"{MAX_VOCABULARY:,} tokens. Start from random embeddings (--embeddings random)."
        )
    pmi = positive_pmi(cooccurrences(tokens, vocabulary, window=window))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(pmi, q=d_model + 32, niter=4)
        table = left[:, :d_model] * values[:d_model].sqrt()
        seen = pmi.any(1)
        table = table / table[seen].std()
        return torch.where(seen[:, None], table, torch.randn(vocabulary, d_model))
