"""Rows of a mixed batch of another family are answered as their adapters answer by themselves, also where they join later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import stir
from laws import precise
from narrow import generate
from tiny import EOS, PAD, tiny_records, tiny_tokenizer
from tiny_families import OTHERS, START, Other, tiny_other, tiny_other_classifier
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from t5peft.adapters import load_adapter, save_adapter
from t5peft.data.collate import with_room
from t5peft.evaluation.inference import padded
from t5peft.methods import METHODS, lora_wrap
from t5peft.methods.served import is_served
from t5peft.models.backbone import correct_config
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving.adapter import read_adapter
from t5peft.serving.batch import Batch, Row
from t5peft.serving.engine import Engine
from t5peft.serving.mixed import MixedModel
from t5peft.serving.pool import AdapterPool
from t5peft.serving.requests import Generated, GenerateRequest
from t5peft.serving.scheduler import Limits
from t5peft.serving.weights import AdapterWeights

ROWS = 30
RECORDS = tiny_records(ROWS, longest=17)  # sources and answers are longer than a window and than two blocks
SOURCES = [record["input_ids"] for record in RECORDS]
TARGETS = [record["labels"] for record in RECORDS]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "dora": {"rank": 4}, "prefix": {"length": 3}, "mam": {"length": 4, "size": 5},
}  # fmt: skip
FAST = ("lora", "dora", "ia3", "norm", "houlsby", "parallel", "prefix", "prompt")


def start_of(model: nn.Module) -> int:
    return int(unwrap_t5(model).config.decoder_start_token_id)


class Served:
    """A mixed model, its adapters, and the same adapters by themselves."""

    def __init__(self, family: Other, folder: Path, methods: list[str]) -> None:
        t5 = precise(tiny_other(family))
        self.mixed = MixedModel(t5)
        self.plain: dict[str | None, nn.Module] = {None: precise(tiny_other(family))}
        self.weights: dict[str | None, AdapterWeights | None] = {None: None}
        for name in methods:
            model = stir(METHODS[name].wrap(precise(tiny_other(family)), **OPTIONS.get(name, {})))
            self.add(name, save_adapter(model, folder / name), family)
        if "prefix" in methods:
            model = stir(METHODS["prefix"].wrap(precise(tiny_other(family)), length=5, projection_size=6))
            self.add("network", save_adapter(model, folder / "network"), family)
        for plain in self.plain.values():
            correct_config(unwrap_t5(plain))
        names = list(self.weights)
        self.names = [names[(i * i + i // 5) % len(names)] for i in range(ROWS)]
        self.adapters = [self.weights[name] for name in self.names]

    def add(self, name: str, path: Path, family: Other) -> None:
        self.weights[name] = read_adapter(name, path, self.mixed.t5)
        self.plain[name] = load_adapter(path, model=precise(tiny_other(family)))[0].eval()

    @torch.no_grad()
    def alone(self, row: int) -> Tensor:
        """The logits of a row's answer by its adapter."""
        model = self.plain[self.names[row]]
        read = torch.tensor([[start_of(model), *TARGETS[row][:-1]]])
        logits: Tensor = model(input_ids=torch.tensor([SOURCES[row]]), decoder_input_ids=read).logits[0]
        return logits


def methods_of(family: Other, all_of_them: bool) -> list[str]:
    row = family.partition("-")[0]
    names = [name for name, one in METHODS.items() if one.has_adapter and name != "qlora" and is_served(row, name)]
    return names if all_of_them else [name for name in names if name in FAST]


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((family, False), id=family) for family in OTHERS),
        *(pytest.param((family, True), id=f"{family}-all", marks=pytest.mark.slow) for family in OTHERS),
    ],
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    family, all_of_them = request.param
    made = Served(family, tmp_path_factory.mktemp("adapters"), methods_of(family, all_of_them))
    yield made
    made.mixed.close()


def logits_of(mixed: MixedModel, adapters: list[AdapterWeights | None]) -> Tensor:
    states, mask = mixed.encode(SOURCES, adapters)
    with mixed.rows(adapters):
        read, seen = padded([[start_of(mixed.t5), *target[:-1]] for target in TARGETS], PAD, mixed.t5.device)
        logits: Tensor = mixed.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=read,
            decoder_attention_mask=seen,
        ).logits
        return logits


def test_the_logits_of_every_row_are_those_of_its_adapter(served: Served) -> None:
    logits = logits_of(served.mixed, served.adapters)
    for row in range(ROWS):
        own = served.alone(row)
        assert (logits[row, : len(own)] - own).abs().max() < 1e-5 * own.abs().max(), served.names[row]


def test_rows_without_an_adapter_have_the_bits_of_the_plain_model(served: Served) -> None:
    without_prompt = [one if one is None or one.prompt is None else served.weights["lora"] for one in served.adapters]
    plain_rows = [row for row, one in enumerate(without_prompt) if one is None]
    mixed, plain = logits_of(served.mixed, without_prompt), logits_of(served.mixed, [None] * ROWS)
    assert plain_rows
    assert torch.equal(mixed[plain_rows], plain[plain_rows])
    assert not torch.equal(mixed, plain)


def until_end(ids: list[int]) -> list[int]:
    tokens = ids[1:]
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_row_generates_what_its_adapter_generates(served: Served, beams: int) -> None:
    ids = served.mixed.generate(SOURCES, served.adapters, max_new_tokens=8, num_beams=beams)
    answers = set()
    for row, name in enumerate(served.names):
        own = generate(
            unwrap_t5(served.plain[name]),
            input_ids=torch.tensor([SOURCES[row]]),
            max_new_tokens=8,
            num_beams=beams,
            do_sample=False,
        )
        assert until_end(ids[row].tolist()) == until_end(own[0].tolist()), (row, name)
        answers.add(tuple(until_end(ids[row].tolist())))
    assert len(answers) > 4


@torch.inference_mode()
def test_rows_join_a_running_batch_at_any_column(served: Served) -> None:
    """A window of five tokens slides over answers of up to nineteen, and rows of every adapter start at three columns."""
    batch: Batch | None = None
    places: dict[Row, int] = {}

    def check(of: Batch, logits: Tensor) -> None:
        for one, own in zip(of.rows, logits, strict=True):
            row, place = places[one], one.target_columns - 1
            if place < len(TARGETS[row]):
                expected = alone[row][place]
                assert (own - expected).abs().max() < 1e-5 * expected.abs().max(), (served.names[row], place)
                one.next_id = TARGETS[row][place]
            one.ended = place + 1 >= len(TARGETS[row])

    alone = [served.alone(row) for row in range(ROWS)]
    for start in (0, 10, 20):
        joining = []
        for row in range(start, start + 10):
            first = start_of(served.mixed.t5)
            joining.append(Row(source_ids=SOURCES[row], adapter=served.adapters[row], next_id=first))
            places[joining[-1]] = row
        started, logits = Batch.start(served.mixed, joining)
        assert logits is not None  # as these families do not pack sources
        check(started, logits)
        if batch is None:
            batch = started
        else:
            batch.arrange(started)
        for _ in range(7):
            check(batch, batch.step(served.mixed))
    assert batch is not None
    while not all(one.ended for one in batch.rows):
        batch.arrange()
        check(batch, batch.step(served.mixed))
    assert max(one.target_columns for one in places) > 15


@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2"])
def test_classes_of_a_row_are_those_of_its_adapter(family: Other, tmp_path: Path) -> None:
    model = stir(lora_wrap(precise(tiny_other_classifier(family)))).eval()
    path = save_adapter(model, tmp_path / "classes")
    mixed = MixedModel(precise(tiny_other(family)))
    adapter = read_adapter("classes", path, mixed.t5)
    got = mixed.classify(SOURCES[:6], [adapter] * 6)
    for row in range(6):
        ids = torch.tensor([SOURCES[row]])
        batch = with_room({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, unwrap_t5(model).config)
        with torch.no_grad():
            own = model(**batch).logits.log_softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(got[row], dtype=own.dtype), own, rtol=0, atol=1e-5)
    assert mixed.t5.config.decoder_start_token_id == START
    mixed.close()


@pytest.mark.parametrize("family", ["t5gemma2", "longt5-tglobal"])
def test_the_engine_answers_as_each_adapter_does(family: Other, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        save_adapter(stir(lora_wrap(precise(tiny_other(family)), rank=2, target_modules="all-linear")), tmp_path / name)
    pool = AdapterPool(precise(tiny_other(family)), tmp_path, tokenizer=tiny_tokenizer())
    names: list[str | None] = [None, "one", "two", "one"]
    asked = [
        GenerateRequest(names[i % 4], SOURCES[i], max_new_tokens=3 + i % 9, num_beams=1 + 2 * (i % 5 == 0))
        for i in range(16)
    ]
    with Engine(pool, Limits(max_rows=5)) as engine:
        answers = [ticket.result.result(60) for ticket in [engine.submit(request) for request in asked]]
    for request, answer in zip(asked, answers, strict=True):
        folder = None if request.adapter is None else tmp_path / request.adapter
        model = precise(tiny_other(family))
        if folder is not None:
            model = load_adapter(folder, model=model)[0].eval()
        correct_config(unwrap_t5(model))
        own = generate(
            unwrap_t5(model),
            input_ids=torch.tensor([list(request.source_ids)]),
            max_new_tokens=request.max_new_tokens,
            num_beams=request.num_beams,
            do_sample=False,
        )
        assert isinstance(answer, Generated)
        assert answer.ids == until_end(own[0].tolist())
    pool.model.close()
