"""Names and defaults that ``--help`` shows, kept apart from what they name, so that help does not import torch.

``tests/cli/test_help.py`` compares them with the tables of the package.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

METHODS = (
    "full", "lora", "lora-all", "dora", "adalora", "prefix", "prompt", "qlora", "ia3", "houlsby", "ladder", "mam", "norm",
    "parallel", "pfeiffer",
)  # fmt: skip
NUMERIC_OPTIONS: dict[str, type[int] | type[float]] = {
    "rank": int, "initial_rank": int, "alpha": float, "dropout": float, "orthogonality": float, "length": int,
    "projection_size": int, "size": int, "reduction": int,
}  # fmt: skip
PRESETS = (
    "classification", "sentence_pairs", "summarization", "question_answering", "translation", "dialogue", "data_to_text",
    "correction", "generation", "recommendation",
)  # fmt: skip
PRETRAIN_CONFIG = {
    "source_tokens": (512, "source tokens per row"),
    "rows": (16, "rows per micro-batch"),
    "micro_batches": (1, "micro-batches of span corruption per step"),
    "task_rows": (0, "examples of self-supervised tasks per step"),
    "warmup": (100, "steps over which the learning rate rises from 0"),
    "decay_start_step": (1000, "the step at which the inverse square root decay begins"),
    "steps": (1000, "optimizer steps"),
    "cooldown": (0, "last steps, over which the learning rate falls to 0"),
    "seed": (0, "seed of weights, data order and dropout"),
    "log_every": (10, "steps between log lines"),
    "eval_every": (200, "steps between evaluations of the held-out loss"),
    "save_every": (200, "steps between saves of the state"),
}
"""Default and help of each number of ``PretrainConfig``."""
PRETRAIN_SHAPE = {"d_model": 256, "d_ff": 1024, "layers": 4, "heads": 4, "d_kv": 64}
PRETRAIN_LEARNING_RATES = {"muon": 2e-2, "adafactor": 1e-2, "adamw": 2e-3}


def method_names() -> list[str]:
    """Return the names of all methods, without importing one.

    Returns:
        Those of this package, those that installed packages name in entry points, and those that this process registered.
    """
    installed = (entry.name for entry in entry_points(group="t5peft.methods"))
    registry = sys.modules.get("t5peft.methods.registry")
    return list(dict.fromkeys((*METHODS, *installed, *(registry.METHODS if registry else ()))))


def suite_names() -> list[str]:
    """Return the names of the package's suites.

    Returns:
        The names in their order.
    """
    folder = Path(__file__).parents[1] / "benchmark" / "suites"
    return sorted(path.stem for path in folder.iterdir())
