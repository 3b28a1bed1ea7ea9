"""Requests come first come, first served, within the limits, and no kind waits for ever."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from t5peft.serving.requests import ClassifyRequest, GenerateRequest, RankRequest
from t5peft.serving.scheduler import Job, Limits, Scheduler
from t5peft.serving.weights import AdapterWeights

_numbers = count(1)


def job(request: Any, **fields: Any) -> Job:
    fields = {"source_ids": request.source_ids, "adapter": None, "next_id": 0, "number": next(_numbers)} | fields
    return Job(request=request, on_token=None, **fields)


def row(source: int = 4, target: int = 6, **fields: Any) -> Job:
    return job(GenerateRequest(None, [5] * source, target), **fields)


def beams(num_beams: int = 2, target: int = 6, source: int = 4) -> Job:
    return job(GenerateRequest(None, [5] * source, target, num_beams=num_beams))


def rank(*candidates: int) -> Job:
    return job(RankRequest(None, [5] * 4, [[3] * length for length in candidates or (2,)]))


def classify() -> Job:
    return job(ClassifyRequest("a", [5] * 4))


def scheduler(*jobs: Job, **limits: Any) -> Scheduler:
    made = Scheduler(Limits(**({"max_source_tokens": 40, "max_new_tokens": 60} | limits)))
    for one in jobs:
        made.add(one)
    return made


def test_rows_join_in_the_order_in_which_they_came() -> None:
    jobs = [row() for _ in range(5)]
    waiting = scheduler(*(jobs[i] for i in (3, 0, 4, 1, 2)), max_rows=3)
    assert waiting.next_rows([]) == jobs[:3]
    assert waiting.next_rows(jobs[:3]) == []
    assert waiting.next_rows(jobs[:1]) == jobs[3:]
    assert len(waiting) == 0


def test_a_large_row_is_not_overtaken() -> None:
    running, large, small = [row(), row()], row(source=30, target=30), row()
    waiting = scheduler(large, small, max_tokens=130)
    assert waiting.next_rows(running) == []
    assert waiting.next_rows(running[:1]) == [large], "2 x (30 + 30) tokens fit"
    assert waiting.next_rows([large]) == [small]


def test_the_rows_of_a_prompt_count() -> None:
    prompted = row(source=10, adapter=AdapterWeights("a", "fake", prompt=torch.zeros(20, 1)))
    waiting = scheduler(prompted, row(), max_tokens=100, max_source_tokens=10)
    assert waiting.next_rows([row(), row()]) == [], "3 x (30 + 6)"
    assert waiting.next_rows([row()]) == [prompted], "2 x (30 + 6)"


def test_few_tokens_are_encoded_at_once() -> None:
    jobs = [row(source=length) for length in (5, 10, 4, 4, 4)]
    waiting = scheduler(*jobs, max_encoded_tokens=20)
    running = [row()]
    assert waiting.next_rows(running) == jobs[:2], "2 x 10 tokens, as sources are padded"
    assert waiting.next_rows(running) == jobs[2:]
    assert scheduler(jobs[1], max_encoded_tokens=5).next_rows(running) == [jobs[1]], "one row may exceed it"


def test_a_row_waits_for_others_only_while_many_run_and_only_a_few_steps() -> None:
    running = [row() for _ in range(20)]
    waiting = scheduler(one := row(), max_joining_steps=3)
    assert waiting.next_rows(running[:8]) == [one]
    waiting.add(one)
    waiting.add(two := row())
    for _ in range(3):
        assert waiting.next_rows(running) == []
        waiting.count_step()
    assert waiting.next_rows(running) == [one, two]
    for one in (jobs := [row() for _ in range(3)]):
        waiting.add(one)
    assert waiting.next_rows(running) == jobs, "3 rows join 20 at once"


def test_one_call_answers_the_first_request_and_those_that_may_share_it() -> None:
    jobs = [rank(), beams(2), rank(3), classify(), beams(3), beams(2), beams(2, target=7), classify()]
    waiting = scheduler(*jobs)
    calls = []
    while len(waiting):
        calls.append([jobs.index(one) for one in waiting.next_batch(False)])
    assert calls == [[0, 2], [1, 5], [3, 7], [4], [6]]


@pytest.mark.parametrize(
    ("jobs", "limits", "sizes"),
    [
        ([beams(4) for _ in range(5)], {"max_rows": 8}, [2, 2, 1]),
        ([beams(2) for _ in range(5)], {"max_tokens": 100}, [5]),
        ([beams(2) for _ in range(6)], {"max_tokens": 100}, [5, 1]),
        ([rank(10, 10) for _ in range(6)], {"max_tokens": 100}, [4, 2]),
        ([rank() for _ in range(6)], {"max_encoded_tokens": 16}, [4, 2]),
        ([classify() for _ in range(9)], {"max_rows": 8}, [8, 1]),
    ],
)
def test_whole_batches_stay_within_the_limits(jobs: Any, limits: Any, sizes: Any) -> None:
    waiting = scheduler(*jobs, **limits)
    assert [len(waiting.next_batch(False)) for _ in sizes] == sizes


def test_running_rows_take_as_many_steps_as_the_last_whole_batch_had_passes() -> None:
    waiting = scheduler(*(jobs := [beams(2), beams(3), beams(4), rank()]), max_steps_between=5)
    for first, passes, steps in zip(jobs, (3, 20, 1, 1), (3, 5, 1, 1), strict=True):
        assert waiting.next_batch(True) == [first]
        waiting.count_passes(passes)
        for _ in range(steps):
            assert waiting.next_batch(True) == []
            waiting.count_step()
    waiting.add(beams())
    waiting.count_passes(4)
    assert waiting.next_batch(False), "nothing runs that has steps to take"


def test_waiting_requests_are_taken_out_by_a_condition() -> None:
    jobs = [row(), beams(), rank()]
    waiting = scheduler(*jobs)
    assert waiting.remove(lambda one: one.number != jobs[1].number) == [jobs[0], jobs[2]]
    assert len(waiting) == 1
