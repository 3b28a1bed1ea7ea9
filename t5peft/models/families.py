"""The families of T5 that are served, with the names of their parts, their shapes, and what a family cannot have.

T5, T5 v1.1, Flan-T5, ByT5 and CodeT5 are of the model type ``t5``; mT5, umT5, LongT5, T5Gemma and T5Gemma 2 have types of their
own. Whatever differs by family is asked of its row here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import reduce
from typing import Any, Literal, cast

Feature = Literal[
    "ladder", "prefix", "kernels", "CTranslate2", "baked prompts", "prompts in ONNX", "class heads in ONNX", "new tokens",
    "encoders",
]  # fmt: skip
"""A feature that not every family can have."""


@dataclass(frozen=True)
class StackShape:
    """The sizes of an encoder or a decoder."""

    d_model: int
    d_ff: int
    d_kv: int
    heads: int
    key_heads: int
    """Heads of keys and values, fewer than those of queries where these share them."""
    layers: int


@dataclass(frozen=True)
class Family:
    """Names in the modules and configs of transformers, by which the parts of a T5 are found."""

    model_type: str
    class_prefix: str
    """Prefix of the classes: ``T5Attention``, ``MT5LayerNorm``."""
    name: str = ""
    """The name in errors; the prefix of the classes where it is empty."""
    attention: tuple[str, str, str, str] = ("q", "k", "v", "o")
    """Linear maps of an attention: query, key, value and output."""
    self_attention: tuple[str, ...] = ("SelfAttention",)
    cross_attention: tuple[str, ...] = ("EncDecAttention",)
    """Empty where the decoder looks at itself and at the encoder in one attention, ``self_attention``."""
    feed_forward: str = "DenseReluDense"
    """The feed-forward of a layer, gated or not."""
    ungated: tuple[str, ...] = ("wi", "wo")
    """Linear maps of a feed-forward that is not gated (T5 v1.0), the output last; empty where all are gated."""
    gated: tuple[str, ...] = ("wi_0", "wi_1", "wo")
    """Linear maps of a gated feed-forward (T5 v1.1 and what descends from it), the output last."""
    norms: tuple[str, ...] = ("layer_norm",)
    """The norms in a layer."""
    final_norm: str = "final_layer_norm"
    norm_offset: float = 0.0
    """A norm multiplies by its weight plus this."""
    norm_epsilon: str = "variance_epsilon"
    """The attribute of a norm that is added to the mean of the squares."""
    layers: str = "block"
    """The list of the layers of a stack."""
    head: str = "lm_head"
    """The linear map to the vocabulary."""
    class_heads: Mapping[str, str] = field(default_factory=dict)
    """Names of heads of classes and of token classes, by those of T5, where they differ."""
    class_reads_last_token: bool = False
    """Whether a head of classes reads the state after the last token of the source, which a full row has no column for."""
    scales_untied_head: bool = False
    """Whether transformers scales the logits of a head as if it were tied, unless the config says that it is not."""
    head_is_always_tied: bool = False
    """Whether no checkpoint has a head with weights of its own."""
    head_reads_decoder_table: bool = False
    """Whether a tied head has the table of the decoder, which is not that of the encoder."""
    configs: tuple[str, str] = ("", "")
    """Paths to the configs of encoder and decoder in the config of the model; empty where all is in one."""
    sizes: tuple[str, str, str, str, str] = ("d_model", "d_ff", "d_kv", "num_heads", "num_heads")
    """Names in a config of the fields of ``StackShape``, without the layers."""
    depths: tuple[str, str] = ("num_layers", "num_decoder_layers")
    """Names in the configs of the numbers of layers of encoder and decoder."""
    positions: Literal["relative bias", "rotary"] = "relative bias"
    untuned: tuple[str, ...] = ()
    """Parts of the model beside its text stacks, which no method changes."""
    scores_are_capped: bool = False
    """Whether a config may ask for a softcap of the logits."""
    lacks: Mapping[Feature, str] = field(default_factory=dict)
    """The features that the family cannot have, with the reasons."""

    @property
    def title(self) -> str:
        """The name of the family in texts."""
        return self.name or self.class_prefix

    @property
    def default_targets(self) -> tuple[str, str]:
        """The linear maps that LoRA changes where none are named: query and value."""
        return self.attention[0], self.attention[2]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of prefixes."""
        return ("encoder", "decoder", "cross") if self.cross_attention else ("encoder", "decoder")

    def feed_forward_maps(self, config: Any) -> tuple[str, ...]:
        """Return the names of the linear maps in the feed-forward of a T5 with ``config``."""
        return self.gated if not self.ungated or config.is_gated_act else self.ungated

    def is_tuned(self, name: str) -> bool:
        """Return whether the module or parameter ``name`` belongs to the text stacks, which methods may change."""
        return not set(self.untuned) & set(name.split("."))

    def stack_configs(self, config: Any) -> tuple[Any, Any]:
        """Return the configs of encoder and decoder in ``config``."""
        encoder, decoder = (reduce(getattr, path.split("."), config) if path else config for path in self.configs)
        return encoder, decoder

    def stacks(self, config: Any) -> tuple[StackShape, StackShape]:
        """Return the shapes of encoder and decoder of a T5 with ``config``."""
        encoder, decoder = (
            StackShape(*(int(getattr(stack, name)) for name in (*self.sizes, depth)))
            for stack, depth in zip(self.stack_configs(config), self.depths, strict=True)
        )
        return encoder, decoder

    def stack_of(self, config: Any, name: str) -> StackShape:
        """Return the shape of the stack that holds the module ``name``."""
        return self.stacks(config)["decoder" in name.split(".")]

    def sliding_window(self, config: Any) -> int | None:
        """Return how many tokens the sliding attentions of the decoder see; None where there are none."""
        return getattr(self.stack_configs(config)[1], "sliding_window", None)

    def with_layers(self, config: Any, encoder: int, decoder: int) -> Any:
        """Return a copy of ``config`` with so many layers."""
        copied = copy.deepcopy(config)
        for stack, name, depth in zip(self.stack_configs(copied), self.depths, (encoder, decoder), strict=True):
            setattr(stack, name, depth)
        return copied

    def identity(self, config: Any) -> list[str]:
        """Return what tells the geometry of a T5 with ``config`` from others, as texts."""
        if self.configs == ("", ""):
            names = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "feed_forward_proj")
            return [str(getattr(config, name)) for name in names]
        return [str(size) for stack in self.stacks(config) for size in astuple(stack)]

    def has_tied_head(self, config: Any) -> bool:
        """Return whether the head of a T5 with ``config`` has the weights of a table, as the checkpoint had them.

        transformers marks every T5 as tied. T5 keeps what its ``config.json`` said as the scale of the output, and mT5 and the like
        lose it.
        """
        if self.configs != ("", "") or self.head_is_always_tied:
            return bool(config.tie_word_embeddings)
        return bool(getattr(config, "scale_decoder_outputs", not config.is_gated_act))

    def facts_of_parts(self, config: Any) -> dict[str, Any]:
        """Return fields that ``config`` should have and keeps in the config of its decoder."""
        decoder = self.stack_configs(config)[1]
        if decoder is config:
            return {}
        return {"vocab_size": decoder.vocab_size, "decoder_start_token_id": decoder.bos_token_id}

    def attention_setting(self, name: str) -> str | dict[str, Any]:
        """Return the argument of ``set_attn_implementation`` that gives the text stacks the function ``name``."""
        if self.configs == ("", ""):
            return name
        settings: dict[str, Any] = {}
        for path in self.configs:
            first, *rest = path.split(".")
            settings[first] = reduce(lambda inner, key: {key: inner}, reversed(rest), cast(Any, name))
        return settings


_NO_LADDER = "its side network would be a smaller copy of stacks of another kind"
_NO_KERNELS = "the kernels compute the relative position bias of T5"
_NO_BAKED = "a prompt is exported as rows of the table and a relative position bias, as T5 has them"

_GEMMA_LACKS: dict[Feature, str] = {
    "ladder": _NO_LADDER,
    "kernels": _NO_KERNELS,
    "CTranslate2": "CTranslate2 leaves out the softcaps and the windows of its layers",
    "baked prompts": _NO_BAKED,
    "encoders": "its heads in transformers read the decoder",
}
_T5GEMMA = Family(
    "t5gemma",
    "T5Gemma",
    attention=("q_proj", "k_proj", "v_proj", "o_proj"),
    self_attention=("self_attn",),
    cross_attention=("cross_attn",),
    feed_forward="mlp",
    ungated=(),
    gated=("gate_proj", "up_proj", "down_proj"),
    norms=tuple(
        f"{place}_{part}_layernorm" for part in ("self_attn", "feedforward", "cross_attn") for place in ("pre", "post")
    ),
    final_norm="norm",
    norm_offset=1.0,
    norm_epsilon="eps",
    layers="layers",
    head="lm_head.out_proj",
    class_heads={"classification_head": "score", "classifier": "score"},
    class_reads_last_token=True,
    head_reads_decoder_table=True,
    configs=("encoder", "decoder"),
    sizes=("hidden_size", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads"),
    depths=("num_hidden_layers", "num_hidden_layers"),
    positions="rotary",
    scores_are_capped=True,
    lacks={**_GEMMA_LACKS, "new tokens": "its tables of encoder and decoder differ"},
)
_LONGT5 = Family(
    "longt5",
    "LongT5",
    self_attention=("SelfAttention", "LocalSelfAttention", "TransientGlobalSelfAttention"),
    norms=("layer_norm", "global_input_layer_norm"),
    head_is_always_tied=True,
    lacks={
        "prefix": "its encoder attends within blocks, which have no place before the sequence",
        "ladder": _NO_LADDER,
        "kernels": "the kernels compute an attention over whole rows, and its encoder attends within blocks",
        "CTranslate2": "CTranslate2 has no such model",
        "baked prompts": _NO_BAKED,
        "encoders": "transformers has no heads for its encoder",
    },
)

FAMILIES = {
    family.model_type: family
    for family in (
        Family("t5", "T5"),
        Family("mt5", "MT5", name="mT5"),
        Family("umt5", "UMT5", name="umT5", scales_untied_head=True),
        _LONGT5,
        _T5GEMMA,
        replace(
            _T5GEMMA,
            model_type="t5gemma2",
            class_prefix="T5Gemma2",
            name="T5Gemma 2",
            cross_attention=(),
            norms=(*_T5GEMMA.norms[:4], "q_norm", "k_norm"),
            head_reads_decoder_table=False,
            configs=("encoder.text_config", "decoder"),
            untuned=("vision_tower", "multi_modal_projector", "eoi_embedding"),
            lacks={
                **_GEMMA_LACKS,
                "CTranslate2": "CTranslate2 generates other answers and cannot score given ones",
                "prompts in ONNX": "its table writes the embedding of the end of an image at places that a graph does not keep",
                "class heads in ONNX": "the mask of its decoder needs an operator that ONNX lacks",
                "new tokens": "its tables also hold the embedding of the end of an image",
            },
        ),
    )
}
"""The family of each model type that is served."""


def names_pattern(*parts: Callable[[Family], str | tuple[str, ...]]) -> str:
    """Return a regular expression of the names that ``parts`` have in the families.

    The config of an adapter finds its modules by it, without the model at hand.

    Args:
        parts: Functions from a family to a name, to several, or to paths of names with dots between them.

    Returns:
        The one name, or the alternatives in brackets.
    """
    found = (part(family) for part in parts for family in FAMILIES.values())
    names = list(dict.fromkeys(re.escape(name) for one in found for name in ((one,) if isinstance(one, str) else one)))
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def modules_pattern(path: str) -> str:
    """Return a regular expression of the modules of the text stacks whose path matches the expression ``path``."""
    return rf"(?!(.*\.)?{names_pattern(lambda family: family.untuned)}(\.|$)){path}"


def untuned_pattern(family: Family) -> str | None:
    """Return a regular expression of the modules that no method changes; None where there are none."""
    return rf"(.*\.)?({'|'.join(family.untuned)})(\..*)?" if family.untuned else None


def family_of(config: Any) -> Family:
    """Return the family of a T5 with ``config``.

    Raises:
        ValueError: The model type is not one of ``FAMILIES``.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"Got a model of type {config.model_type!r}; expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[config.model_type]


def ensure_has(config: Any, feature: Feature, what: str, instead: str) -> None:
    """Refuse ``feature`` for a family that cannot have it.

    Args:
        config: The config of the model.
        feature: What is asked for.
        what: The name of it in the error.
        instead: What to do, a sentence.

    Raises:
        ValueError: The family lacks it.
    """
    family = family_of(config)
    if feature in family.lacks:
        served = ", ".join(row.title for row in FAMILIES.values() if feature not in row.lacks)
        raise ValueError(
            f"Got a {family.title} for {what}, which it cannot have, as {family.lacks[feature]}; expected one of {served}. "
            f"{instead}"
        )
