"""Parts of peft that are private, or not meant to be extended."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, LoraConfig, PeftConfig, PeftModel
from peft.config import PeftConfigMixin
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    ModulesToSaveWrapper,
    PeftType,
    get_peft_model_state_dict,
    load_peft_weights,
    register_peft_method,
    set_additional_trainable_modules,
)
from torch import Tensor, nn
from transformers import PreTrainedModel


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Register ``tuner`` and its ``config`` with peft under ``name`` (lower case).

    ``PeftType`` is an enum, and peft looks every method up in it. So this adds a member to it, which is not meant to be extended.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = value
        member._value_ = value
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)
    register_peft_method(name=name, config_cls=config, model_cls=tuner, prefix=tuner.prefix)


def replace_tuner(name: str, tuner: type[BaseTuner]) -> None:
    """Let peft use ``tuner``, a subclass of its own, for the method ``name`` (upper case) of peft."""
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType(name)] = tuner


def resolve_base_names(resolve: Callable[[str], str]) -> None:
    """Let every loader of peft find backbones by what ``resolve`` makes of the names in configurations.

    ``AutoPeftModelForSeq2SeqLM`` gives the name to transformers, which knows only folders and the hub. peft has no other place
    between the file and the loading of the backbone.
    """
    load = PeftConfigMixin.from_pretrained.__func__  # type: ignore[attr-defined]  # of a bound class method
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def from_pretrained(cls: type[PeftConfig], *args: Any, **kwargs: Any) -> PeftConfig:
        config: PeftConfig = load(cls, *args, **kwargs)
        if config.base_model_name_or_path:
            config.base_model_name_or_path = resolve(config.base_model_name_or_path)
        return config

    PeftConfigMixin.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]


def keep_tying(is_tied: Callable[[nn.Module], bool]) -> None:
    """Let every tuner of peft keep ``tie_word_embeddings`` of a model for which ``is_tied`` holds.

    When peft unloads an adapter, it compares the head with the table of the encoder. Of a T5Gemma, whose head has the table of the
    decoder, it would say in the config that nothing is tied. The head is then left out of the file when the model is saved, and
    random when it is loaded.
    """
    unload = BaseTuner._unload_and_optionally_merge
    if hasattr(unload, "__wrapped__"):
        return

    @functools.wraps(unload)
    def unload_and_keep_tying(self: BaseTuner, *args: Any, **kwargs: Any) -> Any:
        if not is_tied(self.model):
            return unload(self, *args, **kwargs)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            model: Any = unload(self, *args, **kwargs)
        model.config.tie_word_embeddings = True
        return model

    BaseTuner._unload_and_optionally_merge = unload_and_keep_tying  # type: ignore[method-assign]


def adds_to_loss(model: nn.Module) -> bool:
    """Return whether the tuner of a model may add to the loss that the model returns, as AdaLoRA does.

    A tuner can only do so in a forward pass of its own. Whether it does is then seen from the loss itself. Our AdaLoRA does, but
    the trainer adds its loss without making logits.
    """
    while not isinstance(model, PeftModel):
        inner = model.__dict__.get("_modules", {})
        wrapped = inner.get("module", inner.get("_orig_mod"))
        if wrapped is None:
            return False
        model = wrapped
    tuner = model.base_model
    own_forward = isinstance(tuner, BaseTuner) and type(tuner).forward is not BaseTuner.forward
    return own_forward and not hasattr(tuner, "orthogonality")


def adapter_modules(model: nn.Module) -> set[nn.Module]:
    """Return all modules in ``model`` that belong to adapters."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    parts = [getattr(layer, name) for layer in layers for name in layer.adapter_layer_names]
    parts += [module.modules_to_save for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return {module for part in parts if isinstance(part, nn.Module) for module in part.modules()}


def adapter_state(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Return the tensors that peft saves of ``adapter``, without whole tables of embeddings."""
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def stored_state(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that are saved in ``folder``, on the CPU.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors and pickle raise classes of their own for damaged files
        raise ValueError(
            f"Got weights in {folder} that cannot be read ({error}); expected those of an adapter as it was saved. Restore the "
            "folder."
        ) from error


def train_rows(model: PreTrainedModel, config: LoraConfig, adapter: str) -> None:
    """Make the rows of tokens that ``config`` names trainable, in place."""
    set_additional_trainable_modules(model, config, model.config.to_dict(), adapter)
    share_rows(model, adapter)


def share_rows(model: nn.Module, adapter: str) -> None:
    """Let encoder and decoder read one parameter for the rows of tokens, where peft has given them one each."""
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, TrainableTokensLayer) and isinstance(layer.get_base_layer(), nn.Embedding)
    ]
    own = [layer for layer in layers if layer.tied_adapter is None and adapter in layer.trainable_tokens_delta]
    for layer in own[1:]:
        layer.trainable_tokens_delta[adapter] = own[0].trainable_tokens_delta[adapter]


# Where this module is the first to import peft, the methods could not be registered then: they need this module.
if "t5peft.methods" not in sys.modules:
    import_module("t5peft.methods")
