"""Change one operator of the package at a time, and see whether the tests of the changed file fail.

    python scripts/mutation.py --minutes 30

A mutant that no test notices survives: a test is missing there, or the change means the same. The mutants that are run are a
sample of the seed, taken from every file in turn. Results are appended to ``outputs/mutation.jsonl``, so that a later call goes
on. They are summarized in ``benchmarks/records/mutation.json``. A reason can be written there beside each survivor; it is kept
while the line and the change stay the same.

mutmut 3 runs on this layout too. It has neither a sample nor a limit of time, and runs all chosen tests twice before the first
mutant. cosmic-ray starts a process for each mutant, and importing torch and transformers takes as long as most of the tests.
Here one process imports the libraries, and a fork of it runs each mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib.machinery
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "mutation.json"
STATE = ROOT / "outputs" / "mutation.jsonl"

ON_DISK = (
    "tests/adapters/test_checkpoint.py",
    "tests/adapters/test_manifest.py",
    "tests/training/test_saved_models.py",
)
LAWS = ("tests/methods/test_laws.py", "tests/methods/test_more_methods.py")
KERNELS = ("tests/nn/test_kernels.py", "tests/nn/test_fast.py")
TESTS: dict[str, tuple[str, ...]] = {
    "t5peft/adapters/": ON_DISK,
    "t5peft/adapters/download.py": ("tests/adapters/test_hub.py",),
    "t5peft/adapters/hub.py": ("tests/adapters/test_hub.py",),
    "t5peft/adapters/load.py": (*ON_DISK, "tests/models/test_named.py", "tests/training/test_heads.py"),
    "t5peft/adapters/merge.py": ("tests/cli/test_merge.py", *ON_DISK),
    "t5peft/methods/": LAWS,
    "t5peft/methods/adalora.py": ("tests/methods/test_adalora.py", *LAWS),
    "t5peft/methods/lora.py": (*LAWS, "tests/methods/test_starts.py", "tests/methods/test_wrap_errors.py"),
    "t5peft/methods/prefix.py": (*LAWS, "tests/methods/test_wrap_errors.py"),
    "t5peft/methods/prompt.py": (*LAWS, "tests/methods/test_laws_of_encoders.py", "tests/methods/test_wrap_errors.py"),
    "t5peft/methods/served.py": ("tests/models/test_families.py", "tests/methods/test_laws_of_families.py"),
    "t5peft/methods/starts.py": ("tests/methods/test_starts.py",),
    "t5peft/methods/activation_cache.py": ("tests/methods/test_activation_cache.py",),
    "t5peft/methods/registry.py": (*LAWS, "tests/methods/test_own_method.py", "tests/methods/test_stored_configs.py"),
    "t5peft/nn/attention.py": (*KERNELS, "tests/methods/test_more_methods.py"),
    "t5peft/nn/fast.py": KERNELS,
    "t5peft/nn/grouped_attention.py": ("tests/methods/test_laws_of_families.py",),
    "t5peft/nn/half_frozen.py": ("tests/methods/test_starts.py",),
    "t5peft/nn/row_prefixes.py": ("tests/serving/test_mixed.py",),
    "t5peft/nn/loss.py": ("tests/nn/test_loss.py",),
    "t5peft/nn/kernels/": KERNELS,
    "t5peft/nn/kernels/choice.py": ("tests/nn/test_choice.py",),
    "t5peft/nn/kernels/norm.py": KERNELS[:1],
    "t5peft/nn/kernels/dropout.py": KERNELS[:1],
    "t5peft/nn/kernels/linear.py": KERNELS[:1],
    "t5peft/nn/kernels/varlen.py": KERNELS[:1],
    "t5peft/data/collate.py": ("tests/data/test_collate.py",),
}
"""Tests of each file, or of each file in a folder. The longest name that fits counts."""
WORDS = {
    "t5peft/methods/adalora.py": "adalora or rank or orthogonal",
    "t5peft/methods/mam.py": "mam",
    "t5peft/methods/bottleneck.py": "houlsby or pfeiffer or parallel",
    "t5peft/methods/full.py": "full",
    "t5peft/methods/ia3.py": "ia3",
    "t5peft/methods/ladder.py": "ladder",
    "t5peft/methods/lora.py": "lora or dora or ratio or start",
    "t5peft/methods/norm.py": "norm",
    "t5peft/methods/prefix.py": "prefix",
    "t5peft/methods/prompt.py": "prompt",
    "t5peft/methods/qlora.py": "qlora or quantized",
    "t5peft/nn/kernels/attention.py": "attention or row or bias or toeplitz or distances",
    "t5peft/nn/kernels/dropout.py": "drop",
    "t5peft/nn/kernels/int8.py": "8_bit or int8 or 8bit",
    "t5peft/nn/kernels/linear.py": "product or onednn or lora or frozen or map",
    "t5peft/nn/kernels/varlen.py": "row",
}
"""Words in the names of the tests that see a file, where others need not run."""
# Tests that start processes of their own, which have the package as it is; and two geometries, as "wide" has what they have.
LEFT_OUT = ("fresh_process", "another_process", "run_and_reported", "killed", "v1")

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the ``number``-th of its operators."""

    path: str
    number: int
    line: int
    change: str
    digest: str
    """Hash of the file."""

    @property
    def key(self) -> str:
        """The mutant in the state file; another one where its file has changed."""
        return f"{self.path}:{self.number}:{self.digest}"


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield each node that can be changed, with its kind of change; not in texts, errors, types and constants of the module."""

    def walk(node: ast.AST, is_inside: bool) -> Iterator[tuple[ast.AST, str]]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            return
        if is_inside:
            yield from kinds_of(node)
        skipped: set[Any] = {getattr(node, "annotation", None), getattr(node, "returns", None)}
        if isinstance(node, ast.Call) and "logger" in ast.unparse(node.func):
            return
        inside = is_inside or isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                yield from walk(child, inside)

    yield from walk(tree, False)


def kinds_of(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield the kinds of change of a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield node, "comparison"
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield node, "arithmetic"
    elif isinstance(node, ast.BoolOp):
        yield node, "and, or"
    elif isinstance(node, ast.If | ast.IfExp):
        yield node, "condition"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield node, "constant"
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield node, "return"


def change(node: Any, kind: str) -> None:
    """Change a node in place."""
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "arithmetic":
        node.op = ARITHMETIC[type(node.op)]()
    elif kind == "and, or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    else:
        node.value = ast.Constant(None)


def mutants_of(path: str) -> list[Mutant]:
    """List the mutants of a file."""
    source = (ROOT / path).read_text(encoding="utf-8")
    digest, found = hashlib.sha256(source.encode()).hexdigest()[:12], []
    for number, (node, kind) in enumerate(places(ast.parse(source))):
        changed = copy.deepcopy(node)
        change(changed, kind)
        pair = [short(part, kind) for part in (node, changed)]
        found.append(Mutant(path, number, getattr(node, "lineno", 0), f"{pair[0]} -> {pair[1]}", digest))
    return found


def short(node: Any, kind: str) -> str:
    """Return the source of what changes."""
    text = ast.unparse(node.test if kind == "condition" else node)
    return text if len(text) <= 90 else f"{text[:90]}..."


def sample(seed: int) -> list[Mutant]:
    """Return all mutants in the order in which they are run: one of each file in turn."""
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "t5peft").rglob("*.py"))]
    generator, rows = random.Random(seed), []
    for path in files:
        if tests_of(path):
            rows.append(generator.sample(found := mutants_of(path), len(found)))
    generator.shuffle(rows)
    return [mutant for mutant in chain(*zip_longest(*rows)) if mutant is not None]


def tests_of(path: str) -> tuple[str, ...]:
    """Return the tests of a file; empty where it is not mutated."""
    names = [name for name in TESTS if path == name or (name.endswith("/") and path.startswith(name))]
    return TESTS[max(names, key=len)] if names else ()


def compiled(mutant: Mutant) -> CodeType:
    """Return the code of the changed file."""
    tree = ast.parse((ROOT / mutant.path).read_text(encoding="utf-8"))
    node, kind = list(places(tree))[mutant.number]
    change(node, kind)
    return compile(ast.fix_missing_locations(tree), str(ROOT / mutant.path), "exec")


def run_tests(tests: tuple[str, ...], word: str, mutant: Mutant | None) -> int:
    """Run tests in this process, a fork, with the changed file in the place of its own; return pytest's exit status."""
    import pytest

    if mutant is not None:
        code, loaded = compiled(mutant), importlib.machinery.SourceFileLoader.get_code

        def get_code(loader: Any, name: str) -> CodeType | None:
            is_changed = Path(loader.get_filename(name)).resolve() == ROOT / mutant.path
            return code if is_changed else loaded(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[assignment,method-assign]
    chosen = " and ".join([f"({word or 'test'})", *(f"not {name}" for name in LEFT_OUT)])
    return int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-k", chosen, *tests]))


def in_a_fork(tests: tuple[str, ...], word: str, mutant: Mutant | None, limit_seconds: float) -> str:
    """Run tests in a fork of this process, and return what became of the mutant: survived, killed or timed out."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            with Path(os.devnull).open("w") as null:
                for stream in (1, 2):
                    os.dup2(null.fileno(), stream)
            status = run_tests(tests, word, mutant)
        finally:
            os._exit(status)
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def read_state(state: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each mutant that was run."""
    found = {}
    if state.is_file():
        for line in state.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # half of a line, where a run was killed
                row = json.loads(line)
                found[row["key"]] = row
    return found


def write_record(mutants: list[Mutant], results: dict[str, dict[str, Any]], record: Path, seed: int) -> dict[str, Any]:
    """Write the scores of the files and the survivors, with the reasons that stand in the record already."""
    reasons = {}
    if record.is_file():
        for row in json.loads(record.read_text(encoding="utf-8"))["survivors"]:
            reasons[row["file"], row["source"], row["change"]] = row["reason"]
    files: dict[str, dict[str, int]] = {}
    survivors = []
    for mutant in mutants:
        row = files.setdefault(mutant.path, {"mutants": 0, "run": 0, "noticed": 0})
        row["mutants"] += 1
        if mutant.key not in results:
            continue
        survived = results[mutant.key]["result"] == "survived"
        row["run"] += 1
        row["noticed"] += not survived
        if survived:
            source = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()[mutant.line - 1].strip()
            key = (mutant.path, source, mutant.change)
            found = {"file": mutant.path, "line": mutant.line, "source": source, "change": mutant.change}
            survivors.append(found | {"reason": reasons.get(key, "")})
    content = {
        "seed": seed,
        "python": platform.python_version(),
        "mutants": len(mutants),
        "run": sum(row["run"] for row in files.values()),
        "noticed": sum(row["noticed"] for row in files.values()),
        "files": dict(sorted(files.items())),
        "survivors": sorted(survivors, key=lambda row: (row["file"], row["line"])),
    }
    record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def main() -> None:
    """Run the mutants of a sample until the time is over."""
    parser = argparse.ArgumentParser(description="See whether the tests notice changes of the package.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument(
        "--only", nargs="*", default=[""], help="run mutants of files whose names have one of these parts"
    )
    parser.add_argument("--again", action="store_true", help="run only the survivors again, after tests became better")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("torch", "transformers.models.t5.modeling_t5", "peft", "datasets", "evaluate", "pytest"):
        __import__(name)
    mutants, results = sample(given.seed), read_state(given.state)
    given.state.parent.mkdir(parents=True, exist_ok=True)
    seconds: dict[tuple[tuple[str, ...], str], float] = {}
    with given.state.open("a", encoding="utf-8") as log:
        for mutant in (mutant for mutant in mutants if any(part in mutant.path for part in given.only)):
            seen = results.get(mutant.key)
            if seen["result"] != "survived" if seen and given.again else bool(seen) != given.again:
                continue
            tests = tests_of(mutant.path)
            chosen = (tests, WORDS.get(mutant.path, ""))
            if chosen not in seconds:
                start = time.monotonic()
                if in_a_fork(*chosen, None, 1800) != "survived":
                    sys.exit(
                        f"Got {' '.join(tests)}, which fail without a change; expected them to pass. Mend them first."
                    )
                seconds[chosen] = time.monotonic() - start
                print(f"unchanged {chosen} pass in {seconds[chosen]:.0f} s", flush=True)
            if time.monotonic() > end:
                break
            start = time.monotonic()
            result = in_a_fork(*chosen, mutant, 60 + 4 * seconds[chosen])
            row = {"key": mutant.key, "result": result, "seconds": round(time.monotonic() - start, 1)}
            results[mutant.key] = row
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(f"{result:9} {mutant.path}:{mutant.line} {mutant.change}", flush=True)
    content = write_record(mutants, results, given.record, given.seed)
    print(f"{content['noticed']} of {content['run']} mutants were noticed, of {content['mutants']} in all")


if __name__ == "__main__":
    main()
