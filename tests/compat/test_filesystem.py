"""Files that are replaced in a single step."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5peft.compat import filesystem
from t5peft.compat.filesystem import write_whole


def test_a_file_is_the_old_one_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scores.json"
    write_whole(path, "old")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filesystem, "sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_whole(path, "new")
    assert [one.name for one in tmp_path.iterdir()] == ["scores.json"]
    assert path.read_text() == "new"
