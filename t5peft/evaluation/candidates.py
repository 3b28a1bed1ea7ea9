"""Many candidate targets as one decoder input, so that the decoder runs once over all of them.

A ``CandidateTree`` has one position for every distinct prefix of a candidate. A position sees the positions of its own prefix.
Where the decoder's position bias belongs to its first layer and weights are float32, candidates share prefixes, from the start
token on. The mask then also carries the difference between the bias of the true distance and that of the distance in the row.
Otherwise each candidate is a block of its own, in which distances are true anyway.

Letters: B sources, C candidates, T positions of the tree, E edges, L tokens of the longest candidate, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention

from t5peft.models.families import family_of

Edge = tuple[int, int]
"""A position and the token that comes next."""

MOST_POSITIONS = 256  # of one tree; the mask grows with their square


@dataclass
class CandidateTree:
    """Positions, one for each prefix of a candidate, and edges from a position to a token that comes next.

    Attributes:
        start_token: The first token of every prefix.
        shared: Whether candidates share positions.
        tokens: Decoder input at each position [T].
        parents: The position before each [T], -1 at a start token.
        edges: All edges [E].
        paths: The edges of each candidate, by its column in the result.
    """

    start_token: int
    shared: bool
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    edges: set[Edge] = field(default_factory=set)
    paths: dict[int, list[Edge]] = field(default_factory=dict)
    _position_after: dict[Edge, int] = field(default_factory=dict)

    def add(self, column: int, candidate: Sequence[int]) -> None:
        """Add a candidate.

        Args:
            column: Where its log-probability goes.
            candidate: Its token ids.
        """
        position = 0 if self.shared and self.tokens else self._new_position(self.start_token, -1)
        path = []
        for i, token in enumerate(candidate):
            edge = (position, token)
            path.append(edge)
            if i + 1 < len(candidate):
                if edge not in self._position_after:
                    self._position_after[edge] = self._new_position(token, position)
                position = self._position_after[edge]
        self.edges.update(path)
        self.paths[column] = path

    def _new_position(self, token: int, parent: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens) - 1

    def visible(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return which positions see which, and their depths.

        Args:
            positions: T, with padding at the end.

        Returns:
            Visibility [T, T], true where a position (row) sees another, and depth [T].
        """
        sees = torch.eye(positions, dtype=torch.bool)
        depth = torch.zeros(positions, dtype=torch.long)
        for position, parent in enumerate(self.parents):
            if parent >= 0:
                sees[position] |= sees[parent]
                depth[position] = depth[parent] + 1
        return sees, depth


def trees(candidates: Sequence[Sequence[int]], start_token: int, shared: bool) -> list[CandidateTree]:
    """Arrange candidates in trees.

    Args:
        candidates: Token ids of each.
        start_token: The decoder's start token.
        shared: Whether candidates share positions.

    Returns:
        Trees of at most ``MOST_POSITIONS`` positions, unless one candidate has more.
    """
    order = sorted(range(len(candidates)), key=lambda column: list(candidates[column]))
    made: list[CandidateTree] = []
    for column in order:
        candidate = candidates[column]
        if not made or len(made[-1].tokens) + len(candidate) > MOST_POSITIONS:
            made.append(CandidateTree(start_token, shared))
        made[-1].add(column, candidate)
    return made


def can_share(t5: PreTrainedModel) -> bool:
    """Return whether positions of a tree can have their true distances.

    Args:
        t5: The model.

    Returns:
        True for rotary positions, which are given with the tokens. Else true for float32 weights and one position bias for all
        layers, which the mask corrects.
    """
    if family_of(t5.config).positions == "rotary":
        return True
    return t5.dtype == torch.float32 and len(_biased_attentions(t5)) == 1


def _biased_attentions(t5: PreTrainedModel) -> list[T5Attention | MT5Attention]:
    attentions = (module for module in t5.get_decoder().modules() if isinstance(module, T5Attention | MT5Attention))
    return [attention for attention in attentions if attention.has_relative_attention_bias]


def decoder_places(group: Sequence[CandidateTree], positions: int, t5: PreTrainedModel) -> dict[str, Any]:
    """Return where the positions of trees are and what they see, as arguments of the forward pass.

    Args:
        group: The tree of each row.
        positions: T, with padding at the end.
        t5: The model.

    Returns:
        The mask of the decoder; with rotary positions, also the depth of each position, and a mask for each kind of layer.
    """
    trees_here = {id(tree): tree for tree in group}
    if family_of(t5.config).positions == "relative bias":
        masks = {key: decoder_mask(tree, positions, t5) for key, tree in trees_here.items()}
        alone = len(masks) == 1
        return {
            "decoder_attention_mask": next(iter(masks.values()))
            if alone
            else torch.cat([masks[id(tree)] for tree in group])
        }
    made = {key: tree.visible(positions) for key, tree in trees_here.items()}
    sees, depth = (torch.stack([made[id(tree)][part] for tree in group]).to(t5.device) for part in (0, 1))
    config = family_of(t5.config).stack_configs(t5.config)[1]
    near = depth[:, :, None] - depth[:, None] < (config.sliding_window or positions)
    masks_by_kind = {"full_attention": sees[:, None], "sliding_attention": (sees & near)[:, None]}
    if config._attn_implementation != "sdpa":  # which has boolean masks, and the others add theirs
        hidden = torch.finfo(t5.dtype).min
        masks_by_kind = {
            kind: torch.zeros(mask.shape, dtype=t5.dtype, device=t5.device).masked_fill_(~mask, hidden)
            for kind, mask in masks_by_kind.items()
        }
    return {"decoder_attention_mask": masks_by_kind, "decoder_position_ids": depth}


def decoder_mask(tree: CandidateTree, positions: int, t5: PreTrainedModel) -> Tensor:
    """Return the additive mask of a tree.

    Args:
        tree: The tree.
        positions: T, with padding at the end.
        t5: The model, for its position bias, dtype and device.

    Returns:
        The mask [1, N or 1, T, T].
    """
    sees, depth = (part.to(t5.device) for part in tree.visible(positions))
    blocked = torch.zeros(positions, positions, dtype=t5.dtype, device=t5.device)
    blocked = blocked.masked_fill_(~sees, torch.finfo(t5.dtype).min)[None, None]
    if not tree.shared:
        return blocked
    attention = _biased_attentions(t5)[0]
    # Of the plain class: while a Trainer runs on our kernels, the module's own compute_bias returns each distance once.
    plain: Any = T5Attention if isinstance(attention, T5Attention) else MT5Attention
    bias = plain.compute_bias(attention, positions, positions, device=t5.device)
    by_distance = bias[0, :, :, 0]  # [N, T], 0 to T - 1 back
    index = torch.arange(positions, device=t5.device)
    in_row = by_distance[:, (index[:, None] - index).clamp(min=0)]
    in_truth = by_distance[:, (depth[:, None] - depth).clamp(min=0)]
    return blocked + torch.where(sees, in_truth - in_row, 0.0)[None]
