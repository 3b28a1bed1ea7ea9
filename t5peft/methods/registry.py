"""The table of tuning methods, with one row per method. Everything that differs by method is read from here.

A new method is one file with a config, a layer, a tuner and a wrap, and one row. A method outside of this package is registered
by ``register_method``. For the command line, its package names it in an entry point of the group ``t5peft.methods``:

    [project.entry-points."t5peft.methods"]
    own-scale = "own_package.own_scale:METHOD"
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel
from transformers import PreTrainedModel

from t5peft.methods.adalora import adalora_wrap
from t5peft.methods.base import AdapterLayer
from t5peft.methods.bottleneck import BottleneckConfig, BottleneckLayer, bottleneck_wrap
from t5peft.methods.full import full_wrap
from t5peft.methods.ia3 import ia3_wrap
from t5peft.methods.ladder import LadderConfig, LadderStack, ladder_wrap
from t5peft.methods.lora import lora_wrap
from t5peft.methods.mam import MamConfig, MamLayer, mam_wrap
from t5peft.methods.norm import NormConfig, NormLayer, norm_wrap
from t5peft.methods.prefix import PrefixConfig, PrefixLayer, prefix_wrap
from t5peft.methods.prompt import PromptConfig, PromptedStack, prompt_wrap
from t5peft.methods.qlora import qlora_wrap
from t5peft.methods.starts import start_records
from t5peft.models.backbone import Quantization
from t5peft.models.families import Feature

logger = logging.getLogger("t5peft")

ENTRY_POINTS = "t5peft.methods"


@dataclass(frozen=True)
class Method:
    """A tuning method."""

    wrap: Callable[..., PreTrainedModel | PeftModel]
    """A function from a T5 and the options of the method to the model that is trained."""
    learning_rate: float
    """Where to start for AdamW without weight decay; the comment in the table names its source."""
    config: type[PeftConfig] | None
    """The class of the config of its adapters; None for a method without an adapter."""
    layer: type[AdapterLayer] | None = None
    """The layer of a tuner of our own; None for a method of peft."""
    quantize: Quantization | None = None
    """The quantization of the backbone that the method needs."""
    needs: Feature | None = None
    """The feature that a family must have for this method."""
    identity_at_start: bool = True
    """Whether wrapping changes nothing."""
    starts_from_text: bool = False
    """Whether the wrap takes ``initial_ids``, the tokens of a text to start from."""
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The choices that a search tries, by option."""

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained and saved, and not the whole model."""
        return self.config is not None

    @property
    def merges(self) -> bool:
        """Whether an adapter can be merged into the weights of the backbone."""
        return self.has_adapter and (self.layer is None or self.layer.merges)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the wrap, by name, with their types."""
        function = self.wrap.func if isinstance(self.wrap, partial) else self.wrap
        try:
            types = get_type_hints(inspect.unwrap(function))
        except NameError:  # An annotation that only type checkers can read.
            types = {}
        return {name: types.get(name, Any) for name in list(inspect.signature(self.wrap).parameters)[1:]}

    def wrap_for(
        self, model: PreTrainedModel, records: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> PreTrainedModel | PeftModel:
        """Wrap ``model`` for a task.

        Args:
            model: A T5.
            records: Tokenized training records of the task. A method that starts from text starts from the first source, and
                LoRA-GA from the gradient of some records.
            options: The options of the wrap; they win over the records.

        Returns:
            The model that is trained.
        """
        if self.starts_from_text and not options.keys() & {"initial_ids", "projection_size"}:
            options = {**options, "initial_ids": records[0]["input_ids"][:-1]}
        if options.get("start") == "lora-ga" and "start_records" not in options:
            options = {**options, "start_records": start_records(records)}
        return self.wrap(model, **options)


_RANKS = {"rank": (4, 8, 16, 32)}

METHODS: dict[str, Method] = {
    # Raffel et al. 2020 tune with Adafactor at 1e-3; for Adam 1e-4 is about the same (text-to-text-transfer-transformer #230).
    "full": Method(full_wrap, 1e-4, None),
    # Ten times the rate of "full", at any rank (Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/). Between Ladder
    # Side-Tuning's 3e-4 (rank 32) and T-Few's 3e-3 (rank 4), for T5 both.
    "lora": Method(lora_wrap, 1e-3, LoraConfig, search=_RANKS),
    # As "lora", and as QLoRA, which stands at every linear map too.
    "lora-all": Method(partial(lora_wrap, target_modules="all-linear"), 1e-3, LoraConfig, search=_RANKS),
    # As "lora": the same two maps, and a factor for each output.
    "dora": Method(partial(lora_wrap, dora=True), 1e-3, LoraConfig, search=_RANKS),
    # As "lora-all", at whose maps it stands; the paper has 5e-4 to 2.2e-3 on GLUE.
    "adalora": Method(adalora_wrap, 1e-3, AdaLoraConfig, search={"rank": (4, 8, 16)}),
    # T-Few's prefix tuning of T0.
    "prefix": Method(
        prefix_wrap,
        1e-2,
        PrefixConfig,
        PrefixLayer,
        needs="prefix",
        identity_at_start=False,
        starts_from_text=True,
        search={"length": (5, 10, 20, 50)},
    ),
    # Lester et al. 2021.
    "prompt": Method(
        prompt_wrap, 3e-1, PromptConfig, PromptedStack, identity_at_start=False, search={"length": (10, 20, 50, 100)}
    ),
    # Dettmers et al. 2023 tune T5 as LoRA is tuned.
    "qlora": Method(qlora_wrap, 1e-3, LoraConfig, quantize="int8", search=_RANKS),
    # T-Few.
    "ia3": Method(ia3_wrap, 3e-3, IA3Config),
    # Between Compacter's 3e-4 and T-Few's 3e-3 for adapters, both on T5.
    "houlsby": Method(partial(bottleneck_wrap, placement="houlsby"), 1e-3, BottleneckConfig, BottleneckLayer),
    # The paper's repository, for T5.
    "ladder": Method(ladder_wrap, 3e-3, LadderConfig, LadderStack, needs="ladder"),
    # Between those of its two parts, "prefix" and "parallel".
    "mam": Method(
        mam_wrap,
        3e-3,
        MamConfig,
        MamLayer,
        needs="prefix",
        identity_at_start=False,
        starts_from_text=True,
        search={"length": (10, 30), "size": (32, 64, 128)},
    ),
    # T-Few.
    "norm": Method(norm_wrap, 3e-3, NormConfig, NormLayer),
    # As "houlsby".
    "parallel": Method(partial(bottleneck_wrap, placement="parallel"), 1e-3, BottleneckConfig, BottleneckLayer),
    "pfeiffer": Method(partial(bottleneck_wrap, placement="pfeiffer"), 1e-3, BottleneckConfig, BottleneckLayer),
}
"""The methods by name, in the order of tables. The first one with a config stands for all adapters with that config."""


def register_method(name: str, method: Method) -> None:
    """Register a method under ``name`` for training, planning, search and the benchmark.

    Register its tuner with peft as well, using ``t5peft.compat.peft.register``.

    Args:
        name: The name, of lower-case letters, digits and hyphens.
        method: The method.

    Raises:
        ValueError: The name has other characters, or belongs to another method.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or METHODS.get(name, method) != method:
        raise ValueError(
            f"Got the name {name!r}; expected lower-case letters, digits and hyphens, and none of {', '.join(METHODS)}."
        )
    METHODS[name] = method


def register_installed_methods() -> None:
    """Register the methods of installed packages, as their entry points name them.

    A method that cannot be imported or registered is left out with a warning, so that one package does not stop the others.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            method = entry.load()
            if not isinstance(method, Method):
                raise TypeError(f"Got a {type(method).__name__}; expected a Method. Name the row of the method.")
            register_method(entry.name, method)
        except Exception as error:
            logger.warning("Left out the method %r, %s of an installed package: %s", entry.name, entry.value, error)


def method_of(model: PeftModel) -> str | None:
    """Return the name of a method with the config class of the active adapter of ``model``; None for an unknown one."""
    config = type(model.active_peft_config)
    return next((name for name, method in METHODS.items() if method.config is config), None)


def method_label(method: str, options: Mapping[str, Any]) -> str:
    """Return the name of a method with the options that are not its defaults."""
    if not options:
        return method
    return f"{method} ({', '.join(f'{name}={value}' for name, value in sorted(options.items()))})"
