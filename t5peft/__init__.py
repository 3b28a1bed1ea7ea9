"""Parameter-efficient fine-tuning of T5: LoRA, prefix tuning, prompt tuning, 8-bit QLoRA, IA3 and more.

    from t5peft import load_backbone, lora_wrap

    model, tokenizer = load_backbone("mini")
    model = lora_wrap(model)

Names are imported when they are first used, so ``import t5peft`` is fast.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from t5peft.compat.threads import warn_if_late
from t5peft.deprecated import install as install_deprecated_modules

__version__ = "0.2.0"

# As soon as peft imports it, bitsandbytes asks for a package that speeds up 4 bits on some processors and is not needed.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)

_HOMES = {
    "AdapterPool": "t5peft.serving.pool",
    "auto": "t5peft.cli.auto_run",
    "load_backbone": "t5peft.models.backbone",
    "evaluate_task": "t5peft.evaluation",
    "export": "t5peft.serving.export",
    "load_exported": "t5peft.serving.export",
    "merge": "t5peft.adapters.merge",
    "predict": "t5peft.evaluation",
    "rank": "t5peft.evaluation",
    "METHODS": "t5peft.methods",
    "adalora_wrap": "t5peft.methods",
    "bottleneck_wrap": "t5peft.methods",
    "full_wrap": "t5peft.methods",
    "ia3_wrap": "t5peft.methods",
    "ladder_wrap": "t5peft.methods",
    "lora_wrap": "t5peft.methods",
    "mam_wrap": "t5peft.methods",
    "norm_wrap": "t5peft.methods",
    "prefix_wrap": "t5peft.methods",
    "prompt_wrap": "t5peft.methods",
    "qlora_wrap": "t5peft.methods",
    "register_method": "t5peft.methods",
    "Task": "t5peft.data",
    "T5PeftTrainer": "t5peft.training",
    "T5PeftTrainingArguments": "t5peft.training",
    "load_adapter": "t5peft.adapters.load",
    "push_adapter": "t5peft.adapters.hub",
    "save_adapter": "t5peft.adapters.save",
}

__all__ = ["__version__", *_HOMES]


if TYPE_CHECKING:  # what an editor and a type checker see
    from t5peft.adapters.hub import push_adapter as push_adapter
    from t5peft.adapters.load import load_adapter as load_adapter
    from t5peft.adapters.merge import merge as merge
    from t5peft.adapters.save import save_adapter as save_adapter
    from t5peft.cli.auto_run import auto as auto
    from t5peft.data import Task as Task
    from t5peft.evaluation import evaluate_task as evaluate_task
    from t5peft.evaluation import predict as predict
    from t5peft.evaluation import rank as rank
    from t5peft.methods import METHODS as METHODS
    from t5peft.methods import adalora_wrap as adalora_wrap
    from t5peft.methods import bottleneck_wrap as bottleneck_wrap
    from t5peft.methods import full_wrap as full_wrap
    from t5peft.methods import ia3_wrap as ia3_wrap
    from t5peft.methods import ladder_wrap as ladder_wrap
    from t5peft.methods import lora_wrap as lora_wrap
    from t5peft.methods import mam_wrap as mam_wrap
    from t5peft.methods import norm_wrap as norm_wrap
    from t5peft.methods import prefix_wrap as prefix_wrap
    from t5peft.methods import prompt_wrap as prompt_wrap
    from t5peft.methods import qlora_wrap as qlora_wrap
    from t5peft.methods import register_method as register_method
    from t5peft.models.backbone import load_backbone as load_backbone
    from t5peft.serving.export import export as export
    from t5peft.serving.export import load_exported as load_exported
    from t5peft.serving.pool import AdapterPool as AdapterPool
    from t5peft.training import T5PeftTrainer as T5PeftTrainer
    from t5peft.training import T5PeftTrainingArguments as T5PeftTrainingArguments
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 't5peft' has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _PeftWatcher(MetaPathFinder):
    """Registers our tuners with peft when peft is imported, so that ``PeftModel.from_pretrained`` knows their adapters.

    ``import t5peft`` does not import peft by itself, which takes seconds.
    """

    looking = False

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find peft as everybody would, and follow its import by that of our methods."""
        if fullname != "peft" or self.looking:
            return None
        self.looking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                if "t5peft.compat.peft" not in sys.modules or hasattr(sys.modules["t5peft.compat.peft"], "register"):
                    import_module("t5peft.methods")

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    import_module("t5peft.methods")
else:
    sys.meta_path.insert(0, _PeftWatcher())

install_deprecated_modules()
warn_if_late()
