"""Calls that run as tasks of Ray, behind the ``Executor`` of the standard library.

The variable RAY_ADDRESS names a cluster that runs. Without it a Ray of this machine is started, and stopped at the end. All
machines must see the folders of the command: a task runs in the folder that the command was called in.

A call whose process or machine is lost is made again, on another one, up to ``RETRIES`` times.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from t5peft.compat.extras import require
from t5peft.compat.threads import available_cores
from t5peft.compat.workers import LocalWorkers, Workers

Result = TypeVar("Result")
RETRIES = 3


class RayExecutor(Workers):
    """An executor whose calls are tasks of Ray. At its end it cancels the calls that run.

    Args:
        workers: Calls that run at once.
        threads: CPU threads of a call; None shares the cores of the cluster among the workers.
        gpus: GPUs of a call; None takes one where the cluster has any.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``workers`` is below 1.
        ConnectionError: There is no cluster at RAY_ADDRESS.
    """

    def __init__(self, workers: int, *, threads: int | None = None, gpus: int | None = None) -> None:
        if workers < 1:
            raise ValueError(f"Got workers={workers}; expected at least 1.")
        require("ray", "cluster")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a call without a GPU sees none
        import ray

        self.workers = workers
        self._starts = not ray.is_initialized()
        if self._starts:
            own = {"num_cpus": max(available_cores(), workers * (threads or 1)), "include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="error", **({} if "RAY_ADDRESS" in os.environ else own))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        self.threads = threads or max(1, min(max(cores), sum(cores) // workers))
        if gpus is None:
            gpus = int(any(node.get("GPU") for node in nodes))
        self._call = ray.remote(_call).options(num_cpus=self.threads, num_gpus=gpus, max_retries=RETRIES)

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Start a call.

        Args:
            fn: A function of a module, which the workers can import.
            args: Its arguments.
            kwargs: Likewise.

        Returns:
            The future of its result. An error of the call is raised as it is.
        """
        given = {name: value for name, value in os.environ.items() if name.startswith(("T5PEFT_", "HF_"))}
        future: Future[Result] = Future()
        task = self._call.remote(os.getcwd(), given, fn, args, kwargs)
        task.future().add_done_callback(lambda done: _settle(future, done))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the Ray that was started here, or leave the cluster.

        Args:
            wait: Not used: results are waited for where they are read.
            cancel_futures: Not used: calls that run are canceled.
        """
        if self._starts:
            import ray

            ray.shutdown()


def has_cluster() -> bool:
    """Return whether there is a Ray to spread over: that of RAY_ADDRESS, or one that this process has started."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())


def open_workers(workers: int) -> Workers:
    """Return an executor: the cluster of Ray where there is one, and processes of this machine otherwise.

    Args:
        workers: Calls that run at once.

    Returns:
        A context manager, which ends what it started.
    """
    if has_cluster():
        return RayExecutor(workers)
    return LocalWorkers(workers)


def _call(folder: str, environment: dict[str, str], fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Make one call in a process of Ray; a process that it starts need not import Ray's main program."""
    vars(sys.modules["__main__"]).pop("__file__", None)
    os.chdir(folder)
    os.environ.update(environment)
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a process is used again for other calls
    return fn(*args, **kwargs)


def _settle(future: Future[Any], done: Future[Any]) -> None:
    from ray.exceptions import RayTaskError

    error = done.exception()
    with suppress(Exception):  # nobody waits any more
        if error is None:
            future.set_result(done.result())
        else:
            future.set_exception(error.cause if isinstance(error, RayTaskError) else error)
