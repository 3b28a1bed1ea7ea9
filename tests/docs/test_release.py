"""The script of the release tells what is not ready."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import release

import t5peft


def test_every_file_names_the_version_of_the_package() -> None:
    assert release.version_problems(t5peft.__version__) == []
    found = release.version_problems("9.9.9")
    assert [problem.split()[0] for problem in found] == ["t5peft/__init__.py", "CHANGELOG.md", "CITATION.cff"]


def test_a_wheel_that_is_large_or_lacks_files_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "t5peft-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("t5peft/py.typed", "")
        archive.writestr("tests/test_x.py", "")
    monkeypatch.setattr(release, "LARGEST_WHEEL_BYTES", 10)
    found = release.wheel_problems(wheel)
    assert "expected less than 20" in found[0]
    assert "t5peft/mini/model.safetensors is missing from the wheel" in found
    assert "the card of the data set finance, with its license, is missing from the wheel" in found
    assert found[-1] == "tests/test_x.py does not belong into the wheel"


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    """Needs the index of packages for the build's own environment."""
    assert release.main(["--dist", str(tmp_path)]) == 0
