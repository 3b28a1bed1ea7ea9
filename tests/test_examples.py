"""Every example is short, says what it does, and prints the last line that its docstring promises.

The docstring has ``Last line:``, with figures as they were seen, or X (``accuracy 0.638, chance X``), or with names in capitals
for them (``loss BEFORE -> AFTER``), and ``Promise:``, comparisons between those names and numbers that hold on every machine.
"""

from __future__ import annotations

import ast
import importlib.util
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))
EXTRAS = {"plots": "matplotlib", "search": "optuna", "retrieval": "bm25s", "quantized": "bitsandbytes"}
FIGURE = r"-?[\d,]*\.?\d+"
SEEN = rf"(?:{FIGURE}|X)"
COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def docstring(name: str) -> str:
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    assert text is not None, f"{name} has no docstring"
    return text


def entry(name: str, key: str) -> str:
    found = re.search(rf"^{key}: (.+)$", docstring(name), flags=re.MULTILINE)
    assert found is not None, f"the docstring of {name} has no line that begins with {key}:"
    return found[1]


def read_figures(form: str, line: str) -> dict[str, float]:
    """The figures of a line by name, where the line has the form of a docstring's ``Last line:``."""
    if re.search(rf" {SEEN}(,|$)", form):
        names = re.findall(rf"(.+?) {SEEN}(?:, |$)", form)
        pattern = ", ".join(f"{re.escape(name)} ({FIGURE})" for name in names)
    else:
        names = re.findall(r"\b[A-Z]+\b", form)
        pattern = re.sub(r"\b[A-Z]+\b", lambda _: f"({FIGURE})", re.escape(form))
    found = re.fullmatch(pattern, line)
    assert found is not None, f"the last line is {line!r}; the docstring says {form!r}"
    return {name: float(figure.replace(",", "")) for name, figure in zip(names, found.groups(), strict=True)}


def broken(promise: str, figures: dict[str, float]) -> list[str]:
    """The clauses of a promise that the figures do not keep."""
    failed = []
    for clause in promise.split("; "):
        left, sign, right = re.fullmatch(r"(.+) (<=|>=|<|>) (.+)", clause).groups()  # type: ignore[union-attr]
        bound = figures[right] if right in figures else float(right)
        if not COMPARISONS[sign](figures[left], bound):
            failed.append(clause)
    return failed


def run(name: str, folder: Path, *launcher: str, path: Path | None = None) -> str:
    """Run an example, or a copy of it at ``path``, in an empty folder and return its last line."""
    for extra, module in EXTRAS.items():
        if f"t5peft[{extra}]" in docstring(name) and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install t5peft[{extra}]")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, *launcher, str(path or FOLDER / f"{name}.py")],
        cwd=folder,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip().splitlines()[-1]


def check(name: str, line: str) -> dict[str, float]:
    figures = read_figures(entry(name, "Last line"), line)
    assert not broken(entry(name, "Promise"), figures), f"{name} does not keep its promise: {line}"
    return figures


def test_a_line_is_read_by_its_form_and_a_broken_promise_is_named() -> None:
    figures = read_figures("token F1 0.100, gain -0.020", "token F1 0.250, gain 0.010")
    assert figures == {"token F1": 0.25, "gain": 0.01} == read_figures("token F1 X, gain X", "token F1 0.25, gain 0.01")
    assert read_figures("loss BEFORE -> AFTER, N seen", "loss 4.5 -> 3.25, 12,000 seen") == {
        "BEFORE": 4.5,
        "AFTER": 3.25,
        "N": 12000.0,
    }
    assert broken("token F1 > gain; gain >= 0.02", figures) == ["gain >= 0.02"]
    with pytest.raises(AssertionError, match="the last line is 'nothing'"):
        read_figures("accuracy 0.5", "nothing")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_its_docstring_says_how_long_it_takes_and_what_it_prints(name: str) -> None:
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    text = docstring(name)
    assert f" examples/{name}.py" in text, "the docstring names no command"
    assert re.fullmatch(r"about \d+ s on 2 cores\.", entry(name, "Time"))
    figures = read_figures(entry(name, "Last line"), _sample(entry(name, "Last line")))
    for clause in entry(name, "Promise").split("; "):
        left, _, right = re.fullmatch(r"(.+) (<=|>=|<|>) (.+)", clause).groups()  # type: ignore[union-attr]
        assert left in figures
        assert right in figures or re.fullmatch(FIGURE, right)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "pretrain_span_corruption"])
def test_an_example_names_the_lines_to_change_for_a_larger_model(name: str) -> None:
    assert "google-t5/t5-base" in docstring(name)
    assert "change two lines" in docstring(name)


def test_the_table_of_examples_has_them_all() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) \|", table, flags=re.MULTILINE)
    assert sorted(listed) == EXAMPLES
    for name in EXAMPLES:
        seconds = re.search(r"\d+", entry(name, "Time"))[0]  # type: ignore[index]
        assert re.search(rf"^\| \[`{name}\.py`\].*\| {seconds} s \|$", table, flags=re.MULTILINE), (
            f"the table has another time than the docstring of {name}"
        )


# Each trains for a minute or more; tests/test_readme.py runs the same way from a file to an answer in seconds.
@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_keeps_its_promise(name: str, tmp_path: Path) -> None:
    check(name, run(name, tmp_path))


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    # In double precision: fifty steps of Adam let the rounding of single precision grow to a hundredth.
    name, line = "two_processes", 'load_backbone("mini")'
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert line in source
    path = tmp_path / f"{name}.py"
    path.write_text(source.replace(line, 'load_backbone("mini", dtype=torch.float64)'), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    one, two = (check(name, run(name, tmp_path, *start, path=path)) for start in ((), launcher))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["evaluation loss"] == pytest.approx(one["evaluation loss"], rel=1e-3)


def _sample(form: str) -> str:
    """A line of a form, with a figure wherever the form has a name in capitals."""
    return re.sub(r" X(?=,|$)", " 1", form) if re.search(rf" {SEEN}(,|$)", form) else re.sub(r"\b[A-Z]+\b", "1", form)
