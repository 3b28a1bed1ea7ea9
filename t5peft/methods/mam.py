"""Mix-and-match adapters (MAM; He et al. 2022, https://openreview.net/forum?id=0RDcd5Axok): two methods on one backbone.

Every attention gets a short prefix (``prefix.py``), and every feed-forward a parallel adapter beside it (``bottleneck.py``). The
paper finds that a prefix is worth most where it is small, and that the feed-forward makes better use of more weights. The prefix
changes the model when it is wrapped; the parallel adapter starts as zero.

Differs from the paper as its two parts do: the prefix starts from keys and values of a text, and the adapter starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.methods.base import AdapterLayer, ensure_fits, raise_if_problems, read_size, wrap
from t5peft.methods.bottleneck import (
    Activation,
    Bottleneck,
    BottleneckConfig,
    BottleneckLayer,
    weights_of_bottlenecks,
    width_of,
)
from t5peft.methods.prefix import PrefixConfig, PrefixLayer, PrefixTuner, read_ids, start_prefix, weights_of_prefix
from t5peft.models.families import ensure_has, family_of
from t5peft.models.unwrap import ensure_unwrapped


@dataclass
class MamConfig(PrefixConfig):
    """The length P of the prefix, and the size M and activation of the parallel adapter."""

    length: int = 30
    size: int = 64
    activation: Activation = "relu"

    def __post_init__(self, reparametrise: int | None) -> None:
        """Target the attentions and the feed-forwards."""
        super().__post_init__(reparametrise)
        self.set_targets("t5_mam", f"{self.target_modules}|({BottleneckConfig(placement='parallel').target_modules})")


class MamLayer(AdapterLayer):
    """A module of T5 with one of the two parts."""

    adapter_layer_names = ("t5mam",)
    kind = "prefix with a parallel adapter"


class MamPrefixLayer(MamLayer, PrefixLayer):
    """An attention with a prefix."""


class MamBottleneckLayer(MamLayer, BottleneckLayer):
    """A feed-forward with a parallel adapter."""


class MamTuner(PrefixTuner):
    """The tuner that puts a layer around every attention and every feed-forward."""

    prefix = "t5mam"
    tuner_layer_cls = MamLayer

    def new_layer(self, target: nn.Module) -> AdapterLayer:
        """Return a layer around an attention or a feed-forward."""
        is_attention = hasattr(target, family_of(self.model.config).attention[0])
        return MamPrefixLayer(target) if is_attention else MamBottleneckLayer(target)

    def new_adapter(self, layer: AdapterLayer, config: PrefixConfig, adapter_name: str) -> nn.Module:
        """Return a random prefix, or a bottleneck that adds zero."""
        if isinstance(layer, PrefixLayer):
            return super().new_adapter(layer, config, adapter_name)
        own = cast(MamConfig, config)
        return Bottleneck(
            width_of(layer.base_layer, family_of(self.model.config)), own.size, own.activation, is_parallel=True
        )


def mam_wrap(
    model: PreTrainedModel, *, length: int = 30, size: int = 64, initial_ids: Sequence[int] | None = None
) -> PeftModel:
    """Wrap ``model`` with a prefix and parallel adapters (mix-and-match), in place.

    Args:
        model: A T5.
        length: P, the number of keys and values prepended in each attention layer; 30 in the paper.
        size: M, the width of the adapter beside each feed-forward.
        initial_ids: Token IDs whose keys and values initialize the prefix, as in ``prefix_wrap``.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, a size is below one, or token IDs are outside the vocabulary.
    """
    ensure_unwrapped(model)
    ensure_has(
        model.config,
        "prefix",
        "a mam adapter, which has a prefix",
        "Take bottleneck_wrap.",
    )
    problems: list[str] = []
    length, size = read_size("length", length, problems), read_size("size", size, problems)
    if initial_ids is not None:
        initial_ids = read_ids(model, initial_ids, problems)
    raise_if_problems(problems)
    per_token = weights_of_prefix(model, family_of(model.config).sites)
    ensure_fits(model, length=(length, per_token), size=(size, weights_of_bottlenecks(model)))
    wrapped = wrap(model, MamConfig(length=length, size=size))
    start_prefix(wrapped, initial_ids)
    return wrapped


register("t5_mam", MamConfig, MamTuner)
