"""Kill one of several processes of a training at a random moment, go on, and compare with the run that nobody killed.

    python tests/torture/processes.py --count 100 --minutes 30 --record benchmarks/records/torture/processes.json

Each number draws the settings of ``kills.py``, two or three processes, and the process that ``kill -9`` ends. The others
must end by themselves within 30 seconds. Then the run goes on with as many processes, to the same bits. The outcomes are those of
``kills.py``, and one more:

    waiting    a process that was left had not ended after 30 seconds

A process that waits for one that died before they met gives up after ``ddp_timeout``, which is 10 seconds here.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from campaign import Line, go_on, parse, report
from kills import compare, draw, train

MOST_SECONDS = 30.0


def in_processes(
    run: Callable[[int], None], count: int, errors: Path, *, victim: int = 0, kill_after: float | None = None
) -> tuple[list[int | None], float, float]:
    """Run a function of the rank in forked processes of one gloo group.

    Args:
        run: What each process does.
        count: The number of processes.
        errors: The folder for what they raise.
        victim: The rank of the process to kill.
        kill_after: When to kill it; None to let it live.

    Returns:
        The status of each process, None for one that had to be killed as it waited for too long; the seconds of all of it; and
        the seconds that the others took to end after the first one had.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    children = [_start(run, rank, count, port, errors) for rank in range(count)]
    statuses: dict[int, int | None] = {}
    first_end: float | None = None
    killed = False
    while len(statuses) < count:
        for rank, child in enumerate(children):
            if rank not in statuses and (found := os.waitpid(child, os.WNOHANG))[0]:
                statuses[rank] = os.waitstatus_to_exitcode(found[1])
                first_end = first_end or time.monotonic()
        now = time.monotonic()
        if kill_after is not None and not killed and now - start > kill_after and victim not in statuses:
            os.kill(children[victim], signal.SIGKILL)
            killed = True
        limit = MOST_SECONDS if killed or any(statuses.values()) else 120.0
        if first_end is not None and now - first_end > limit:
            for rank, child in enumerate(children):
                if rank not in statuses:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    statuses[rank] = None
        time.sleep(0.005)
    end = time.monotonic()
    return [statuses[rank] for rank in range(count)], end - start, end - (first_end or end)


def _start(run: Callable[[int], None], rank: int, count: int, port: int, errors: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if count > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        run(rank)
        status = 0
    except BaseException:
        (errors / f"error-{rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def settings_of(rng: random.Random) -> dict[str, Any]:
    """Draw the settings of a run in several processes."""
    settings = draw(rng)
    settings["arguments"] |= {"ddp_backend": "gloo", "dataloader_num_workers": 0, "ddp_timeout": 10}
    settings["processes"] = rng.choice([2, 2, 3])
    if settings["processes"] > 2:
        # Else torch lays its buffers out anew after the first step of a run, and sums of three numbers in another order.
        settings["arguments"]["ddp_find_unused_parameters"] = True
    settings["records"] = rng.randint(7, 23)
    return settings


def one(number: int, seed: int) -> Line:
    """Kill a process of the run of this number, and go on."""
    rng = random.Random(f"{seed} {number}")
    settings = settings_of(rng)
    count = settings["processes"]
    line: Line = {"number": number, **settings, "kills": 0}
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, "whole"), Path(name, "killed")
        whole.mkdir()
        killed.mkdir()

        def run(folder: Path, **options: Any) -> tuple[list[int | None], float, float]:
            return in_processes(lambda rank: train(settings, folder, is_first=rank == 0), count, folder, **options)

        statuses, seconds, _ = run(whole)
        if any(statuses):
            return line | {"outcome": "failed", "error": _errors(whole)}
        line["victim"] = rng.randrange(count)
        statuses, _, waited = run(killed, victim=line["victim"], kill_after=rng.uniform(0.02, 1.0) * seconds)
        line["seconds_to_end"] = round(waited, 2)
        line["kills"] = int(statuses[line["victim"]] == -signal.SIGKILL)
        if None in statuses:
            return line | {"outcome": "waiting"}
        if not line["kills"]:
            if any(statuses):
                return line | {"outcome": "failed", "error": _errors(killed)}
            shutil.rmtree(killed)
            killed.mkdir()
        statuses, _, _ = run(killed)
        if any(statuses):
            return line | {"outcome": "failed", "error": _errors(killed)}
        different = compare(whole, killed)
        return line | {"outcome": "other" if different else "same", "different": different[:3]}


def _errors(folder: Path) -> str:
    return " / ".join(path.read_text()[-700:] for path in sorted(folder.glob("error-*.txt")))


def campaign(count: int, minutes: float, seed: int, outcomes: Path) -> Line:
    """Kill until so many runs were made, or the time is over; return the counts."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()  # a forked process that collects garbage copies nothing then
    lines = go_on(outcomes, range(count), minutes, lambda number: one(number, seed))
    ends = [line["seconds_to_end"] for line in lines if line["kills"]]
    return {
        "campaign": "processes",
        "seed": seed,
        "runs": len(lines),
        "kills": sum(line["kills"] for line in lines),
        "kills_by_processes": dict(Counter(str(line["processes"]) for line in lines if line["kills"])),
        "kills_of_the_first": sum(line["kills"] for line in lines if line.get("victim") == 0),
        "slowest_seconds_to_end": max(ends, default=0.0),
        "outcomes": dict(sorted(Counter(line["outcome"] for line in lines).items())),
        "faults": [line for line in lines if line["outcome"] != "same"],
    }


def main() -> None:
    """Run the campaign, print the counts, and write the record."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    args = parse(__doc__ or "", "processes", 120)
    report(campaign(args.count, args.minutes, args.seed, args.outcomes), args.record)


if __name__ == "__main__":
    main()
