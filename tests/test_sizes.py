"""Files and functions are short enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

FOLDERS = ("t5peft", "tests", "benchmarks", "examples", "scripts")
LONGEST_FILE = 400
LONGEST_FUNCTION = 50  # lines without the docstring, which grows with the number of arguments
REASON = "Long because "  # opens the sentence of a docstring that says why a function is longer
FROZEN = Path("tests/fixtures")  # runs with the release whose files it makes


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (
            path for path in sorted((ROOT / folder).rglob("*.py")) if FROZEN not in path.relative_to(ROOT).parents
        )


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node)
            first = node.body[0]
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > LONGEST_FUNCTION and REASON not in (documented or ""):
                yield f"{node.name}: {lines} lines"


def test_files_are_short() -> None:
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert len(lines) > 200
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_functions_are_short_or_say_why_not() -> None:
    found = {path.relative_to(ROOT): list(long_functions(path.read_text(encoding="utf-8"))) for path in sources()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("lines", "docstring", "found"), [(49, "Short.", 0), (50, "Short.", 1), (50, f"{REASON}x.", 0)]
)
def test_a_long_function_is_found_unless_it_says_why(lines: int, docstring: str, found: int) -> None:
    source = "\n".join(["def f():", f'    """{docstring}"""', *["    pass"] * lines])
    assert len(list(long_functions(source))) == found
