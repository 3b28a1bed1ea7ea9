"""Helpers of the tests of the command line: small commands, a task's file, a process that holds a folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paths import ROOT

from t5peft.cli import main


def train(backbone: str, table: str, output: Path, *more: str) -> int:
    return main(
        ["train", "--task", "classification", "--train", table, "--column", "text=review", "--column", "label=stars",
         "--target-word", "0=bad", "--target-word", "1=good", "--backbone", backbone, "--output", str(output),
         "--steps", "2", "--batch-size", "4", *more]
    )  # fmt: skip


def own_task(folder: Path, name: str, *splits: str) -> str:
    """A task's YAML file in ``folder``, with six records a split."""
    rows = "".join(f"film {i},{i % 2}\n" for i in range(6))
    (folder / "own.csv").write_text(f"text,label\n{rows}")
    files = ", ".join(f"{split}: own.csv" for split in splits)
    path = folder / "own.yaml"
    path.write_text(
        f"name: {name}\ntemplate: 'film: {{text}}'\ntarget: '{{label}}'\nverbalizer: {{0: bad, 1: good}}\n"
        f"metrics: [accuracy]\ndata:\n  files: {{{files}}}\n"
    )
    return str(path)


HOLD = """
import sys, time
from t5peft.compat.lock import hold_file, hold_folder
with {}(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(path: Path, how: str = "hold_folder") -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``path``."""
    command = [sys.executable, "-c", HOLD.format(how), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
