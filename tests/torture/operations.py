"""Kill commands at every file operation and at random moments, or let these operations fail as a full or broken disk does.

    python tests/torture/operations.py kills --minutes 30 --record benchmarks/records/torture/commands.json
    python tests/torture/operations.py storage --minutes 30 --record benchmarks/records/torture/storage.json

Each number is a command of ``scenarios.py``, a fault, and the operation at which it happens. Where Linux lets a user mount,
commands also write to a tmpfs that is too small for them, with no fault injected. Then the command is given again, as its
documentation says. The outcomes:

    same      what was there before is there, or the new result is; and going on gives that of a command that nobody disturbed
    lost      neither the old nor the new result can be read
    other     going on ends in another result
    failed    the command cannot go on
    silent    it ended well though a call failed, with another result
    unclear   its error does not name the disk and the folder, or has another exit code than 3
    hang      it did not end
"""

from __future__ import annotations

import gc
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import faults
from campaign import Line, go_on, parse, report
from faults import FULL_TMPFS, KILL, READ_FAULT, WRITE_FAULTS, Ended, Fault, fork

_CLEAR = re.compile(r"^t5peft \w+: Got .* of the folder .*; expected ", re.MULTILINE)


@dataclass
class Bench:
    """The inputs of the scenarios, what each gives undisturbed, and how many operations it makes."""

    root: Path
    operations: dict[str, dict[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    weights: dict[str, list[str]] = field(default_factory=dict)
    size_bytes: dict[str, tuple[int, int]] = field(default_factory=dict)  # before a command, and after it

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def place(self) -> Path:
        return self.root / "place"

    def prepare(self, names: list[str]) -> None:
        """Make the inputs, and run each scenario undisturbed."""
        from scenarios import SCENARIOS, _train, import_all, make_inputs, run

        import_all()
        gc.freeze()  # a forked process that collects garbage copies nothing then
        make_inputs(self.inputs)
        for adapter, table in (("adapter", "reviews.csv"), ("old", "old.csv")):
            ended = fork(partial(run, _train(self.inputs, self.root / adapter, table=table)), self.root)
            assert ended.status == 0, ended.errors
            (self.root / adapter / "run" / "adapter").rename(self.inputs / adapter)
        for name in names:
            self._undisturbed(name, SCENARIOS[name])

    def _undisturbed(self, name: str, scenario: Any) -> None:
        from scenarios import content

        old = self.begin(name)
        before = faults.pages_of(self.place)
        ended = self.run(name)
        assert ended.status == 0, (name, ended.errors)
        self.operations[name], self.seconds[name] = ended.operations, ended.seconds
        self.results[name] = content(self.place, scenario)
        self.size_bytes[name] = (before, faults.pages_of(self.place))
        assert self.results[name], name
        self.weights[name] = [one for one in (old, self.load(name)) if one]

    def begin(self, name: str) -> str:
        """Make the place as it is before the command; return the weights that are there."""
        from scenarios import SCENARIOS, clear, run

        scenario = SCENARIOS[name]
        clear(self.place)
        self.place.mkdir()
        if scenario.before is None:
            return ""
        earlier = self.root / f"before {name}"
        if earlier.exists():
            shutil.copytree(earlier, self.place, dirs_exist_ok=True)
            return next(iter(self.weights[name]), "") if name in self.weights else self.load(name)
        words = scenario.before(self.inputs, self.place)
        ended = fork(lambda: run(words), self.place)
        assert ended.status == 0, ended.errors
        shutil.copytree(self.place, earlier)
        return self.load(name)

    def run(self, name: str, fault: Fault | None = None, at: int = 0, *, again: bool = False, **options: Any) -> Ended:
        from scenarios import SCENARIOS, run

        scenario = SCENARIOS[name]
        words = [*scenario.words(self.inputs, self.place), *(scenario.again if again else ())]
        return fork(lambda: run(words), self.place, fault, at, **options)

    def number(self, name: str, kinds: int) -> int:
        """Return the number of operations of these kinds that a scenario makes."""
        return sum(number for kind, number in self.operations[name].items() if kind & kinds)

    def load(self, name: str) -> str:
        """Return a hash of the weights that the command has left, or why they are refused; empty where it has none."""
        from scenarios import SCENARIOS, load

        if SCENARIOS[name].load is None:
            return ""
        target = self.root / "weights.txt"
        target.unlink(missing_ok=True)
        ended = fork(lambda: load(SCENARIOS[name], self.place, target), self.root / "nothing")
        return target.read_text() if target.exists() else f"failed: {ended.errors[-500:]}"


def one(bench: Bench, name: str, fault: Fault, at: float) -> dict[str, Any]:
    """Disturb a scenario, go on, and compare; a fault at a share of the time or of the bytes, not at an operation, is below 1."""
    bench.begin(name)
    if fault != FULL_TMPFS:
        return _disturb(bench, name, fault, at)
    before, after = bench.size_bytes[name]
    with faults.small_tmpfs(bench.place, before + int(at * after)):
        return _disturb(bench, name, fault, at)


def _disturb(bench: Bench, name: str, fault: Fault, at: float) -> dict[str, Any]:
    """Run a scenario with a fault, go on, and compare."""
    from scenarios import SCENARIOS, content

    if fault == FULL_TMPFS:
        ended = bench.run(name)
    elif at < 1:
        ended = bench.run(name, kill_after=max(0.01, at * bench.seconds[name]))
    else:
        ended = bench.run(name, fault, int(at))
    if ended.status is None:
        return {"outcome": "hang"}
    problem = None
    if ended.status not in (0, -9):
        lines = [line for line in ended.errors.strip().splitlines() if line.strip()]
        if ended.status != 3 or not _CLEAR.search(ended.errors) or "Traceback" in ended.errors:
            problem = {"outcome": "unclear", "status": ended.status, "error": "\n".join(lines[-12:])[-1500:]}
    _move_back(bench.place)
    if fault == FULL_TMPFS:
        faults.make_room(bench.place)
    found = bench.load(name)
    if found and found not in bench.weights[name] and (SCENARIOS[name].before or not found.startswith("refused: ")):
        return {"outcome": "lost", "error": found[:600]}
    if ended.status == 0 and (result := content(bench.place, SCENARIOS[name])) == bench.results[name]:
        return problem or {"outcome": "same", "ended": "well"}
    if ended.status == 0 and fault.name != "gone":
        return {"outcome": "silent", "error": _difference(bench.results[name], result)}
    again = bench.run(name, again=True)
    if again.status != 0:
        return {"outcome": "failed", "error": again.errors.strip()[-1500:]}
    if (result := content(bench.place, SCENARIOS[name])) != bench.results[name]:
        return {"outcome": "other", "error": _difference(bench.results[name], result)}
    left = [path.name for path in bench.place.rglob(".*") if path.name != ".t5peft.lock"]
    if left:
        return {"outcome": "other", "error": f"left behind: {left[:5]}"}
    return problem or {"outcome": "same", "ended": "killed" if ended.was_killed else str(ended.status)}


def _move_back(place: Path) -> None:
    """Put a folder that was moved away back in its place; what was written there meanwhile goes."""
    gone = place.with_name(f"{place.name}.gone")
    if gone.exists():
        shutil.rmtree(place, ignore_errors=True)
        gone.rename(place)


def _difference(expected: dict[str, str], found: dict[str, str]) -> str:
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    return f"missing {missing[:5]}, more {more[:5]}, changed {changed[:5]}"


def plan(bench: Bench, names: list[str], kinds: list[Fault], seed: int) -> list[tuple[str, Fault, float]]:
    """Return every fault at every operation of every scenario, 20 kills of each at random moments, and 20 sizes of a tmpfs.

    Each scenario and fault comes in turn, at its operations in random order.
    """
    rng = random.Random(seed)
    cases: list[tuple[int, float, str, Fault, float]] = []
    for name in names:
        for fault in [READ_FAULT] if name == "pool" else kinds:
            places = [float(at) for at in range(1, bench.number(name, fault.kinds) + 1)]
            if fault == FULL_TMPFS:
                places = [rng.uniform(0.01, 0.99) for _ in range(20)]
            elif fault == KILL:
                places += [rng.uniform(0.01, 0.99) for _ in range(20)]
            rng.shuffle(places)
            cases += [(turn, rng.random(), name, fault, at) for turn, at in enumerate(places)]
    return [(name, fault, at) for _, _, name, fault, at in sorted(cases, key=lambda case: case[:2])]


def campaign(what: str, names: list[str], minutes: float, seed: int, outcomes: Path, count: int) -> Line:
    """Make the plan's cases for so many minutes; return the counts."""
    kinds = [KILL] if what == "kills" else [*WRITE_FAULTS, *([FULL_TMPFS] if faults.may_mount() else [])]
    names = [name for name in names if what == "storage" or name != "pool"]  # which writes nothing
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.prepare(names)
        cases = plan(bench, names, kinds, seed)

        def make(number: int) -> Line:
            name, fault, at = cases[number]
            line = {"number": number, "scenario": name, "fault": fault.name, "at": at}
            return {**line, **one(bench, name, fault, at)}

        lines = go_on(outcomes, range(min(count, len(cases))), minutes, make)
    return {
        "campaign": what,
        "seed": seed,
        "cases": len(cases),
        "done": len(lines),
        "kills": sum(line["fault"] == "kill" and line.get("ended") != "well" for line in lines),
        "operations": {
            name: bench.number(name, faults.READS if name == "pool" else faults.ALLOCATES | faults.CHANGES)
            for name in names
        },
        "outcomes": dict(sorted(Counter(line["outcome"] for line in lines).items())),
        "by_scenario": _by(lines, "scenario"),
        "by_fault": _by(lines, "fault"),
        "faults": [line for line in lines if line["outcome"] != "same"],
    }


def _by(lines: list[Line], key: str) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        counts.setdefault(line[key], Counter())[line["outcome"]] += 1
    return {name: dict(sorted(found.items())) for name, found in sorted(counts.items())}


def main() -> None:
    """Run the campaign, print the counts, and write the record."""
    faults.start_again_with_faults()
    import torch
    from scenarios import SCENARIOS
    from transformers.utils import logging

    what = sys.argv.pop(1)
    args = parse(__doc__ or "", {"kills": "commands"}.get(what, what), 1_000_000)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = args.only or list(SCENARIOS)
    report(campaign(what, names, args.minutes, args.seed, args.outcomes, args.count), args.record)


if __name__ == "__main__":
    main()
