"""Calls that run at once in several processes of this machine, and what every such executor has."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from t5peft.compat.threads import COUNTS, available_cores

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(Executor):
    """An executor that knows how much runs at once.

    Attributes:
        workers: Calls that run at once.
        threads: CPU threads of a call.
    """

    workers: int
    threads: int

    @abstractmethod
    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Start a call.

        Args:
            fn: A function of a module, which the processes can import.
            args: Its arguments.
            kwargs: Likewise.

        Returns:
            The future of its result. An error of the call is raised as it is.
        """

    def in_order(self, fn: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the results of ``fn`` for jobs in their order; read few jobs ahead, unlike ``map``.

        Args:
            fn: A function of a module.
            jobs: What it gets.
        """
        running: deque[Future[Result]] = deque()
        for job in jobs:
            running.append(self.submit(fn, job))
            if len(running) > 2 * self.workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


_SECONDS_TO_END = 10.0  # of an idle process, before it is killed


class LocalWorkers(Workers):
    """Processes of this machine, each of which imports the libraries once.

    Args:
        workers: Calls that run at once.
        threads: CPU threads of a call; None shares the cores among the workers.

    Raises:
        ValueError: ``workers`` is below 1.
    """

    def __init__(self, workers: int, *, threads: int | None = None) -> None:
        self.workers, self.threads = workers, threads or threads_of_each(workers)
        self._pool = ThreadPoolExecutor(workers)
        self._own = threading.local()  # each thread waits for a process of its own
        self._processes: dict[Connection, Any] = {}
        self._busy: set[Connection] = set()
        self._ends = False

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Start a call; see ``Workers``.

        Args:
            fn: A function of a module.
            args: Its arguments.
            kwargs: Likewise.

        Returns:
            The future of its result. A process that died is a ``ChildProcessError``.
        """
        return self._pool.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, also those whose calls nobody waits for any more.

        Args:
            wait: Not used: results are waited for where they are read.
            cancel_futures: Not used: calls that run are ended.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ends = True
        for connection in self._busy.copy():
            self._processes[connection].kill()
        self._pool.shutdown()
        for connection in self._processes:
            connection.close()  # at which an idle process ends by itself
        for process in self._processes.values():
            process.join(_SECONDS_TO_END)
            process.kill()
            process.join()

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not hasattr(self._own, "connection"):
            self._own.connection = self._start()
        connection: Connection = self._own.connection
        self._busy.add(connection)
        try:
            if self._ends:  # meanwhile, in another thread
                raise EOFError
            connection.send((fn, args, kwargs))
            returned, result = connection.recv()
        except (EOFError, ConnectionError):
            del self._own.connection
            raise ChildProcessError(
                "Got a worker process that was killed, as the system does when memory runs out; expected it to finish. Start the "
                "command again, with fewer --workers."
            ) from None
        finally:
            self._busy.discard(connection)
        if returned:
            return result
        raise result

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self.threads))
        process.start()
        there.close()
        self._processes[here] = process
        return here


def _serve(connection: Connection, threads: int) -> None:
    """Make the calls that come, until the process that sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process is interrupted too, and ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ.update({name: str(threads) for name in COUNTS})  # read when the first call imports the libraries
    while True:
        try:
            fn, args, kwargs = connection.recv()
        except EOFError:
            return
        try:
            answer = True, fn(*args, **kwargs)
        except Exception as error:
            answer = False, error
        connection.send(answer)


def end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end at once."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def threads_of_each(workers: int) -> int:
    """Return the CPU threads of each of several processes that share this machine.

    Args:
        workers: How many run at once.

    Raises:
        ValueError: ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"Got workers={workers}; expected at least 1.")
    return max(1, available_cores() // workers)
