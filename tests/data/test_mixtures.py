"""Mixtures: rates as the paper has them, and draws that depend only on the seed and their number."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from vocabulary import small_tokenizer

from t5peft.data import Task
from t5peft.data.mixtures import BLOCK, Mixture, mixture_rates, shuffled

SIZES = {"large": 5000, "middle": 300, "small": 20}


def made(name: str, size: int) -> Dataset:
    return Dataset.from_list([{"input_ids": [len(name), i, 1], "labels": [i, 1]} for i in range(size)])


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    datasets = {name: made(name, size) for name, size in SIZES.items()}
    return Mixture(datasets, {"large": 0.6, "middle": 0.3, "small": 0.1}, seed=3)


def test_rates_are_proportional_to_examples() -> None:
    assert mixture_rates({"a": 30, "b": 10}) == {"a": 0.75, "b": 0.25}


def test_a_cap_bounds_large_tasks() -> None:
    assert mixture_rates({"a": 1000, "b": 10, "c": 10}, cap=20) == {"a": 0.5, "b": 0.25, "c": 0.25}


def test_temperature_flattens_capped_sizes_as_the_paper_has_it() -> None:
    rates = mixture_rates({"a": 400, "b": 25}, cap=100, temperature=2)
    assert rates["a"] / rates["b"] == pytest.approx((100 / 25) ** 0.5)
    flat = mixture_rates({"a": 400, "b": 25}, temperature=1000)
    assert flat["a"] == pytest.approx(0.5, abs=0.001)


def test_a_low_temperature_leaves_all_to_the_largest_task() -> None:
    assert mixture_rates({"a": 10_000, "b": 20_000}, temperature=0.01) == {"a": pytest.approx(2**-100), "b": 1.0}
    with pytest.raises(ValueError, match="temperature is nan"):
        mixture_rates({"a": 1}, temperature=float("nan"))


def test_every_block_holds_each_task_as_often_as_its_rate_says(mixture: Mixture) -> None:
    for block in (0, 1, 7):
        names = Counter(mixture.draw(block * BLOCK + i)[0] for i in range(BLOCK))
        assert names == {"large": 600, "middle": 300, "small": 100}


def test_a_draw_does_not_depend_on_what_was_drawn_before(mixture: Mixture) -> None:
    forwards = [mixture.draw(i) for i in range(2500)]
    fresh = Mixture(mixture.datasets, mixture.rates, seed=3)
    assert [fresh.draw(i) for i in (2499, 0, 1234, 7)] == [forwards[i] for i in (2499, 0, 1234, 7)]


def test_examples_all_come_once_before_any_comes_again(mixture: Mixture) -> None:
    draws = [mixture.draw(i) for i in range(3 * BLOCK)]
    for name, size in SIZES.items():
        rows = [row for task, row in draws if task == name]
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert len(set(rows)) == min(size, len(rows))


def test_epochs_and_seeds_have_orders_of_their_own(mixture: Mixture) -> None:
    small = [row for name, row in (mixture.draw(i) for i in range(BLOCK)) if name == "small"]
    assert small[:20] != small[20:40]
    other = Mixture(mixture.datasets, mixture.rates, seed=4)
    assert [other.draw(i) for i in range(20)] != [mixture.draw(i) for i in range(20)]


def test_a_resumed_data_set_goes_on_where_the_first_stopped(mixture: Mixture) -> None:
    whole = mixture.dataset(1200).to_list()
    assert mixture.dataset(700).to_list() + mixture.dataset(500, start=700).to_list() == whole
    assert set(whole[0]) == {"input_ids", "labels"}
    name, row = mixture.draw(1100)
    assert whole[1100] == mixture.datasets[name][row]


def test_an_order_follows_from_its_key_by_splitmix64_and_from_nothing_of_numpys() -> None:
    state = int.from_bytes(hashlib.sha256(b"3/large/0").digest()[:8], "little")
    keys = []
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        keys.append(mixed ^ (mixed >> 31))
    assert shuffled(100, "3/large/0").tolist() == sorted(range(100), key=lambda i: keys[i])


def test_an_order_that_is_sorted_in_parts_is_that_of_the_whole_and_takes_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = shuffled(200_000, "key")
    monkeypatch.setattr("t5peft.data.mixtures.SORTED_ROWS", 10_000)
    shuffled(10, "key")
    tracemalloc.start()
    parts = shuffled(200_000, "key")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts.tolist() == whole.tolist()
    assert peak < 4 * len(parts)  # bytes; in memory the order by itself takes 4


def test_many_draws_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"input_ids": [[1]] * 100_000, "labels": [[1]] * 100_000})
    mixture = Mixture({"one": rows, "two": rows}, {"one": 1, "two": 2}, seed=1)
    wanted = chosen_by(mixture.dataset(200_000, start=500))
    monkeypatch.setattr("t5peft.data.mixtures.SORTED_ROWS", 10_000)
    of_arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    drawn = mixture.dataset(200_000, start=500)
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - of_arrow
    tracemalloc.stop()
    assert chosen_by(drawn) == wanted
    assert peak < 6 * len(drawn)  # bytes; in memory the numbers of the rows take 8, and an order 4


def chosen_by(dataset: Any) -> list[int]:
    """Return the numbers of the rows that a data set has of its table."""
    return dataset._indices.column(0).to_pylist()


def test_many_draws_are_those_of_few(mixture: Mixture) -> None:
    many = mixture.dataset(10_000, start=10)
    assert many[5000 - 10 : 5100 - 10] == mixture.dataset(100, start=5000)[:]
    assert pickle.loads(pickle.dumps(many))[-1] == many[-1]


def test_orders_look_shuffled() -> None:
    firsts = Counter(int(shuffled(10, str(key))[0]) for key in range(5000))
    assert set(firsts) == set(range(10))
    assert max(firsts.values()) - min(firsts.values()) < 150  # 500 each, standard deviation 21


def test_small_rates_are_drawn_at_least_once_and_blocks_stay_whole() -> None:
    datasets = {name: made(name, 5) for name in ("a", "bb", "ccc")}
    counts = Mixture(datasets, {"a": 1e6, "bb": 1, "ccc": 1}).counts
    assert counts == {"a": 998, "bb": 1, "ccc": 1}
    assert sum(Mixture(datasets, {"a": 1, "bb": 1, "ccc": 1}).counts.values()) == BLOCK


def test_a_mixture_of_tasks_is_tokenised_by_each_of_them() -> None:
    yes = Task("yes", "say yes: {text}", "{label}", {"0": "no", "1": "yes"})
    echo = Task("echo", "say: {text}", "{text}")
    records: dict[str, list[dict[str, Any]]] = {"yes": [{"text": "a", "label": 1}] * 30, "echo": [{"text": "b"}] * 10}
    mixture = Mixture.of_tasks({t.name: (t, records[t.name]) for t in (yes, echo)}, small_tokenizer(), cap=10)
    assert mixture.rates == {"yes": 0.5, "echo": 0.5}
    sources = Counter(
        small_tokenizer().decode(ids, skip_special_tokens=True) for ids in mixture.dataset(1000)["input_ids"]
    )
    assert sources == {"say yes: a": 500, "say: b": 500}


def test_what_does_not_fit_together_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="task 'b' has no rate") as error:
        Mixture({"a": made("a", 0), "b": made("b", 2)}, {"a": 0, "c": 1})
    for part in ("a rate for 'c', which is not a task here", "the rate of 'a' is 0", "task 'a' has no examples"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"task 'a' has no examples; cap is 0; .*temperature is 0"):
        mixture_rates({"a": 0}, cap=0, temperature=0)
    with pytest.raises(ValueError, match=r"the rate of 'a' is nan; .*\n.*the rate of 'b' is inf"):
        Mixture({"a": made("a", 1), "b": made("b", 1)}, {"a": float("nan"), "b": float("inf")})
    with pytest.raises(IndexError, match="Got draw -1; expected 0 or more"):
        Mixture({"a": made("a", 1)}, {"a": 1}).draw(-1)
