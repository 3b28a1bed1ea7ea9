"""The table of tuning methods: a row a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from t5peft.methods.bottleneck import bottleneck_wrap
from t5peft.methods.full import full_wrap
from t5peft.methods.ia3 import ia3_wrap
from t5peft.methods.ladder import ladder_wrap
from t5peft.methods.lora import lora_wrap
from t5peft.methods.norm import norm_wrap
from t5peft.methods.prefix import prefix_wrap
from t5peft.methods.prompt import prompt_wrap
from t5peft.methods.qlora import qlora_wrap
from t5peft.models.backbone import Quantization


@dataclass(frozen=True)
class Method:
    """A tuning method: how a model is wrapped, how its backbone is loaded, and where to start the learning rate."""

    wrap: Callable[..., PreTrainedModel]
    learning_rate: float
    """For AdamW without weight decay; the comment in the table names its source."""
    quantize: Quantization | None = None
    starts_from_text: bool = False
    """Whether the wrap takes ``initial_ids``, the tokens of a text to start from."""

    def wrap_for(self, model: PreTrainedModel, example: Sequence[int], options: Mapping[str, Any]) -> PreTrainedModel:
        """Wrap ``model`` with these options of the wrap, for a task with this example.

        Args:
            model: a T5.
            example: token ids of a source of the task, without ``</s>``, which a method that starts from text starts from.
            options: arguments of the wrap; they go before the example.
        """
        if self.starts_from_text and not options.keys() & {"initial_ids", "projection_size"}:
            options = {**options, "initial_ids": example}
        return self.wrap(model, **options)


METHODS: dict[str, Method] = {
    # Raffel et al. 2020 tune with Adafactor at 1e-3; for Adam 1e-4 is about the same (text-to-text-transfer-transformer #230).
    "full": Method(full_wrap, 1e-4),
    # Between Ladder Side-Tuning's 3e-4 (rank 32) and T-Few's 3e-3 (rank 4), for T5 both.
    "lora": Method(lora_wrap, 1e-3),
    # T-Few's prefix tuning of T0.
    "prefix": Method(prefix_wrap, 1e-2, starts_from_text=True),
    # Lester et al. 2021.
    "prompt": Method(prompt_wrap, 3e-1),
    # Dettmers et al. 2023 tune T5 as LoRA is tuned.
    "qlora": Method(qlora_wrap, 1e-3, "int8"),
    # T-Few.
    "ia3": Method(ia3_wrap, 3e-3),
    # Between Compacter's 3e-4 and T-Few's 3e-3 for adapters, both on T5.
    "houlsby": Method(partial(bottleneck_wrap, placement="houlsby"), 1e-3),
    "pfeiffer": Method(partial(bottleneck_wrap, placement="pfeiffer"), 1e-3),
    "parallel": Method(partial(bottleneck_wrap, placement="parallel"), 1e-3),
    # The paper's repository, for T5.
    "ladder": Method(ladder_wrap, 3e-3),
    # T-Few.
    "norm": Method(norm_wrap, 3e-3),
    # As "lora": the same two maps, and a factor for each output.
    "dora": Method(partial(lora_wrap, dora=True), 1e-3),
    # As "lora", and as QLoRA, which stands at every linear map too.
    "lora-all": Method(partial(lora_wrap, target_modules="all-linear"), 1e-3),
}

# The method of each kind of adapter; those of one kind have one learning rate.
_OF_KIND = {
    "LORA": "lora",
    "T5_PREFIX": "prefix",
    "T5_PROMPT": "prompt",
    "IA3": "ia3",
    "T5_BOTTLENECK": "houlsby",
    "T5_LADDER": "ladder",
    "T5_NORM": "norm",
}


def method_of(model: PeftModel) -> str | None:
    """Name in ``METHODS`` of a method with the kind of ``model``'s active adapter; None for a kind that is not in the table."""
    return _OF_KIND.get(model.active_peft_config.peft_type.value)


def method_label(method: str, options: Mapping[str, Any]) -> str:
    """The name of a method with the options that are not its defaults."""
    if not options:
        return method
    return f"{method} ({', '.join(f'{name}={value}' for name, value in sorted(options.items()))})"
