"""One process a run, so that its peak memory is its own and its death is an outcome.

Runs are forked from a server that has imported the libraries and computed nothing: the import is paid once a suite,
and every run starts from the same resident set. A run ends itself when the process that asked for it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from t5peft.benchmark.records import RunConfig

Worker = Callable[[RunConfig, Callable[[int, int], None]], dict[str, Any]]
"""Makes a run: takes the configuration and a function to be told (step, steps); returns the record."""


class RunProcesses:
    """Makes runs in processes of their own; call it with a configuration to get the record.

    Args:
        worker: a function of a module (it is found again by name in the new process).
        log: file that gets what the runs print.
        threads: CPU threads of a run.
        on_step: is told (step, steps) while a run goes on.
        preload: modules that are imported once, before the first run.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        log: Path,
        threads: int,
        on_step: Callable[[int, int], None] = lambda step, steps: None,
        preload: tuple[str, ...] = (),
    ) -> None:
        self.worker, self.log, self.threads, self.on_step = worker, log, threads, on_step
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(threads)  # read by the libraries when the server imports them
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(list(preload))

    def __call__(self, config: RunConfig) -> dict[str, Any]:
        """The record of one run; a process that dies gives a record too."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run, args=(self.worker, config, sender, str(self.log), self.threads), daemon=True
        )
        process.start()
        sender.close()
        try:
            with receiver:
                record = self._receive(receiver)
            process.join()
        except BaseException:
            process.kill()
            process.join()
            raise
        exit_code = process.exitcode
        process.close()
        return record if record is not None else _record_of_death(exit_code, self.log)

    def _receive(self, receiver: Connection) -> dict[str, Any] | None:
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                return None
            if isinstance(message, dict):
                return message
            self.on_step(*message)


def _run(worker: Worker, config: RunConfig, sender: Connection, log: str, threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8", buffering=1) as file:
        for descriptor in (1, 2):  # not only Python's own streams: libraries in C write here too
            os.dup2(file.fileno(), descriptor)
        print(f"--- {config}", flush=True)
        _set_threads(threads)
        sender.send(worker(config, lambda step, steps: sender.send((step, steps))))
        sys.stdout.flush()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _set_threads(threads: int) -> None:
    torch = sys.modules.get("torch")  # a worker that needs no torch does not wait for its import
    if torch is not None:
        torch.set_num_threads(threads)


def _record_of_death(exit_code: int | None, log: Path) -> dict[str, Any]:
    """Killed by the system means out of memory in all likelihood: nothing else kills a run alone."""
    if exit_code == -9:
        return {
            "outcome": "out_of_memory",
            "reason": "the system killed the process (signal 9), as it does on no memory",
        }
    return {
        "outcome": "failed",
        "reason": f"the process ended with exit code {exit_code} and no record, see {log.name}",
    }
