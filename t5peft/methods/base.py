"""The base of the tuning methods: of configs, layers and tuners, and the wrap that hands a model to peft.

A method of our own is a config, a layer and a tuner. The config names the modules that get a layer. The layer wraps one such
module, holds one adapter per adapter name, and computes the method. The tuner makes the adapters. ``register`` of
``compat.peft`` makes them known to peft, so that peft's save, load and adapter calls work with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, Generic, SupportsIndex, TypeGuard, TypeVar, cast

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.memory import free_bytes
from t5peft.compat.peft import keep_tying
from t5peft.models.backbone import correct_config, ensure_trainable_dtype, has_untied_head
from t5peft.models.families import FAMILIES, family_of

# The attribute of a model class that holds a head which pretraining did not train, by the peft task of that class.
# None for classes that peft's own loaders would take for others of their task: the adapter then names its class.
_HEADS: dict[str, tuple[str, TaskType | None]] = {
    "ForConditionalGeneration": ("", TaskType.SEQ_2_SEQ_LM),
    "EncoderForSequenceClassification": ("classifier", None),
    "ForSequenceClassification": ("classification_head", TaskType.SEQ_CLS),
    "ForTokenClassification": ("classifier", TaskType.TOKEN_CLS),
    "ForQuestionAnswering": ("qa_outputs", TaskType.QUESTION_ANS),
    "EncoderForEmbedding": ("embedding_projection", None),
    "EncoderModel": ("", None),
}


@dataclass
class AdapterConfig(PeftConfig):
    """The base of our configs. A subclass adds its options and calls ``set_targets`` when it is made."""

    modules_to_save: list[str] | None = None
    target_modules: str | None = None
    exclude_modules: list[str] | None = None

    def set_targets(self, name: str, pattern: str) -> None:
        """Set the name of the method with peft, in lower case, and the pattern of the modules that get a layer."""
        self.peft_type = PeftType(name.upper())
        self.target_modules = pattern


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of T5 with adapters, one per adapter name, in the container that ``adapter_layer_names`` names.

    A layer whose adapters change weights sets ``merges`` and has ``merge`` and ``unmerge``. The others cannot be merged.
    """

    kind: ClassVar[str] = "adapter"
    """The word for the method in errors."""
    merges: ClassVar[bool] = False
    """Whether an adapter is a change of a weight, which can be merged into the backbone."""
    base_layer: nn.Module
    unmerged_weight: Tensor | None = None
    """The weight of the backbone, while an adapter is merged into it."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters = []
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ModuleDict())

    @property
    def adapters(self) -> nn.ModuleDict:
        """The adapters of this layer by name."""
        return cast(nn.ModuleDict, self.get_submodule(self.adapter_layer_names[0]))

    def active_adapters_here(self) -> list[str]:
        """Return the names of the active adapters that this layer holds; none while adapters are disabled."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.adapters]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise ValueError, as the adapters of this layer are not changes of weights."""
        raise ValueError(
            f"Got a {self.kind} to merge; expected a method that changes weights, such as LoRA. A {self.kind} cannot be merged "
            "into the weights of T5. Serve it as an adapter."
        )


class StackLayer(AdapterLayer):
    """A stack of T5 with adapters. It hands on attributes that it does not have to the stack."""

    base_layer: PreTrainedModel

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


@contextmanager
def no_mixed_batches(*args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Iterator[None]:
    """Stand in for ``_enable_peft_forward_hooks``, by which LoRA gives each row its adapter, and refuse ``adapter_names``."""
    if adapter_names is not None:
        raise ValueError(
            f"Got adapter_names={sorted(set(adapter_names))} for the rows of a batch; expected none, as only LoRA takes several "
            "adapters in one batch. Call model.set_adapter(name), or model.disable_adapter(), for a batch of each."
        )
    yield


def keep_dtype(layer: nn.Module) -> nn.Module:
    """Let a layer of peft around quantized weights return the dtype of its input, where peft returns float32."""
    if type(cast(BaseTunerLayer, layer).get_base_layer()) is not nn.Linear:
        layer.register_forward_hook(_return_dtype_of_input)
    return layer


def _return_dtype_of_input(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output if torch.is_autocast_enabled(output.device.type) else output.to(inputs[0].dtype)


Layer = TypeVar("Layer", bound=AdapterLayer)
Config = TypeVar("Config", bound=AdapterConfig)


class AdapterTuner(BaseTuner, Generic[Layer, Config]):
    """The base of our tuners. A subclass names its layer and its prefix, and makes an adapter for a layer."""

    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: dict[str, list[str]] = {}
    current_key: str
    """The name of the module that an adapter is made for."""
    _enable_peft_forward_hooks = staticmethod(no_mixed_batches)

    def new_layer(self, target: nn.Module) -> AdapterLayer:
        """Return a layer around ``target``."""
        return self.tuner_layer_cls(target)

    def new_adapter(self, layer: Layer, config: Config, adapter_name: str) -> nn.Module:
        """Return an adapter for ``layer``."""
        raise NotImplementedError

    def add_to_layer(self, layer: Layer, config: Config, adapter_name: str) -> None:
        """Put a new adapter into ``layer``, on the device of the wrapped module."""
        adapter = self.new_adapter(layer, config, adapter_name)
        device = next(layer.base_layer.parameters()).device
        # peft loads without memory (low_cpu_mem_usage=True) on the meta device.
        on_meta = any(parameter.is_meta for parameter in adapter.parameters())
        layer.adapters[adapter_name] = adapter if on_meta else adapter.to(device)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        self.current_key = current_key
        layer = target if isinstance(target, self.tuner_layer_cls) else self.new_layer(target)
        self.add_to_layer(cast(Layer, layer), cast(Config, peft_config), adapter_name)
        if layer is not target:
            setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Called to unload. That of peft hands over the weight of one linear map, and our targets need not be linear maps.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # That of peft finds the name one level deep; the parts of our adapters may lie deeper.
        start, found, rest = key.partition(f".{cls.prefix}.{adapter_name}")
        return f"{start}.{cls.prefix}{rest}" if found and rest[:1] in ("", ".") else key


def wrap(model: PreTrainedModel, config: AdapterConfig | LoraConfig | IA3Config) -> PeftModel:
    """Wrap ``model`` in place: fill in the task type and the head that must be trained, and freeze the backbone."""
    ensure_trainable_dtype(model)
    head, config.task_type = _head_and_task(model)
    correct_config(model)
    if head:
        config.modules_to_save = sorted({*(config.modules_to_save or []), head})
    with warnings.catch_warnings():
        # peft reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return cast(PeftModel, get_peft_model(model, config))


def head_module_name(model: PreTrainedModel) -> str | None:
    """Return the name of the newly initialized head of ``model``, which every method must train and save, or None."""
    return _head_and_task(model)[0] or None


def has_peft_prompt(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return whether ``model`` has the prompt or prefix tuning of peft, which lives outside of the T5 inside."""
    return isinstance(model, PeftModel) and bool(model.active_peft_config.is_prompt_learning)


def read_size(name: str, value: object, problems: list[str]) -> int:
    """Return the integer ``value`` of an option, or add to ``problems`` that it is not an integer of at least 1."""
    try:
        size = 0 if isinstance(value, bool) else index(cast(SupportsIndex, value))
    except TypeError:  # Numbers of numpy are integers too; floats and strings are not.
        size = 0
    if size < 1:
        problems.append(f"{name}={value!r}; expected an integer of at least 1")
    return size


def ensure_fits(model: PreTrainedModel, **sizes: tuple[int, int]) -> None:
    """Raise ValueError for an adapter that does not fit into the free memory, before it is made.

    Args:
        model: A T5; on the device "meta" every adapter fits.
        sizes: Each option that decides the size, with its value and the weights that one more unit takes, at the least.
    """
    if model.device.type == "meta":
        return
    needed = model.dtype.itemsize * sum(value * weights for value, weights in sizes.values())
    if needed > (free := free_bytes(model.device)):
        given = " and ".join(f"{name}={value}" for name, (value, _) in sizes.items())
        raise ValueError(
            f"Got {given}, whose adapter takes at least {needed / 1e9:.3g} GB; expected one that fits into the {free / 1e9:.3g} GB "
            f"of memory that are free on {model.device}. Take a smaller {' and '.join(sizes)}."
        )


def check_flag(name: str, value: object, problems: list[str]) -> None:
    """Add to ``problems`` if the ``value`` of an option is not a bool."""
    if not isinstance(value, bool):
        problems.append(f"{name}={value!r}; expected True or False")


def check_choice(name: str, value: object, choices: Sequence[str], problems: list[str]) -> None:
    """Add to ``problems`` if the ``value`` of an option is not one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        problems.append(f"{name}={value!r}; expected one of {', '.join(choices)}")


def raise_if_problems(problems: Sequence[str]) -> None:
    """Raise one ValueError for all ``problems``, if there are any."""
    if problems:
        raise ValueError("Got " + ", and ".join(problems) + ".")


def _is_tied_to_decoder(model: nn.Module) -> bool:
    """Return whether the head of ``model`` has the table of the decoder, and the encoder another one."""
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in FAMILIES:
        return False
    is_tied = model.config.tie_word_embeddings and family_of(model.config).head_reads_decoder_table
    return bool(is_tied) and not has_untied_head(model)


def _head_and_task(model: PreTrainedModel) -> tuple[str, TaskType | None]:
    name, family = type(model).__name__, family_of(model.config)
    for suffix, (head, task) in _HEADS.items():
        if name.endswith(suffix):
            own = family.class_heads.get(head, head)
            return (own if isinstance(getattr(model, own, None), nn.Module) else ""), task
    raise ValueError(f"Got a {name}; expected a class that ends in {', '.join(_HEADS)}.")


keep_tying(_is_tied_to_decoder)
