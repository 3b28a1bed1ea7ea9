"""The drawings are those of the script, and the site builds without a warning, a dead link or a need of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import drawings  # noqa: E402


def test_the_drawings_are_those_of_the_script_and_each_stands_on_the_page_of_methods() -> None:
    found = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "drawings").glob("*.svg")}
    assert found == drawings.drawings()
    page = (ROOT / "docs" / "concepts" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r'--8<-- "drawings/([\w-]+)\.svg"', page)) == set(found)


def test_every_method_has_a_drawing() -> None:
    from t5peft.cli.names import METHODS

    assert set(METHODS) - {"dora"} == set(drawings.drawings())  # DoRA stands where LoRA does


def test_public_names_are_in_the_reference() -> None:
    import t5peft

    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: [\w.]+\.(\w+)$", pages, flags=re.MULTILINE))
    assert set(t5peft.__all__) - {"__version__", "METHODS"} <= documented | set(re.findall(r"`(METHODS)`", pages))


@pytest.mark.slow
def test_the_site_builds_and_reads_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "howto" / "load-adapter.html").is_file()

    import docs_hooks

    assert docs_hooks.site_problems(tmp_path / "site") == []
    page = tmp_path / "site" / "start.html"
    page.write_text(
        page.read_text() + '<script src="https://cdn.example/x.js"></script><a href="gone.html#there">gone</a>'
    )
    assert docs_hooks.site_problems(tmp_path / "site") == [
        "start.html loads https://cdn.example/x.js from the network",
        "start.html links to gone.html#there, which does not exist",
    ]


def test_the_page_of_families_has_the_table_of_what_is_served() -> None:
    from t5peft.methods.served import served_table

    assert served_table() in (ROOT / "docs" / "howto" / "families.md").read_text(encoding="utf-8")
