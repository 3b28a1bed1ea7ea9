"""The engine answers each request as if it were on its own, never hangs, and gives back what it holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import cache
from itertools import count, pairwise
from typing import Any, cast

import pytest
import torch
from fake_pool import FakePool, alone, engine_t5, target_log_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, VOCABULARY

from t5peft.serving.engine import Engine, Ticket
from t5peft.serving.requests import (
    ClassifyRequest,
    EngineClosedError,
    GenerateRequest,
    QueueFullError,
    RankRequest,
    TooLongError,
    UnknownAdapterError,
    UnusableAdapterError,
)
from t5peft.serving.scheduler import Limits

SECONDS = 30


MODELS = {ends: engine_t5(ends=ends) for ends in (True, False)}


@pytest.fixture
def pool() -> Iterator[Any]:
    """Its answers are as long as they may be."""
    yield from watched(FakePool(MODELS[False]))


@pytest.fixture
def ending_pool() -> Iterator[Any]:
    """Half of its answers end by themselves."""
    yield from watched(FakePool(MODELS[True]))


def watched(pool: Any) -> Iterator[FakePool]:
    yield pool
    assert not +pool.held, "adapters are still held"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("t5peft-")]


@pytest.fixture
def gate(pool: Any) -> Iterator[Any]:
    """Holds the model up at its first call until it is opened."""
    opened: Any = threading.Event()
    reached = threading.Event()

    def wait(*_: Any) -> None:
        reached.set()
        assert opened.wait(SECONDS)

    pool.model.on_call = wait
    opened.reached = reached
    yield opened
    opened.set()


def source(seed: int, length: int = 6) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randint(3, VOCABULARY, (length - 1,), generator=generator).tolist(), EOS]


def request(number: int = 0, length: int = 6, max_new_tokens: int = 8, **options: Any) -> GenerateRequest:
    return GenerateRequest(options.pop("adapter", None), source(number, length), max_new_tokens, **options)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def get(ticket: Any) -> Any:
    return ticket.result.result(SECONDS)


@cache
def expected(
    seed: int, length: int, max_new_tokens: int, num_beams: int = 1, ends: bool = False
) -> tuple[list[int], list[float]]:
    t5 = MODELS[ends]
    ids = alone(t5, source(seed, length), max_new_tokens, num_beams)
    return ids, target_log_probabilities(t5, source(seed, length), ids)[range(len(ids)), ids].tolist()


def check(answer: Any, *key: Any) -> None:
    ids, log_probabilities = expected(*key)
    assert answer.ids == ids
    assert answer.finish_reason == ("stop" if ids[-1] == EOS else "length")
    assert [token.log_probability for token in answer.tokens] == pytest.approx(log_probabilities, abs=1e-5)


# Exactness


def test_answers_equal_those_of_each_source_on_its_own(ending_pool: Any) -> None:
    keys = [(i, 3 + i % 7, 1 + i % 11, 1 + 2 * (i % 8 == 3), True) for i in range(40)]
    with Engine(ending_pool, Limits(max_rows=8)) as engine:
        tickets = [
            engine.submit(request(*key[:3], num_beams=key[3], adapter="abcd"[i % 4])) for i, key in enumerate(keys)
        ]
        for key, ticket in zip(keys, tickets, strict=True):
            check(get(ticket), *key)
    assert {expected(*key)[0][-1] == EOS for key in keys} == {True, False}, "some end by themselves, some are cut"
    stats = engine.stats()
    assert (stats.finished, stats.running, stats.waiting, stats.failed) == (40, 0, 0, 0)
    assert 1 < stats.rows_per_step <= 8
    assert stats.generated_tokens == sum(len(expected(*key)[0]) for key in keys)


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),  # the seed of the source
        st.sampled_from([2, 5, 17]),  # its length
        st.sampled_from([1, 4, 12]),  # most new tokens
        st.sampled_from([1, 1, 1, 2]),  # beams
        st.sampled_from([None, "a", "b", "c"]),  # the adapter
        st.sampled_from([None, None, None, 0, 1, 3]),  # the token at which it is given up
        st.integers(0, 3),  # how many steps later it comes
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ARRIVALS, st.sampled_from([2, 3, 5, 16]), st.sampled_from([20, 60, 10_000]))
def test_answers_do_not_depend_on_what_comes_and_goes(arrivals: Any, max_rows: Any, max_encoded_tokens: Any) -> None:
    pool: Any = FakePool(MODELS[True])
    steps = threading.Semaphore(0)
    pool.model.on_call = lambda name, adapters: steps.release() if name == "rows" else None
    tickets = []
    with Engine(pool, Limits(max_rows=max_rows, max_encoded_tokens=max_encoded_tokens)) as engine:
        for *key, adapter, given_up, later in arrivals:
            for _ in range(later):
                steps.acquire(timeout=0.001)
            told: list[Any] = []
            ticket: Future[Any] = Future()

            def tell(token: Any, told: Any = told, ticket: Any = ticket, given_up: Any = given_up) -> None:
                told.append(token)
                if len(told) == given_up:
                    ticket.result(SECONDS).cancel()

            ticket.set_result(engine.submit(request(*key[:3], num_beams=key[3], adapter=adapter), on_token=tell))
            if given_up == 0:
                ticket.result().cancel()
            tickets.append((key, given_up, told, ticket.result()))
        for key, given_up, told, ticket in tickets:
            ids, _ = expected(*key, True)
            try:
                check(get(ticket), *key, True)
                assert [token.id for token in told] == ids
            except CancelledError:
                assert given_up is not None
                assert [token.id for token in told] == ids[: len(told)]
    assert not +pool.held
    stats = engine.stats()
    assert stats.finished + stats.cancelled == len(arrivals)
    assert (stats.running, stats.waiting, stats.loading, stats.failed) == (0, 0, 0, 0)


def test_double_precision_to_nine_digits() -> None:
    t5 = engine_t5("wide").double()
    with Engine(cast(Any, FakePool(t5))) as engine:
        tickets = [engine.submit(request(i, 4 + i, 3 + i)) for i in range(6)]
        for i, ticket in enumerate(tickets):
            ids = get(ticket).ids
            assert ids == alone(t5, source(i, 4 + i), 3 + i)
            scores = target_log_probabilities(t5, source(i, 4 + i), ids)[range(len(ids)), ids]
            assert [token.log_probability for token in get(ticket).tokens] == pytest.approx(scores.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.7},
        {"min_new_tokens": 7},
        {"forced_eos_token_id": EOS},
        {"suppress_tokens": [int(i) for i in range(100, 300)]},
        {"encoder_no_repeat_ngram_size": 1},
        {"eos_token_id": [EOS, *range(100, 200)]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_generation_config_counts_as_in_generate(options: Any) -> None:
    t5 = engine_t5()
    before = [alone(t5, source(i), 8) for i in range(8)]
    t5.generation_config.update(**options)
    with Engine(cast(Any, FakePool(t5))) as engine:
        tickets = [engine.submit(request(i)) for i in range(8)]
        found = [get(ticket).ids for ticket in tickets]
    assert found == [alone(t5, source(i), 8) for i in range(8)]
    assert found != before


@pytest.mark.parametrize("num_beams", [1, 3])
def test_alternatives_are_the_most_probable_tokens(pool: Any, num_beams: Any) -> None:
    with Engine(pool) as engine:
        plain = engine.submit(request(1))
        answer = get(engine.submit(request(2, top_log_probabilities=4, num_beams=num_beams)))
        assert not any(token.alternatives for token in get(plain).tokens)
    values, ids = target_log_probabilities(pool.model.t5, source(2), answer.ids).topk(4)
    for token, own_values, own_ids in zip(answer.tokens, values.tolist(), ids.tolist(), strict=True):
        assert list(token.alternatives) == own_ids
        assert list(token.alternatives.values()) == pytest.approx(own_values, abs=1e-5)


def test_samples_depend_only_on_the_seed(pool: Any) -> None:
    drawn = request(3, max_new_tokens=12, temperature=1.3, top_p=0.9, seed=5)
    with Engine(pool) as engine:
        first = get(engine.submit(drawn))
        others = [engine.submit(request(i, 9, 9, temperature=0.7, seed=i)) for i in range(5)]
        assert get(engine.submit(drawn)).ids == first.ids
        different = [get(engine.submit(request(3, max_new_tokens=12, temperature=1.3, seed=i))).ids for i in range(4)]
        assert len({tuple(ids) for ids in different}) == 4
        for ticket in others:
            get(ticket)


def test_ranks_and_classes(pool: Any) -> None:
    candidates = [[5, EOS], [9, 7, EOS], [5, 6, EOS]]
    with Engine(pool) as engine:
        ranks = [engine.submit(RankRequest("a", source(i, 4 + i), candidates[: 1 + i % 3])) for i in range(6)]
        classes = engine.submit(ClassifyRequest("classes", source(0, 7)))
        for i, ticket in enumerate(ranks):
            scores = [target_log_probabilities(pool.model.t5, source(i, 4 + i), ids) for ids in candidates[: 1 + i % 3]]
            sums = [float(score[range(len(ids)), ids].sum()) for score, ids in zip(scores, candidates, strict=False)]
            assert get(ticket).log_probabilities == pytest.approx(sums, abs=1e-5)
        assert get(classes).log_probabilities == [-7.0, 0.0]


# What is refused


WRONG: dict[str, Any] = {
    "Got no source_ids; expected at least one token.": GenerateRequest(None, [], 4),
    "Got source_ids from 3 to 384; expected ids from 0 to 383.": GenerateRequest(None, [3, 384], 4),
    "Got source_ids from -1 to 5": GenerateRequest(None, [5, -1], 4),
    "Got max_new_tokens=0; expected at least 1. Got num_beams=0": request(max_new_tokens=0, num_beams=0),
    "Got temperature=nan": request(temperature=float("nan")),
    "Got temperature=-0.5": request(temperature=-0.5),
    "Got top_p=0; expected a number above 0": request(top_p=0),
    "Got top_p=1.5": request(top_p=1.5),
    "Got top_log_probabilities=-1": request(top_log_probabilities=-1),
    "Got num_beams=2 with temperature=1; expected one of them": request(num_beams=2, temperature=1),
    "Got no candidates": RankRequest(None, [5, 1], []),
    r"Got no candidate_ids\[1\]": RankRequest(None, [5, 1], [[3], []]),
    r"Got candidate_ids\[0\] from 3 to 999": RankRequest(None, [5, 1], [[3, 999]]),
}
TOO_LONG: dict[str, Any] = {
    "Got a source of 21 tokens; expected at most 20": request(length=21),
    "Got an answer of up to 31 tokens; expected at most 30": request(max_new_tokens=31),
    "Got an answer of up to 32 tokens": RankRequest(None, [5, 1], [[3], [3] * 32]),
    "Got 5 beams; expected at most 4": request(num_beams=5),
    "Got a request of 104 tokens in all; expected at most 100": request(num_beams=4, length=16, max_new_tokens=10),
    "Got a request of 110 tokens in all": RankRequest(None, source(0, 20), [[3] * 30] * 3),
}


@pytest.mark.parametrize("message", [*WRONG, *TOO_LONG])
def test_a_wrong_request_is_refused_at_once(pool: Any, message: Any) -> None:
    limits = Limits(max_rows=4, max_tokens=100, max_source_tokens=20, max_new_tokens=30)
    with Engine(pool, limits) as engine:
        with pytest.raises(TooLongError if message in TOO_LONG else ValueError, match=message) as caught:
            engine.submit((WRONG | TOO_LONG)[message])
        assert isinstance(caught.value, TooLongError) == (message in TOO_LONG)
        check(get(engine.submit(request(0, 5, 4))), 0, 5, 4)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (request(adapter="nobody"), UnknownAdapterError, "nobody"),
        (request(adapter="classes"), UnusableAdapterError, "has a classification head; expected one that generates"),
        (RankRequest("classes", [5, 1], [[3]]), UnusableAdapterError, "has a classification head"),
        (ClassifyRequest("a", [5, 1]), UnusableAdapterError, "has no classification head"),
    ],
)
def test_an_adapter_that_cannot_answer_ends_the_ticket(pool: Any, wrong: Any, error: Any, message: Any) -> None:
    with Engine(pool) as engine:
        ticket = engine.submit(wrong)
        with pytest.raises(error, match=message):
            get(ticket)
        check(get(engine.submit(request(0, 5, 4))), 0, 5, 4)
    assert (engine.stats().failed, engine.stats().finished) == (1, 1)


def test_a_full_queue_refuses(pool: Any, gate: Any) -> None:
    with Engine(pool, Limits(max_rows=1, max_waiting=3)) as engine:
        first = engine.submit(request(max_new_tokens=5))
        assert gate.reached.wait(SECONDS)
        waiting = [engine.submit(request(i)) for i in range(3)]
        until(lambda: engine.stats().waiting == 3)
        with pytest.raises(QueueFullError, match="Got a request while 3 wait; expected fewer than 3"):
            engine.submit(request(4))
        waiting[1].cancel()
        waiting.append(engine.submit(request(5)))
        gate.set()
        for ticket in (first, waiting[0], waiting[2], waiting[3]):
            get(ticket)


@pytest.mark.parametrize("name", ["max_rows", "max_tokens", "max_encoded_tokens", "max_waiting", "max_new_tokens"])
def test_limits_are_positive(name: Any) -> None:
    with pytest.raises(ValueError, match=f"Got {name}=0; expected at least 1"):
        Limits(**{name: 0})


def test_the_longest_request_fits_into_the_limits() -> None:
    with pytest.raises(ValueError, match="Got max_tokens=99; expected at least 100, the longest request"):
        Limits(max_tokens=99, max_source_tokens=60, max_new_tokens=40)


# Leaving and failing


def test_a_canceled_request_frees_its_row(pool: Any) -> None:
    told = threading.Event()
    with Engine(pool, Limits(max_rows=1)) as engine:
        running = engine.submit(request(max_new_tokens=500, adapter="a"), on_token=lambda token: told.set())
        waiting = engine.submit(request(1, 5, 4))
        assert told.wait(SECONDS)
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
    def leave(token: Any) -> None:
        raise GeneratorExit

    engine = Engine(pool, Limits(max_rows=1))
    tickets = [engine.submit(request(i, adapter="a"), on_token=leave) for i in range(2)]
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


def test_beams_and_ranks_come_between_the_steps_of_running_rows(pool: Any) -> None:
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
        # A batch of beams has 13 passes, of which 5 count, and is scored after it. A batch of ranks has one.
        steps = calls[i:j].count("rows") - (calls[i] == "generate")
        assert steps in (range(5, 12) if calls[i] == "generate" else range(1, 12))


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
