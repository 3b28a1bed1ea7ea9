"""An adapter that does not fit into the memory is refused before it is made."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_t5

from t5peft import METHODS, lora_wrap
from t5peft.compat.memory import free_bytes
from t5peft.planning.job import Job
from t5peft.planning.plan import step_bytes

CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 10**9}),
    ("dora", {"rank": 10**9}),
    ("adalora", {"rank": 10**9}),
    ("houlsby", {"size": 10**10}),
    ("parallel", {"size": 10**10}),
    ("prefix", {"length": 10**10}),
    ("prefix", {"projection_size": 10**10}),
    ("prompt", {"length": 10**11}),
    ("mam", {"size": 10**10}),
]


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_a_size_that_does_not_fit_is_refused_with_what_it_takes(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"takes at least [\d.e+]+ GB; expected one that fits into the [\d.]+ GB of memory"
    ):
        METHODS[method].wrap(tiny_t5(), **options)


@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_the_size_that_is_compared_is_not_above_that_of_the_adapter(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = options
    made = METHODS[method].wrap(tiny_t5("wide"), **{name: 64})
    taken = sum(p.numel() * p.element_size() for p in made.parameters() if p.requires_grad)
    monkeypatch.setattr("t5peft.methods.base.free_bytes", lambda device: taken)
    METHODS[method].wrap(tiny_t5("wide"), **{name: 64})
    monkeypatch.setattr("t5peft.methods.base.free_bytes", lambda device: taken // 6)
    with pytest.raises(ValueError, match=f"Take a smaller .*{'rank' if 'rank' in name else name}"):
        METHODS[method].wrap(tiny_t5("wide"), **{name: 64})


def test_the_planner_counts_an_adapter_that_fits_nowhere() -> None:
    job = Job("mini", "lora", 8, 8, 1, 1, device="cpu", method_options=(("rank", 10**7),))
    assert step_bytes(job).adapter_bytes > 10**10


def test_a_rank_above_the_dimensions_of_a_map_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lora_wrap(tiny_t5(), rank=32)
    assert caplog.messages == []
    lora_wrap(tiny_t5(), rank=33)
    assert "The rank 33 is above 32" in caplog.text


def test_the_free_memory_is_that_of_the_device() -> None:
    assert 0 < free_bytes(tiny_t5().device) < 10**15
