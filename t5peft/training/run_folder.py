"""The output folder of a training run: what an earlier run left there is never replaced without being asked."""

from __future__ import annotations

import shutil
from pathlib import Path

_RESULTS = ("adapter/adapter_config.json", "adapter_config.json", "config.json", "scores.json")


def check_run_folder(output: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise an error for a folder that holds results of an earlier run, unless the caller wants them to be replaced.

    Args:
        output: The output folder of a run.
        resume: Whether the run goes on from the newest checkpoint there.
        overwrite: Whether the earlier run may be replaced.

    Raises:
        ValueError: The folder holds an adapter, a model, scores or checkpoints, or what another command wrote; or both options were
            given.
    """
    from t5peft.models.folders import ensure_output  # which imports torch, and ``t5peft --help`` imports this file

    if resume and overwrite:
        raise ValueError(
            "Got both resume and overwrite; expected one of them: either resume the earlier run, or replace it."
        )
    output = Path(output)
    ensure_output(output, "a training run", "a model", "an adapter")
    found = [name for name in _RESULTS if (output / name).is_file()]
    found += [path.name for path in checkpoints(output)[-1:]]
    if found and not (resume or overwrite):
        raise ValueError(
            f"Got the output {output}, which holds {' and '.join(found)} of an earlier run; expected a folder without results. "
            "Choose another folder, --resume (resume=True) to resume from its newest checkpoint, or --overwrite (overwrite=True) "
            "to replace it."
        )


def checkpoints(output: str | Path) -> list[Path]:
    """Return the folders ``checkpoint-N`` in ``output``, by their numbers.

    Args:
        output: The output folder of a run.

    Returns:
        The folders, the lowest number first.
    """
    found = [path for path in Path(output).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def delete_checkpoints(output: str | Path) -> None:
    """Delete the checkpoints of an earlier run, which the new run would count among its own.

    Args:
        output: The output folder of a run.
    """
    for path in checkpoints(output):
        shutil.rmtree(path)
