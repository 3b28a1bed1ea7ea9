"""Count what makes the project's English hard to read, and fail where a count is not zero.

    python scripts/language.py [FOLDER]

Reads docstrings, comments, error and log texts of the Python files, and the Markdown files, below FOLDER (the repository by
default). ``make lint`` runs it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOTS = ("t5peft", "tests", "benchmarks", "examples", "scripts")
DOCUMENTS = ("*.md", "docs/**/*.md", "examples/*.md", "benchmarks/*.md", "t5peft/mini/*.md")
# Texts written by people who do not write for this project: data, and what tests feed to the code.
NOT_OURS = ("embedded_data", "embedded", "records", "fixtures")

NO_INVERSION = re.compile(r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer\b|more\b|such\b|less\b|matter\b)[a-z]+")
ALONE = re.compile(r"[A-Za-z`)] alone\b")
SPHINX_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`")
SINGLE_MARK = re.compile(r"(?<![`\w])`(?!`)[^`\n]+`(?!`)")
BRITISH = re.compile(
    r"\b(?:un|de|re|sub)?(?:initiali|normali|quanti|summari|tokeni|optimi|regulari|orthogonali|parametri|reali|recogni|organi"
    r"|serieli|seriali|minimi|maximi|generali|speciali|emphasi|stabili|memori|utili|randomi|capitali|visuali|synchroni|finali"
    r"|customi|categori|standardi|materiali|equali)s(?:e|ed|er|ers|es|ing|ation|ations)\b"
    r"|\b(?:behaviou?r(?<=our)|colou?r(?<=our)|favou?r(?<=our)|honou?r(?<=our)|neighbou?r(?<=our)|labou?r(?<=our))\w*\b"
    r"|\b(?:labell|cancell|modell|travell)(?:ed|ing)\b|\b(?:centre|catalogue|grey|artefact|licence)s?\b",
    re.IGNORECASE,
)
RAISED = {
    "ValueError",
    "TypeError",
    "FileNotFoundError",
    "FileExistsError",
    "FloatingPointError",
    "KeyError",
    "RuntimeError",
}


@dataclass(frozen=True)
class Finding:
    """One place that reads badly."""

    kind: str
    place: str
    text: str


def main(arguments: list[str]) -> int:
    """Print every finding and the counts by kind; return 1 where there is one."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    findings = [*in_python(folder), *in_markdown(folder)]
    for finding in findings:
        print(f"{finding.place}: {finding.kind}: {finding.text}")
    for kind in KINDS:
        print(f"{sum(finding.kind == kind for finding in findings):5d}  {kind}")
    return 1 if findings else 0


KINDS = (
    "docstring opens with 'What'",
    "'is no X'",
    "'alone' for 'only'",
    "error without a capital or a full stop",
    "error not phrased 'Got …; expected …'",
    "single code mark in Python",
    "Sphinx role",
    "British spelling",
)


def in_python(folder: Path) -> Iterator[Finding]:
    """Yield the findings of every Python file of the project."""
    for root in ROOTS:
        for path in sorted((folder / root).rglob("*.py")):
            if not ours(path.relative_to(folder)) or path.name == "language.py":
                continue
            name = str(path.relative_to(folder))
            source = path.read_text(encoding="utf-8")
            for line, text in comments(source):  # those of notebooks are Markdown
                yield from prose(f"{name}:{line}", text, marks="notebooks" not in path.parts)
            tree = ast.parse(source)
            for line, text in docstrings(tree):
                if text.startswith("What "):
                    yield Finding(KINDS[0], f"{name}:{line}", text.splitlines()[0])
                yield from prose(f"{name}:{line}", text, marks=True)
            if root == "t5peft":
                for kind, line, text in error_texts(tree):
                    yield from prose(f"{name}:{line}", text, marks=False)
                    if (text[:1].isalpha() and not text[:1].isupper()) or text.rstrip()[-1:] not in (".", "…", ""):
                        yield Finding(KINDS[3], f"{name}:{line}", text[:100])
                    if kind in ("ValueError", "TypeError") and not (text.startswith("Got ") and "expected" in text):
                        yield Finding(KINDS[4], f"{name}:{line}", text[:100])


def in_markdown(folder: Path) -> Iterator[Finding]:
    """Yield the findings of the documents, without their code blocks."""
    for pattern in DOCUMENTS:
        for path in sorted(folder.glob(pattern)):
            text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.S)
            for number, line in enumerate(text.splitlines(), 1):
                yield from prose(f"{path.relative_to(folder)}:{number}", re.sub(r"`[^`]*`", "``", line), marks=False)


def prose(place: str, text: str, *, marks: bool) -> Iterator[Finding]:
    """Yield what reads badly in one text; ``marks`` says whether code in it needs double marks."""
    plain = re.sub(r"``[^`]*``", "``", text)
    rules = [(KINDS[1], NO_INVERSION), (KINDS[2], ALONE), (KINDS[6], SPHINX_ROLE), (KINDS[7], BRITISH)]
    if marks:
        rules.append((KINDS[5], SINGLE_MARK))
    for kind, pattern in rules:
        for match in pattern.finditer(plain):
            start = max(0, match.start() - 20)
            yield Finding(kind, place, " ".join(plain[start : match.end() + 20].split()))


def ours(path: Path) -> bool:
    """Return whether the texts in ``path`` are written by this project for its readers."""
    return not set(path.parts) & set(NOT_OURS)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield every comment with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# type:", "# noqa", "#!")):
            yield token.start[0], token.string


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every docstring, of attributes too, with its line."""
    for node in ast.walk(tree):
        for child in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, child.value.value


def error_texts(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """Yield kind, line and text of errors whose text is written where they are raised; ``{}`` stands for what is filled in."""
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    for error in raised:
        kind = error.func.id if isinstance(error.func, ast.Name) else ""
        if kind in RAISED and error.args and (text := literal(error.args[0])):
            yield kind, error.lineno, text


def literal(node: ast.expr) -> str:
    """Return the text of a string or f-string, with ``{}`` for its values; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        # What follows the last value may come from it, so that its end is not known here.
        return text + "…" if text.endswith("{}") else text
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
