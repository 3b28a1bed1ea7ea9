"""Prefix tuning (Li and Liang 2021, https://aclanthology.org/2021.acl-long.353) for T5, as published.

Every attention of the encoder, of the decoder, and from the decoder to the encoder gets P trained keys and values of its own,
which stand before those of the sequence:

    attention(q, [prefix_key; k], [prefix_value; v])

The prefix has no position: its columns get a relative position bias of zero, and no mask. A prefix of zeros is therefore not
the identity, because a key of zeros takes its share of the softmax. Wrapping changes the model, as it does in the paper.

With ``projection_size`` the keys and values of one site (encoder, decoder, cross) come from one small network,
``projection(tanh(linear(embedding)))``, as in section 4.3 of the paper. It is saved, so training can go on. ``collapse`` replaces
it by its output for serving.

Differs from the paper: without the network the prefix starts from the keys and values that the backbone computes for given or
random tokens (their section 7.4). T5 does not scale its attention scores, and a random key of the wrong size stalls.

Letters: B batch, Q queries, P prefix length, N heads, D d_kv, H d_model, M hidden size of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import product
from numbers import Integral
from typing import Any, Literal, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from t5peft.compat.peft import register
from t5peft.deprecated import renamed_arguments
from t5peft.methods.base import (
    AdapterConfig,
    AdapterLayer,
    AdapterTuner,
    ensure_fits,
    raise_if_problems,
    read_size,
    wrap,
)
from t5peft.models.encoders import has_decoder
from t5peft.models.families import Family, ensure_has, family_of, modules_pattern, names_pattern
from t5peft.models.unwrap import ensure_unwrapped, evaluation_mode, unwrap_t5
from t5peft.nn.attention import KNOW_PREFIXES, use_attention

Site = Literal["encoder", "decoder", "cross"]
SITES: tuple[Site, ...] = ("encoder", "decoder", "cross")


@dataclass
class PrefixConfig(AdapterConfig):
    """The length P of the prefix, its sites, and the hidden size M of the network that makes it (None: no network)."""

    length: int = 20
    sites: list[str] = field(default_factory=lambda: list(SITES))
    projection_size: int | None = None
    reparametrise: InitVar[int | None] = None
    """The name of ``projection_size`` in the files of version 0.1."""

    def __post_init__(self, reparametrise: int | None) -> None:
        """Target the attentions of the sites."""
        super().__post_init__()
        if reparametrise is not None:
            self.projection_size = reparametrise
        self.set_targets("t5_prefix", "|".join(f"({_attentions(site)})" for site in self.sites))


def _attentions(site: str) -> str:
    """Return a pattern of the attentions of a site."""
    if site == "cross":
        return modules_pattern(rf".*\.{names_pattern(lambda family: family.cross_attention)}")
    return modules_pattern(rf"(.*\.)?{site}\..*\.{names_pattern(lambda family: family.self_attention)}")


class Prefix(nn.Module):
    """Keys and values of one attention: ``forward() -> key [N, P, D], value [N, P, D]``."""

    def __init__(self, heads: int, length: int, d_kv: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, length, d_kv).normal_(std=d_kv**-0.5))
        self.value = nn.Parameter(torch.empty(heads, length, d_kv).normal_(std=d_kv**-0.5))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return keys [N, P, D] and values [N, P, D]."""
        return self.key, self.value


class Trunk(nn.Module):
    """The part of the network that the attentions of one site share: ``forward() -> hidden [P, M]``."""

    def __init__(self, length: int, d_model: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, d_model).normal_())
        self.linear = nn.Linear(d_model, hidden_size)

    def forward(self) -> Tensor:
        """Return hidden states [P, M]."""
        return torch.tanh(self.linear(self.embedding))


class ReparametrizedPrefix(nn.Module):
    """Keys and values of one attention as a projection of the trunk of the site, which the first attention of a site owns."""

    def __init__(self, heads: int, d_kv: int, trunk: Trunk, owns_trunk: bool) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(trunk.linear.out_features, 2 * heads * d_kv)
        if owns_trunk:
            self.trunk = trunk
        # In a list, so that the trunk is a part of one module only and is saved once.
        self._shared = [trunk]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return keys [N, P, D] and values [N, P, D]."""
        projected = self.projection(self._shared[0]()).chunk(2, dim=-1)
        key, value = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in projected)
        return key, value


class PrefixLayer(AdapterLayer):
    """An attention of T5 that hands the active prefixes to the attention function."""

    adapter_layer_names = ("t5prefix",)
    kind = "prefix"
    site: Site
    """Set by the tuner, which knows the place of the attention."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attend over hidden_states [B, Q, H] with the prefix before the keys and values."""
        names = self.active_adapters_here()
        if not names:
            return self.base_layer(hidden_states, *args, **kwargs)
        implementation = cast(PreTrainedConfig, self.base_layer.config)._attn_implementation
        if implementation not in KNOW_PREFIXES:
            raise RuntimeError(
                f"Got the attention {implementation!r}, which ignores prefixes; expected {KNOW_PREFIXES[0]!r}. Call "
                f"model.set_attn_implementation({KNOW_PREFIXES[0]!r})."
            )
        keys, values = zip(*(self.adapters[name]() for name in names), strict=True)
        prefix = tuple(torch.cat(parts, dim=1).expand(hidden_states.shape[0], -1, -1, -1) for parts in (keys, values))
        return self.base_layer(hidden_states, *args, prefix=prefix, **kwargs)


class PrefixTuner(AdapterTuner[PrefixLayer, PrefixConfig]):
    """The tuner that puts a ``PrefixLayer`` around every attention of the chosen sites."""

    prefix = "t5prefix"
    tuner_layer_cls: type[AdapterLayer] = PrefixLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self._trunks: dict[tuple[str, Site], Trunk] = {}

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        use_attention(cast(PreTrainedModel, model))

    def new_adapter(self, layer: PrefixLayer, config: PrefixConfig, adapter_name: str) -> nn.Module:
        """Return a random prefix, or one that the network of the site makes."""
        family = family_of(self.model.config)
        layer.site = site_of(self.current_key, family)
        encoder, decoder = family.stacks(self.model.config)
        shape = encoder if layer.site == "encoder" else decoder
        heads, d_kv = shape.key_heads, shape.d_kv
        if config.projection_size is None:
            return Prefix(heads, config.length, d_kv)
        shared = (adapter_name, layer.site)
        owns_trunk = shared not in self._trunks
        if owns_trunk:
            self._trunks[shared] = Trunk(config.length, shape.d_model, config.projection_size)
        return ReparametrizedPrefix(heads, d_kv, self._trunks[shared], owns_trunk)


def weights_of_prefix(model: PreTrainedModel, sites: Sequence[str]) -> int:
    """Return the keys and values of one token in all attentions of ``sites``."""
    encoder, decoder = family_of(model.config).stacks(model.config)
    stacks = [encoder if site == "encoder" else decoder for site in sites if site == "encoder" or has_decoder(model)]
    return sum(2 * stack.layers * stack.key_heads * stack.d_kv for stack in stacks)


@renamed_arguments(reparametrise="projection_size")
def prefix_wrap(
    model: PreTrainedModel,
    *,
    length: int = 20,
    sites: Sequence[Site] | None = None,
    projection_size: int | None = None,
    initial_ids: Sequence[int] | None = None,
) -> PeftModel:
    """Wrap ``model`` for prefix tuning, in place.

    Args:
        model: A T5 of any size.
        length: P, the number of keys and values prepended in each attention layer.
        sites: The attention types that get a prefix; None for all of the model. T5Gemma 2 has no "cross", because its decoder
            attends to itself and to the encoder in one layer.
        projection_size: The hidden size M of the network that generates the prefix; 512 to 800 in the paper. None: train the keys
            and values directly.
        initial_ids: Token IDs whose keys and values initialize the prefix, repeated up to ``length``; None for random tokens. A
            source of the task gave a lower loss than random tokens (benchmarks/RESULTS.md), as in the paper. With
            ``projection_size``, the prefix is initialized randomly, as in the paper.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, a site is unknown, a size is below one, token IDs are outside the vocabulary, or
            both ``projection_size`` and ``initial_ids`` are given.
    """
    ensure_unwrapped(model)
    ensure_has(model.config, "prefix", "a prefix", "Take another method, such as prompt_wrap or lora_wrap.")
    problems: list[str] = []
    length = read_size("length", length, problems)
    own_sites = family_of(model.config).sites
    sites = cast(Sequence[Site], own_sites) if sites is None else sites
    if projection_size is not None:
        projection_size = read_size("projection_size", projection_size, problems)
    if (
        isinstance(sites, str)
        or not isinstance(sites, Sequence)
        or not sites
        or any(site not in own_sites for site in sites)
    ):
        problems.append(f"sites={sites!r}; expected a list of one or more of {', '.join(own_sites)}")
    if initial_ids is not None:
        initial_ids = read_ids(model, initial_ids, problems)
        if projection_size is not None:
            problems.append(
                "both projection_size and initial_ids; expected one of them, as the network starts at random"
            )
    raise_if_problems(problems)
    per_token = weights_of_prefix(model, sites)
    if projection_size is None:
        ensure_fits(model, length=(length, per_token))
    else:
        ensure_fits(model, projection_size=(projection_size, per_token))
    wrapped = wrap(model, PrefixConfig(length=length, sites=list(sites), projection_size=projection_size))
    if projection_size is None:
        start_prefix(wrapped, initial_ids)
    return wrapped


def start_prefix(model: PeftModel, initial_ids: Sequence[int] | None = None) -> None:
    """Initialize the active prefix as ``prefix_wrap`` does, in place. A prefix of ``model.add_adapter`` starts at random.

        model.add_adapter("second", PrefixConfig(length=20))
        model.set_adapter("second")
        start_prefix(model, train[0]["input_ids"][:-1])

    Args:
        model: A model whose active adapter is a prefix.
        initial_ids: As in ``prefix_wrap``.

    Raises:
        ValueError: For an active adapter that is not a prefix, or one with a ``projection_size``, which starts at random, and for
            token ids outside the vocabulary.
    """
    config = model.active_peft_config
    if not isinstance(config, PrefixConfig) or config.projection_size is not None:
        kind = "prefix with a projection_size" if isinstance(config, PrefixConfig) else str(config.peft_type.value)
        raise ValueError(
            f"Got the active adapter {model.active_adapter!r}, which is a {kind}; expected a prefix of keys and values. Call "
            "model.set_adapter(name)."
        )
    t5, problems = unwrap_t5(model), list[str]()
    ids = None if initial_ids is None else read_ids(t5, initial_ids, problems)
    raise_if_problems(problems)
    _start_from_activations(model, _ids_of_length(t5, config.length, ids))


def collapse(model: PeftModel) -> PeftModel:
    """Replace the network of every prefix by the keys and values that it makes, in place.

    The outputs stay the same, and the file of the adapter shrinks to the prefix.

    Args:
        model: A model with prefixes.

    Returns:
        The model.
    """
    with torch.no_grad():
        for layer in _layers(model):
            for name, prefix in layer.adapters.items():
                if isinstance(prefix, ReparametrizedPrefix):
                    key, value = prefix()
                    heads, length, d_kv = key.shape
                    plain = Prefix(heads, length, d_kv).to(key.device)
                    plain.key.copy_(key)
                    plain.value.copy_(value)
                    layer.adapters[name] = plain.requires_grad_(prefix.projection.weight.requires_grad)
    for config in model.peft_config.values():
        if isinstance(config, PrefixConfig):
            config.projection_size = None
    return model


def read_ids(model: PreTrainedModel, ids: object, problems: list[str]) -> list[int]:
    """Return token ids as a list, or add to ``problems`` what is wrong with them."""
    vocabulary = model.config.vocab_size
    found = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else []
    if not found:
        problems.append(f"initial_ids={ids!r}; expected one or more token ids, or None for random ones")
    elif wrong := [one for one in found if not _is_id(one, vocabulary)]:
        problems.append(f"the initial_ids {wrong[:5]}; expected integers from 0 to {vocabulary - 1}")
    else:
        return [int(one) for one in found]
    return []


def _is_id(value: object, vocabulary: int) -> bool:
    is_integer = isinstance(value, Integral) or (isinstance(value, Tensor) and not value.dtype.is_floating_point)
    return is_integer and not isinstance(value, bool) and 0 <= int(cast(int, value)) < vocabulary


def _ids_of_length(model: PreTrainedModel, length: int, given: Sequence[int] | None) -> Tensor:
    """Return token ids [P]: those given, repeated, or random ones without the lowest, which are special."""
    if given is None:
        return torch.randint(min(100, model.config.vocab_size // 2), model.config.vocab_size, (length,))
    return torch.tensor([given[i % len(given)] for i in range(length)])


@torch.no_grad()
def _start_from_activations(model: PeftModel, ids: Tensor) -> None:
    """Set each prefix to the keys and values that the backbone computes for ``ids`` [P], before they get a position."""
    t5 = unwrap_t5(model)
    family = family_of(t5.config)
    made: dict[tuple[nn.Module, str], Tensor] = {}
    batch = {"input_ids": ids[None].to(t5.device)}
    if has_decoder(t5):
        batch["decoder_input_ids"] = batch["input_ids"]

    def keep(key: tuple[nn.Module, str], _module: nn.Module, _inputs: object, output: Tensor) -> None:
        # In T5Gemma 2 a map is called for the states of the decoder first, and then for those of the encoder.
        made.setdefault(key, output)  # not returned: what a hook returns takes the place of the output

    with model.disable_adapter(), evaluation_mode(t5), ExitStack() as hooks:
        for layer, part in product(_layers(model), family.attention[1:3]):
            hook = partial(keep, (layer, part))
            hooks.enter_context(layer.base_layer.get_submodule(part).register_forward_hook(hook))
        # The model below a classification head, which wants an end token in every row.
        t5.base_model(**batch)
    for layer in _layers(model):
        if model.active_adapter not in layer.adapters:  # A site of another prefix only.
            continue
        prefix = cast(Prefix, layer.adapters[model.active_adapter])
        for part, parameter in zip(family.attention[1:3], (prefix.key, prefix.value), strict=True):
            states = made[layer, part][0].unflatten(-1, (parameter.shape[0], -1)).transpose(0, 1)
            if parameter is prefix.key and "k_norm" in family.norms:
                states = layer.base_layer.get_submodule("k_norm")(states)
            parameter.copy_(states)


def site_of(name: str, family: Family) -> Site:
    """Return the site of the attention ``name`` of a T5 of ``family``."""
    *path, own = name.split(".")
    return "cross" if own in family.cross_attention else "decoder" if "decoder" in path else "encoder"


def _layers(model: nn.Module) -> list[PrefixLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]


register("t5_prefix", PrefixConfig, PrefixTuner)
