"""Prefix tuning (Li and Liang 2021, https://aclanthology.org/2021.acl-long.353) for T5, as published.

Every attention of the encoder, of the decoder, and from the decoder to the encoder gets P trained keys and values of its own,
which stand before those of the sequence:

    attention(q, [prefix_key; k], [prefix_value; v])

The prefix has no position: its columns get a relative position bias of zero, and no mask. A prefix of zeros is therefore not
the identity, as a key of zeros takes its share of the softmax; wrapping changes the model, as it does in the paper.

With ``projection_size`` the keys and values of one site (encoder, decoder, cross) come from one small network,
``projection(tanh(linear(embedding)))``, as in section 4.3 of the paper. It is saved, and so can be trained on;
:func:`collapse` replaces it by its output for serving.

Differs from the paper: without reparametrisation the prefix starts from the keys and values that the backbone itself makes
of given or random tokens (their section 7.4), because T5 does not scale its attention scores and a random
key of the wrong size stalls.

Letters: B batch, P prefix length, N heads, D d_kv, H d_model, M hidden size of the reparametrisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import register
from t5peft.deprecated import renamed_arguments
from t5peft.methods.base import OwnTuner, to_device_unless_meta
from t5peft.methods.wrapping import wrap
from t5peft.models.unwrap import ensure_unwrapped, unwrap_t5
from t5peft.nn.attention import NAME, use_attention

Site = Literal["encoder", "decoder", "cross"]
SITES: tuple[Site, ...] = ("encoder", "decoder", "cross")

# What the attention of a site is called, from the end of the module's name.
_TARGETS = {
    "encoder": r"(.*\.)?encoder\..*\.SelfAttention",
    "decoder": r"(.*\.)?decoder\..*\.SelfAttention",
    "cross": r".*\.EncDecAttention",
}


@dataclass
class PrefixConfig(PeftConfig):
    """Length P of the prefix, its sites, and the hidden size M of its reparametrisation (None: none)."""

    length: int = 20
    sites: list[str] = field(default_factory=lambda: list(SITES))
    projection_size: int | None = None
    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Name the attentions of the sites for peft."""
        super().__post_init__()
        self.peft_type = PeftType("T5_PREFIX")
        self.target_modules = "|".join(f"({_TARGETS[site]})" for site in self.sites)


class Prefix(nn.Module):
    """Keys and values of one attention: ``forward() -> key [N, P, D], value [N, P, D]``."""

    def __init__(self, heads: int, length: int, d_kv: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, length, d_kv).normal_(std=d_kv**-0.5))
        self.value = nn.Parameter(torch.empty(heads, length, d_kv).normal_(std=d_kv**-0.5))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys [N, P, D] and values [N, P, D]."""
        return self.key, self.value


class Trunk(nn.Module):
    """What the attentions of one site share: ``forward() -> hidden [P, M]``."""

    def __init__(self, length: int, d_model: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(length, d_model).normal_())
        self.linear = nn.Linear(d_model, hidden_size)

    def forward(self) -> Tensor:
        """Hidden states [P, M]."""
        return torch.tanh(self.linear(self.embedding))


class ReparametrizedPrefix(nn.Module):
    """Keys and values of one attention as a projection of the site's trunk; the first attention of a site owns the trunk."""

    def __init__(self, heads: int, d_kv: int, trunk: Trunk, owns_trunk: bool) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(trunk.linear.out_features, 2 * heads * d_kv)
        if owns_trunk:
            self.trunk = trunk
        # In a list, so that the trunk is a part of one module alone and is saved once.
        self._shared = [trunk]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys [N, P, D] and values [N, P, D]."""
        key, value = self.projection(self._shared[0]()).chunk(2, dim=-1)
        return (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in (key, value))  # type: ignore[return-value]


class PrefixLayer(nn.Module, BaseTunerLayer):
    """An attention of T5 that passes the active prefixes down to the attention function."""

    adapter_layer_names = ("t5prefix",)
    base_layer: Any
    t5prefix: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.t5prefix = nn.ModuleDict()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention over hidden_states [B, Q, H] with the prefix before its keys and values."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.t5prefix]
        if not names:
            return self.base_layer(hidden_states, *args, **kwargs)
        implementation = self.base_layer.config._attn_implementation
        if implementation != NAME:
            raise RuntimeError(
                f"The attention of this model was set to {implementation!r}, which ignores prefixes; prefix tuning "
                f"needs model.set_attn_implementation({NAME!r})."
            )
        keys, values = zip(*(self.t5prefix[name]() for name in names), strict=True)
        prefix = tuple(torch.cat(parts, dim=1).expand(hidden_states.shape[0], -1, -1, -1) for parts in (keys, values))
        return self.base_layer(hidden_states, *args, prefix=prefix, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError: keys and values that depend on no input are no change of a weight."""
        raise ValueError("A prefix cannot be merged into the weights of T5; collapse() makes it as small as it gets.")


class PrefixTuner(OwnTuner):
    """Puts a :class:`PrefixLayer` around every attention of the chosen sites."""

    prefix = "t5prefix"
    tuner_layer_cls = PrefixLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self._trunks: dict[tuple[str, Site], Trunk] = {}

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        use_attention(model)

    def _create_and_replace(
        self,
        peft_config: PrefixConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        layer = target if isinstance(target, PrefixLayer) else PrefixLayer(target)
        attention = layer.get_base_layer()
        heads, d_kv = attention.n_heads, attention.key_value_proj_dim
        if peft_config.projection_size is None:
            prefix: nn.Module = Prefix(heads, peft_config.length, d_kv)
        else:
            shared = (adapter_name, site_of(attention))
            owns_trunk = shared not in self._trunks
            if owns_trunk:
                self._trunks[shared] = Trunk(peft_config.length, attention.d_model, peft_config.projection_size)
            prefix = ReparametrizedPrefix(heads, d_kv, self._trunks[shared], owns_trunk)
        layer.t5prefix[adapter_name] = to_device_unless_meta(prefix, attention.q.weight.device)
        if layer is not target:
            setattr(parent, target_name, layer)


def site_of(attention: nn.Module) -> Site:
    """The site of an attention of T5."""
    if not attention.is_decoder:
        return "encoder"
    return "decoder" if attention.is_causal else "cross"


@renamed_arguments(reparametrise="projection_size")
def prefix_wrap(
    model: PreTrainedModel,
    *,
    length: int = 20,
    sites: Sequence[Site] = SITES,
    projection_size: int | None = None,
    initial_ids: Sequence[int] | None = None,
) -> PeftModel:
    """Wrap ``model`` for prefix tuning, in place.

    Args:
        model: a T5 of any geometry.
        length: P, the number of keys and values before each attention.
        sites: which attentions get a prefix.
        projection_size: hidden size M of the network that makes the prefix (the paper has 512 to 800); None: the
            keys and values are trained themselves.
        initial_ids: token ids whose keys and values the prefix starts from, repeated up to ``length``. Those of one of the
            task's sources gave a lower loss than random ones (benchmarks/RESULTS.md), as in the paper; None: random ones.
            A reparametrised prefix starts at random, as there.

    Raises:
        ValueError: for a wrapped model, an unknown site, a length below one, or both ``projection_size`` and ``initial_ids``.
    """
    ensure_unwrapped(model)
    unknown = [site for site in sites if site not in SITES]
    if unknown or not sites:
        raise ValueError(f"Got the sites {sites!r}; expected a list of one or more of {', '.join(SITES)}.")
    if length < 1 or (projection_size is not None and projection_size < 1):
        raise ValueError(
            f"Got length={length} and projection_size={projection_size}; expected whole numbers of at least 1."
        )
    if projection_size is not None and initial_ids is not None:
        raise ValueError(
            "Got projection_size and initial_ids; a reparametrised prefix starts at random: leave one out."
        )
    wrapped = wrap(model, PrefixConfig(length=length, sites=list(sites), projection_size=projection_size))
    if projection_size is None:
        start_prefix(wrapped, initial_ids)
    return wrapped


def start_prefix(model: PeftModel, initial_ids: Sequence[int] | None = None) -> None:
    """Let the active prefix start as :func:`prefix_wrap` lets it, in place: what ``model.add_adapter`` adds starts at random.

        model.add_adapter("second", PrefixConfig(length=20))
        model.set_adapter("second")
        start_prefix(model, train[0]["input_ids"][:-1])

    Raises:
        ValueError: the active adapter is no prefix, or a reparametrised one, which starts at random; ``initial_ids`` is empty.
    """
    config = model.active_peft_config
    if not isinstance(config, PrefixConfig) or config.projection_size is not None:
        kind = "reparametrised prefix" if isinstance(config, PrefixConfig) else str(config.peft_type.value)
        raise ValueError(
            f"The active adapter {model.active_adapter!r} is a {kind}; expected a prefix of keys and values."
        )
    _start_from_activations(model, _ids(unwrap_t5(model), config.length, initial_ids))


def collapse(model: PeftModel) -> PeftModel:
    """Replace the reparametrisation of every adapter by the keys and values it makes, in place.

    The outputs stay the same; the adapter's file shrinks to the prefix itself.
    """
    with torch.no_grad():
        for layer in _layers(model):
            for name, prefix in layer.t5prefix.items():
                key, value = prefix()
                plain = Prefix(*key.shape).to(key.device)
                plain.key.copy_(key)
                plain.value.copy_(value)
                layer.t5prefix[name] = (
                    plain.requires_grad_(prefix.projection.weight.requires_grad)
                    if isinstance(prefix, ReparametrizedPrefix)
                    else prefix
                )
    for config in model.peft_config.values():
        config.projection_size = None
    return model


def _ids(model: PreTrainedModel, length: int, given: Sequence[int] | None) -> Tensor:
    """Token ids [P]: those given, repeated, or random ones without the lowest, which are special."""
    if given is None:
        return torch.randint(min(100, model.config.vocab_size // 2), model.config.vocab_size, (length,))
    if not given:
        raise ValueError("initial_ids is empty; expected at least one token id, or None for random ones.")
    return torch.tensor([given[i % len(given)] for i in range(length)])


@torch.no_grad()
def _start_from_activations(model: PeftModel, ids: Tensor) -> None:
    """Set each prefix to the keys and values that the backbone makes of ``ids`` [P]."""
    t5 = unwrap_t5(model)
    training = t5.training
    made: dict[tuple[nn.Module, str], Tensor] = {}
    batch = {"input_ids": ids[None].to(t5.device)}
    if t5.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    with model.disable_adapter(), _recorded(model, lambda layer, part, output: made.update({(layer, part): output})):
        # Below a classification head, which wants an end token in every row.
        t5.eval().base_model(**batch)
    t5.train(training)
    for layer in _layers(model):
        if model.active_adapter not in layer.t5prefix:  # the site of another prefix alone
            continue
        prefix = layer.t5prefix[model.active_adapter]
        for part, parameter in (("k", prefix.key), ("v", prefix.value)):
            parameter.copy_(made[layer, part][0].unflatten(-1, (parameter.shape[0], -1)).transpose(0, 1))


@contextmanager
def _recorded(model: nn.Module, record: Callable[[PrefixLayer, str, Tensor], None]) -> Iterator[None]:
    """Call ``record`` with what the key and value maps of every wrapped attention return."""
    handles = [
        getattr(layer.get_base_layer(), part).register_forward_hook(
            lambda _module, _inputs, output, layer=layer, part=part: record(layer, part, output)
        )
        for layer in _layers(model)
        for part in ("k", "v")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module) -> list[PrefixLayer]:
    return [module for module in model.modules() if isinstance(module, PrefixLayer)]


register("t5_prefix", PrefixConfig, PrefixTuner)
