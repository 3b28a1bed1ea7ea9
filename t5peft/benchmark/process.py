"""Run each run in a process of its own, so that its peak memory is its own and its death is an outcome.

Runs are forked from a server that has imported the libraries and computed nothing. The import is paid once a suite, and
every run starts from the same resident set. A run ends itself when the process that started it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from t5peft.benchmark.records import RunRecord
from t5peft.compat.workers import end_with_parent

OnProgress = Callable[[int, int], None]
"""Called with the step and the number of steps."""
Job = TypeVar("Job")


class RunProcesses(Generic[Job]):
    """Make runs in processes of their own. Call it with a configuration to get the record.

    Args:
        worker: Makes a run from a configuration, and returns its record. It must be a function of a module, because the
            new process imports it by name.
        log: File for the output of the runs.
        threads: CPU threads of a run.
        on_progress: Called with the step and the number of steps while a run is going on.
        preload: Modules that are imported once, before the first run.
    """

    def __init__(
        self,
        worker: Callable[[Job, OnProgress], RunRecord],
        *,
        log: Path,
        threads: int,
        on_progress: OnProgress = lambda step, steps: None,
        preload: tuple[str, ...] = (),
    ) -> None:
        self.worker, self.log, self.threads, self.on_progress = worker, log, threads, on_progress
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[name] = str(threads)  # read by the libraries when the server imports them
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._running: set[Any] = set()
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)  # its classes are made at run time
        if method == "forkserver":
            self._context.set_forkserver_preload(list(preload))

    def __call__(self, config: Job) -> RunRecord:
        """Return the record of one run, also of a process that died."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run, args=(self.worker, config, sender, str(self.log), self.threads), daemon=True
        )
        process.start()
        self._running.add(process)
        sender.close()
        try:
            with receiver:
                record = self._receive(receiver)
            process.join()
        except BaseException:
            process.kill()
            process.join()
            raise
        finally:
            self._running.discard(process)
        exit_code = process.exitcode
        process.close()
        return record if record is not None else _record_of_death(exit_code, self.log)

    def stop(self) -> None:
        """End the runs that other threads wait for."""
        for process in tuple(self._running):
            process.kill()

    def _receive(self, receiver: Connection) -> RunRecord | None:
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                return None
            if isinstance(message, dict):
                return message
            self.on_progress(*message)


def run_in_process(worker: Callable[[Job, OnProgress], RunRecord], config: Job, **settings: Any) -> RunRecord:
    """Make one run in a process of its own and return its record, as a task of a cluster.

    Args:
        worker: See ``RunProcesses``.
        config: The run.
        settings: Those of ``RunProcesses``.
    """
    return RunProcesses(worker, **settings)(config)


def _run(
    worker: Callable[[Job, OnProgress], RunRecord], config: Job, sender: Connection, log: str, threads: int
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8", buffering=1) as file:
        for descriptor in (1, 2):  # not only Python's own streams: libraries in C write here too
            os.dup2(file.fileno(), descriptor)
        print(f"--- {config}", flush=True)
        _set_threads(threads)
        sender.send(worker(config, lambda step, steps: sender.send((step, steps))))
        sys.stdout.flush()


def _set_threads(threads: int) -> None:
    torch = sys.modules.get("torch")  # a worker that needs no torch does not wait for its import
    if torch is not None:
        torch.set_num_threads(threads)


def _record_of_death(exit_code: int | None, log: Path) -> RunRecord:
    """Make the record of a process that died; signal 9 almost always means that the system ran out of memory."""
    if exit_code == -9:
        reason = "the system killed the process (signal 9), as it does when memory runs out"
        return {"outcome": "out_of_memory", "reason": reason}
    reason = f"the process ended with exit code {exit_code} and no record, see {log.name}"
    return {"outcome": "failed", "reason": reason}
