"""The code of every page of the documentation runs as it stands, in a folder with the files that the site offers.

The fast tests shorten training to two steps and leave out pages that take longer; the slow ones run every block as it is written.
A block after ``<!-- not run: REASON -->`` is not run: its Python is compiled and its imports are made, and the options of its
commands are parsed.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from t5peft.cli import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"
# In the order of reading: a page may use what an earlier one has made.
PAGES = [
    "start.md",
    "howto/own-data.md",
    "howto/hub.md",
    "howto/load-adapter.md",
    "howto/several-adapters.md",
    "howto/encoders.md",
    "howto/metrics.md",
    "howto/gpus.md",
    "howto/push.md",
    "contributing/add-a-family.md",
    "contributing/add-a-method.md",
    "tutorial.md",
    "howto/search.md",
    "howto/early-stopping.md",
    "howto/mixtures.md",
    "howto/continue.md",
    "howto/memory.md",
    "howto/families.md",
    "concepts/methods.md",
    "benchmarks/index.md",
    "contributing/add-a-task.md",
    "export.md",
]
FAST = [page for page in PAGES[:11] if page != "howto/own-data.md"]
# Pages whose code needs a server or another folder; tests of their own run it.
ELSEWHERE = ["serving.md", "commands.md"]
NOT_OURS = ("pip", "make", "torchrun", "accelerate", "curl", "python", "git", "hf")  # commands that no test runs
LENGTH = {"max_steps": 2, "steps": 2, "eval_steps": 1, "save_steps": 1, "evaluations": 1, "trials": 1}
SHORTER = [
    (
        r"\b(max_steps|steps|eval_steps|save_steps|evaluations|trials)=\d+",
        lambda found: f"{found[1]}={LENGTH[found[1]]}",
    ),
    (r"--(steps|evaluations|trials) \d+", lambda found: f"--{found[1]} {LENGTH[found[1]]}"),
]


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """``not run``, ``slow`` or empty."""

    def run(self, names: dict[str, Any]) -> None:
        """Run the block; Python shares ``names`` with the blocks before it."""
        if self.language == "python":
            exec(compile("\n" * self.line + self.text, self.page, "exec"), names)
        for words in self.commands():
            try:
                code = main(words)
            except SystemExit as exit_:  # of --help
                code = exit_.code if isinstance(exit_.code, int) else 1
            assert code == 0, f"{self.page}: t5peft {shlex.join(words)} ended with {code}"

    def commands(self) -> list[list[str]]:
        """Return the words after ``t5peft`` of every such command."""
        if self.language != "console":
            return []
        lines = [
            shlex.split(line[2:], comments=True)
            for line in self.text.replace("\\\n", " ").splitlines()
            if line[:2] == "$ "
        ]
        for words in lines:
            assert words[0] in ("t5peft", *NOT_OURS), f"{self.page} runs {words[0]}, which no test knows"
        return [words[1:] for words in lines if words[0] == "t5peft"]

    def shortened(self) -> Block:
        """Return the block with two steps of training."""
        text = self.text
        for pattern, replacement in SHORTER:
            text = re.sub(pattern, replacement, text)
        return Block(self.page, self.line, self.language, text, self.mark)


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of Python and of commands of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in re.finditer(r"(?:<!-- (not run|slow)[^>]*-->\n)?```(python|console)\n(.*?)```", text, flags=re.DOTALL):
        line = text[: found.start(3)].count("\n")
        yield Block(page, line, found[2], found[3], found[1] or "")


@pytest.fixture(scope="module", autouse=True)
def what_pages_register_is_gone_afterwards() -> Iterator[None]:
    from t5peft.evaluation import METRICS
    from t5peft.methods import METHODS

    before: list[tuple[dict[str, Any], dict[str, Any]]] = [(METHODS, dict(METHODS)), (METRICS, dict(METRICS))]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the pages are read, with the first rows of the tables."""
    folder = tmp_path_factory.mktemp("pages")
    for path in (DOCS / "data").iterdir():
        (folder / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:41]))
    return folder


def test_every_page_with_code_is_tested() -> None:
    with_code = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    with_code = {page for page in with_code if any(block.mark != "not run" for block in blocks(page))}
    assert with_code <= {*PAGES, *ELSEWHERE}
    assert all((DOCS / page).is_file() for page in (*PAGES, *ELSEWHERE))


@pytest.mark.parametrize("page", FAST)
def test_the_code_of_a_page_runs_shortened(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(page):
        if not block.mark:
            block.shortened().run(names)
    if page == "start.md":
        assert len((folder / "answers.csv").read_text().splitlines()) == len(
            (folder / "new.csv").read_text().splitlines()
        )
        assert "most frequent label" in (folder / "runs/headlines/adapter/README.md").read_text()


@pytest.mark.slow
def test_the_code_of_all_pages_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (DOCS / "data").iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names: dict[str, Any] = {"__name__": page}
        for block in blocks(page):
            if block.mark != "not run":
                block.run(names)
    printed = capsys.readouterr().out
    found = re.search(r"accuracy ([\d.]+) \[([\d.]+), [\d.]+\], most frequent label ([\d.]+)", printed)
    assert found is not None
    assert float(found[2]) > float(found[3])  # the tutorial's model beats the simple answer clearly


@pytest.mark.parametrize(
    "page", [page for page in (*PAGES, *ELSEWHERE) if any(b.mark == "not run" for b in blocks(page))]
)
def test_code_that_is_not_run_is_valid(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for block in blocks(page):
        if block.mark != "not run":
            continue
        if block.language == "python":
            imports: list[ast.stmt] = [
                node for node in ast.parse(block.text).body if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            exec(compile(ast.Module(imports, []), page, "exec"), {})
        for words in block.commands():
            monkeypatch.setattr(import_module(COMMANDS[words[0]][0]), "run", lambda args: 0)
            assert main(words) == 0
        checked += 1
    assert checked
