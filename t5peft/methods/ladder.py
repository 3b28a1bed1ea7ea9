"""Ladder Side-Tuning (Sung et al. 2022, https://arxiv.org/abs/2206.06522) for T5, encoder and decoder.

A small T5, the side network, stands beside the frozen one. It has d_model, d_kv and d_ff divided by a reduction, and as many layers
and heads. Before each of its layers i it reads the states of the backbone after the backbone's layer i, through a learned gate:

    s = g_i * s + (1 - g_i) * down_i(h_i),    g_i = sigmoid(a_i / 0.1)

The decoder of the side network looks at its own encoder. The last state is projected up to d_model and goes through the frozen head
of the backbone. The backbone runs without a graph: no backward pass goes through it, and none of its activations is kept, which is
the point of the method. Its states of an example can be cached over epochs (``cached_activations``, or ``activation_cache_bytes``
of the trainer).

Two tuner layers do it, around the stacks. The side network is a stack of transformers with another config, so masks, position
biases, caches, packing and checkpointing are those of transformers. The encoder's side states travel behind those of the backbone,
as [B, S, H + W], and the side network's keys and values lie in the cache of the backbone, as further layers. So ``generate`` needs
no special case.

Differs from the paper: the result of the side network is added to the last state of the backbone, from a projection of zeros, so
wrapping changes nothing. In the paper it replaces that state, and the side network starts from pruned weights of the backbone. Here
a ladder reads states divided by their root mean square, as those of T5 grow by orders of magnitude over the layers.

Not served: trained tokens or anything else inside the backbone, as no gradient reaches it, and encoders without a decoder.

Letters: B batch, S source tokens, T target tokens, H d_model, W d_model of the side network, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache, StaticLayer

from t5peft.compat.peft import register
from t5peft.methods.activation_cache import Activations
from t5peft.methods.base import AdapterConfig, AdapterTuner, StackLayer, read_size, wrap
from t5peft.models.encoders import has_decoder
from t5peft.models.families import ensure_has
from t5peft.models.unwrap import ensure_unwrapped, evaluation_mode

GATE_TEMPERATURE = 0.1


@dataclass
class LadderConfig(AdapterConfig):
    """The factor by which the side network is narrower than the backbone."""

    reduction: int = 8

    def __post_init__(self) -> None:
        """Target the two stacks."""
        super().__post_init__()
        self.set_targets("t5_ladder", r"(.*\.)?(encoder|decoder)")


class GatedBlock(nn.Module):
    """A layer of the side network behind the gate through which it reads the backbone."""

    def __init__(self, block: nn.Module, index: int, d_model: int, width: int) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self.down = _linear(d_model, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor, *args: Any, backbone_states: list[Tensor], **kwargs: Any) -> Any:
        """Run the layer.

        Shapes:
            states: [B, T, W].
            backbone_states: [B, T, H], after each layer of the backbone.
        """
        gate = torch.sigmoid(self.gate / GATE_TEMPERATURE)
        return self.block(gate * states + (1 - gate) * self.down(backbone_states[self.index]), *args, **kwargs)


class SideStack(nn.Module):
    """The small stack beside one of the backbone: ``forward(hidden_states) -> [B, T, W]``."""

    def __init__(self, backbone: PreTrainedModel, reduction: int) -> None:
        super().__init__()
        config = side_config(backbone.config, reduction)
        self.first = _linear(backbone.config.d_model, config.d_model)
        self.stack = type(backbone)(config)
        self.stack.register_module("embed_tokens", None)
        self.stack.block = nn.ModuleList(
            GatedBlock(block, index, backbone.config.d_model, config.d_model)
            for index, block in enumerate(cast(nn.ModuleList, self.stack.block))
        )
        if backbone.config.is_decoder:
            self.up = nn.Linear(config.d_model, backbone.config.d_model, bias=False)
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden_states: tuple[Tensor, ...], **kwargs: Any) -> Tensor:
        """Run along the hidden_states of the backbone, L + 1 of [B, T, H]: the embeddings, and the states after each layer."""
        dtype, epsilon = self.first.weight.dtype, self.stack.config.layer_norm_epsilon
        first, *states = (rms_norm(one.to(dtype), one.shape[-1:], eps=epsilon) for one in hidden_states)
        output = self.stack(inputs_embeds=self.first(first), backbone_states=states, use_cache=False, **kwargs)
        return cast(Tensor, output.last_hidden_state)


class LadderStack(StackLayer):
    """A stack of the backbone and the side stacks beside it."""

    adapter_layer_names = ("t5ladder",)
    kind = "ladder"

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.cache: Activations | None = None

    @property
    def reads_target_lengths(self) -> bool:
        """Whether ``forward`` takes ``target_lengths``, by which targets are cached without padding."""
        return self.cache is not None and self.training

    def active_side(self) -> SideStack | None:
        """Return the side stack of the active adapter. Raises ValueError for several."""
        names = self.active_adapters_here()
        if len(names) > 1:
            raise ValueError(
                f"Got the ladders {names} at once; expected one. Activate one of them by model.set_adapter(name)."
            )
        return cast(SideStack, self.adapters[names[0]]) if names else None

    def run_both(
        self,
        side: SideStack,
        inputs: dict[str, Any],
        options: dict[str, Any],
        target_lengths: Sequence[int] | None = None,
        **side_inputs: Any,
    ) -> tuple[Any, Tensor]:
        """Return the output of the backbone for ``inputs``, run without a graph, and the side states [B, T, W]."""
        wants_states = options.pop("output_hidden_states", False)
        shared = {name: value for name, value in options.items() if name not in ("output_attentions", "return_dict")}
        output = self._run_backbone(inputs, {**options, "return_dict": True}, target_lengths)
        hidden_states = output.hidden_states
        if not wants_states:
            output = type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
        past = output.past_key_values
        cache = None if past is None else side_cache(past, len(cast(nn.ModuleList, self.base_layer.block)))
        return output, side(hidden_states, past_key_values=cache, **shared, **side_inputs)

    @torch.no_grad()
    def _run_backbone(
        self, inputs: dict[str, Any], options: dict[str, Any], target_lengths: Sequence[int] | None
    ) -> Any:
        backbone = self.base_layer

        def run() -> Any:
            states: list[Tensor] = []
            # output_hidden_states of transformers would leave hooks behind with which a model cannot be pickled.
            with ExitStack() as hooks:
                for layer in cast(nn.ModuleList, backbone.block):
                    hooks.enter_context(layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])))
                output = backbone(**inputs, **options)
            output.hidden_states = (*states, output.last_hidden_state)
            return output

        if self.cache is None or not self.training:
            return run()
        with evaluation_mode(backbone):
            return self.cache.states(backbone, inputs, options, run, target_lengths)


class LadderEncoder(LadderStack):
    """The encoder, whose states are followed by those of its side stack."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        target_lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode.

        Shapes:
            input_ids: [B, S].
            inputs_embeds: [B, S, H], in place of input_ids.
            Output: States [B, S, H + W].
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        side = self.active_side()
        if side is None:
            return self.base_layer(**inputs, **kwargs)
        output, states = self.run_both(side, inputs, kwargs, attention_mask=attention_mask)
        output.last_hidden_state = torch.cat([output.last_hidden_state, states.to(output.last_hidden_state.dtype)], -1)
        return output


class LadderDecoder(LadderStack):
    """The decoder, to whose last state that of its side stack is added."""

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
        target_lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode.

        Shapes:
            input_ids: [B, T].
            encoder_hidden_states: [B, S, H + W].
            Output: States [B, T, H].
        """
        masks = {"attention_mask": attention_mask, "encoder_attention_mask": encoder_attention_mask}
        tokens = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        inputs = {**masks, **tokens, "past_key_values": past_key_values, "use_cache": use_cache}
        side = self.active_side()
        if side is None:
            return self.base_layer(encoder_hidden_states=encoder_hidden_states, **inputs, **kwargs)
        d_model, width = self.base_layer.config.d_model, side.stack.config.d_model
        if encoder_hidden_states.shape[-1] != d_model + width:
            raise ValueError(
                f"Got encoder states of shape {tuple(encoder_hidden_states.shape)} for the decoder of a ladder; expected "
                f"[B, S, {d_model + width}] as its own encoder returns them, with the side states behind those of the backbone. "
                "Encode with the adapter that decodes."
            )
        encoded, side_encoded = encoder_hidden_states.split([d_model, width], dim=-1)
        output, states = self.run_both(
            side,
            {**inputs, "encoder_hidden_states": encoded},
            kwargs,
            target_lengths,
            **masks,
            encoder_hidden_states=side_encoded.to(side.first.weight.dtype),
        )
        output.last_hidden_state = output.last_hidden_state + side.up(states).to(output.last_hidden_state.dtype)
        return output


def side_cache(cache: EncoderDecoderCache, depth: int) -> EncoderDecoderCache:
    """Return the layers of ``cache`` above those of the backbone, as a cache that shares their storage.

    Layers that are missing are made. All of them live in ``cache``, so reordering of beams reaches them.

    Args:
        cache: The cache of the backbone.
        depth: The number of layers of the backbone.

    Raises:
        ValueError: For a cache that is neither dynamic nor static.
    """
    return EncoderDecoderCache(
        *(_upper_layers(part, depth) for part in (cache.self_attention_cache, cache.cross_attention_cache))
    )


def _upper_layers(cache: Cache, depth: int) -> Cache:
    while len(cache.layers) < 2 * depth:
        like = cache.layers[0]
        if type(like) is DynamicLayer:
            cache.layers.append(DynamicLayer())
        elif type(like) is StaticLayer:
            cache.layers.append(StaticLayer(max_cache_len=like.max_cache_len))
        else:
            raise ValueError(
                f"Got a cache of {type(like).__name__}; expected the dynamic cache that generate makes by default, "
                'cache_implementation="static", or use_cache=False. A ladder cannot generate with any other.'
            )
    above = copy(cache)
    above.layers = cache.layers[depth:]
    return above


def side_config(config: PreTrainedConfig, reduction: int) -> PreTrainedConfig:
    """Return the config of a side stack: that of the backbone with widths divided by ``reduction``, and no vocabulary."""
    config = deepcopy(config)
    config.d_model //= reduction
    config.d_ff //= reduction
    config.d_kv = max(1, config.d_kv // reduction)
    config.vocab_size = 1
    return config


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a map initialized as those of T5: outputs of about the size of its inputs."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


class LadderTuner(AdapterTuner[LadderStack, LadderConfig]):
    """The tuner that puts the two layers around the stacks."""

    prefix = "t5ladder"
    tuner_layer_cls = LadderStack

    def new_layer(self, target: nn.Module) -> LadderStack:
        """Return a layer around the encoder or the decoder."""
        is_decoder = cast(PreTrainedModel, target).config.is_decoder
        return LadderDecoder(target) if is_decoder else LadderEncoder(target)

    def new_adapter(self, layer: LadderStack, config: LadderConfig, adapter_name: str) -> nn.Module:
        """Return a side stack that adds zero."""
        return SideStack(layer.base_layer, config.reduction).train(layer.base_layer.training)


def ladder_wrap(model: PreTrainedModel, *, reduction: int = 8) -> PeftModel:
    """Wrap ``model`` for Ladder Side-Tuning, in place.

    Args:
        model: A T5 with a decoder.
        reduction: The factor by which the side network is narrower than the backbone.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped or has no decoder, or the reduction leaves no dimensions.
    """
    ensure_unwrapped(model)
    ensure_has(model.config, "ladder", "a ladder", "Take another method, such as lora_wrap.")
    if not has_decoder(model):
        raise ValueError(
            f"Got a {type(model).__name__}; expected a T5 with a decoder, as a ladder ends in the decoder. Take another method."
        )
    narrowest = min(model.config.d_model, model.config.d_ff)
    problems: list[str] = []
    size = read_size("reduction", reduction, problems)
    if problems or size > narrowest:
        raise ValueError(f"Got reduction={reduction!r}; expected an integer from 1 to {narrowest}.")
    return wrap(model, LadderConfig(reduction=size))


@contextmanager
def cached_activations(model: nn.Module, limit_bytes: int) -> Iterator[Activations]:
    """Compute the states of the frozen backbone of a ladder once per example in training, inside the block.

    Args:
        model: A model that ``ladder_wrap`` made, in or outside DistributedDataParallel.
        limit_bytes: Main memory for the states; an example takes (layers + 1) * d_model * 4 bytes per token, source and target.

    Raises:
        ValueError: For a model without a ladder.
    """
    stacks = [module for module in model.modules() if isinstance(module, LadderStack)]
    if not stacks:
        raise ValueError(
            f"Got activation_cache_bytes={limit_bytes} for a model without a ladder; expected one that ladder_wrap made, as other "
            "methods change what the backbone computes, or need its graph. Leave activation_cache_bytes at 0."
        )
    cache = Activations(limit_bytes)
    for stack in stacks:
        stack.cache = cache
    try:
        yield cache
    finally:
        for stack in stacks:
            stack.cache = None


register("t5_ladder", LadderConfig, LadderTuner)
