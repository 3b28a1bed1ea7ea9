"""The families of T5 that are served, and the names of their parts.

T5, T5 v1.1, Flan-T5, ByT5 and CodeT5 are of the model type ``t5``; mT5 and umT5 have types of their own. Methods find the modules
that they change by this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Names in the modules of transformers, by which the parts of a T5 are found."""

    model_type: str
    class_prefix: str
    """Prefix of the classes: ``T5Attention``, ``MT5LayerNorm``."""
    attention: tuple[str, str, str, str] = ("q", "k", "v", "o")
    """Linear maps of an attention: query, key, value and output."""
    self_attention: str = "SelfAttention"
    cross_attention: str = "EncDecAttention"
    feed_forward: str = "DenseReluDense"
    """The feed-forward of a layer, gated or not."""
    ungated: tuple[str, ...] = ("wi", "wo")
    """Linear maps of a feed-forward that is not gated (T5 v1.0), the output last."""
    gated: tuple[str, ...] = ("wi_0", "wi_1", "wo")
    """Linear maps of a gated feed-forward (T5 v1.1 and what descends from it), the output last."""
    norm: str = "layer_norm"
    """The norm before an attention or a feed-forward."""
    final_norm: str = "final_layer_norm"
    head: str = "lm_head"
    scales_untied_head: bool = False
    """Whether transformers scales the logits of a head as if it were tied, unless the config says that it is not."""

    def feed_forward_maps(self, config: Any) -> tuple[str, ...]:
        """Return the names of the linear maps in the feed-forward of a T5 with ``config``."""
        return self.gated if config.is_gated_act else self.ungated


FAMILIES = {
    family.model_type: family
    for family in (Family("t5", "T5"), Family("mt5", "MT5"), Family("umt5", "UMT5", scales_untied_head=True))
}
"""The family of each model type that is served."""


def names_pattern(*parts: Callable[[Family], str]) -> str:
    """Return a regular expression of the names that ``parts`` have in the families.

    The config of an adapter finds its modules by it, without the model at hand.

    Args:
        parts: Functions from a family to a name, or to a path of names with dots between them.

    Returns:
        The one name, or the alternatives in brackets.
    """
    names = list(dict.fromkeys(re.escape(part(family)) for part in parts for family in FAMILIES.values()))
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def family_of(config: Any) -> Family:
    """Return the family of a T5 with ``config``.

    Raises:
        ValueError: The model type is not one of ``FAMILIES``.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"Got a model of type {config.model_type!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[config.model_type]
