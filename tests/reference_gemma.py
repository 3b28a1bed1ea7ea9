"""T5Gemma and T5Gemma 2 by hand in double precision, with prefixes: only tensors and formulas, nothing of transformers.

Letters: B batch, S source tokens, T target tokens, H d_model, N heads, G heads of keys and values, D d_kv, P prefix length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

Prefixes = dict[str, tuple[Tensor, Tensor]]
"""Keys and values [G, P, D] by the path of the attention."""


@dataclass(frozen=True)
class Gemma:
    """The weights of a model by name, the config of one of its stacks, and where the stack is."""

    state: dict[str, Tensor]
    config: Any
    path: str
    is_second: bool
    prefixes: Prefixes

    def __getitem__(self, name: str) -> Tensor:
        return self.state[f"{self.path}.{name}"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt() * (1 + self[f"{name}.weight"])

    def heads(self, name: str, x: Tensor) -> Tensor:
        """Map x [B, T, H] to [B, heads, T, D]."""
        return (x @ self[f"{name}.weight"].T).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def rotated(self, x: Tensor, kind: str) -> Tensor:
        """Turn each pair (i, i + D/2) of x [B, heads, T, D] by the angle of its position."""
        theta = self.config.rope_parameters
        theta = theta.get(kind, theta)["rope_theta"]
        half = x.shape[-1] // 2
        frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * frequency
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def attend(self, name: str, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attend with the prefix of the attention, which every query sees; visible [B, 1, T, K] -> [B, T, H]."""
        if (prefix := self.prefixes.get(f"{self.path}.{name}")) is not None:
            key, value = (
                torch.cat([part.expand(len(query), -1, -1, -1), own], 2)
                for part, own in zip(prefix, (key, value), strict=True)
            )
            seen = torch.ones(*visible.shape[:-1], prefix[0].shape[1], dtype=torch.bool)
            visible = torch.cat([seen, visible], -1)
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
        scores = query @ key.transpose(2, 3) * self.config.query_pre_attn_scalar**-0.5
        if (cap := self.config.attn_logit_softcapping) is not None:
            scores = cap * torch.tanh(scores / cap)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2) @ self[f"{name}.o_proj.weight"].T

    def self_attention(self, layer: str, x: Tensor, visible: Tensor, kind: str, states: Tensor | None) -> Tensor:
        """Attend to x [B, T, H], and in T5Gemma 2 to the states [B, S, H] of the encoder in the same softmax."""
        name = f"{layer}.self_attn"
        query, key, value = (self.heads(f"{name}.{part}_proj", x) for part in "qkv")
        if self.is_second:
            query, key = self.norm(f"{name}.q_norm", query), self.norm(f"{name}.k_norm", key)
        query, key = self.rotated(query, kind), self.rotated(key, kind)
        if self.is_second and states is not None:
            key = torch.cat([key, self.norm(f"{name}.k_norm", self.heads(f"{name}.k_proj", states))], 2)
            value = torch.cat([value, self.heads(f"{name}.v_proj", states)], 2)
        return self.attend(name, query, key, value, visible)

    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        gate, up = (x @ self[f"{layer}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        return (gelu(gate, approximate="tanh") * up) @ self[f"{layer}.mlp.down_proj.weight"].T

    def run(
        self, ids: Tensor, visible: dict[str, Tensor], states: Tensor | None = None, sources: Tensor | None = None
    ) -> Tensor:
        """Return the states [B, T, H] of the stack; visible [B, 1, T, K] by kind of layer, sources [B, 1, T, S]."""
        x = self["embed_tokens.weight"][ids] * self.config.hidden_size**0.5
        for index, kind in enumerate(self.config.layer_types[: self.config.num_hidden_layers]):
            layer = f"layers.{index}"
            seen = visible[kind]
            if self.is_second and sources is not None:
                seen = torch.cat([seen, sources], -1)
            own = self.norm(f"{layer}.pre_self_attn_layernorm", x)
            x = x + self.norm(f"{layer}.post_self_attn_layernorm", self.self_attention(layer, own, seen, kind, states))
            if states is not None and sources is not None and not self.is_second:
                name = f"{layer}.cross_attn"
                query = self.heads(f"{name}.q_proj", self.norm(f"{layer}.pre_cross_attn_layernorm", x))
                key, value = (self.heads(f"{name}.{part}_proj", states) for part in "kv")
                x = x + self.norm(f"{layer}.post_cross_attn_layernorm", self.attend(name, query, key, value, sources))
            inner = self.feed_forward(layer, self.norm(f"{layer}.pre_feedforward_layernorm", x))
            x = x + self.norm(f"{layer}.post_feedforward_layernorm", inner)
        return self.norm("norm", x)


def logits(
    state: dict[str, Tensor], config: Any, ids: Tensor, mask: Tensor, decoder_ids: Tensor, prefixes: Prefixes
) -> Tensor:
    """Return the logits [B, T, V] of ids and mask [B, S] and decoder_ids [B, T]."""
    second = config.model_type == "t5gemma2"
    text = config.encoder.text_config if second else config.encoder
    encoder_path = "model.encoder.text_model" if second else "model.encoder"
    encoder = Gemma(state, text, encoder_path, second, prefixes)
    decoder = Gemma(state, config.decoder, "model.decoder", second, prefixes)
    if second and "model.decoder.embed_tokens.weight" not in state:
        state["model.decoder.embed_tokens.weight"] = state[f"{encoder_path}.embed_tokens.weight"]
    source, target = torch.arange(ids.shape[1]), torch.arange(decoder_ids.shape[1])
    back, window = source[:, None] - source, text.sliding_window
    near = (back < (window + 1) // 2) & (back > -(window // 2 + 1)) if second else back.abs() <= window
    text_seen = mask.bool()[:, None, None].expand(-1, 1, len(source), -1)
    states = encoder.run(ids, {"full_attention": text_seen, "sliding_attention": text_seen & near})
    back = target[:, None] - target
    causal = (back >= 0).expand(len(ids), 1, -1, -1)
    if not second:  # T5Gemma hides padding among the decoder's inputs from the positions behind it
        causal = causal & ((decoder_ids != config.pad_token_id)[:, None, None] | (back == 0))
    sources = mask.bool()[:, None, None].expand(-1, 1, len(target), -1)
    seen = {"full_attention": causal, "sliding_attention": causal & (back < config.decoder.sliding_window)}
    hidden = decoder.run(decoder_ids, seen, states, sources)
    scores = hidden @ decoder["embed_tokens.weight"].T
    cap = config.decoder.final_logit_softcapping
    return scores if cap is None else cap * torch.tanh(scores / cap)


def shifted(labels: Tensor, config: Any) -> Tensor:
    """Return the decoder's inputs [B, T] of labels [B, T]."""
    start = labels.new_full((len(labels), 1), config.decoder.bos_token_id)
    return torch.cat([start, labels[:, :-1]], 1).masked_fill_(torch.cat([start, labels[:, :-1]], 1) == -100, 0)
