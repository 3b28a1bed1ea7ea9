"""Make a tuner of ours known to peft, so that peft's own save, load and adapter calls work with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn


@contextmanager
def no_mixed_batches(*args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Iterator[None]:
    """In the place of the ``_enable_peft_forward_hooks`` by which LoRA gives each row its adapter; others ignore the names."""
    if adapter_names is not None:
        raise ValueError(
            f"Got adapter_names={sorted(set(adapter_names))} for the rows of a batch; of these methods, only LoRA takes several "
            "adapters in one batch. Call model.set_adapter(name), or model.disable_adapter(), for a batch of each."
        )
    yield


class OwnTuner(BaseTuner):
    """What our tuners change of peft's: a tuner of ours puts layers around whatever module its config names."""

    target_module_mapping: dict[str, list[str]] = {}
    _enable_peft_forward_hooks = staticmethod(no_mixed_batches)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        # Our configs name their targets themselves.
        return peft_config

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Called to unload; peft's own hands over the weight of one linear map, which our targets need not be.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft's own finds the name one level deep; the parts of an adapter of ours may lie deeper.
        start, found, rest = key.partition(f".{cls.prefix}.{adapter_name}")
        return f"{start}.{cls.prefix}{rest}" if found and rest[:1] in ("", ".") else key


def to_device_unless_meta(adapter: nn.Module, device: torch.device) -> nn.Module:
    """``adapter`` on ``device``, or as it is while peft loads it without memory (``low_cpu_mem_usage=True``)."""
    return adapter if any(parameter.is_meta for parameter in adapter.parameters()) else adapter.to(device)


class StackLayer(nn.Module, BaseTunerLayer):
    """A T5 stack in a tuner layer; what is asked of it and is not here, the stack answers."""

    base_layer: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
