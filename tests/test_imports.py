"""Imports go one way, and cost only what is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tiny import tiny_t5, tiny_tokenizer

import t5peft

PACKAGE = Path(t5peft.__file__).parent

# A part imports only from what stands before it; the way of the data.
ORDER = (
    "deprecated",
    "compat",
    "models",
    "nn",
    "methods",
    "data",
    "adapters",
    "evaluation",
    "training",
    "planning",
    "pretraining",
    "benchmark",
    "serving",
    "cli",
)
OPTIONAL = (
    "bitsandbytes",
    "bm25s",
    "ctranslate2",
    "fastapi",
    "matplotlib",
    "nltk",
    "onnx",
    "onnxruntime",
    "optuna",
    "prometheus_client",
    "ray",
    "sentencepiece",
    "sklearn",
    "starlette",
    "uvicorn",
    "vl_convert",
)
# parts of a feature that is for only one optional package; imported where that feature is used
FOR_ONE_PACKAGE = {
    "t5peft.nn.kernels.int8",
    *(
        f"t5peft.serving.{name}"
        for name in (
            "answers",
            "completions",
            "context",
            "errors",
            "metrics",
            "middleware",
            "openai",
            "ray",
            "routes",
            "server",
            "sources",
        )
    ),
}
HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "numpy", *OPTIONAL)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("t5peft", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that module ``name`` at ``path`` imports, at the top or inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                if f"{module}.{alias.name}" in known:
                    yield f"{module}.{alias.name}"
                elif module in known:
                    yield module


def part_of(module: str) -> str:
    return module.split(".")[1]


def inner(known: dict[str, Path]) -> dict[str, Path]:
    """The modules below the package itself, whose names are imported when they are first used."""
    return {name: path for name, path in known.items() if name != "t5peft"}


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part_of(name) for name in inner(modules())} <= set(ORDER)


def test_a_part_imports_only_from_what_stands_before_it() -> None:
    known = modules()
    against = [
        f"{name} imports {imported}"
        for name, path in inner(known).items()
        for imported in imports_of(name, path, inner(known))
        if ORDER.index(part_of(imported)) > ORDER.index(part_of(name))
    ]
    assert against == []


def test_within_a_part_nothing_goes_in_circles() -> None:
    known = inner(modules())
    graph = {name: set(imports_of(name, path, known)) - {name} for name, path in known.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("import sys, t5peft; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert sorted(set(HEAVY) & set(loaded)) == []


@pytest.mark.processes
def test_every_module_and_every_public_name_does_without_the_optional_packages() -> None:
    code = """
import importlib, sys
blocked = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(blocked))
for name in sys.argv[2].split(","):
    importlib.import_module(name)
import t5peft
for name in t5peft.__all__:
    getattr(t5peft, name)
print("all imported")
"""
    assert "all imported" in run(code, ",".join(OPTIONAL), ",".join(set(modules()) - FOR_ONE_PACKAGE))


WAYS = {
    "before": "import t5peft\nimport peft",
    "after": "import peft\nimport t5peft",
    "after a backbone": "import t5peft\nt5peft.load_backbone(sys.argv[1] + '/base')\nimport peft",
    "after asking whether it is there": "import t5peft\nfrom importlib.util import find_spec\nfind_spec('peft')\nimport peft",
    "by a module of ours": "import t5peft.compat.peft\nimport peft",
}
# Each way in a process of its own, forked from one that has imported torch and transformers, which takes longest.
LOAD_EACH_WAY = """
import json, os, sys
import torch
from transformers import T5ForConditionalGeneration
torch.set_num_threads(1)
assert not {"peft", "t5peft"} & set(sys.modules)
for way, lines in json.loads(sys.argv[2]).items():
    child = os.fork()
    if child == 0:
        exec(lines)
        base = T5ForConditionalGeneration.from_pretrained(sys.argv[1] + "/base")
        model = peft.PeftModel.from_pretrained(base, sys.argv[1])
        print(way, type(model).__name__, model.peft_config["default"].length, sep=": ", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.processes
def test_peft_knows_our_adapters_once_t5peft_is_imported(tmp_path: Path) -> None:
    """A process that names nothing of ours loads an adapter of ours with only peft."""
    t5peft.prefix_wrap(tiny_t5(), length=3).save_pretrained(str(tmp_path))
    tiny_t5().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    printed = run(LOAD_EACH_WAY, str(tmp_path), json.dumps(WAYS))
    assert printed.splitlines() == [f"{way}: PeftModelForSeq2SeqLM: 3" for way in WAYS]


@pytest.mark.parametrize("name", t5peft.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(t5peft, name)
    assert name in dir(t5peft)
    if callable(value):
        assert value.__doc__


def test_a_name_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lora_warp'; it has .*lora_wrap"):
        t5peft.lora_warp  # type: ignore[attr-defined]  # noqa: B018


def test_a_type_checker_sees_every_public_name_where_it_is() -> None:
    """The names are listed twice in ``__init__``: for the lazy import, and for editors and type checkers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == t5peft._HOMES
