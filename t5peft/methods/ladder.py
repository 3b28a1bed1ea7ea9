"""Ladder Side-Tuning (Sung et al. 2022, https://arxiv.org/abs/2206.06522) for T5, encoder and decoder.

A small T5 stands beside the frozen one, with d_model, d_kv and d_ff divided by a reduction and as many layers and heads. Before
each of its layers i it takes in what the backbone knows after its own layer i, through a learned gate:

    s = g_i * s + (1 - g_i) * down_i(h_i),    g_i = sigmoid(a_i / 0.1)

Its decoder looks at its own encoder. What it ends with is projected up to d_model and goes through the backbone's frozen head. The
backbone runs without a graph: no backward pass goes through it, and none of its activations is kept, which is the method's point.
What it computes of an example can be kept over epochs (``cached_activations``, the trainer's ``activation_cache_bytes``).

Two tuner layers do it, around the stacks. The side is a stack of transformers with another config, so masks, position biases,
caches, packing and checkpointing are its own. The encoder's side states travel behind those of the backbone, as [B, S, H + W],
and the side's keys and values in the same cache as the backbone's, as further layers: ``generate`` needs no special case.

Differs from the paper: the side's result is added to the backbone's last state, from a projection of zeros, so that wrapping
changes nothing; there it replaces that state, and the side starts from pruned weights of the backbone. A ladder reads the
activations divided by their root mean square, as those of T5 grow by orders of magnitude over the layers.

Not with trained tokens or anything else inside the backbone, as no gradient reaches it; not with encoders alone.

Letters: B batch, S source tokens, T target tokens, H d_model, W d_model of the side, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import PeftType
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache, StaticLayer

from t5peft.compat.peft import register
from t5peft.methods.activation_cache import Activations
from t5peft.methods.base import OwnTuner, StackLayer, to_device_unless_meta
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped

GATE_TEMPERATURE = 0.1


@dataclass
class LadderConfig(PeftConfig):
    """By what the side is narrower than the backbone."""

    reduction: int = 8
    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Name the two stacks for peft."""
        super().__post_init__()
        self.peft_type = PeftType("T5_LADDER")
        self.target_modules = r"(.*\.)?(encoder|decoder)"


class Rung(nn.Module):
    """A layer of the side behind the gate through which it takes in the backbone."""

    def __init__(self, block: nn.Module, index: int, d_model: int, width: int) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self.down = _linear(d_model, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor, *args: Any, ladder: list[Tensor], **kwargs: Any) -> Any:
        """States [B, T, W] and the backbone's after each layer, ladder of [B, T, H], to what the layer returns."""
        gate = torch.sigmoid(self.gate / GATE_TEMPERATURE)
        return self.block(gate * states + (1 - gate) * self.down(ladder[self.index]), *args, **kwargs)


class Side(nn.Module):
    """The small stack beside one of the backbone's: ``forward(hidden_states) -> [B, T, W]``."""

    def __init__(self, backbone: PreTrainedModel, reduction: int) -> None:
        super().__init__()
        config = narrowed(backbone.config, reduction)
        self.first = _linear(backbone.config.d_model, config.d_model)
        self.stack = type(backbone)(config)
        self.stack.set_input_embeddings(None)
        self.stack.block = nn.ModuleList(
            Rung(block, index, backbone.config.d_model, config.d_model) for index, block in enumerate(self.stack.block)
        )
        if backbone.is_decoder:
            self.up = nn.Linear(config.d_model, backbone.config.d_model, bias=False)
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden_states: tuple[Tensor, ...], **kwargs: Any) -> Tensor:
        """Climb along hidden_states, L + 1 of [B, T, H]: the embeddings and what is known after each layer."""
        dtype, epsilon = self.first.weight.dtype, self.stack.config.layer_norm_epsilon
        first, *ladder = (rms_norm(states.to(dtype), states.shape[-1:], eps=epsilon) for states in hidden_states)
        return self.stack(inputs_embeds=self.first(first), ladder=ladder, use_cache=False, **kwargs).last_hidden_state


class LadderStack(StackLayer):
    """A stack of the backbone and the sides that climb along it."""

    adapter_layer_names = ("t5ladder",)
    t5ladder: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.t5ladder = nn.ModuleDict()
        self.kept: Activations | None = None

    def active(self) -> Side | None:
        """The side that is climbed now. Raises ValueError for several."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.t5ladder]
        if len(names) > 1:
            raise ValueError(f"The ladders {names} cannot be climbed at once; activate one of them.")
        return self.t5ladder[names[0]] if names else None

    def climb(
        self, side: Side, inputs: dict[str, Any], options: dict[str, Any], **of_the_side: Any
    ) -> tuple[Any, Tensor]:
        """What the backbone returns for ``inputs``, run without a graph, and the side's states [B, T, W]."""
        asked = options.pop("output_hidden_states", False)
        shared = {name: value for name, value in options.items() if name not in ("output_attentions", "return_dict")}
        output = self._backbone(inputs, {**options, "return_dict": True, "output_hidden_states": True})
        hidden_states = output.hidden_states
        if not asked:
            output = type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        past = output.past_key_values
        cache = None if past is None else upper_cache(past, len(self.base_layer.block))
        return output, side(hidden_states, past_key_values=cache, **shared, **of_the_side)

    @torch.no_grad()
    def _backbone(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        if self.kept is None or not self.training:
            return self.base_layer(**inputs, **options)
        self.base_layer.eval()
        try:
            return self.kept.states(self.base_layer, inputs, options, lambda: self.base_layer(**inputs, **options))
        finally:
            self.base_layer.train()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError: a network of its own is no change of a weight."""
        raise ValueError("A ladder cannot be merged into the weights of T5; it is served as the adapter that it is.")


class LadderEncoder(LadderStack):
    """The encoder, whose states are followed by those of its side."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode input_ids [B, S] (or inputs_embeds [B, S, H]): states [B, S, H + W]."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        side = self.active()
        if side is None:
            return self.base_layer(**inputs, **kwargs)
        output, states = self.climb(side, inputs, kwargs, attention_mask=attention_mask)
        output.last_hidden_state = torch.cat([output.last_hidden_state, states.to(output.last_hidden_state.dtype)], -1)
        return output


class LadderDecoder(LadderStack):
    """The decoder, to whose last state that of its side is added."""

    def forward(
        self,
        *,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode input_ids [B, T] over encoder_hidden_states [B, S, H + W]: states [B, T, H]."""
        masks = {"attention_mask": attention_mask, "encoder_attention_mask": encoder_attention_mask}
        tokens = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        inputs = {**masks, **tokens, "past_key_values": past_key_values, "use_cache": use_cache}
        side = self.active()
        if side is None:
            return self.base_layer(encoder_hidden_states=encoder_hidden_states, **inputs, **kwargs)
        d_model, width = self.base_layer.config.d_model, side.stack.config.d_model
        if encoder_hidden_states.shape[-1] != d_model + width:
            raise ValueError(
                f"The decoder of a ladder got encoder states of shape {tuple(encoder_hidden_states.shape)}; expected "
                f"[B, S, {d_model + width}] as its own encoder returns them, with the states of the side behind those of "
                "the backbone. Encode with the adapter that decodes."
            )
        encoded, side_encoded = encoder_hidden_states.split([d_model, width], dim=-1)
        output, states = self.climb(
            side,
            {**inputs, "encoder_hidden_states": encoded},
            kwargs,
            **masks,
            encoder_hidden_states=side_encoded.to(side.first.weight.dtype),
        )
        output.last_hidden_state = output.last_hidden_state + side.up(states).to(output.last_hidden_state.dtype)
        return output


def upper_cache(cache: EncoderDecoderCache, depth: int) -> EncoderDecoderCache:
    """The layers of ``cache`` above the backbone's ``depth``, as a cache of their own that shares their storage.

    They are made where they are not there yet, and live in ``cache``: reordering of beams reaches them.
    """
    return EncoderDecoderCache(
        *(_upper(part, depth) for part in (cache.self_attention_cache, cache.cross_attention_cache))
    )


def _upper(cache: Cache, depth: int) -> Cache:
    while len(cache.layers) < 2 * depth:
        like = cache.layers[0]
        if type(like) is DynamicLayer:
            cache.layers.append(DynamicLayer())
        elif type(like) is StaticLayer:
            cache.layers.append(StaticLayer(max_cache_len=like.max_cache_len))
        else:
            raise ValueError(
                f"A ladder cannot generate with a cache of {type(like).__name__}; expected the dynamic cache that "
                'generate makes by itself, cache_implementation="static", or use_cache=False.'
            )
    above = copy(cache)
    above.layers = cache.layers[depth:]
    return above


def narrowed(config: PreTrainedConfig, reduction: int) -> PreTrainedConfig:
    """The config of a side: the backbone's with its widths divided by ``reduction``, and no vocabulary."""
    config = deepcopy(config)
    config.d_model //= reduction
    config.d_ff //= reduction
    config.d_kv = max(1, config.d_kv // reduction)
    config.vocab_size = 1
    return config


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A map of T5's own start: outputs of about the size of its inputs."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


class LadderTuner(OwnTuner):
    """Puts the two tuner layers around the stacks."""

    prefix = "t5ladder"
    tuner_layer_cls = LadderStack

    def _create_and_replace(
        self,
        peft_config: LadderConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, LadderStack):
            layer = target
        else:
            layer = LadderDecoder(target) if target.is_decoder else LadderEncoder(target)
            setattr(parent, target_name, layer)
        backbone = layer.base_layer
        side = Side(backbone, peft_config.reduction).train(backbone.training)
        layer.t5ladder[adapter_name] = to_device_unless_meta(side, backbone.device)


def ladder_wrap(model: PreTrainedModel, *, reduction: int = 8) -> PeftModel:
    """Wrap ``model`` for Ladder Side-Tuning, in place.

    Args:
        model: a T5 with a decoder.
        reduction: by what the side is narrower than the backbone.

    Raises:
        ValueError: for a wrapped model, an encoder alone, or a reduction that leaves nothing.
    """
    ensure_unwrapped(model)
    if not model.config.is_encoder_decoder:
        raise ValueError(f"A ladder ends in the decoder, and {type(model).__name__} has none; take another method.")
    narrowest = min(model.config.d_model, model.config.d_ff)
    if not 1 <= reduction <= narrowest:
        raise ValueError(f"Got reduction={reduction}; expected a whole number from 1 to {narrowest}.")
    return wrap(model, LadderConfig(reduction=reduction))


@contextmanager
def cached_activations(model: nn.Module, limit_bytes: int) -> Iterator[Activations]:
    """Inside the block, what the frozen backbone of a ladder computes in training is computed once an example.

    Args:
        model: wrapped by ``ladder_wrap``, in or outside DistributedDataParallel.
        limit_bytes: of main memory; an example takes (layers + 1) * d_model * 4 bytes a token, source and target.

    Raises:
        ValueError: for a model without a ladder.
    """
    stacks = [module for module in model.modules() if isinstance(module, LadderStack)]
    if not stacks:
        raise ValueError(
            f"Got activation_cache_bytes={limit_bytes} for a model without a ladder; other methods change what the backbone "
            "computes, or need its graph. Take ladder_wrap, or leave activation_cache_bytes at 0."
        )
    kept = Activations(limit_bytes)
    for stack in stacks:
        stack.kept = kept
    try:
        yield kept
    finally:
        for stack in stacks:
            stack.kept = None


register("t5_ladder", LadderConfig, LadderTuner)
