"""Reading an adapter as plain tensors, verified against its backbone.

Letters: see ``weights.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.adapters.fingerprint import changes_maps
from t5peft.adapters.load import brings_tokens, ensure_intact, head_options, raise_if_problems
from t5peft.adapters.manifest import backbone_problems, read_config
from t5peft.compat.bitsandbytes import plain_weight
from t5peft.compat.peft import stored_state
from t5peft.methods.bottleneck import PARALLEL_SCALE, BottleneckConfig
from t5peft.methods.mam import MamConfig
from t5peft.methods.norm import NormConfig
from t5peft.methods.prefix import PrefixConfig, site_of
from t5peft.methods.prompt import PromptConfig, scale_of
from t5peft.models.families import Family, family_of
from t5peft.models.manifest import non_finite_names
from t5peft.serving.requests import UnusableAdapterError
from t5peft.serving.separate import is_separate, load_separate
from t5peft.serving.weights import AdapterWeights, BottleneckChange, Head, MapChange, module_key

# Fields of peft's configs that change what an adapter computes, and that are served. Others must have their defaults.
_SERVED_LORA = {"r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}
_SERVED_IA3 = {"target_modules", "feedforward_modules"}
_WITHOUT_EFFECT = {
    # Which modules have an adapter is read from its tensors.
    "layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save",
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    # They say how training starts and runs.
    "lora_dropout", "init_lora_weights", "init_ia3_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "runtime_config", "megatron_core", "ensure_weight_tying",
}  # fmt: skip


def read_adapter(name: str, folder: Path, t5: PreTrainedModel) -> AdapterWeights:
    """Read and verify the adapter in ``folder``.

    Args:
        name: What the adapter is called from now on.
        folder: What ``save_adapter`` or peft saved.
        t5: The backbone that it will be served on, without an adapter.

    Returns:
        Its weights, on the device of the backbone.

    Raises:
        UnusableAdapterError: The adapter is damaged, of another backbone, or of a kind that cannot stand beside others.
        OSError: A file cannot be read.
    """
    config, state = _opened(name, folder, t5)
    reader = _READERS.get(type(config))
    if reader is None and not is_separate(config):
        raise UnusableAdapterError(
            f"Got the adapter {name} with the method {config.peft_type.value.lower()}, which cannot be served with others; "
            f"expected one of {', '.join(sorted(kind.__name__.removesuffix('Config') for kind in _READERS))} or Ladder. Run it "
            "with load_adapter, or export it."
        )
    if brings_tokens(folder):
        raise UnusableAdapterError(
            f"Got the adapter {name}, which adds new tokens; expected one for the tokenizer of the backbone. Run it "
            "with load_saved."
        )
    if broken := non_finite_names(state.items()):
        raise UnusableAdapterError(
            f"Got the adapter {name} with NaN or infinity in {broken[:5]}; expected finite numbers."
        )
    if reader is None or is_separate(config):
        try:
            return AdapterWeights(name, config.peft_type.value.lower(), separate=load_separate(folder, t5))
        except ValueError as error:
            raise UnusableAdapterError(str(error)) from error
    # In the dtype that it was saved in, or that of the backbone where this has more digits.
    tensors = {
        module_key(key): tensor.to(t5.device, torch.promote_types(tensor.dtype, t5.dtype))
        for key, tensor in state.items()
    }
    adapter = AdapterWeights(name, config.peft_type.value.lower(), head=_read_head(tensors, family_of(t5.config)))
    try:
        reader(adapter, cast(Any, config), tensors, t5)
        problems = [*_problems(adapter, t5)]
    except (KeyError, ValueError, RuntimeError, _NotServedError) as error:
        problems = [str(error)]
    problems += [f"the tensor {key} does not belong to the model" for key in tensors][:3]
    if problems:
        raise UnusableAdapterError(
            f"Got the adapter {name}, which does not fit the backbone: {'; '.join(problems)}; expected an adapter as it was saved."
        )
    return adapter


def _opened(name: str, folder: Path, t5: PreTrainedModel) -> tuple[Any, dict[str, Tensor]]:
    """Return the config and the tensors of an adapter of ``t5``."""
    try:
        ensure_intact(folder)
        raw, head = read_config(folder), head_options(folder).get("head")
        if head is None:
            raise_if_problems(folder, backbone_problems(folder, raw.get("base_model_name_or_path"), t5))
        config, state = PeftConfig.from_pretrained(str(folder)), stored_state(folder)
    except OSError:
        raise
    except Exception as error:  # peft raises whatever a wrong value leads to
        raise UnusableAdapterError(str(error)) from error
    if head is not None:
        raise UnusableAdapterError(
            f"Got the adapter {name}, which was trained on an encoder without a decoder (head={head!r}); expected one of a whole "
            "T5. Run it with load_adapter."
        )
    return config, state


def _read_head(tensors: dict[str, Tensor], family: Family) -> Head | None:
    head = family.class_heads.get("classification_head", "classification_head")
    parts = [f"{head}.{part}" for part in ("out_proj.weight", "out_proj.bias", "dense.weight", "dense.bias")]
    parts = parts[: 4 if head == "classification_head" else 2]
    return Head(*(tensors.pop(part) for part in parts)) if all(part in tensors for part in parts) else None


def _take(tensors: dict[str, Tensor], ending: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the names of modules and the tensors under them that are called ``ending``, and take these out."""
    for key in [key for key in tensors if key.endswith(ending)]:
        yield key.removesuffix(ending), tensors.pop(key)


def _read_lora(adapter: AdapterWeights, config: LoraConfig, tensors: dict[str, Tensor], t5: PreTrainedModel) -> None:
    _ensure_served(config, LoraConfig, _SERVED_LORA)
    for name, a in _take(tensors, ".lora_A.weight"):
        rank, b = len(a), tensors.pop(f"{name}.lora_B.weight")
        pattern = config.alpha_pattern or {}  # the first key that the end of the name matches, as peft looks it up
        alpha = pattern.get(get_pattern_key(list(pattern), name), config.lora_alpha)
        scaled = b * (alpha / rank**0.5 if config.use_rslora else alpha / rank)
        change = MapChange(a=a.contiguous(), b=_by_columns(scaled))
        if (magnitude := tensors.pop(f"{name}.lora_magnitude_vector", None)) is not None:
            weight = plain_weight(t5.get_submodule(name)).to(a.dtype)
            change.output_scale = magnitude.flatten() / (weight + scaled @ a).norm(dim=1)
        adapter.maps[name] = change


def _read_adalora(
    adapter: AdapterWeights, config: AdaLoraConfig, tensors: dict[str, Tensor], t5: PreTrainedModel
) -> None:
    for name, a in _take(tensors, ".lora_A"):
        b, sizes = (tensors.pop(f"{name}.lora_{part}") for part in ("B", "E"))
        # peft divides by the rank at the start, also where fewer entries are left
        scaled = b * (config.lora_alpha / (config.init_r + 1e-5))
        adapter.maps[name] = MapChange(a=(sizes * a).contiguous(), b=_by_columns(scaled))


def _by_columns(b: Tensor) -> Tensor:
    """Lay out b [O, R] as the transposed of a contiguous tensor, as the compiled kernel reads it."""
    return b.t().contiguous().t()


def _read_ia3(adapter: AdapterWeights, config: IA3Config, tensors: dict[str, Tensor], t5: PreTrainedModel) -> None:
    _ensure_served(config, IA3Config, _SERVED_IA3)
    for name, scale in _take(tensors, ".ia3_l"):
        # peft stores the scale of inputs as a row and that of outputs as a column.
        part = "input_scale" if scale.shape[0] == 1 else "output_scale"
        adapter.maps[name] = MapChange(**{part: scale.flatten()})


def _read_norm(adapter: AdapterWeights, config: NormConfig, tensors: dict[str, Tensor], t5: PreTrainedModel) -> None:
    offset = family_of(t5.config).norm_offset
    adapter.norms.update({name: weight + offset for name, weight in _take(tensors, ".t5norm.weight")})


def _read_bottleneck(
    adapter: AdapterWeights,
    config: BottleneckConfig | MamConfig,
    tensors: dict[str, Tensor],
    t5: PreTrainedModel,
    part: str = "t5bottleneck",
) -> None:
    is_parallel = isinstance(config, MamConfig) or config.placement == "parallel"
    scale = PARALLEL_SCALE if is_parallel else 1.0
    for name, down in _take(tensors, f".{part}.down.weight"):
        down_bias, up, up_bias = (
            tensors.pop(f"{name}.{part}.{tensor}") for tensor in ("down.bias", "up.weight", "up.bias")
        )
        adapter.bottlenecks[name] = BottleneckChange(
            down, down_bias, up * scale, up_bias * scale, config.activation, is_parallel
        )


def _read_prefix(
    adapter: AdapterWeights, config: PrefixConfig, tensors: dict[str, Tensor], t5: PreTrainedModel
) -> None:
    if config.projection_size is None:
        for name, key in _take(tensors, ".t5prefix.key"):
            adapter.prefixes[name] = (key, tensors.pop(f"{name}.t5prefix.value"))
        return
    family = family_of(t5.config)
    hidden: dict[str, Tensor] = {}  # of the network of each site, which its first attention owns
    for name, embedding in _take(tensors, ".t5prefix.trunk.embedding"):
        weight, bias = (tensors.pop(f"{name}.t5prefix.trunk.linear.{part}") for part in ("weight", "bias"))
        hidden[site_of(name, family)] = torch.tanh(nn.functional.linear(embedding, weight, bias))
    for name, weight in _take(tensors, ".t5prefix.projection.weight"):
        bias, heads = tensors.pop(f"{name}.t5prefix.projection.bias"), family.stack_of(t5.config, name).key_heads
        projected = nn.functional.linear(hidden[site_of(name, family)], weight, bias)
        key, value = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in projected.chunk(2, -1))
        adapter.prefixes[name] = (key.contiguous(), value.contiguous())


def _read_mam(adapter: AdapterWeights, config: MamConfig, tensors: dict[str, Tensor], t5: PreTrainedModel) -> None:
    for name, key in _take(tensors, ".t5mam.key"):
        adapter.prefixes[name] = (key, tensors.pop(f"{name}.t5mam.value"))
    _read_bottleneck(adapter, config, tensors, t5, "t5mam")


def _read_prompt(
    adapter: AdapterWeights, config: PromptConfig, tensors: dict[str, Tensor], t5: PreTrainedModel
) -> None:
    ((_, prompt),) = _take(tensors, "encoder.t5prompt")
    adapter.prompt = prompt * scale_of(t5.get_input_embeddings())


Reader = Callable[[AdapterWeights, Any, dict[str, Tensor], PreTrainedModel], None]
_READERS: dict[type[PeftConfig], Reader] = {
    LoraConfig: _read_lora,
    AdaLoraConfig: _read_adalora,
    IA3Config: _read_ia3,
    NormConfig: _read_norm,
    BottleneckConfig: _read_bottleneck,
    PrefixConfig: _read_prefix,
    PromptConfig: _read_prompt,
    MamConfig: _read_mam,
}


class _NotServedError(Exception):
    """A reason why an adapter cannot share a batch, which is a part of another error."""


def _ensure_served(config: PeftConfig, kind: type[PeftConfig], served: set[str]) -> None:
    """Raise an error for options of peft that change what an adapter computes, and that are not served."""
    plain = kind()
    if changes_maps(config):
        raise _NotServedError(
            "it starts from a part of the weights (PiSSA and the like), which it removes from the backbone"
        )
    wrong = [
        one.name
        for one in fields(config)
        if one.name not in served | _WITHOUT_EFFECT
        and getattr(config, one.name) not in (getattr(plain, one.name, None), None, False, [], {})
    ]
    if wrong:
        raise _NotServedError(f"its config sets {', '.join(wrong)}, which mixed batches do not support")


def _problems(adapter: AdapterWeights, t5: PreTrainedModel) -> Iterator[str]:
    """Yield what in an adapter does not fit the shapes of a backbone."""
    config, family = t5.config, family_of(t5.config)
    modules = dict(t5.named_modules())
    for name, change in adapter.maps.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            yield f"{name} is not a linear layer of the model"
            continue
        inputs, outputs = module.in_features, module.out_features
        for vector, size in ((change.input_scale, inputs), (change.output_scale, outputs)):
            if vector is not None and vector.shape != (size,):
                yield f"{name} has a scale of shape {tuple(vector.shape)}"
        if change.a is not None and change.b is not None:
            rank = len(change.a)
            if change.a.shape != (rank, inputs) or change.b.shape != (outputs, rank):
                yield f"{name} has LoRA of shapes {tuple(change.a.shape)} and {tuple(change.b.shape)}"
    for name, weight in adapter.norms.items():
        if name not in modules or weight.shape != modules[name].weight.shape:
            yield f"{name} has a norm of shape {tuple(weight.shape)}"
    for name, one in adapter.bottlenecks.items():
        size = len(one.down)
        shapes = [tuple(t.shape) for t in (one.down, one.down_bias, one.up, one.up_bias)]
        width = family.stack_of(config, name).d_model
        if name not in modules or shapes != [(size, width), (size,), (width, size), (width,)]:
            yield f"{name} has a bottleneck of shapes {shapes}"
    for name, (key, value) in adapter.prefixes.items():
        stack = family.stack_of(config, name)
        expected = (stack.key_heads, key.shape[1] if key.dim() == 3 else 0, stack.d_kv)
        if name not in modules or key.shape != expected or value.shape != expected:
            yield f"{name} has a prefix of shapes {tuple(key.shape)} and {tuple(value.shape)}"
    if adapter.prompt is not None and adapter.prompt.shape[1:] != (family.stacks(config)[0].d_model,):
        yield f"its prompt has the shape {tuple(adapter.prompt.shape)}"
