"""What tests of the command line share: small commands and a task's file."""

from __future__ import annotations

from pathlib import Path

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
