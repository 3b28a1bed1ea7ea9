"""Tune a saved adapter again on new data: with replay of the old, a report of what was forgotten, and no silent loss.

Training on new records alone forgets old ones. A share of the old training records is mixed in (experience replay, Rolnick et
al. 2019), and both test sets are scored before and after. The new version is saved beside the old one; it takes the old one's
place only if it is not worse.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import tempfile
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters import brings_tokens, check_output, load_saved, quantization_of, save_adapter
from t5peft.data import Task
from t5peft.data.registry import with_validation
from t5peft.evaluation import METRICS, evaluate_task
from t5peft.methods import method_of
from t5peft.training.train import Records, TrainConfig, train

REPORT = "retuning.json"


@dataclass(frozen=True)
class ContinuedTraining:
    """Scores of the task's leading metric before and after, on the old and the new test records."""

    metric: str
    old_before: float
    old_after: float
    new_before: float
    new_after: float
    folder: str

    @property
    def forgotten(self) -> float:
        """By how much the old test records are worse; below zero where they are better."""
        return self._sign * (self.old_before - self.old_after)

    @property
    def learned(self) -> float:
        """By how much the new test records are better."""
        return self._sign * (self.new_after - self.new_before)

    @property
    def _sign(self) -> int:
        return 1 if METRICS[self.metric].greater_is_better else -1

    def worse(self, tolerance: float = 0.0) -> list[str]:
        """Why the new version should not replace the old one, in words; nothing if it should."""
        reasons = []
        if self.forgotten > tolerance:
            reasons.append(f"{self.metric} on the old records went from {self.old_before:.4f} to {self.old_after:.4f}")
        if self.learned < 0:
            reasons.append(f"{self.metric} on the new records went from {self.new_before:.4f} to {self.new_after:.4f}")
        return reasons

    def __str__(self) -> str:
        return (
            f"{self.metric}: old records {self.old_before:.4f} -> {self.old_after:.4f}, "
            f"new records {self.new_before:.4f} -> {self.new_after:.4f}"
        )


def continue_training(
    adapter: str | Path,
    task: Task,
    new: Records,
    old: Records,
    *,
    new_test: Records,
    old_test: Records,
    recipe: TrainConfig,
    output: str | Path,
    replay: float = 0.5,
) -> ContinuedTraining:
    """Tune the adapter again and save the new version to ``output``, with its report.

    Args:
        adapter: folder of the old version, which is only read.
        task: the task; of both the new and the old records.
        new: training records that came since.
        old: training records of the old version, of which a part is replayed.
        new_test: test records of the new kind.
        old_test: test records of the old kind.
        recipe: budget and learning rate (None: that of the adapter's method); method and backbone are the adapter's own.
        output: folder of the new version.
        replay: old records replayed for each new one; 0: none.

    Raises:
        ValueError: an output that is the adapter itself, a negative replay, or what :func:`~t5peft.load_adapter` and
            :func:`~t5peft.save_adapter` say.
    """
    if Path(output).resolve() == Path(adapter).resolve():
        raise ValueError(
            f"The output {output} is the adapter itself; give another folder, and replace it by `replace`."
        )
    if replay < 0:
        raise ValueError(f"Got replay={replay}; expected at least 0, old records for each new one.")
    check_output(output)
    model, tokenizer = load_saved(adapter, trainable=True, quantize=quantization_of(adapter))
    recipe = dataclasses.replace(recipe, method=method_of(model) or recipe.method)
    replayed = random.Random(recipe.seed).sample(list(old), min(len(old), round(replay * len(new))))
    splits = with_validation(task, {"train": [dict(record) for record in (*new, *replayed)]})
    before = [_score(model, tokenizer, task, records) for records in (old_test, new_test)]
    work = Path(output).with_name(f".{Path(output).name}-work")
    train(task, splits, recipe, work, model=(model, tokenizer))
    after = [_score(model, tokenizer, task, records) for records in (old_test, new_test)]
    save_adapter(model, output, tokenizer=tokenizer if brings_tokens(adapter) else None)
    shutil.rmtree(work, ignore_errors=True)
    report = ContinuedTraining(task.metrics[0], before[0], after[0], before[1], after[1], str(output))
    (Path(output) / REPORT).write_text(json.dumps(asdict(report), indent=1))
    return report


def replace(adapter: str | Path, report: ContinuedTraining, *, tolerance: float = 0.0) -> Path:
    """Put the new version in the place of ``adapter``; the old one is kept as ``ADAPTER.old``.

    Args:
        adapter: folder of the old version.
        report: what :func:`continue_training` returned.
        tolerance: how much the old records may lose.

    Raises:
        ValueError: the new version is worse; nothing is changed.
    """
    if reasons := report.worse(tolerance):
        raise ValueError(f"{adapter} is not replaced by {report.folder}: {'; '.join(reasons)}.")
    adapter = Path(adapter)
    names = (f"{adapter.name}.old{f'-{number}' if number > 1 else ''}" for number in count(1))
    kept = next(path for name in names if not (path := adapter.with_name(name)).exists())
    with tempfile.TemporaryDirectory(prefix=f".{adapter.name}-", dir=adapter.parent) as beside:
        copy = shutil.copytree(report.folder, Path(beside) / "new")
        adapter.rename(kept)
        copy.rename(adapter)
    return adapter


def _score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, records: Records) -> float:
    return evaluate_task(model, tokenizer, task, records)[METRICS[task.metrics[0]].lead]
