"""The engine answers each request as if it were on its own, and refuses what it cannot answer."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from typing import Any, cast

import pytest
from engine_fixtures import ending_pool, gate, pool  # noqa: F401  (fixtures)
from engine_requests import MODELS, SECONDS, check, expected, get, request, source, until
from fake_pool import FakePool, alone, engine_t5, target_log_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS

from t5peft.serving.engine import Engine
from t5peft.serving.requests import (
    ClassifyRequest,
    GenerateRequest,
    QueueFullError,
    RankRequest,
    TooLongError,
    UnknownAdapterError,
    UnusableAdapterError,
)
from t5peft.serving.scheduler import Limits

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
        with pytest.raises(QueueFullError, match="Got a request while 3 are waiting; expected fewer than 3"):
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
