"""Whatever happens to a request, the engine goes on, never hangs, and gives back what it holds."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from itertools import count, pairwise
from typing import Any

import pytest
from engine_fixtures import gate, pool  # noqa: F401  (fixtures)
from engine_requests import SECONDS, check, get, request, source, until
from fake_pool import FakePool
from tiny import EOS

from t5peft.serving.engine import Engine, Ticket
from t5peft.serving.requests import (
    EngineClosedError,
    RankRequest,
)
from t5peft.serving.scheduler import Limits


def test_a_canceled_request_frees_its_row(pool: Any) -> None:
    told = threading.Event()
    with Engine(pool, Limits(max_rows=1)) as engine:
        running = engine.submit(request(max_new_tokens=500, adapter="a"), on_token=lambda token: told.set())
        assert told.wait(SECONDS)  # its adapter is loaded in another thread, so a later request could come first
        waiting = engine.submit(request(1, 5, 4))
        assert not waiting.result.done()
        running.cancel()
        check(get(waiting), 1, 5, 4)
        assert running.result.cancelled()
        assert pool.held["a"] == 0
    assert (engine.stats().cancelled, engine.stats().finished) == (1, 1)
    assert engine.stats().generated_tokens < 500, "it took no more steps"


def test_requests_are_canceled_while_they_wait_or_load(pool: Any, gate: Any) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(name: Any) -> None:
        if name == "b":
            loading.set()
            assert go_on.wait(SECONDS)

    pool.on_acquire = load
    with Engine(pool, Limits(max_rows=1)) as engine:
        first = engine.submit(request(0, 5, 4))
        assert gate.reached.wait(SECONDS)
        waiting, slow = engine.submit(request(1, adapter="a")), engine.submit(request(2, adapter="b"))
        assert loading.wait(SECONDS)
        for ticket in (waiting, slow):
            ticket.cancel()
        go_on.set()
        gate.set()
        check(get(first), 0, 5, 4)
    assert (engine.stats().cancelled, engine.stats().finished) == (2, 1)


def test_an_adapter_that_loads_slowly_holds_up_only_its_own_requests(pool: Any) -> None:
    go_on = threading.Event()
    pool.on_acquire = lambda name: name != "a" or go_on.wait(SECONDS)
    with Engine(pool) as engine:
        slow = [engine.submit(request(i, 5, 4, adapter="a")) for i in range(20)]
        check(get(engine.submit(request(30, 5, 4, adapter="b"))), 30, 5, 4)
        assert engine.stats().loading == 20
        go_on.set()
        for i, ticket in enumerate(slow):
            check(get(ticket), i, 5, 4)


def test_an_error_of_the_listener_ends_only_its_request(pool: Any) -> None:
    def fail(token: Any) -> None:
        raise OSError("gone")

    with Engine(pool) as engine:
        good, bad = engine.submit(request(0, 5, 9)), engine.submit(request(1, 5, 9, adapter="a"), on_token=fail)
        beams = engine.submit(request(1, 5, 9, num_beams=2), on_token=fail)
        for ticket in (bad, beams):
            with pytest.raises(OSError, match="gone"):
                get(ticket)
        check(get(good), 0, 5, 9)


@pytest.mark.parametrize("call", ["encode", "rows", "generate", "rank", "step"])
def test_an_error_of_the_model_fails_its_batch_and_the_engine_goes_on(pool: Any, call: Any) -> None:
    calls = []

    def fail(name: Any, adapters: Any) -> None:
        calls.append(name)
        if name == call or (call == "step" and calls[-3:] == ["encode", "rows", "rows"]):
            pool.model.on_call = lambda name, adapters: None
            raise RuntimeError("out of memory")

    pool.model.on_call = fail
    with Engine(pool) as engine:
        if call == "rank":
            ticket = engine.submit(RankRequest("a", source(1), [[3, EOS]]))
        else:
            ticket = engine.submit(request(adapter="a", num_beams=2 if call == "generate" else 1))
        with pytest.raises(RuntimeError, match="out of memory"):
            get(ticket)
        check(get(engine.submit(request(0, 5, 4))), 0, 5, 4)
    stats = engine.stats()
    assert (stats.failed, stats.finished, stats.running) == (1, 1, 0)


def test_no_request_hangs_where_an_adapter_cannot_be_released(pool: Any) -> None:
    def release(adapter: Any) -> None:
        FakePool.release(pool, adapter)
        raise KeyError("not held")

    pool.release = release
    with Engine(pool) as engine:
        with pytest.raises(KeyError, match="not held"):
            get(engine.submit(request(adapter="a")))
        check(get(engine.submit(request(0, 5, 4))), 0, 5, 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_request_hangs_where_the_thread_of_the_model_dies(pool: Any) -> None:
    both_wait = threading.Event()

    def leave(token: Any) -> None:
        assert both_wait.wait(SECONDS)
        raise GeneratorExit

    engine = Engine(pool, Limits(max_rows=1))
    tickets = [engine.submit(request(i, adapter="a"), on_token=leave) for i in range(2)]
    both_wait.set()
    with pytest.raises(GeneratorExit):
        get(tickets[0])
    with pytest.raises(EngineClosedError):
        get(tickets[1])
    until(lambda: not engine._thread.is_alive())
    with pytest.raises(EngineClosedError):
        engine.submit(request())
    engine.close()


def test_an_error_while_rows_join_leaves_the_running_ones(pool: Any) -> None:
    told = threading.Event()
    with Engine(pool) as engine:
        running = engine.submit(request(0, 5, 20), on_token=lambda token: told.set())
        assert told.wait(SECONDS)

        def fail(name: Any, adapters: Any) -> None:
            if name == "encode":
                pool.model.on_call = lambda name, adapters: None
                raise RuntimeError("too long")

        pool.model.on_call = fail
        with pytest.raises(RuntimeError, match="too long"):
            get(engine.submit(request(1)))
        check(get(running), 0, 5, 20)


# Limits and fairness


def test_caches_stay_below_the_limit(pool: Any) -> None:
    limits = Limits(max_rows=8, max_tokens=200, max_source_tokens=40, max_new_tokens=60)
    sizes = []
    with Engine(pool, limits) as engine:

        def look(token: Any) -> None:
            batch = engine._batch
            if batch is not None and batch.rows:
                sizes.append(len(batch.rows) * (batch.columns + batch.source_columns))

        tickets = [engine.submit(request(i, 3 + 2 * i, 1 + 7 * i % 40), on_token=look) for i in range(16)]
        for i, ticket in enumerate(tickets):
            check(get(ticket), i, 3 + 2 * i, 1 + 7 * i % 40)
    assert 100 < max(sizes) <= 200


def test_rows_go_on_between_the_steps_of_beams_and_between_ranks(pool: Any) -> None:
    calls: list[str] = []
    pool.model.on_call = lambda name, adapters: calls.append(name)
    told = threading.Event()
    with Engine(pool, Limits(max_steps_between=5)) as engine:
        running = engine.submit(request(max_new_tokens=400), on_token=lambda token: told.set())
        assert told.wait(SECONDS)
        others = [engine.submit(request(1, num_beams=2 + i, max_new_tokens=12)) for i in range(5)]
        others += [engine.submit(RankRequest(None, source(i), [[3, EOS]])) for i in range(3)]
        for ticket in others:
            get(ticket)
        assert not running.result.done()
        running.cancel()
    batches = [i for i, name in enumerate(calls) if name in ("generate", "rank")]
    assert len(batches) >= 6
    for i, j in pairwise(batches):
        # A batch of beams has up to 12 steps, after each of which the row takes one, and is scored in one call.
        steps = calls[i:j].count("rows") - (calls[i] == "generate")
        assert steps >= (8 if calls[i] == "generate" else 1)
        assert steps <= 20


def test_rows_join_and_end_while_beams_run(pool: Any) -> None:
    ended: list[str] = []
    rows: list[Ticket] = []
    with Engine(pool) as engine:

        def call(name: str, adapters: Any) -> None:
            if name == "generate":
                rows.append(engine.submit(request(0, 5, 4)))
                rows[0].result.add_done_callback(lambda _: ended.append("row"))
                rows.append(engine.submit(request(1, 5, 4)))
            if name == "encode" and rows and len(adapters) == 2:
                raise MemoryError

        pool.model.on_call = call
        beams = engine.submit(request(2, 5, 12, num_beams=3))
        beams.result.add_done_callback(lambda _: ended.append("beams"))
        check(get(beams), 2, 5, 12, 3)
        with pytest.raises(MemoryError):
            get(rows[0])
        pool.model.on_call = lambda name, adapters: None
        check(get(engine.submit(request(1, 5, 4))), 1, 5, 4)
    assert ended == ["row", "beams"]


def test_rows_join_between_batches_of_ranks(pool: Any) -> None:
    # Each answer asks for the next rank, so ranks always wait.
    with Engine(pool) as engine:
        left = count()

        def again(_: Any = None) -> None:
            if next(left) < 200 and not row.result.done():
                engine.submit(RankRequest(None, source(1), [[3, EOS]])).result.add_done_callback(again)

        row = Ticket(Future())
        again()
        again()
        row = engine.submit(request(0, 5, 9))
        check(get(row), 0, 5, 9)
        assert next(left) < 150


# Closing


def test_closing_finishes_what_was_accepted(pool: Any) -> None:
    engine = Engine(pool, Limits(max_rows=2))
    tickets = [engine.submit(request(i, 5, 9, adapter="a")) for i in range(7)]
    engine.close()
    for i, ticket in enumerate(tickets):
        check(ticket.result.result(0), i, 5, 9)
    with pytest.raises(EngineClosedError, match="closed engine"):
        engine.submit(request())
    engine.close()


def test_closing_at_once_ends_every_ticket(pool: Any) -> None:
    told = threading.Event()
    loading, go_on = threading.Event(), threading.Event()

    def load(name: Any) -> None:
        if name == "b":
            loading.set()
            go_on.wait(SECONDS)

    pool.on_acquire = load
    engine = Engine(pool, Limits(max_rows=1))
    tickets = [engine.submit(request(max_new_tokens=500, adapter="a"), on_token=lambda token: told.set())]
    tickets += [engine.submit(request(i, adapter="a")) for i in range(4)]
    tickets += [engine.submit(request(i, adapter="b")) for i in range(2)]
    assert told.wait(SECONDS)
    assert loading.wait(SECONDS)
    threading.Timer(0.05, go_on.set).start()
    engine.close(finish=False)
    for ticket in tickets:
        with pytest.raises(EngineClosedError, match="before the engine closed"):
            ticket.result.result(0)
    assert engine.stats().failed == len(tickets)


def test_closing_gives_up_after_its_time(pool: Any) -> None:
    engine = Engine(pool)
    ticket = engine.submit(request(max_new_tokens=512))
    engine.close(timeout_seconds=0.01)
    with pytest.raises(EngineClosedError):
        ticket.result.result(0)


def test_an_error_in_the_block_closes_at_once(pool: Any) -> None:
    with pytest.raises(IndexError), Engine(pool) as engine:
        [ticket := engine.submit(request(max_new_tokens=512))][1]
    with pytest.raises(EngineClosedError):
        ticket.result.result(0)


def test_stats_tell_what_runs(pool: Any) -> None:
    told = threading.Semaphore(0)
    with Engine(pool) as engine:
        tickets = [
            engine.submit(request(i, max_new_tokens=400, adapter=name), on_token=lambda token: told.release())
            for i, name in enumerate(["a", "b", "b", None])
        ]
        for _ in range(40):
            assert told.acquire(timeout=SECONDS)
        stats = engine.stats()
        assert (stats.running, stats.active_adapters, stats.waiting, stats.loading) == (4, 2, 0, 0)
        assert stats.steps > 0
        assert stats.generated_tokens >= 40
        for ticket in tickets:
            ticket.cancel()
