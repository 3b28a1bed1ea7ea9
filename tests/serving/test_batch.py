"""Rows that join and leave the running batch get what they get on their own, and rows and columns that nobody needs are dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from fake_pool import FakeModel, target_log_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EOS, GEOMETRIES, PAD, VOCABULARY, fill_unevenly, tiny_t5, tiny_tokenizer
from transformers import MT5Config, MT5ForConditionalGeneration, UMT5Config, UMT5ForConditionalGeneration

from t5peft import load_backbone
from t5peft.serving import batch as batch_file
from t5peft.serving.batch import Batch, Row, similar_lengths
from t5peft.serving.mixed import MixedModel
from t5peft.serving.routing import sort_key
from t5peft.serving.weights import AdapterWeights

ADAPTERS = [None, *(AdapterWeights(name, "fake") for name in "abb")]
ANSWER = [int(i) for i in torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(5))]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel(tiny_t5("v1.1").double())


class Simulation:
    """Feeds every row the same answer, and compares its logits with those of teacher forcing on its own."""

    def __init__(self, model: Any, tolerance: float = 1e-9) -> None:
        self.model, self.tolerance = model, tolerance
        self.batch: Any = None
        self.expected: dict[Row, torch.Tensor] = {}

    def join(self, *lengths: int, adapter: AdapterWeights | None = None) -> list[Row]:
        rows = []
        for length in lengths:
            source = [3 + (7 * length + 11 * i) % (VOCABULARY - 3) for i in range(length - 1)] + [EOS]
            rows.append(Row(source_ids=source, adapter=adapter, next_id=PAD))
            self.expected[rows[-1]] = target_log_probabilities(self.model.t5, source, ANSWER)
        started, logits = Batch.start(self.model, rows)
        if logits is not None:
            self.check(started, logits)
        if self.batch is None:
            self.batch = started
        else:
            self.batch.arrange(started)
        return rows

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.check(self.batch, self.batch.step(self.model))

    def drop(self, *rows: Row) -> None:
        for row in rows:
            row.ended = True
        self.batch.arrange()

    def check(self, batch: Batch, logits: torch.Tensor) -> None:
        assert len(logits) == len(batch.rows)
        for row, own in zip(batch.rows, logits.log_softmax(dim=-1), strict=True):
            place = row.target_columns - 1
            torch.testing.assert_close(own, self.expected[row][place], atol=self.tolerance, rtol=0)
            row.next_id = ANSWER[place]


def test_a_row_joins_at_the_present_column(model: Any) -> None:
    simulation = Simulation(model)
    simulation.join(5)
    simulation.step(9)
    simulation.join(3, 12)
    simulation.step(6)
    assert [row.target_columns for row in simulation.batch.rows] == [16, 7, 7]


def test_columns_that_no_row_sees_are_cut_off_on_both_sides(model: Any) -> None:
    simulation = Simulation(model)
    (long,) = simulation.join(20)
    simulation.step(9)
    simulation.join(4, 6)
    simulation.step(2)
    assert (simulation.batch.columns, simulation.batch.source_columns) == (12, 20)
    simulation.drop(long)
    assert (simulation.batch.columns, simulation.batch.source_columns) == (3, 6)
    simulation.step(2)


def test_a_row_does_not_see_what_was_at_its_place(model: Any) -> None:
    # What an ended row has left behind may not even be finite.
    simulation = Simulation(model)
    (long, _) = simulation.join(20, 5)
    simulation.step(6)
    for tensor in (simulation.batch._targets, simulation.batch._sources):
        tensor[:, 0] = torch.nan
    long.ended = True
    simulation.join(4)
    simulation.step(2)


def test_rows_of_one_adapter_stand_next_to_each_other_and_others_stay(model: Any) -> None:
    simulation = Simulation(model)
    none, a, b, other_b = ADAPTERS
    first = simulation.join(5, 6, 7, adapter=b)
    (last,) = simulation.join(4, adapter=other_b)
    simulation.join(3, 4, adapter=a)
    assert [row.adapter for row in simulation.batch.rows[:2]] == [a, a]
    keys = [sort_key(row.adapter) for row in simulation.batch.rows]
    assert keys == sorted(keys)
    simulation.step(2)
    places = {row: i for i, row in enumerate(simulation.batch.rows)}
    first[1].ended = True
    simulation.join(9, adapter=b)
    assert [places[row] for row in simulation.batch.rows if row in places and row is not first[1]] == [
        i for i, row in enumerate(simulation.batch.rows) if row in places
    ], "a new row takes the place of an ended one of its adapter"
    simulation.join(9, adapter=none)
    assert simulation.batch.rows[-1].adapter is None
    simulation.step(2)
    simulation.drop(last)
    simulation.step()


def test_an_answer_may_be_longer_than_the_free_columns(model: Any) -> None:
    simulation = Simulation(model)
    simulation.join(5)
    simulation.step(batch_file._FREE_COLUMNS + 5)
    simulation.join(4)
    simulation.step(2)


def test_caches_of_long_rows_are_given_back(model: Any) -> None:
    simulation = Simulation(model)
    (long,) = simulation.join(300)
    simulation.step(30)
    simulation.join(4)
    before = simulation.batch._sources.numel()
    simulation.drop(long)
    simulation.step()
    assert simulation.batch._sources.numel() * 20 < before


def test_a_batch_says_when_it_should_be_arranged(model: Any) -> None:
    simulation = Simulation(model)
    (long,) = simulation.join(4)
    simulation.step(30)
    rows = simulation.join(*[5] * 19)
    assert not simulation.batch.is_wasteful
    rows[0].ended = rows[1].ended = True
    assert not simulation.batch.is_wasteful
    rows[2].ended = True
    assert simulation.batch.is_wasteful, "3 of 20 rows have ended"
    simulation.batch.arrange()
    assert not simulation.batch.is_wasteful
    long.ended = True
    assert simulation.batch.is_wasteful, "no row sees 30 columns any more"


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.lists(st.integers(1, 24), min_size=1, max_size=4), st.sampled_from(ADAPTERS)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("drop"), st.sets(st.integers(0, 9))),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(MOVES)
def test_any_order_of_joins_drops_and_steps(model: Any, moves: Any) -> None:
    simulate(Simulation(model), moves)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(MOVES)
def test_any_order_with_sources_without_padding(packing: MixedModel, moves: Any) -> None:
    simulate(Simulation(packing, PACKED_TOLERANCE), moves)


def simulate(simulation: Simulation, moves: Any) -> None:
    simulation.join(3)
    for name, *arguments in moves:
        if name == "join":
            simulation.join(*arguments[0], adapter=arguments[1])
        elif name == "drop":
            simulation.drop(*(row for i, row in enumerate(simulation.batch.rows) if i in arguments[0]))
        elif simulation.batch.rows and max(row.target_columns for row in simulation.batch.rows) < len(ANSWER) - 6:
            simulation.step(arguments[0])
        if not simulation.batch.rows:
            simulation.batch = None
            simulation.join(3)


PACKED_TOLERANCE = 1e-4  # in float32


@pytest.fixture(scope="module")
def packing() -> MixedModel:
    """A model that reads sources end to end."""
    model = MixedModel(tiny_t5("v1.1"))
    return model if model.packs else pytest.skip("sources are packed by compiled kernels, which need gcc on Linux")


def families() -> Iterator[Any]:
    shape: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "num_heads": 4,
        "d_ff": 48,
        "num_layers": 2,
        "vocab_size": VOCABULARY,
    }
    shape |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": PAD}
    yield from (pytest.param(lambda name=name: tiny_t5(name), id=name) for name in GEOMETRIES)
    yield pytest.param(lambda: fill_unevenly(MT5ForConditionalGeneration(MT5Config(**shape))).eval(), id="mT5")
    yield pytest.param(lambda: fill_unevenly(UMT5ForConditionalGeneration(UMT5Config(**shape))).eval(), id="umT5")


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("make", [*families()])
def test_every_family(make: Any, packs: bool) -> None:
    with torch.inference_mode(False):
        model: Any = MixedModel(make()) if packs else FakeModel(make().double())
    if packs and not model.packs:
        pytest.skip("sources are packed by compiled kernels, which need gcc on Linux")
    simulation = Simulation(model, PACKED_TOLERANCE if packs else 1e-9)
    (first,) = simulation.join(9)
    simulation.step(7)
    simulation.join(4, 14)
    simulation.step(3)
    simulation.drop(first)
    simulation.step(3)


@pytest.mark.parametrize("kind", [FakeModel, MixedModel])
@pytest.mark.parametrize(("quantize", "tolerance"), [(None, 0.1), ("int8", 1e-3)])
def test_bfloat16_and_int8_backbones(tmp_path: Any, quantize: Any, tolerance: Any, kind: Any) -> None:
    with torch.inference_mode(False):
        t5 = tiny_t5("v1.1")
        if quantize is None:
            model = kind(t5.bfloat16())
        else:
            pytest.importorskip("bitsandbytes")
            t5.save_pretrained(tmp_path)
            tiny_tokenizer().save_pretrained(tmp_path)
            model = kind(load_backbone(tmp_path, quantize="int8", dtype=torch.float32)[0].eval())
    simulation = Simulation(model, tolerance)
    (first,) = simulation.join(9)
    simulation.step(7)
    simulation.join(4, 14)
    simulation.step(3)
    simulation.drop(first)
    simulation.step(3)


# --- sources of different lengths


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12), fixed=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_passes_of_the_encoder_are_as_cheap_as_any_cut_of_the_sorted_lengths(lengths: list[int], fixed: int) -> None:
    groups = similar_lengths(lengths, fixed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)

    def cost(cut: Iterable[Sequence[int]]) -> int:
        return sum(len(part) * max(part) + fixed for part in cut)

    ordered = sorted(lengths)
    cuts = itertools.product((False, True), repeat=len(ordered) - 1)
    best = min(cost(_parts(ordered, cut)) for cut in cuts)
    assert cost([[lengths[i] for i in group] for group in groups]) == best


def _parts(ordered: Sequence[int], cut: Sequence[bool]) -> list[list[int]]:
    parts = [[ordered[0]]]
    for length, is_cut in zip(ordered[1:], cut, strict=True):
        if is_cut:
            parts.append([])
        parts[-1].append(length)
    return parts


def test_short_and_long_sources_are_encoded_apart_and_answered_alike(
    model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    encode = model.encode

    def counted(sources: Any, own: Any) -> Any:
        passes.append(len(sources))
        return encode(sources, own)

    monkeypatch.setattr(model, "encode", counted)
    simulation = Simulation(model)
    simulation.join(3, 90, 4, 85, 3, 5)
    assert sorted(passes) == [2, 4]
    simulation.step(3)


def test_steps_of_packed_rows_attend_by_compiled_kernels(packing: MixedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(source_ids=[5] * length + [EOS], next_id=PAD) for length in (3, 9, 4)]
    batch, _ = Batch.start(packing, rows)
    monkeypatch.setattr("t5peft.nn.attention.scaled_dot_product_attention", None)  # as of a call that must not come
    for _ in range(3):
        assert batch.step(packing).isfinite().all()
