"""T5 and its adapters written out by hand, as functions over a state dict: what the tests compare with.

Nothing here is a module, nothing is cached, nothing is shared with transformers, peft or t5peft. Only the numbers of
a ``T5Config`` are read. Everything is differentiable, so gradients can be compared too.

Letters: B batch, S source tokens, T target tokens, K keys, H d_model, N heads, D d_kv, F d_ff, P prefix or prompt
length, R rank, M size of a bottleneck, W width of a ladder, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import T5Config

State = Mapping[str, Tensor]
Rung = Callable[[int, Tensor], Tensor]  # from a layer's number and its inputs to the inputs that it gets instead
_NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True)
class LowRank:
    """LoRA on one linear map: y = W x + scale * up (down x). down: [R, in], up: [out, R].

    With a magnitude, [out], the rows of W + scale * up down are divided by their norms, which count as constants, and
    multiplied by it (DoRA).
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class KeysValues:
    """The prefix of one attention: keys and values, each [N, P, D] or, one for each example, [B, N, P, D]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Bottleneck:
    """An adapter of two maps with relu between them. down: [M, H], up: [H, M]; ``beside`` reads the module's input.

    Otherwise it reads the module's output. Its result is added, times ``scale``.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    beside: bool
    scale: float


@dataclass(frozen=True)
class Ladder:
    """A small T5 beside the base model's, W wide. ``state`` and the rest hold both stacks, by their name where they differ.

    state: weights of the side by the names that a T5 of its size has. first: [W, H]. downs: [W, H] for each layer. gates:
    [1] for each layer. up: from the decoder, [H, W].
    """

    state: State
    first: State
    downs: Mapping[str, Sequence[Tensor]]
    gates: Mapping[str, Sequence[Tensor]]
    up: Tensor

    def config(self, config: T5Config) -> T5Config:
        """The numbers of the side: its queries are narrower."""
        config = copy(config)
        config.d_kv = len(self.state["encoder.block.0.layer.0.SelfAttention.q.weight"]) // config.num_heads
        return config

    def rungs(self, stack: str, seen: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Rung]:
        """The side's first states, and what its layers are given, from the base model's embeddings and layers."""
        first, *others = (states / (states.square().mean(-1, keepdim=True) + epsilon).sqrt() for states in seen)

        def rung(layer: int, states: Tensor) -> Tensor:
            gate = 1 / (1 + torch.exp(-10 * self.gates[stack][layer]))
            return gate * states + (1 - gate) * (others[layer] @ self.downs[stack][layer].T)

        return first @ self.first[stack].T, rung


@dataclass(frozen=True)
class Adapters:
    """Hooks on the base model. Keys are the names of modules within T5 (``encoder.block.0.layer...``).

    lora: by name of a linear map. output_scales and input_scales (IA3): by name of a linear map, [out] and [in].
    prefixes: by name of an attention. prompt: rows before the encoder's embeddings, [P, H]. bottlenecks: by name of the
    map or feed-forward that they stand after or beside. norms: the weights of norms in the place of the base's, [H].
    ladder: a small T5 beside it.
    """

    lora: Mapping[str, LowRank] = field(default_factory=lambda: _NOTHING)
    output_scales: State = field(default_factory=lambda: _NOTHING)
    input_scales: State = field(default_factory=lambda: _NOTHING)
    prefixes: Mapping[str, KeysValues] = field(default_factory=lambda: _NOTHING)
    prompt: Tensor | None = None
    bottlenecks: Mapping[str, Bottleneck] = field(default_factory=lambda: _NOTHING)
    norms: State = field(default_factory=lambda: _NOTHING)
    ladder: Ladder | None = None


NO_ADAPTERS = Adapters()


def linear(state: State, name: str, inputs: Tensor, adapters: Adapters) -> Tensor:
    """inputs: [.., in] -> [.., out], with what LoRA or IA3 do to the map called ``name``."""
    if name in adapters.input_scales:
        inputs = inputs * adapters.input_scales[name]
    outputs = inputs @ state[f"{name}.weight"].T
    if name in adapters.lora:
        low_rank = adapters.lora[name]
        outputs = outputs + low_rank.scale * (inputs @ low_rank.down.T @ low_rank.up.T)
        if low_rank.magnitude is not None:
            rows = state[f"{name}.weight"] + low_rank.scale * low_rank.up @ low_rank.down
            outputs = outputs * low_rank.magnitude / rows.square().sum(dim=1).sqrt().detach()
    if name in adapters.output_scales:
        outputs = outputs * adapters.output_scales[name]
    return bottleneck(name, inputs, outputs, adapters)


def bottleneck(name: str, inputs: Tensor, outputs: Tensor, adapters: Adapters) -> Tensor:
    """Return what a bottleneck at the module called ``name`` makes of its inputs [.., in] and outputs [.., H]: [.., H]."""
    if name not in adapters.bottlenecks:
        return outputs
    adapter = adapters.bottlenecks[name]
    inner = (inputs if adapter.beside else outputs) @ adapter.down.T + adapter.down_bias
    return outputs + adapter.scale * (inner.clamp(min=0) @ adapter.up.T + adapter.up_bias)


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """inputs: [.., H], weight: [H] -> [.., H]; no mean is taken off, nothing is added; the root is float32, always."""
    return weight * inputs * (inputs.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()


def bucket(distance: int, *, both_ways: bool, buckets: int, reach: int) -> int:
    """The bucket of a key that stands ``distance`` tokens after (positive) or before its query.

    Half of the buckets of a direction hold one distance each, the others grow by logarithm up to ``reach``. One way
    (the decoder), keys after the query fall in bucket 0; they are masked.
    """
    first = 0
    if both_ways:
        buckets //= 2
        first = buckets if distance > 0 else 0
        steps = abs(distance)
    else:
        steps = max(-distance, 0)
    exact = buckets // 2
    if steps < exact:
        return first + steps
    # a nudge, because log(2) / log(16) * 8 must count as 2 though a float may fall just short
    beyond = math.log(steps / exact) / math.log(reach / exact) * (buckets - exact)
    return first + min(exact + int(beyond + 1e-6), buckets - 1)


def position_bias(table: Tensor, queries: int, keys: int, *, both_ways: bool, config: T5Config) -> Tensor:
    """table: [buckets, N] -> [N, queries, keys]."""
    buckets = [
        [
            bucket(
                key - query,
                both_ways=both_ways,
                buckets=config.relative_attention_num_buckets,
                reach=config.relative_attention_max_distance,
            )
            for key in range(keys)
        ]
        for query in range(queries)
    ]
    return table[torch.tensor(buckets)].permute(2, 0, 1)


def attention(
    state: State, name: str, states: Tensor, memory: Tensor, allowed: Tensor, bias: Tensor | None,
    adapters: Adapters, config: T5Config,
) -> Tensor:  # fmt: skip
    """states: [B, T, H], memory: [B, K, H], allowed: [B, T, K] True = may attend, bias: [N, T, K] -> [B, T, H].

    A prefix stands before the keys and values of the sequence, is seen by every query, and gets no position bias.
    """
    heads, width = config.num_heads, config.d_kv
    query, key, value = (
        linear(state, f"{name}.{letter}", inputs, adapters).unflatten(-1, (heads, width)).transpose(1, 2)
        for letter, inputs in (("q", states), ("k", memory), ("v", memory))
    )
    scores = torch.einsum("bntd,bnkd->bntk", query, key)  # T5 does not divide by the root of D
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    if name in adapters.prefixes:
        prefix = adapters.prefixes[name]
        keys, values = (tensor.expand(len(states), *tensor.shape[-3:]) for tensor in (prefix.keys, prefix.values))
        scores = torch.cat([torch.einsum("bntd,bnpd->bntp", query, keys), scores], dim=-1)
        value = torch.cat([values, value], dim=2)
    mixed = torch.einsum("bntk,bnkd->bntd", torch.softmax(scores, dim=-1), value)
    return linear(state, f"{name}.o", mixed.transpose(1, 2).flatten(2), adapters)


def feed_forward(state: State, name: str, states: Tensor, adapters: Adapters, config: T5Config) -> Tensor:
    """states: [B, T, H] -> [B, T, H]; relu, or the gated form of T5 v1.1 with gelu by tanh."""
    if config.is_gated_act:
        gate = linear(state, f"{name}.wi_0", states, adapters)
        gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        inner = gate * linear(state, f"{name}.wi_1", states, adapters)
    else:
        inner = linear(state, f"{name}.wi", states, adapters).clamp(min=0)
    return bottleneck(name, states, linear(state, f"{name}.wo", inner, adapters), adapters)


def encode(
    state: State, embeddings: Tensor, mask: Tensor, adapters: Adapters, config: T5Config, rung: Rung | None = None
) -> Tensor:
    """embeddings: [B, S, H], mask: [B, S] -> [B, S, H], or with a ladder [B, S, H + W]."""
    seen = _encoder_layers(state, embeddings, mask, adapters, config, rung)
    if adapters.ladder is None:
        return seen[-1]
    first, rung = adapters.ladder.rungs("encoder", [tensor.detach() for tensor in seen], config.layer_norm_epsilon)
    side = encode(adapters.ladder.state, first, mask, NO_ADAPTERS, adapters.ladder.config(config), rung)
    return torch.cat([seen[-1].detach(), side], dim=-1)


def _encoder_layers(
    state: State, embeddings: Tensor, mask: Tensor, adapters: Adapters, config: T5Config, rung: Rung | None
) -> list[Tensor]:
    """The embeddings and what each layer makes of them, the last after its norm: L + 1 of [B, S, H]."""
    length = embeddings.shape[1]
    allowed = mask.bool()[:, None, :].expand(-1, length, -1)
    table = state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    bias = position_bias(table, length, length, both_ways=True, config=config)
    states, seen = embeddings, [embeddings]
    for layer in range(config.num_layers):
        name = f"encoder.block.{layer}.layer"
        states = states if rung is None else rung(layer, states)
        normed = _norm(state, f"{name}.0.layer_norm", states, adapters, config)
        states = states + attention(state, f"{name}.0.SelfAttention", normed, normed, allowed, bias, adapters, config)
        normed = _norm(state, f"{name}.1.layer_norm", states, adapters, config)
        states = states + feed_forward(state, f"{name}.1.DenseReluDense", normed, adapters, config)
        seen.append(states)
    return [*seen[:-1], _norm(state, "encoder.final_layer_norm", states, adapters, config)]


def decode(
    state: State, decoder_input_ids: Tensor, encoded: Tensor, encoded_mask: Tensor, adapters: Adapters, config: T5Config
) -> Tensor:
    """decoder_input_ids: [B, T], encoded: [B, S, H or H + W], encoded_mask: [B, S] -> states after the last norm [B, T, H]."""
    embeddings, ladder = state["shared.weight"][decoder_input_ids], adapters.ladder
    if ladder is None:
        return _decoder_layers(state, embeddings, encoded, encoded_mask, adapters, config, None)[-1]
    base, side = encoded.split([config.d_model, encoded.shape[-1] - config.d_model], dim=-1)
    seen = _decoder_layers(state, embeddings, base, encoded_mask, adapters, config, None)
    first, rung = ladder.rungs("decoder", [tensor.detach() for tensor in seen], config.layer_norm_epsilon)
    climbed = _decoder_layers(ladder.state, first, side, encoded_mask, NO_ADAPTERS, ladder.config(config), rung)[-1]
    return seen[-1].detach() + climbed @ ladder.up.T


def _decoder_layers(
    state: State, states: Tensor, encoded: Tensor, encoded_mask: Tensor, adapters: Adapters, config: T5Config,
    rung: Rung | None,
) -> list[Tensor]:  # fmt: skip
    """The embeddings and what each layer makes of them, the last after its norm: L + 1 of [B, T, H]."""
    batch, length = states.shape[:2]
    past = torch.ones(length, length, dtype=torch.bool).tril().expand(batch, -1, -1)
    source = encoded_mask.bool()[:, None, :].expand(-1, length, -1)
    table = state["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    bias = position_bias(table, length, length, both_ways=False, config=config)
    seen = [states]
    assert config.num_decoder_layers is not None
    for layer in range(config.num_decoder_layers):
        name = f"decoder.block.{layer}.layer"
        states = states if rung is None else rung(layer, states)
        normed = _norm(state, f"{name}.0.layer_norm", states, adapters, config)
        states = states + attention(state, f"{name}.0.SelfAttention", normed, normed, past, bias, adapters, config)
        normed = _norm(state, f"{name}.1.layer_norm", states, adapters, config)
        states = states + attention(state, f"{name}.1.EncDecAttention", normed, encoded, source, None, adapters, config)
        normed = _norm(state, f"{name}.2.layer_norm", states, adapters, config)
        states = states + feed_forward(state, f"{name}.2.DenseReluDense", normed, adapters, config)
        seen.append(states)
    return [*seen[:-1], _norm(state, "decoder.final_layer_norm", states, adapters, config)]


def _norm(state: State, name: str, states: Tensor, adapters: Adapters, config: T5Config) -> Tensor:
    weight = adapters.norms[name] if name in adapters.norms else state[f"{name}.weight"]
    return rms_norm(states, weight, config.layer_norm_epsilon)


def embed(state: State, input_ids: Tensor, mask: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """input_ids, mask: [B, S] -> embeddings [B, P + S, H] and their mask [B, P + S].

    The prompt stands directly before the first token that counts: with padding on the left, after the padding.
    """
    embeddings = state["shared.weight"][input_ids]
    if prompt is None:
        return embeddings, mask
    rows, masks = [], []
    for embedding, counts in zip(embeddings, mask, strict=True):
        first = int(counts.nonzero()[0])
        rows.append(torch.cat([embedding[:first], prompt, embedding[first:]]))
        masks.append(torch.cat([counts[:first], counts.new_ones(len(prompt)), counts[first:]]))
    return torch.stack(rows), torch.stack(masks)


def _padding(config: T5Config) -> int:
    assert config.pad_token_id is not None
    return config.pad_token_id


def shift_right(ids: Tensor, config: T5Config) -> Tensor:
    """Return what the decoder reads for the targets ``ids`` [B, T]: the start token, then all but the last, padding for -100."""
    start = ids.new_full((len(ids), 1), config.decoder_start_token_id)
    return torch.cat([start, ids[:, :-1].masked_fill(ids[:, :-1] == -100, _padding(config))], dim=1)


def encoder_states(
    state: State, config: T5Config, input_ids: Tensor, mask: Tensor, adapters: Adapters = NO_ADAPTERS
) -> tuple[Tensor, Tensor]:
    """The encoder's output [B, P + S, H] and its mask [B, P + S]."""
    embeddings, mask = embed(state, input_ids, mask, adapters.prompt)
    return encode(state, embeddings, mask, adapters, config), mask


def logits(
    state: State, config: T5Config, input_ids: Tensor, mask: Tensor, decoder_input_ids: Tensor,
    adapters: Adapters = NO_ADAPTERS,
) -> Tensor:  # fmt: skip
    """input_ids, mask: [B, S], decoder_input_ids: [B, T] -> [B, T, V].

    T5 v1.0 divides the decoder's output by the root of H before the tied head; v1.1 does not.
    """
    encoded, encoded_mask = encoder_states(state, config, input_ids, mask, adapters)
    states = decode(state, decoder_input_ids, encoded, encoded_mask, adapters, config)
    if config.scale_decoder_outputs:
        states = states * config.d_model**-0.5
    head = "lm_head" if "lm_head.weight" in state else "shared"
    return linear(state, head, states, adapters)


def class_logits(
    state: State, config: T5Config, input_ids: Tensor, mask: Tensor, adapters: Adapters = NO_ADAPTERS
) -> Tensor:
    """Logits of ``T5ForSequenceClassification`` [B, labels]; ``state`` holds ``transformer.`` and ``classification_head.``.

    The decoder reads the source shifted right; the head reads its state at the last ``</s>``.
    """
    inner = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    encoded, encoded_mask = encoder_states(inner, config, input_ids, mask, adapters)
    states = decode(inner, shift_right(input_ids, config), encoded, encoded_mask, adapters, config)
    last = [int((ids == config.eos_token_id).nonzero()[-1]) for ids in input_ids]
    sentence = states[torch.arange(len(states)), last]
    hidden = torch.tanh(
        sentence @ state["classification_head.dense.weight"].T + state["classification_head.dense.bias"]
    )
    return hidden @ state["classification_head.out_proj.weight"].T + state["classification_head.out_proj.bias"]


def summed_cross_entropy(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """scores: [B, T, V], labels: [B, T] -> the sum over target tokens (labels other than -100), and their number.

    With label smoothing the target is (1 - e) on the label and e spread evenly over the whole vocabulary.
    """
    total = scores.new_zeros(())
    count = 0
    for row, targets in zip(scores, labels, strict=True):
        for position in (targets != -100).nonzero().flatten().tolist():
            log_probabilities = row[position] - torch.logsumexp(row[position], dim=-1)
            right = log_probabilities[targets[position]]
            total = total - (1 - label_smoothing) * right - label_smoothing * log_probabilities.mean()
            count += 1
    return total, count


@torch.no_grad()
def generate_greedily(
    state: State, config: T5Config, input_ids: Tensor, mask: Tensor, new_tokens: int, adapters: Adapters = NO_ADAPTERS
) -> Tensor:
    """Greedy generation without any cache, [B, <= 1 + new_tokens]; rows that ended are filled with padding."""
    ids = input_ids.new_full((len(input_ids), 1), config.decoder_start_token_id)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(new_tokens):
        best = logits(state, config, input_ids, mask, ids, adapters)[:, -1].argmax(-1)
        best = best.masked_fill(ended, _padding(config))
        ids = torch.cat([ids, best[:, None]], dim=1)
        ended = ended | (best == config.eos_token_id)
        if bool(ended.all()):
            break
    return ids
