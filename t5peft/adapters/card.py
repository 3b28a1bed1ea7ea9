"""The model card of an adapter: what it is, what it was trained on, how it scored, and how it is loaded.

The card is the ``README.md`` beside the weights, in the form that the hub reads. Verification of an adapter does not read it, so it
may be edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from huggingface_hub import EvalResult, ModelCardData

import t5peft
from t5peft.adapters.manifest import MANIFEST, manifest_sha256, read_config
from t5peft.compat.paths import as_path
from t5peft.compat.peft import stored_state
from t5peft.data import Task
from t5peft.models.embedded import backbone_name, is_embedded

CARD = "README.md"
PLACE = "path/to/this/folder"
"""The name in the card's code until the adapter has one on the hub."""


@dataclass(frozen=True)
class CardScore:
    """One score of an adapter, as the card shows it.

    Attributes:
        split: ``validation`` or ``test``.
        metric: The name of the score.
        value: The score.
        interval: The 95 % interval over the records; None if the score is not a mean over records.
        baseline: The score of the baseline; None if it was not computed.
        records: The number of records.
    """

    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    baseline: float | None
    records: int


def write_card(
    folder: str | Path,
    *,
    task: Task | None = None,
    scores: Sequence[CardScore] = (),
    baseline: str = "",
    training: Mapping[str, object] | None = None,
) -> Path:
    """Write the model card of the adapter in ``folder``, replacing an earlier one.

    Args:
        folder: A saved adapter.
        task: The task that it was trained on.
        scores: Its scores, the leading one of each split first.
        baseline: The baseline that the scores are compared with, such as ``"the most frequent label"``.
        training: Details of the run by name, such as the learning rate.

    Returns:
        The file.

    Raises:
        ValueError: The adapter's configuration is damaged.
    """
    folder = as_path(folder)
    config = read_config(folder)
    parts = [
        f"# An adapter for {_base(config) or 'a T5'}",
        "\n".join(_facts(folder, config, task, training or {})),
        *_score_lines(scores, baseline),
        _usage(task),
        *(
            []
            if task and scores
            else ["Describe here what it was trained on, what it is for, and how it was evaluated."]
        ),
    ]
    path = folder / CARD
    path.write_text(f"---\n{_metadata(config, task, scores)}\n---\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def is_hub_name(base: str) -> bool:
    """Return whether ``base`` can name a backbone of the hub, and not the embedded one or a folder of this machine."""
    return base != "" and not is_embedded(base) and not Path(base).is_absolute() and not Path(base).exists()


def _base(config: Mapping[str, Any]) -> str:
    name = config.get("base_model_name_or_path") or ""
    return backbone_name(name) if name else ""


def _metadata(config: Mapping[str, Any], task: Task | None, scores: Sequence[CardScore]) -> str:
    """Return the YAML that the hub reads."""
    base = _base(config)
    results = [
        EvalResult(
            task_type="text2text-generation",
            dataset_type=task.name,
            dataset_name=task.name,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_value=round(score.value, 4),
        )
        for score in scores
        if task is not None
    ]
    data = ModelCardData(
        base_model=base if is_hub_name(base) else None,
        library_name="peft",
        tags=["t5peft", _method(config)],
        model_name=task.name if task is not None and results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _method(config: Mapping[str, Any]) -> str:
    return str(config.get("peft_type") or "adapter").lower()


def _facts(folder: Path, config: Mapping[str, Any], task: Task | None, training: Mapping[str, object]) -> list[str]:
    """Return the list of facts, one line each."""
    weights = sum(tensor.numel() for tensor in stored_state(folder).values())
    revision = f", revision `{config['revision']}`" if config.get("revision") else ""
    facts = [
        f"- Method: {_method(config)} ({weights:,} weights)",
        f"- Backbone: {_base(config) or 'not named'}{revision}",
    ]
    if task is not None:
        facts += [f"- Task: {task.name}", f"- Template: `{one_code(task.template)}`"]
        if task.verbalizer is not None:
            words = list(task.verbalizer.items())
            listed = ", ".join(label if label == word else f"{label} ({word})" for label, word in words[:20])
            more = f" and {len(words) - 20} more" if len(words) > 20 else ""
            facts.append(f"- Labels: {listed}{more}")
    facts += [f"- {name.capitalize()}: {value}" for name, value in training.items()]
    if (folder / MANIFEST).is_file():
        facts.append(f"- SHA-256 of `{MANIFEST}`: `{manifest_sha256(folder)}`")
    return [*facts, f"- Saved by t5peft {t5peft.__version__} and peft {peft.__version__}"]


def one_code(text: str) -> str:
    """Return ``text`` as it can stand between single code marks on one line."""
    return " ".join(text.split()).replace("`", "'")


def _score_lines(scores: Sequence[CardScore], baseline: str) -> list[str]:
    if not scores:
        return []
    rows = [
        f"| split | score | value | 95 % interval | {baseline or 'baseline'} | records |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for score in scores:
        interval = "-" if score.interval is None else f"[{score.interval[0]:.3f}, {score.interval[1]:.3f}]"
        simple = "-" if score.baseline is None else f"{score.baseline:.3f}"
        rows.append(
            f"| {score.split} | {score.metric} | {score.value:.3f} | {interval} | {simple} | {score.records:,} |"
        )
    return [
        "## Scores",
        "\n".join(rows),
        "The interval covers the sampling of the records, but not the variation of training.",
    ]


def _usage(task: Task | None) -> str:
    """Return the lines that load the adapter and ask it."""
    example = "text" if task is None else one_code(task.template).replace('"', "'")
    lines = [
        "## Use it",
        "",
        "```python",
        "from t5peft import load_adapter, predict",
        "",
        f'model, tokenizer = load_adapter("{PLACE}")',
        f'print(predict(model, tokenizer, ["{example}"], max_new_tokens={task.max_target_length if task else 32}))',
        "```",
    ]
    if task is not None and task.columns:
        lines += ["", f"Replace {', '.join(f'`{{{column}}}`' for column in task.columns)} with the text of a record."]
    return "\n".join(lines)
