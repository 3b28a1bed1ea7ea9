"""The engine: one thread that runs the model, and requests that join and leave its batch between two steps.

An answer does not depend on what else is in the batch. Adapters are loaded by other threads before a request waits for the
batch. Whatever happens to a request, its ticket ends and its adapter is released.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from t5peft.compat.transformers import logits_processors
from t5peft.serving.batch import Batch
from t5peft.serving.checks import check_adapter, check_request
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import (
    EngineClosedError,
    EngineStats,
    Generated,
    GenerateRequest,
    QueueFullError,
    Request,
    Scores,
    Ticket,
    Token,
)
from t5peft.serving.routing import sort_key
from t5peft.serving.sampling import Sampler, choose
from t5peft.serving.scheduler import Job, Limits, Scheduler
from t5peft.serving.whole_batches import answer

_LOADERS = 4


class Engine:
    """Answer requests for one backbone and its adapters.

    It starts its threads. Close it, or use it as a context manager.

    Args:
        pool: The backbone and its adapters.
        limits: How much is taken on at once.
    """

    def __init__(self, pool: AdapterPool, limits: Limits = Limits()) -> None:  # noqa: B008  # frozen
        self._pool, self._model, self._limits = pool, pool.model, limits
        config = self._model.t5.generation_config
        end = config.eos_token_id
        self._end_ids = set(() if end is None else torch.as_tensor(end).reshape(-1).tolist())
        start = config.decoder_start_token_id
        self._start_id = int(self._model.t5.config.decoder_start_token_id if start is None else start)
        self._has_processors = bool(logits_processors(self._model.t5, [0], 1))
        self._changed = threading.Condition()
        # Guarded by the condition.
        self._scheduler = Scheduler(limits)
        self._loading: dict[str, list[Job]] = {}
        self._loading_count = self._number = 0
        self._closing = self._aborting = False
        self._finished = self._cancelled = self._failed = 0
        # Written only by the thread of the model.
        self._batch: Batch | None = None
        self._steps = self._row_steps = self._generated_tokens = 0
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="t5peft-loader")
        self._thread = threading.Thread(target=self._run, name="t5peft-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, *, on_token: Callable[[Token], None] | None = None) -> Ticket:
        """Accept a request. Call this from any thread.

        Args:
            request: What to answer.
            on_token: Called with each token in the thread of the model, so it must return at once. An error ends the request.

        Returns:
            The ticket. An adapter that cannot be loaded ends it with the error.

        Raises:
            EngineClosedError: The engine was closed.
            QueueFullError: Too many requests wait.
            TooLongError: The request is above the limits.
            ValueError: The request is wrong in itself.
        """
        check_request(request, self._limits, int(self._model.t5.config.vocab_size))
        sampler = self._sampler(request) if isinstance(request, GenerateRequest) else None
        with self._changed:
            if self._closing:
                raise EngineClosedError("Got a request for a closed engine; expected an open one. Start another one.")
            waiting = self._loading_count + len(self._scheduler)
            if waiting >= self._limits.max_waiting:
                waiting -= self._drop_cancelled()
            if waiting >= self._limits.max_waiting:
                raise QueueFullError(
                    f"Got a request while {waiting} are waiting; expected fewer than {self._limits.max_waiting}. Try again later."
                )
            self._number += 1
            job = Job(
                source_ids=request.source_ids,
                next_id=self._start_id,
                number=self._number,
                request=request,
                on_token=on_token,
                sampler=sampler,
            )
            if request.adapter is None:
                self._scheduler.add(job)
                self._changed.notify_all()
            else:
                self._loading_count += 1
                if request.adapter not in self._loading:
                    self._loading[request.adapter] = []
                    self._loaders.submit(self._load, request.adapter)
                self._loading[request.adapter].append(job)
        return Ticket(job.result)

    def stats(self) -> EngineStats:
        """Return what the engine does now, and what it has done."""
        with self._changed:
            running = self._running()
            return EngineStats(
                running=len(running),
                waiting=len(self._scheduler),
                loading=self._loading_count,
                active_adapters=len({job.adapter for job in running} - {None}),
                finished=self._finished,
                cancelled=self._cancelled,
                failed=self._failed,
                generated_tokens=self._generated_tokens,
                steps=self._steps,
                rows_per_step=self._row_steps / self._steps if self._steps else 0.0,
            )

    def close(self, *, finish: bool = True, timeout_seconds: float | None = None) -> None:
        """Refuse new requests and stop. Closing twice does nothing more.

        Args:
            finish: Answer the requests that were accepted. Otherwise they end with ``EngineClosedError``.
            timeout_seconds: How long to answer them, before the rest ends with ``EngineClosedError``; None for no limit.
        """
        with self._changed:
            self._closing = True
            self._aborting |= not finish
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            self._aborting = True
            self._changed.notify_all()
        self._thread.join()
        self._loaders.shutdown(cancel_futures=True)
        for job in [job for jobs in self._loading.values() for job in jobs]:
            self._end(job, _closed())
        self._loading.clear()
        self._loading_count = 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(finish=error is None)

    def _sampler(self, request: GenerateRequest) -> Sampler:
        if not self._has_processors:
            return Sampler(request)
        processors = logits_processors(self._model.t5, request.source_ids, request.max_new_tokens)
        return Sampler(request, self._start_id, processors)

    # In the threads of the loaders

    def _load(self, name: str) -> None:
        """Load an adapter for every request that waits for it, in their order."""
        while True:
            with self._changed:
                jobs = self._loading[name]
                if not jobs:
                    del self._loading[name]
                    return
                self._loading[name] = []
            for job in jobs:
                self._load_for(job)

    def _load_for(self, job: Job) -> None:
        error: Exception | None = None
        if not job.result.cancelled() and not self._aborting:
            try:
                job.adapter = self._pool.acquire(job.request.adapter)
                job.is_held = True
                check_adapter(job.request, job.adapter)
            except Exception as caught:
                error = caught
        with self._changed:
            self._loading_count -= 1
            if error is None and self._aborting:
                error = _closed()
            waits = error is None and not job.result.cancelled()
            if waits:
                self._scheduler.add(job)
            self._changed.notify_all()
        if not waits:
            self._end(job, error)

    # In the thread of the model

    @torch.inference_mode()
    def _run(self) -> None:
        # No request may wait for ever, whatever goes wrong.
        try:
            while self._wait():
                try:
                    self._iterate()
                except Exception as error:
                    self._abandon_batch(error)
        finally:
            with self._changed:
                self._closing = self._aborting = True
                left = self._scheduler.remove(lambda job: True)
            for job in left:
                self._end(job, _closed())
            self._abandon_batch(_closed())

    def _wait(self) -> bool:
        """Wait for something to do. Return whether there is."""
        with self._changed:
            while not self._aborting:
                if self._batch is not None or len(self._scheduler):
                    return True
                if self._closing and not self._loading_count:
                    return False
                self._changed.wait()
            return False

    def _iterate(self) -> None:
        """Let requests leave and join, take a step, and answer a whole batch if one is due."""
        self._drop_given_up()
        with self._changed:
            whole = self._scheduler.next_batch(bool(self._running()))
        with self._failing_together(whole):
            self._answer(whole)
        self._advance()

    def _advance(self) -> None:
        """Let rows join and take a step."""
        with self._changed:
            joining = self._scheduler.next_rows(self._running())
        self._arrange(self._start(joining))
        if self._batch is not None:
            self._step(self._batch)

    def _advance_between(self) -> None:
        """Go on with the rows between two steps of beams."""
        if not self._aborting:
            self._drop_given_up()
            self._advance()

    def _drop_given_up(self) -> None:
        """End the requests that were given up, running or waiting."""
        for job in self._running():
            if job.result.cancelled():
                self._end(job)
        with self._changed:
            self._drop_cancelled()

    def _running(self) -> list[Job]:
        batch = self._batch
        return [] if batch is None else [job for job in self._jobs(batch) if not job.ended]

    @staticmethod
    def _jobs(batch: Batch) -> list[Job]:
        return cast(list[Job], batch.rows)

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answer beams, ranks or classes by one call."""
        if not jobs:
            return
        jobs = sorted(jobs, key=lambda job: sort_key(job.adapter))
        before = self._steps
        answers, passes = answer(self._model, jobs, self._end_ids, self._advance_between)
        self._scheduler.count_passes(max(0, passes - (self._steps - before)))
        for job, found in zip(jobs, answers, strict=True):
            if isinstance(found, Generated):
                self._generated_tokens += len(found.tokens)
                if not all(self._tell(job, token) for token in found.tokens):
                    continue
            self._end(job, found)

    def _start(self, jobs: Sequence[Job]) -> Batch | None:
        """Encode the sources of new rows, and return their batch."""
        with self._failing_together(jobs):
            if jobs:
                batch, logits = Batch.start(self._model, jobs)
                if logits is not None:
                    self._take(batch, logits)
                return batch
        return None

    def _arrange(self, joining: Batch | None) -> None:
        """Let started rows join, and drop rows that have ended where it pays."""
        if self._batch is None:
            self._batch, joining = joining, None
        batch = self._batch
        if batch is None:
            return
        jobs = [*self._jobs(batch), *(self._jobs(joining) if joining else [])]
        with self._failing_together(jobs):
            if joining or batch.is_wasteful:
                batch.arrange(joining)
        self._forget_ended(jobs)

    def _step(self, batch: Batch) -> None:
        jobs = self._jobs(batch)
        with self._failing_together(jobs):
            self._steps += 1
            self._row_steps += sum(not job.ended for job in jobs)
            self._take(batch, batch.step(self._model))
        self._scheduler.count_step()
        self._forget_ended(jobs)

    def _forget_ended(self, jobs: Sequence[Job]) -> None:
        """Go on without a batch where all of its rows have ended."""
        if all(job.ended for job in jobs):
            self._batch = None

    def _take(self, batch: Batch, logits: Tensor) -> None:
        """Give every row its next token, and end the answers that are complete."""
        jobs = self._jobs(batch)
        for job, token in zip(jobs, choose(logits, [cast(Sampler, job.sampler) for job in jobs]), strict=True):
            if job.ended:
                continue
            job.tokens.append(token)
            job.next_id = token.id
            self._generated_tokens += 1
            if not self._tell(job, token):
                continue
            if token.id in self._end_ids:
                self._end(job, Generated(job.tokens, "stop"))
            elif len(job.tokens) == job.target_size:
                self._end(job, Generated(job.tokens, "length"))

    def _tell(self, job: Job, token: Token) -> bool:
        """Hand a token to who wants it. An error there ends only this request. Return whether it goes on."""
        if job.on_token is not None:
            try:
                job.on_token(token)
            except Exception as error:
                self._end(job, error)
        return not job.ended

    @contextmanager
    def _failing_together(self, jobs: Sequence[Job]) -> Iterator[None]:
        """End the requests of one call with its error."""
        try:
            yield
        except BaseException as error:
            for job in jobs:
                if not job.ended:
                    self._end(job, error)
            if not isinstance(error, Exception):
                raise

    def _abandon_batch(self, error: Exception) -> None:
        """End the rows that run with an error, and go on without a batch."""
        for job in self._running():
            self._end(job, error)
        self._batch = None

    # In any thread

    def _drop_cancelled(self) -> int:
        """Drop waiting requests that were given up, and return their number. Call it under the condition."""
        given_up = self._scheduler.remove(lambda job: job.result.cancelled())
        for job in given_up:
            self._end(job)
        return len(given_up)

    def _end(self, job: Job, outcome: Generated | Scores | BaseException | None = None) -> None:
        """End a request once: with its answer, with an error, or with nothing where it was given up."""
        job.ended = True
        if job.is_held:
            try:
                self._pool.release(job.adapter)
            except Exception as error:
                outcome = error
        goes_on = job.result.set_running_or_notify_cancel()
        failed = isinstance(outcome, BaseException)
        with self._changed:
            self._cancelled += not goes_on
            self._failed += goes_on and failed
            self._finished += goes_on and not failed
        if goes_on:
            job.settle(outcome)


def _closed() -> EngineClosedError:
    return EngineClosedError("Got a request unanswered before the engine closed; expected more time. Send it again.")
