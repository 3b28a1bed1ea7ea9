"""Small tables for the commands."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "reviews.csv"
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(24)]
    path.write_text("\n".join(["review,stars", *rows]))
    return str(path)


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    """A folder with a file for each split, whose texts say which."""
    for split, rows in (("train", 24), ("test", 6)):
        lines = "".join(f"{split} {i},{i % 2}\n" for i in range(rows))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{lines}")
    return str(tmp_path)
