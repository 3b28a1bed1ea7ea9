"""Adapters as plain tensors, which any row of a batch can be given.

A ``PeftModel`` holds its adapters as modules inside of the backbone, and one set of them is active for the whole batch. Here an
adapter is only what it changes, by the name of the module that it changes. So the backbone stays as it is, and hundreds of adapters
beside it cost their weights and nothing more.

Letters: H d_model, N heads, D d_kv, P length of a prefix or prompt, I inputs, O outputs, R rank, M size of a bottleneck, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import Tensor, nn

from t5peft.compat.peft import adapter_state
from t5peft.methods.bottleneck import Activation


@dataclass(eq=False)
class MapChange:
    """A change of one linear map: ``output_scale * (W (input_scale * x) + B A x)``. None leaves a part out."""

    a: Tensor | None = None
    """[R, I]."""
    b: Tensor | None = None
    """[O, R], with the scale of LoRA in it, the transposed of a contiguous tensor."""
    input_scale: Tensor | None = None
    """[I]."""
    output_scale: Tensor | None = None
    """[O]."""


@dataclass(eq=False)
class BottleneckChange:
    """``y + scale * (up activation(down x))`` at one module, of its input (parallel) or of its output y."""

    down: Tensor
    """[M, H]."""
    down_bias: Tensor
    up: Tensor
    """[H, M], with the scale in it."""
    up_bias: Tensor
    activation: Activation
    is_parallel: bool


@dataclass(eq=False)
class Head:
    """A classification head: a linear map to the classes, in T5 after another one and a tanh."""

    out: Tensor
    """[C, H]."""
    out_bias: Tensor
    dense: Tensor | None = None
    """[H, H]."""
    dense_bias: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """Return logits [B, C] in float32 of states [B, H] at the end token."""
        hidden = states.to(self.out.dtype)
        if self.dense is not None:
            hidden = torch.tanh(nn.functional.linear(hidden, self.dense, self.dense_bias))
        return nn.functional.linear(hidden, self.out, self.out_bias).float()


@dataclass(eq=False)
class AdapterWeights:
    """One adapter in memory. It compares by identity, as the same name may stand for another version later."""

    name: str
    kind: str
    """The method, in lower case, as peft knows it."""
    maps: dict[str, MapChange] = field(default_factory=dict)
    """By the name of a linear map of the T5."""
    norms: dict[str, Tensor] = field(default_factory=dict)
    """Weights [H] by the name of a norm."""
    bottlenecks: dict[str, BottleneckChange] = field(default_factory=dict)
    """By the name of a feed-forward or of the output map of an attention."""
    prefixes: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values [N, P, D] by the name of an attention."""
    prompt: Tensor | None = None
    """[P, H], with the scale of the table in it."""
    head: Head | None = None
    separate: PeftModel | None = None
    """The adapter on a copy of the backbone, where its rows are computed by themselves."""

    @property
    def prompt_length(self) -> int:
        """Return the number of states that the adapter adds to those of a source."""
        return 0 if self.prompt is None else len(self.prompt)

    @property
    def num_bytes(self) -> int:
        """Return the memory of its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self))


Adapters = Sequence[AdapterWeights | None]
"""The adapter of each row; None for the backbone as it is."""


def _tensors(adapter: AdapterWeights) -> Iterator[Tensor]:
    changes = (*adapter.maps.values(), *adapter.bottlenecks.values(), *([adapter.head] if adapter.head else []))
    for change in changes:
        yield from (value for value in vars(change).values() if isinstance(value, Tensor))
    yield from adapter.norms.values()
    for key, value in adapter.prefixes.values():
        yield from (key, value)
    if adapter.prompt is not None:
        yield adapter.prompt
    if adapter.separate is not None:
        yield from adapter_state(adapter.separate, str(adapter.separate.active_adapter)).values()


def module_key(key: str) -> str:
    """Return the name of a tensor from the T5 on; a T5 with a classification head holds its stacks one level deeper."""
    return key.removeprefix("base_model.model.").removeprefix("transformer.")
