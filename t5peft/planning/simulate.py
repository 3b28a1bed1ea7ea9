"""Simulate a training step without its memory: compute only shapes, and count the bytes that would live.

The model is built from its configuration on torch's "meta" device, whose tensors hold no values. One forward and backward pass
runs through the very code that trains (wrap, attention, loss, checkpointing), and a dispatch mode adds every new storage and
subtracts every freed one. So nothing about the architecture
or a method is known here twice, and a backbone of 11 billion weights takes as little memory as a small one.

What it cannot see: scratch space inside a kernel, the allocator's rounding, the libraries themselves.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel

from t5peft.models.backbone import Quantization
from t5peft.models.encoders import encoder_class, has_decoder
from t5peft.models.families import family_of
from t5peft.models.quantized import kept_maps
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn import attention, grouped_attention
from t5peft.nn.fast import fast_kernels
from t5peft.nn.loss import CHUNK_ELEMENTS, target_loss
from t5peft.planning.live_bytes import LiveBytes

_aten = torch.ops.aten


class _QuantizedProduct(torch.autograd.Function):
    """A product of bitsandbytes: it makes the full weight for a moment, and keeps its input in 8 bits without our kernel."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, out_features: int, keeps_input: bool) -> Tensor:
        """States [.., in] times the weight -> [.., out]."""
        ctx.weight, ctx.shape, ctx.dtype = weight, (out_features, states.shape[-1]), states.dtype
        ctx.states = states if keeps_input else None
        return states @ weight.new_empty(ctx.shape, dtype=states.dtype).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.weight.new_empty(ctx.shape, dtype=ctx.dtype), None, None, None


class _QuantizedLinear(nn.Linear):
    """A stand-in for a linear map of bitsandbytes, with its bytes."""

    def __init__(self, linear: nn.Linear, quantize: Quantization, keeps_input: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, dtype=torch.bfloat16)
        self.keeps_input, self.full_dtype = keeps_input, linear.weight.dtype
        cells = linear.in_features * linear.out_features
        # int8: a byte a weight and a float a row; nf4: half a byte, and a byte and a bit a block of 64
        nbytes = cells + 4 * linear.out_features if quantize == "int8" else cells // 2 + cells // 64 + cells // 64 // 64
        self.weight = nn.Parameter(torch.empty(nbytes, dtype=torch.int8), requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """States [.., in] -> [.., out]."""
        return _QuantizedProduct.apply(states, self.weight, self.out_features, self.keeps_input)

    @property
    def W_q(self) -> Tensor:
        """The weight, by the name that peft looks for before it calls ``dequantize``, as its DoRA does."""
        return self.weight

    def dequantize(self) -> Tensor:
        """Return the full weight ``[out, in]``."""
        return self.weight.new_empty((self.out_features, self.in_features), dtype=self.full_dtype)


def _quantize(model: PreTrainedModel, quantize: Quantization, keeps_input: bool) -> None:
    kept = set(kept_maps(family_of(model.config)))
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not kept & {*path.split("."), name}:
                setattr(parent, name, _QuantizedLinear(child, quantize, keeps_input))
    model.is_quantized = True  # type: ignore[assignment]  # torch types a module's attributes as its parts


MARGIN = 1.1
"""The memory that a run is given, beside its planned peak."""


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one optimizer step, by what holds them.

    ``optimizer_bytes`` (AdamW: two numbers a weight, in the weight's dtype) belong to the trained weights.
    ``activations_bytes`` is what a forward pass keeps for its backward; ``peak_bytes`` is the most that lives at one moment of
    the second and later steps, everything together.
    """

    weights_bytes: int
    adapter_bytes: int
    trainable_parameters: int
    optimizer_bytes: int
    activations_bytes: int
    peak_bytes: int

    @property
    def held_bytes(self) -> int:
        """The bytes of weights, adapter and optimizer, whatever the batch."""
        return self.weights_bytes + self.adapter_bytes + self.optimizer_bytes

    @property
    def needed_bytes(self) -> int:
        """The memory to have for the step: measured peaks are up to 9 % above the plan (benchmarks/RESULTS.md)."""
        return math.ceil(self.peak_bytes * MARGIN)

    @property
    def transient_bytes(self) -> int:
        """The bytes at the peak beyond weights, adapter, optimizer and activations: loss, gradients, one layer's work."""
        return max(0, self.peak_bytes - self.held_bytes - self.activations_bytes)


@dataclass(frozen=True)
class StepShape:
    """A training step of ``accumulation`` micro-batches, ``[batch, source_tokens]`` to ``[batch, target_tokens]`` each.

    Args:
        batch: Rows of a micro-batch.
        source_tokens: S, padding included.
        target_tokens: T, padding included.
        quantize: As ``load_backbone`` takes it.
        dtype: That of the weights that are not quantized.
        checkpointing: Gradient checkpointing.
        accumulation: Micro-batches of a step. From the second on, gradients exist while activations are kept.
        device: "cpu" or "cuda"; kernels differ in what they keep.
        fast_kernels: As in the training arguments; those of this library are for the CPU.
    """

    batch: int
    source_tokens: int
    target_tokens: int
    quantize: Quantization | None = None
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    accumulation: int = 1
    device: str = "cpu"
    fast_kernels: bool = True


Wrap = Callable[[PreTrainedModel], nn.Module]
"""A method's wrap with its options."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """Inside, the collector of cycles does not run: it would take a fifth of the time, and tensors are freed without it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collector()
def simulate_step(config: PretrainedConfig, wrap: Wrap, shape: StepShape) -> StepBytes:
    """Count the bytes of one step of a T5 with ``config``.

    The layers of a stack are alike, so each one adds the same bytes. Of a deep model a few layers are simulated, and one more of
    each stack, which stands for all the others.
    """
    family = family_of(config)
    encoder, decoder = (stack.layers for stack in family.stacks(config))
    if max(encoder, decoder) <= SIMULATED_LAYERS + 1:
        return _simulate(config, wrap, shape)
    few, less = min(encoder, SIMULATED_LAYERS), min(decoder, SIMULATED_LAYERS)
    base = _simulate(family.with_layers(config, few, less), wrap, shape)
    total = astuple(base)
    for more, depths in ((encoder - few, (few + 1, less)), (decoder - less, (few, less + 1))):
        if more:
            deeper = astuple(_simulate(family.with_layers(config, *depths), wrap, shape))
            total = tuple(t + more * (d - b) for t, d, b in zip(total, deeper, astuple(base), strict=True))
    return StepBytes(*total)


SIMULATED_LAYERS = 3
"""Layers of a stack that are simulated: the first, the last, and one between them."""


def _wrapped(config: PretrainedConfig, wrap: Wrap, shape: StepShape) -> _Model:
    """Return a model without values, and the bytes of its backbone; the same one for other batches of the same job."""
    key = None
    if isinstance(wrap, partial):
        options = (wrap.func, repr(wrap.keywords), config.to_json_string(use_diff=False), type(config))
        key = (*options, shape.quantize, shape.dtype, shape.checkpointing, shape.device, shape.fast_kernels)
    if key is None or key not in _MODELS:
        model = _made(config, wrap, shape)
        if key is None:
            return model
        if len(_MODELS) == _MOST_MODELS:
            _MODELS.clear()
        _MODELS[key] = model
    return _MODELS[key]


_Model = tuple[nn.Module, int]
_MODELS: dict[Any, _Model] = {}
_MOST_MODELS = 16


def _made(config: PretrainedConfig, wrap: Wrap, shape: StepShape) -> _Model:
    ours = shape.fast_kernels and shape.device == "cpu"
    with torch.device("meta"):
        model = _model(config, shape.dtype)
        if shape.quantize is not None:
            _quantize(model, shape.quantize, keeps_input=shape.quantize == "int8" and not ours)
        weights_bytes = _bytes_of(list(model.parameters()))
        wrapped = wrap(model).train()
        if shape.checkpointing:
            unwrap_t5(wrapped).activation_checkpointing_enable({"use_reentrant": False})
    return wrapped, weights_bytes


def _simulate(config: PretrainedConfig, wrap: Wrap, shape: StepShape) -> StepBytes:
    ours = shape.fast_kernels and shape.device == "cpu"
    wrapped, weights_bytes = _wrapped(config, wrap, shape)
    wrapped.zero_grad()
    with torch.device("meta"):
        inputs = _batch(shape.batch, shape.source_tokens, shape.target_tokens)
    parameters = list(wrapped.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    meter = LiveBytes()
    for tensor in [*parameters, *wrapped.buffers(), *inputs.values()]:
        meter.count(tensor)
    with fast_kernels(wrapped) if ours else nullcontext(), torch.device("meta"), _kernels_of(shape.device), meter:
        if shape.accumulation > 1:  # the second micro-batch, which meets the gradients of the first
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        activations_bytes = _pass(wrapped, inputs, meter)
    optimizer_bytes = 2 * _bytes_of(trained)
    return StepBytes(
        weights_bytes=weights_bytes,
        adapter_bytes=_bytes_of(parameters) - weights_bytes,
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        optimizer_bytes=optimizer_bytes,
        activations_bytes=activations_bytes,
        peak_bytes=meter.peak_bytes + optimizer_bytes,
    )


def _pass(model: nn.Module, inputs: dict[str, Tensor], meter: LiveBytes) -> int:
    """Run one micro-batch; return the bytes that the forward pass kept."""
    before = meter.live_bytes
    loss = _loss_of_pairs(model, inputs) if not has_decoder(unwrap_t5(model)) else target_loss(model, inputs)[0]
    kept = meter.live_bytes - before
    loss.backward()
    return kept


def _loss_of_pairs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return a loss [] of the embeddings of sources and targets, as of an encoder that is trained on pairs."""
    sources, targets = (
        model(input_ids=inputs[name], attention_mask=torch.ones_like(inputs[name])).pooler_output
        for name in ("input_ids", "labels")
    )
    return (sources @ targets.T).logsumexp(-1).sum()


def _model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    if any("EncoderModel" in kind for kind in config.architectures or ()):
        return encoder_class("embedding", config.model_type)(copy.deepcopy(config)).to(dtype)
    model = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config), dtype=dtype)  # what follows writes into it
    if not family_of(config).has_tied_head(config):
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        model.config.tie_word_embeddings = False
    return model


def _batch(batch: int, source_tokens: int, target_tokens: int) -> dict[str, Tensor]:
    source = torch.ones(batch, source_tokens, dtype=torch.long)
    target = torch.ones(batch, target_tokens, dtype=torch.long)
    return {
        "input_ids": source,
        "attention_mask": source.clone(),
        "decoder_input_ids": target,
        "labels": target.clone(),
    }


def _bytes_of(parameters: list[nn.Parameter]) -> int:
    return sum({id(parameter): parameter.nbytes for parameter in parameters}.values())


_plain_attention = nn.functional.scaled_dot_product_attention


def _attention_on(
    device: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    """Stand in for the kernel of a device. It keeps no scores [B, N, T, S], but on a CPU with dropout or a bias that learns."""
    if device != "cpu":  # a bias and dropout may be there too
        bias = attn_mask if attn_mask is None else attn_mask.expand(*query.shape[:3], key.shape[2])
        found = _aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, dropout_p, is_causal, scale=scale
        )
    elif dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    else:
        found = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    return found[0]


@contextmanager
def _kernels_of(device: str) -> Iterator[None]:
    """Inside, tensors without memory are computed as on ``device``: the size of a chunk of logits, and the attention's kernel."""
    chunk = CHUNK_ELEMENTS["cpu"]
    holders: list[Any] = [nn.functional, attention, grouped_attention]
    CHUNK_ELEMENTS["cpu"] = CHUNK_ELEMENTS[device]
    for module in holders:
        module.scaled_dot_product_attention = partial(_attention_on, device)
    try:
        yield
    finally:
        CHUNK_ELEMENTS["cpu"] = chunk
        for module in holders:
            module.scaled_dot_product_attention = _plain_attention
