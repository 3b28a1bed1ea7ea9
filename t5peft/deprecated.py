"""Names of version 0.1 that still work in 0.2, each with a DeprecationWarning. This file goes in 0.3.

Three kinds of names moved: modules (``MODULES``, ``MOVED``), objects in them (``RENAMED``), and arguments of functions
(``renamed_arguments``). Files that 0.1 stored hold old option names; ``current_options`` reads them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MODULES = {
    "t5peft.attention": "t5peft.nn.attention",
    "t5peft.backbone": "t5peft.models.backbone",
    "t5peft.batches": "t5peft.data.collate",
    "t5peft.benchmark.geometry": "t5peft.planning.geometry",
    "t5peft.benchmark.machine": "t5peft.benchmark.environment",
    "t5peft.benchmark.planner": "t5peft.planning.plan",
    "t5peft.benchmark.simulate": "t5peft.planning.simulate",
    "t5peft.checkpoint": "t5peft.adapters",
    "t5peft.deploy": "t5peft.adapters.merge",
    "t5peft.deploy.merge": "t5peft.adapters.merge",
    "t5peft.evaluation.answers": "t5peft.evaluation.squad",
    "t5peft.evaluation.carried": "t5peft.evaluation.offline_modules",
    "t5peft.kernels": "t5peft.nn.kernels",
    "t5peft.kernels.attention": "t5peft.nn.kernels.attention",
    "t5peft.kernels.dropout": "t5peft.nn.kernels.dropout",
    "t5peft.kernels.int8": "t5peft.nn.kernels.int8",
    "t5peft.kernels.linear": "t5peft.nn.kernels.linear",
    "t5peft.kernels.norm": "t5peft.nn.kernels.norm",
    "t5peft.kernels.rows": "t5peft.nn.kernels.varlen",
    "t5peft.loss": "t5peft.nn.loss",
    "t5peft.methods.activations": "t5peft.methods.activation_cache",
    "t5peft.methods.registration": "t5peft.methods.base",
    "t5peft.methods.wrapping": "t5peft.methods.base",
    "t5peft.pretraining.fresh": "t5peft.pretraining.init",
    "t5peft.pretraining.matching": "t5peft.pretraining.matching_head",
    "t5peft.pretraining.tone": "t5peft.pretraining.sentiment",
    "t5peft.retuning": "t5peft.training.continue_training",
    "t5peft.search": "t5peft.training.search",
    "t5peft.speed": "t5peft.nn.fast",
    "t5peft.tasks": "t5peft.data",
    "t5peft.tasks.augmentation": "t5peft.data.augmentation",
    "t5peft.tasks.back_translation": "t5peft.data.back_translation",
    "t5peft.tasks.benchmarks": "t5peft.data.public",
    "t5peft.tasks.checks": "t5peft.data.checks",
    "t5peft.tasks.definition": "t5peft.data.definition",
    "t5peft.tasks.families": "t5peft.data.presets",
    "t5peft.tasks.files": "t5peft.data.files",
    "t5peft.tasks.fitting": "t5peft.data.truncation",
    "t5peft.tasks.lint": "t5peft.data.lint",
    "t5peft.tasks.mixtures": "t5peft.data.mixtures",
    "t5peft.tasks.registry": "t5peft.data.registry",
    "t5peft.tasks.rewording": "t5peft.data.rewording",
    "t5peft.tasks.splits": "t5peft.data.splits",
    "t5peft.tasks.task": "t5peft.data.task",
    "t5peft.tasks.template": "t5peft.data.template",
    "t5peft.tokens": "t5peft.models.tokens",
    "t5peft.training.features": "t5peft.data.features",
    "t5peft.tuning": "t5peft.training.train",
}
"""Old module: new module."""

MOVED = {
    ("t5peft.backbone", "t5_of"): "t5peft.models.unwrap",
    ("t5peft.checkpoint", "CONFIG"): "t5peft.adapters.manifest",
    ("t5peft.checkpoint", "SEAL"): "t5peft.adapters.manifest",
    ("t5peft.checkpoint", "WEIGHTS"): "t5peft.adapters.manifest",
    ("t5peft.checkpoint", "data_of"): "t5peft.adapters.checkpoints",
    ("t5peft.checkpoint", "newest_complete"): "t5peft.adapters.checkpoints",
    ("t5peft.checkpoint", "not_finite"): "t5peft.models.manifest",
    ("t5peft.checkpoint", "rotate"): "t5peft.adapters.checkpoints",
    ("t5peft.checkpoint", "verify"): "t5peft.models.manifest",
    ("t5peft.deploy", "merge"): "t5peft.adapters.merge",
    ("t5peft.methods.registration", "register"): "t5peft.compat.peft",
    ("t5peft.methods.wrapping", "check_plain"): "t5peft.models.unwrap",
    ("t5peft.speed", "TokenBudget"): "t5peft.training.micro_batches",
    ("t5peft.speed", "layout_of"): "t5peft.training.micro_batches",
    ("t5peft.speed", "micro_batches"): "t5peft.training.micro_batches",
    ("t5peft.speed", "ran_out_of_memory"): "t5peft.training.micro_batches",
    ("t5peft.speed", "takes_rows"): "t5peft.training.micro_batches",
    ("t5peft.tokens", "brings_tokens"): "t5peft.adapters.load",
    ("t5peft.tokens", "load_saved"): "t5peft.adapters.load",
    ("t5peft.tokens", "load_with_tokens"): "t5peft.adapters.load",
    ("t5peft.training.features", "collate_for_head"): "t5peft.data.collate",
}
"""Names that moved to another module than the rest of their module."""

RENAMED = {
    ("t5peft.backbone", "t5_of"): "unwrap_t5",
    ("t5peft.batches", "cut_by_tokens"): "bucket_by_length",
    ("t5peft.batches", "cut_evenly"): "split_evenly",
    ("t5peft.batches", "lay_in_row"): "collate_padding_free",
    ("t5peft.checkpoint", "SEAL"): "MANIFEST",
    ("t5peft.checkpoint", "data_of"): "read_run_state",
    ("t5peft.checkpoint", "not_finite"): "non_finite_names",
    ("t5peft.checkpoint", "refuse_adapter"): "ensure_no_adapter",
    ("t5peft.checkpoint", "seal"): "write_manifest",
    ("t5peft.kernels.attention", "attend_row"): "varlen_attention",
    ("t5peft.kernels.dropout", "Dropout"): "FastDropout",
    ("t5peft.kernels.int8", "Int8Linear"): "FastLinear8bit",
    ("t5peft.kernels.linear", "Linear"): "FastLinear",
    ("t5peft.kernels.linear", "LoraLinear"): "FastLoraLinear",
    ("t5peft.kernels.norm", "OneStepNorm"): "FastNorm",
    ("t5peft.kernels.rows", "RowLayout"): "VarlenLayout",
    ("t5peft.kernels.rows", "Side"): "Segment",
    ("t5peft.methods.registration", "OwnTuner"): "AdapterTuner",
    ("t5peft.methods.wrapping", "check_plain"): "ensure_unwrapped",
    ("t5peft.methods.wrapping", "head_of"): "head_module_name",
    ("t5peft.retuning", "Retuned"): "ContinuedTraining",
    ("t5peft.retuning", "retune"): "continue_training",
    ("t5peft.speed", "FASTER"): "FAST_CLASSES",
    ("t5peft.speed", "faster"): "fast_classes",
    ("t5peft.speed", "kernels"): "fast_kernels",
    ("t5peft.speed", "our_attention"): "t5peft_attention",
    ("t5peft.search", "Found"): "SearchResult",
    ("t5peft.speed", "takes_rows"): "supports_padding_free",
    ("t5peft.tasks", "FAMILIES"): "PRESETS",
    ("t5peft.tasks", "family_task"): "preset_task",
    ("t5peft.tasks.families", "FAMILIES"): "PRESETS",
    ("t5peft.tasks.families", "Family"): "TaskPreset",
    ("t5peft.tasks.families", "family_task"): "preset_task",
    ("t5peft.tasks.fitting", "Fitted"): "Truncated",
    ("t5peft.tasks.fitting", "fit"): "truncate",
    ("t5peft.tuning", "Recipe"): "TrainConfig",
    ("t5peft.tuning", "Tuned"): "TrainResult",
    ("t5peft.tuning", "fit"): "train",
    ("t5peft.tuning", "tune"): "train_and_evaluate",
}
"""Names that changed."""

OPTIONS = {
    "cut_by_length": "bucket_by_length",
    "initialise": "initialize",
    "keep_activations": "activation_cache_bytes",
    "rank_stabilised": "rank_stabilized",
    "reparametrise": "projection_size",
    "targets": "target_modules",
}
"""Old argument: new argument, of wraps and training arguments, in code and in stored suites, records and studies."""


def current_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` under the names of this version, without a warning: they may come from a file."""
    return {OPTIONS.get(name, name): value for name, value in options.items()}


def current_preset(name: str) -> str:
    """Return the name that a preset has in this version, with a DeprecationWarning for an old one."""
    if name == "summarisation":
        _warn("The preset summarisation", "summarization", stacklevel=3)
        return "summarization"
    return name


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take its arguments by their old names too, with a DeprecationWarning.

    Args:
        names: old name to new name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    _warn(f"The argument {old} of {function.__qualname__}", new, stacklevel=3)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


class DeprecatedModules(MetaPathFinder, Loader):
    """Import the modules of 0.1 by their old names."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find only the names in ``MODULES``."""
        return ModuleSpec(fullname, self, is_package=True) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look up each name in its new home."""
        name = module.__name__
        _warn(f"The module {name}", MODULES[name], stacklevel=2)

        def look_up(attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            home = import_module(MOVED.get((name, attribute), MODULES[name]))
            return getattr(home, RENAMED.get((name, attribute), attribute))

        module.__getattr__ = look_up  # type: ignore[method-assign]


def _warn(what: str, new: str, *, stacklevel: int) -> None:
    message = f"{what} is deprecated and goes in t5peft 0.3; use {new}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def install() -> None:
    """Make the old module names importable, once."""
    if not any(isinstance(finder, DeprecatedModules) for finder in sys.meta_path):
        sys.meta_path.append(DeprecatedModules())
