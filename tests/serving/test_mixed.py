"""A row of a mixed batch is answered as its adapter answers by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow import generate
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import GEOMETRIES, PAD, Geometry, tiny_classifier, tiny_records, tiny_t5, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.adapters import load_adapter, save_adapter
from t5peft.evaluation.inference import padded
from t5peft.methods import METHODS, lora_wrap
from t5peft.models.backbone import correct_config, load_backbone
from t5peft.models.encoders import EncoderHead
from t5peft.models.tokens import train_tokens
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving import routing
from t5peft.serving.adapter import read_adapter
from t5peft.serving.mixed import MixedModel
from t5peft.serving.requests import UnusableAdapterError
from t5peft.serving.weights import AdapterWeights

SERVED = [name for name, method in METHODS.items() if method.has_adapter and name not in ("qlora", "ladder")]
ROWS = 32
RECORDS = tiny_records(ROWS)
SOURCES = [record["input_ids"] for record in RECORDS]
TARGETS = [record["labels"] for record in RECORDS]


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    nn.Module.to(model, dtype)
    return model


def stir(model: nn.Module) -> None:
    """Move an adapter away from where it starts, where most of them change nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def saved(model: PeftModel | PreTrainedModel, folder: Path) -> Path:
    stir(model)
    return save_adapter(model, folder)


class Served:
    """A mixed model, its adapters, and the same adapters by themselves."""

    def __init__(self, geometry: Geometry, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.mixed = MixedModel(in_dtype(tiny_t5(geometry), dtype))
        self.plain: dict[str | None, nn.Module] = {None: in_dtype(tiny_t5(geometry), dtype)}
        self.dtype = dtype
        self.weights: dict[str | None, AdapterWeights | None] = {None: None}
        options = {"lora": {"rank": 4}, "prefix": {"length": 3}, "dora": {"rank": 4}}
        for name in SERVED:
            path = saved(METHODS[name].wrap(tiny_t5(geometry), **options.get(name, {})), folder / name)
            self.add(name, path, geometry)
        path = saved(METHODS["prefix"].wrap(tiny_t5(geometry), length=5, projection_size=6), folder / "network")
        self.add("network", path, geometry)
        for model in self.plain.values():
            correct_config(unwrap_t5(model))
        names = list(self.weights)
        # Neither in order nor evenly shared out: three rows of some adapters, and one of others.
        self.names = [names[(i * i + i // 5) % len(names)] for i in range(ROWS)]
        self.adapters = [self.weights[name] for name in self.names]

    def add(self, name: str, path: Path, geometry: Geometry) -> None:
        self.weights[name] = read_adapter(name, path, self.mixed.t5)
        self.plain[name] = load_adapter(path, model=tiny_t5(geometry))[0].eval().to(self.dtype)


@pytest.fixture(scope="module", params=GEOMETRIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(request.param, tmp_path_factory.mktemp("adapters"))
    yield made
    made.mixed.close()


def until_end(ids: list[int]) -> list[int]:
    """The tokens of an answer up to its end token."""
    tokens = ids[1:]
    return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_row_generates_what_its_adapter_generates(served: Served, beams: int) -> None:
    ids = served.mixed.generate(SOURCES, served.adapters, max_new_tokens=8, num_beams=beams)
    answers = set()
    for row, name in enumerate(served.names):
        source = torch.tensor([SOURCES[row]])
        model = served.plain[name]
        own = generate(model, input_ids=source, max_new_tokens=8, num_beams=beams, do_sample=False)
        assert until_end(ids[row].tolist()) == until_end(own[0].tolist()), (row, name)
        answers.add(tuple(until_end(ids[row].tolist())))
    assert len(answers) > 8  # the rows do not all say the same


def logits_of(mixed: MixedModel, adapters: list[AdapterWeights | None]) -> Tensor:
    states, mask = mixed.encode(SOURCES, adapters)
    with mixed.rows(adapters):
        inputs, _ = padded([[PAD, *target[:-1]] for target in TARGETS], PAD, mixed.t5.device)
        return mixed.t5(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=inputs).logits


def test_sources_without_padding_are_read_as_padded_ones(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    if not served.mixed.packs:
        pytest.skip("sources are packed by compiled kernels, which need gcc on Linux")
    states, mask = served.mixed.encode(SOURCES, served.adapters)
    logits = logits_of(served.mixed, served.adapters)
    monkeypatch.setattr(MixedModel, "packs", False)
    expected, same_mask = served.mixed.encode(SOURCES, served.adapters)
    assert torch.equal(mask, same_mask)
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, logits_of(served.mixed, served.adapters), rtol=1e-4, atol=1e-4)


def difference(served: Served) -> float:
    """The largest difference of a logit, as a part of the largest logit of its row."""
    logits, worst = logits_of(served.mixed, served.adapters), 0.0
    for row, name in enumerate(served.names):
        target = torch.tensor([TARGETS[row]])
        with torch.no_grad():
            own = served.plain[name](input_ids=torch.tensor([SOURCES[row]]), labels=target).logits[0]
        worst = max(worst, float((logits[row, : len(own)] - own).abs().max() / own.abs().max()))
    return worst


def test_the_logits_of_every_row_are_those_of_its_adapter(served: Served) -> None:
    assert difference(served) < 1e-5


def test_in_double_precision_the_logits_are_the_same_to_ten_digits(tmp_path: Path) -> None:
    served = Served("wide", tmp_path, torch.float64)
    assert difference(served) < 1e-10
    served.mixed.close()


def test_rows_without_an_adapter_have_the_bits_of_the_plain_model(served: Served) -> None:
    # Of the same shape as with the adapters: a matrix product may round otherwise in another one.
    without_prompt = [one if one is None or one.prompt is None else served.weights["lora"] for one in served.adapters]
    plain_rows = [row for row, one in enumerate(without_prompt) if one is None]
    mixed, plain = logits_of(served.mixed, without_prompt), logits_of(served.mixed, [None] * ROWS)
    assert plain_rows
    assert torch.equal(mixed[plain_rows], plain[plain_rows])
    assert not torch.equal(mixed, plain)


def test_every_row_ranks_as_its_adapter_ranks(served: Served) -> None:
    from t5peft.evaluation.peft_prompts import target_log_probabilities

    candidates = [[TARGETS[row], TARGETS[(row + 1) % ROWS]][: 1 + row % 2] for row in range(ROWS)]
    found = served.mixed.rank(SOURCES, candidates, served.adapters)
    for row, name in enumerate(served.names):
        features = [{"input_ids": SOURCES[row], "labels": candidate} for candidate in candidates[row]]
        own = target_log_probabilities(served.plain[name], features)
        torch.testing.assert_close(torch.tensor(found[row]), torch.tensor(list(own)).float(), rtol=0, atol=3e-5)


def test_an_order_that_changes_changes_no_row(served: Served) -> None:
    order = routing.order(served.adapters)
    assert sorted(order) == list(range(ROWS))
    logits = logits_of(served.mixed, served.adapters)
    shuffled = list(reversed(served.adapters))
    assert not torch.allclose(logits_of(served.mixed, shuffled), logits, atol=1e-2)
    states, mask = served.mixed.encode([SOURCES[i] for i in order], [served.adapters[i] for i in order])
    original, _ = served.mixed.encode(SOURCES, served.adapters)
    torch.testing.assert_close(states, original[order], rtol=0, atol=2e-5)
    assert mask.shape == states.shape[:2]


def test_closing_gives_the_backbone_back() -> None:
    model, fresh = tiny_t5(), tiny_t5()
    mixed = MixedModel(model)
    mixed.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [type(module) for module in model.modules()] == [type(module) for module in fresh.modules()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, "int8"])
def test_beside_rounded_backbones_rows_differ_by_their_rounding_only(tmp_path: Path, dtype: torch.dtype | str) -> None:
    def backbone() -> PreTrainedModel:
        if isinstance(dtype, torch.dtype):
            return in_dtype(tiny_t5(), dtype)
        from t5peft.models.backbone import load_backbone

        return load_backbone(tmp_path / "t5", quantize="int8", dtype=torch.float32)[0]

    if dtype == "int8":
        from t5peft.models.backbone import load_tokenizer

        tiny_t5().save_pretrained(tmp_path / "t5")
        load_tokenizer("mini").save_pretrained(tmp_path / "t5")
    paths = {
        name: saved(METHODS[name].wrap(tiny_t5()), tmp_path / name)
        for name in ("lora-all", "dora", "ia3", "prefix", "norm", "houlsby", "prompt")
    }
    mixed = MixedModel(backbone())
    adapters: list[AdapterWeights | None] = [read_adapter(name, path, mixed.t5) for name, path in paths.items()]
    adapters = [*adapters, None] * 4
    logits = logits_of(mixed, adapters).float()
    for row, name in enumerate([*paths, None]):
        model = backbone() if name is None else load_adapter(paths[name], model=backbone())[0]
        model.eval()
        with torch.no_grad():
            own = model(input_ids=torch.tensor([SOURCES[row]]), labels=torch.tensor([TARGETS[row]])).logits[0].float()
        scale = float(own.abs().max())
        assert float((logits[row, : len(own)] - own).abs().max()) < 0.05 * scale, name
    mixed.close()


def classifier(num_labels: int) -> PreTrainedModel:
    """A classifier of which the stacks are those of ``tiny_t5``."""
    model = tiny_classifier(num_labels=num_labels)
    model.transformer.load_state_dict(tiny_t5().state_dict(), strict=False)
    return model


def test_rows_are_classified_by_the_heads_of_their_adapters(tmp_path: Path) -> None:
    names = ("lora", "prefix", "prompt")
    paths = {name: saved(METHODS[name].wrap(classifier(2 + i)), tmp_path / name) for i, name in enumerate(names)}
    mixed = MixedModel(tiny_t5())
    adapters = [read_adapter(names[row % 3], paths[names[row % 3]], mixed.t5) for row in range(9)]
    found = mixed.classify(SOURCES[:9], adapters)
    for row in range(9):
        model = load_adapter(paths[names[row % 3]], model=classifier(2 + row % 3))[0].eval()
        with torch.no_grad():
            own = model(input_ids=torch.tensor([SOURCES[row]])).logits.log_softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(found[row]), own, rtol=0, atol=1e-5)
    without = read_adapter("plain", saved(METHODS["lora"].wrap(tiny_t5()), tmp_path / "plain"), mixed.t5)
    with pytest.raises(ValueError, match=r"\['plain'\], which have no classification head"):
        mixed.classify(SOURCES[:1], [without])


def lora_config(options: dict[str, Any]) -> LoraConfig:
    given: dict[str, Any] = {"r": 4, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"} | options
    return LoraConfig(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "lora_alpha": 7},
        {"rank_pattern": {"v": 2}, "alpha_pattern": {"SelfAttention.q": 3}},
        {"target_modules": ["q", "lm_head"], "r": 3},
        {"target_modules": ["wi", "wo", "o"], "use_dora": True},
    ],
)  # fmt: skip
def test_loras_that_peft_made_are_served(tmp_path: Path, options: dict[str, Any]) -> None:
    geometry: Geometry = "wide" if "lm_head" in options.get("target_modules", ()) else "v1.0"
    config = lora_config(options)
    plain, base = tiny_t5(geometry), tiny_t5(geometry)
    for one in (plain, base):
        correct_config(one)
    model = get_peft_model(base, config).eval()
    stir(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    mixed = MixedModel(tiny_t5(geometry))
    weights = read_adapter("own", tmp_path, mixed.t5)
    ranked = mixed.rank(SOURCES[:4], [[target] for target in TARGETS[:4]], [weights, None, weights, None])
    ids = mixed.generate(SOURCES[:4], [weights, None, weights, None], max_new_tokens=6)
    rows: list[nn.Module] = [model, plain, model, plain]
    for row, own in enumerate(rows):
        want = generate(own, input_ids=torch.tensor([SOURCES[row]]), max_new_tokens=6, do_sample=False)
        assert until_end(ids[row].tolist()) == until_end(want[0].tolist())
        with torch.no_grad():
            logits = own(input_ids=torch.tensor([SOURCES[row]]), labels=torch.tensor([TARGETS[row]])).logits[0]
        score = logits.log_softmax(-1).gather(-1, torch.tensor(TARGETS[row])[:, None]).sum()
        assert ranked[row][0] == pytest.approx(float(score), abs=3e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "starts from a part of the weights"),
        ({"bias": "all"}, "sets bias"),
        ({"modules_to_save": ["final_layer_norm"]}, "does not belong to the model"),
    ],
)
def test_what_peft_makes_and_a_row_cannot_have_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    config = lora_config(options)
    get_peft_model(tiny_t5(), config).save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(UnusableAdapterError, match=reason):
        read_adapter("own", tmp_path, tiny_t5())


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    saved(METHODS["lora"].wrap(tiny_t5(seed=1)), tmp_path / "other")
    with pytest.raises(UnusableAdapterError, match="another backbone"):
        read_adapter("other", tmp_path / "other", tiny_t5())


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rows_of_separate_adapters_are_answered_in_the_call_of_others(geometry: Geometry, tmp_path: Path) -> None:
    tokens = lora_wrap(tiny_t5(geometry), rank=2)
    train_tokens(tokens, [5, 6, 7])
    ladder = METHODS["ladder"].wrap(tiny_t5(geometry))
    folders = {"ladder": saved(ladder, tmp_path / "ladder"), "tokens": saved(tokens, tmp_path / "tokens")}
    folders["lora"] = saved(lora_wrap(tiny_t5(geometry), rank=2), tmp_path / "lora")
    mixed = MixedModel(tiny_t5(geometry))
    before = {name: tensor.clone() for name, tensor in mixed.t5.state_dict().items()}
    weights: dict[str | None, AdapterWeights | None] = {
        name: read_adapter(name, path, mixed.t5) for name, path in folders.items()
    }
    weights[None] = None
    plain: dict[str | None, PreTrainedModel] = {None: tiny_t5(geometry).eval()}
    for name, path in folders.items():
        plain[name] = unwrap_t5(load_adapter(path, model=tiny_t5(geometry))[0].eval())
    for t5 in plain.values():
        correct_config(t5)
    names = [list(weights)[i % 4] for i in range(12)]
    own, sources = [weights[name] for name in names], SOURCES[:12]
    steps: list[None] = []
    for beams in (1, 3):
        found = mixed.generate(sources, own, max_new_tokens=6, num_beams=beams, between=lambda: steps.append(None))
        for own_name, source, row in zip(names, sources, found.tolist(), strict=True):
            options = {"input_ids": torch.tensor([source]), "max_new_tokens": 6, "num_beams": beams, "do_sample": False}
            alone = generate(plain[own_name], **options)[0].tolist()
            assert row[: len(alone)] == alone, (own_name, beams)
            assert set(row[len(alone) :]) <= {PAD}
    assert len(steps) >= 12
    candidates = [TARGETS[i : i + 3] for i in range(12)]
    for i, scores in enumerate(mixed.rank(sources, candidates, own)):
        for ids, score in zip(candidates[i], scores, strict=True):
            with torch.no_grad():
                output = plain[names[i]](input_ids=torch.tensor([sources[i]]), labels=torch.tensor([ids]))
            expected = output.logits.log_softmax(-1)[0].gather(1, torch.tensor(ids)[:, None]).sum()
            assert score == pytest.approx(float(expected), abs=1e-4), names[i]
    assert all(torch.equal(tensor, before[name]) for name, tensor in mixed.t5.state_dict().items())
    ladder_weights = weights["ladder"]
    assert ladder_weights is not None
    assert ladder_weights.num_bytes == sum(p.nbytes for p in ladder.parameters() if p.requires_grad)
    shared = {tensor.data_ptr() for tensor in mixed.t5.parameters()}
    assert ladder_weights.separate is not None
    copied = [p for name, p in ladder_weights.separate.named_parameters() if "ladder" not in name]
    assert {p.data_ptr() for p in copied} <= shared


def test_an_adapter_with_a_tokenizer_of_its_own_is_refused(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5(), rank=2)
    train_tokens(model, [5])
    save_adapter(model, tmp_path / "own", tokenizer=tiny_tokenizer())
    with pytest.raises(UnusableAdapterError, match="adds new tokens; expected one for the tokenizer"):
        read_adapter("own", tmp_path / "own", tiny_t5())


def test_a_batch_that_is_not_a_multiple_of_the_rows_is_refused(served: Served) -> None:
    with (
        served.mixed.rows(served.adapters),
        pytest.raises(ValueError, match="Got a batch of 3 rows; expected a multiple of the 32"),
    ):
        served.mixed.t5.get_encoder()(input_ids=torch.tensor([[5, 1]] * 3))


@pytest.mark.parametrize("head", ["sequence", "tokens", "embedding", "states"])
def test_an_adapter_of_an_encoder_is_refused_with_the_true_reason(head: EncoderHead, tmp_path: Path) -> None:
    tiny_t5().save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    labels = 3 if head in ("sequence", "tokens") else None
    encoder, _ = load_backbone(tmp_path / "backbone", head=head, num_labels=labels)
    path = saved(METHODS["lora"].wrap(encoder), tmp_path / "adapters" / "one")
    with pytest.raises(
        UnusableAdapterError, match=rf"an encoder without a decoder \(head='{head}'\).*Run it with load_adapter"
    ):
        read_adapter("one", path, tiny_t5())
