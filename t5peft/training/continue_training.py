"""Continue the training of a saved adapter on new data, with replay of old records and a report of what was forgotten.

Training on new records only makes a model forget old ones. A share of the old training records is mixed in (experience replay,
Rolnick et al. 2019), and both test sets are scored before and after. The new version is saved beside the old one. It takes the
old one's place only if it is not worse.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from t5peft.adapters import brings_tokens, check_output, is_adapter, load_saved, quantization_of, save_adapter
from t5peft.adapters.checkpoints import newest_complete
from t5peft.adapters.manifest import WEIGHTS
from t5peft.compat.filesystem import write_whole
from t5peft.compat.lock import hold_folder
from t5peft.data import Task
from t5peft.data.registry import with_validation
from t5peft.data.splits import fingerprint_of_data
from t5peft.deprecated import renamed_arguments
from t5peft.evaluation import METRICS, evaluate_task
from t5peft.methods import method_of
from t5peft.models.folders import replacing
from t5peft.models.manifest import read_json
from t5peft.training.run_folder import delete_checkpoints
from t5peft.training.train import Records, TrainConfig, train

REPORT = "retuning.json"  # named so since version 0.1
STARTED = "started.json"


@dataclass(frozen=True)
class ContinuedTraining:
    """Scores of the task's leading metric before and after, on the old and the new test records.

    Attributes:
        metric: The task's leading metric.
        old_before: Score on the old test records before.
        old_after: Score on the old test records after.
        new_before: Score on the new test records before.
        new_after: Score on the new test records after.
        folder: Folder of the new version.
    """

    metric: str
    old_before: float
    old_after: float
    new_before: float
    new_after: float
    folder: str

    @property
    def forgotten(self) -> float:
        """Return by how much the old test records are worse; below zero where they are better."""
        return self._sign * (self.old_before - self.old_after)

    @property
    def learned(self) -> float:
        """Return by how much the new test records are better."""
        return self._sign * (self.new_after - self.new_before)

    @property
    def _sign(self) -> int:
        return 1 if METRICS[self.metric].greater_is_better else -1

    def worse(self, tolerance: float = 0.0) -> list[str]:
        """Return the reasons why the new version should not replace the old one; empty if it should.

        Args:
            tolerance: The largest accepted loss of score on the old records.

        Returns:
            One sentence per reason.
        """
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


@renamed_arguments(recipe="config")
def continue_training(
    adapter: str | Path,
    task: Task,
    new: Records,
    old: Records,
    *,
    new_test: Records,
    old_test: Records,
    config: TrainConfig,
    output: str | Path,
    replay: float = 0.5,
    overwrite: bool = False,
) -> ContinuedTraining:
    """Train the adapter again and save the new version to ``output``, with its report.

    To resume an interrupted call from its newest checkpoint, repeat it with the same adapter, records and config.

    Args:
        adapter: Folder of the old version, which is only read.
        task: The task of both the new and the old records.
        new: New training records.
        old: Training records of the old version, some of which are replayed.
        new_test: New test records.
        old_test: Old test records.
        config: Budget and learning rate (None: that of the adapter's method). Method and backbone are the adapter's.
        output: Folder of the new version.
        replay: Old records to replay per new record; 0 replays none.
        overwrite: Whether an adapter in ``output`` may be replaced.

    Returns:
        The scores before and after.

    Raises:
        FolderInUseError: Another run is using ``output``.
        ValueError: ``output`` is the adapter itself or contains an adapter, ``replay`` is negative, or the adapter cannot be
            loaded or saved.
    """
    output = Path(output)
    if replay < 0:
        raise ValueError(f"Got replay={replay}; expected at least 0 old records for each new one.")
    _check_place(output, Path(adapter), overwrite)
    work = output.with_name(f".{output.name}-work")
    with hold_folder(work):
        model, tokenizer = load_saved(adapter, trainable=True, quantize=quantization_of(adapter))
        config = dataclasses.replace(config, method=method_of(model) or config.method)
        new, old = task.with_names(new), task.with_names(old)
        replayed = random.Random(config.seed).sample(list(old), min(len(old), round(replay * len(new))))
        splits = with_validation(task, {"train": [dict(record) for record in (*new, *replayed)]})
        tests = {"old": old_test, "new": new_test}
        run = _fingerprint(adapter, config, fingerprint_of_data(task, {**splits, **tests}))
        before = _interrupted(work, run)
        resume = before is not None
        if before is None:
            before = {name: _score(model, tokenizer, task, records) for name, records in tests.items()}
            delete_checkpoints(work)
            write_whole(work / STARTED, json.dumps({"run": run, "before": before}))
        train(task, splits, config, work, model=(model, tokenizer), resume=resume)
        after = {name: _score(model, tokenizer, task, records) for name, records in tests.items()}
        save_adapter(model, output, tokenizer=tokenizer if brings_tokens(adapter) else None)
        report = ContinuedTraining(
            task.metrics[0], before["old"], after["old"], before["new"], after["new"], str(output)
        )
        write_whole(output / REPORT, json.dumps(asdict(report), indent=1))
        shutil.rmtree(work, ignore_errors=True)
    return report


def _interrupted(work: Path, run: str) -> dict[str, float] | None:
    """Return the scores before an interrupted call that can go on, or None where there is none of the same ``run``."""
    if not (work / STARTED).is_file() or newest_complete(work) is None:
        return None
    try:
        found = read_json(work / STARTED)
    except ValueError:  # it was interrupted while this was written
        return None
    return found["before"] if found.get("run") == run else None


def _fingerprint(adapter: str | Path, config: TrainConfig, data: str) -> str:
    """Return a hash of all that decides how a training goes on."""
    weights = hashlib.sha256((Path(adapter) / WEIGHTS).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([weights, asdict(config), data], default=str).encode()).hexdigest()


def _check_place(output: Path, adapter: Path, overwrite: bool) -> None:
    """Check that a new version of ``adapter`` can be saved to ``output``."""
    if output.resolve() == adapter.resolve():
        raise ValueError(
            f"Got the output {output}, which is the adapter itself; expected another folder. Replace the old version "
            "afterwards with `replace` (--replace)."
        )
    if is_adapter(output) and not overwrite:
        raise ValueError(
            f"Got the output {output}, which holds an adapter; expected a folder without one. Choose another folder, or use "
            "--overwrite (overwrite=True) to replace it."
        )
    check_output(output)


def replace(adapter: str | Path, report: ContinuedTraining, *, tolerance: float = 0.0) -> Path:
    """Replace ``adapter`` with the new version, and keep the old one as ``ADAPTER.old``.

    If the process is killed, ``adapter`` is either the old or the new version.

    Args:
        adapter: Folder of the old version.
        report: The result of ``continue_training``.
        tolerance: The largest accepted loss of score on the old records.

    Returns:
        The folder of the adapter, now the new version.

    Raises:
        ValueError: The new version is worse; nothing is changed.
    """
    if reasons := report.worse(tolerance):
        raise ValueError(
            f"Got a new version {report.folder} that is worse than {adapter}; expected one that is not: {'; '.join(reasons)}."
        )
    adapter = Path(adapter)
    names = (f"{adapter.name}.old{f'-{number}' if number > 1 else ''}" for number in count(1))
    kept = next(path for name in names if not (path := adapter.with_name(name)).exists())
    with replacing(adapter) as new:
        shutil.copytree(report.folder, new, dirs_exist_ok=True)
        with replacing(kept) as old:
            shutil.copytree(adapter, old, dirs_exist_ok=True)
    return adapter


def _score(model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, records: Records) -> float:
    return evaluate_task(model, tokenizer, task, records)[METRICS[task.metrics[0]].lead]
