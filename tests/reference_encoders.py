"""Encoders and the contrastive loss, written by hand on tensors; see reference.py.

The letters of shapes are those of the package.
"""

from __future__ import annotations

import torch
from reference import NO_ADAPTERS, Adapters, State, encoder_states
from torch import Tensor
from transformers import T5Config


def mean_states(
    state: State, config: T5Config, input_ids: Tensor, mask: Tensor, adapters: Adapters = NO_ADAPTERS
) -> Tensor:
    """The mean [B, H] of the states of the tokens of the text, one example after the other and without its padding."""
    means = []
    for ids, real in zip(input_ids, mask.bool(), strict=True):
        text = ids[real][None]
        states, _ = encoder_states(state, config, text, torch.ones_like(text), adapters)
        means.append(sum(states[0, -text.shape[1] :]) / text.shape[1])
    return torch.stack(means)


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()


def contrastive(sources: Tensor, targets: Tensor, keys: list[list[int]], temperature: float) -> Tensor:
    """The sum over pairs; a target with the tokens of the pair's own is left out. sources, targets: [B, E]."""
    total = sources.new_zeros(())
    for i, source in enumerate(sources):
        scores = {j: (source * target).sum() / temperature for j, target in enumerate(targets)}
        others = [score.exp() for j, score in scores.items() if j == i or keys[j] != keys[i]]
        total = total - (scores[i].exp() / sum(others)).log()
    return total
