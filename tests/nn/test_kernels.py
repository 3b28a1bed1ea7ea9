"""Our kernels equal what they stand in for, in value and gradient; dropout has the statistics it says."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import stir, trained
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft.data.collate import collate, collate_padding_free
from t5peft.methods import METHODS
from t5peft.nn.attention import use_attention
from t5peft.nn.fast import FAST_CLASSES, fast_classes, fast_kernels, t5peft_attention
from t5peft.nn.kernels import linear
from t5peft.nn.kernels.attention import attend_with_dropout, toeplitz, varlen_attention
from t5peft.nn.kernels.dropout import DropMask, dropout
from t5peft.nn.kernels.linear import FastLinear, product, product_over_rows, row_multiple
from t5peft.nn.kernels.varlen import VarlenLayout
from t5peft.nn.loss import target_loss
from t5peft.training.micro_batches import (
    TokenBudget,
    layout_of,
    micro_batches,
    ran_out_of_memory,
    supports_padding_free,
)

PADS = {"pad_token_id": 0, "decoder_start_token_id": 0}
SHAPE = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
FAMILIES = {
    "t5": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "relu"}),
    "t5 v1.1": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {}),
}


def tiny(family: str = "t5", dropout_rate: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    config, model, options = FAMILIES[family]
    t5 = model(config(**SHAPE, dropout_rate=dropout_rate, **options))
    for name, parameter in t5.named_parameters():
        if "layer_norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return t5.train()


def features(count: int = 12, longest_source: int = 17, longest_target: int = 9) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)

    def tokens(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(2, 97, (length,), generator=generator).tolist()

    return [{"input_ids": tokens(longest_source), "labels": tokens(longest_target)} for _ in range(count)]


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss, _ = target_loss(model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours: tuple[Tensor, dict[str, Tensor]], plain: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], plain[0])
    assert ours[1].keys() == plain[1].keys()
    for name, grad in plain[1].items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=2e-5 * scale, msg=name)


# --- whole models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [collate, collate_padding_free])
def test_kernels_and_rows_leave_loss_and_gradients_of_full_training_alone(family: str, layout) -> None:
    model = tiny(family)
    plain = gradients(model, collate(features(), **PADS))
    with fast_kernels(model):
        ours = gradients(model, layout(features(), **PADS))
    assert_same_gradients(ours, plain)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].quantize is None])
def test_kernels_and_rows_leave_loss_and_gradients_of_every_method_alone(method: str) -> None:
    model = stir(METHODS[method].wrap(tiny()))
    plain = gradients(model, collate(features(), **PADS))
    assert plain[1].keys() == trained(model).keys()
    assert all(gradient.abs().max() > 0 for gradient in plain[1].values())
    with fast_kernels(model):
        assert_same_gradients(gradients(model, collate(features(), **PADS)), plain)
        assert supports_padding_free(model)
        assert_same_gradients(gradients(model, collate_padding_free(features(), **PADS)), plain)


def test_a_row_needs_no_kernels() -> None:
    model = tiny()
    plain = gradients(model, collate(features(), **PADS))
    use_attention(model)
    assert_same_gradients(gradients(model, collate_padding_free(features(), **PADS)), plain)


def test_rows_equal_padded_batches_under_gradient_checkpointing() -> None:
    model = tiny(dropout_rate=0.3)
    with fast_kernels(model):
        torch.manual_seed(7)
        plain = gradients(model, collate_padding_free(features(), **PADS))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        assert_same_gradients(gradients(model, collate_padding_free(features(), **PADS)), plain)


def test_generation_inside_the_block_equals_that_outside() -> None:
    model = tiny().eval()
    batch = collate(features(4), **PADS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 12, "min_new_tokens": 12}
    for extra in ({}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}):
        plain = model.generate(**inputs, **options, **extra)
        with fast_kernels(model):
            assert torch.equal(model.generate(**inputs, **options, **extra), plain), extra


def test_the_block_leaves_classes_attention_and_weights_as_they_were() -> None:
    model = METHODS["lora"].wrap(tiny())
    classes = [type(module) for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    attention = model.base_model.model.config._attn_implementation

    def fail_inside() -> None:
        with fast_kernels(model):
            assert any(type(module) in FAST_CLASSES.values() for module in model.modules())
            assert list(model.state_dict()) == list(weights)
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail_inside()
    assert [type(module) for module in model.modules()] == classes
    assert model.base_model.model.config._attn_implementation == attention
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_boolean_mask_by_pairs_is_the_mask_by_tokens(method: str) -> None:
    model = METHODS[method].wrap(tiny()).eval()
    batch = collate(features(4), **PADS)
    inputs = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
    mask = batch["attention_mask"]
    with fast_kernels(model), torch.no_grad():
        expected = model(**inputs, attention_mask=mask).logits
        found = model(**inputs, attention_mask=mask.bool()[:, None, None, :]).logits
    torch.testing.assert_close(found, expected)


def test_a_prompt_takes_no_mask_by_pairs() -> None:
    batch = collate(features(4), **PADS)
    batch["attention_mask"] = batch["attention_mask"].bool()[:, None, None, :]
    with pytest.raises(ValueError, match=r"shape \(4, 1, 1, \d+\); expected \[B, S\]"):
        METHODS["prompt"].wrap(tiny())(**batch)


@pytest.fixture
def always_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the product."""
    monkeypatch.setattr(linear, "MULTIPLICATIONS", 0)


@pytest.mark.usefixtures("always_by_onednn")
@pytest.mark.parametrize("shape", [(1, 16), (7, 16), (8, 16), (3, 11, 16), (9, 37, 16), (2100, 16)])
@pytest.mark.parametrize("columns", [slice(None), slice(16, None)], ids=["whole", "part"])
def test_a_product_of_rows_filled_up_is_that_of_the_rows(shape: tuple[int, ...], columns: slice) -> None:
    x = torch.randn(*shape[:-1], 32)[..., :16] if columns.start else torch.randn(shape)
    weight = torch.randn(5, 32)[:, columns][:, -16:]
    found = product(x, weight)
    assert found.shape == (*shape[:-1], 5)
    torch.testing.assert_close(found, nn.functional.linear(x, weight))


class Operands(TorchDispatchMode):
    """The weights that oneDNN was given inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.mkldnn._linear_pointwise.default:
            self.weights.append(args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("always_by_onednn")
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].quantize is None])
def test_onednn_is_given_whole_matrices(method: str) -> None:
    """Of a part of wider rows, as the ladder's decoder reads its encoder, it multiplied 300 times as slowly."""
    model = METHODS[method].wrap(tiny())
    batch = {name: torch.randint(1, 97, (2, 9)) for name in ("input_ids", "labels")}
    with fast_kernels(model), Operands() as given:
        model.train()(**batch).loss.backward()
    assert len(given.weights) > 30
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in given.weights)


@pytest.mark.usefixtures("always_by_onednn")
@pytest.mark.parametrize("rows", [1, 7, 9, 40, 333, 2100])
def test_a_product_over_rows_is_exact_for_any_number_of_them(rows: int) -> None:
    left, right = (torch.randn(rows, width, dtype=torch.float64) for width in (5, 16))
    torch.testing.assert_close(product_over_rows(left, right), left.t() @ right)
    found = product_over_rows(left.float(), right.float()).double()
    rounding = torch.finfo(torch.float32).eps * (left.abs().t() @ right.abs())
    assert ((found - left.t() @ right).abs() <= 4 * rounding).all()


def test_products_have_few_numbers_of_rows() -> None:
    """oneDNN keeps a kernel of 0.6 MB for each."""
    filled = {rows: rows + -rows % row_multiple(rows) for rows in range(1, 16385)}
    assert len(set(filled.values())) < 150
    assert all(found <= 1.125 * rows for rows, found in filled.items())


def test_the_frozen_backbone_keeps_no_inputs_for_gradients_it_does_not_get() -> None:
    frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
    frozen.__class__ = FastLinear
    x = torch.randn(5, 8, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        frozen(x)
    assert all(tensor is frozen.weight or tensor.data_ptr() == frozen.weight.data_ptr() for tensor in kept)


# --- LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"lora_dropout": 0.2}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
def test_lora_layers_equal_pefts(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["0", "1"], init_lora_weights=False, **options)
    bias = "lora_bias" in options
    model = get_peft_model(nn.Sequential(nn.Linear(12, 9, bias=bias), nn.Linear(9, 7, bias=bias)), config)
    x = torch.randn(3, 5, 12, requires_grad=True)

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        y = model(x)
        return [
            y.detach(),
            *torch.autograd.grad(y.square().sum(), [x, *(p for p in model.parameters() if p.requires_grad)]),
        ]

    expected = run()
    swapped = [
        module for module in model.modules() if type(module) in FAST_CLASSES and not isinstance(module, nn.Dropout)
    ]
    for module in swapped:
        module.__class__ = FAST_CLASSES[type(module)]
    for ours, plain in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert not torch.allclose(model(x), expected[0])
    model.merge_adapter()
    if "lora_dropout" not in options:
        torch.testing.assert_close(model(x), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_an_8_bit_map_equals_that_of_bitsandbytes_and_keeps_no_input() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear8bitLt(16, 8, bias=False, has_fp16_weights=False).to("cpu").train()
    x = torch.randn(3, 5, 16, requires_grad=True)

    def run() -> tuple[Tensor, Tensor, bool]:
        states, freed = x + 0, []
        weakref.finalize(states.untyped_storage(), freed.append, True)
        y = layer(states)
        del states
        gc.collect()
        keeps_input = not freed  # bitsandbytes keeps it where hooks of saved tensors do not see it
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0], keeps_input

    plain = run()
    with torch.no_grad():
        evaluated = layer.eval()(x)
    layer.train().__class__ = fast_classes()[type(layer)]
    ours = run()
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), evaluated, rtol=0.0, atol=0.0)
    torch.testing.assert_close(ours[:2], plain[:2])
    assert (plain[2], ours[2]) == (True, False)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_an_8_bit_map_with_a_bias_adds_it() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(16, 8, bias=True, has_fp16_weights=False).to("cpu").train()
    nn.init.constant_(layer.bias, 3.0)
    x = torch.randn(3, 5, 16)
    plain = layer(x)
    layer.__class__ = fast_classes()[type(layer)]
    torch.testing.assert_close(layer(x), plain)


# --- attention ----------------------------------------------------------------------------------------------------------


def test_toeplitz_spreads_a_bias_by_distance_over_pairs() -> None:
    table = torch.arange(7.0).view(1, 1, 1, 7)
    expected = torch.tensor([[[[2.0, 3, 4, 5, 6], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]]])
    assert torch.equal(toeplitz(table, 3, 5), expected)


def row_inputs(longest: int, prefix: int) -> tuple[VarlenLayout, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    lengths = tuple(int(n) for n in torch.randint(1, longest + 1, (9,), generator=generator))
    targets = tuple(int(n) for n in torch.randint(1, longest + 1, (9,), generator=generator))
    shapes = [(1, 2, sum(targets), 4), *[(1, 2, sum(lengths), 4)] * 2, (1, 2, longest, longest)]
    shapes += [(1, 2, prefix, 4)] * 2 if prefix else []
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]
    return VarlenLayout(lengths, targets), tensors


@pytest.mark.parametrize("longest", [5, 60])
@pytest.mark.parametrize("prefix", [0, 3])
def test_a_row_attends_as_each_example_alone(longest: int, prefix: int) -> None:
    layout, inputs = row_inputs(longest, prefix)
    query, key, value, bias, *prefixes = inputs
    assert len(layout.groups) == 1 if longest == 5 else len(layout.groups) > 2
    output = varlen_attention(query, key, value, bias, tuple(prefixes) or None, layout, (1, 0), 0.0)
    parts = []
    for q, k, v in zip(
        query.split(layout.target_lengths, 2),
        key.split(layout.source_lengths, 2),
        value.split(layout.source_lengths, 2),
        strict=True,
    ):
        own = nn.functional.pad(bias[..., : q.shape[2], : k.shape[2]], (prefix, 0))
        if prefixes:
            k, v = torch.cat([prefixes[0], k], 2), torch.cat([prefixes[1], v], 2)
        parts.append(((q @ k.transpose(2, 3) + own).softmax(-1) @ v).transpose(1, 2))
    expected = torch.cat(parts, 1)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((output * weights).sum(), inputs)
    for grad, plain in zip(ours, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(grad, plain)


@pytest.mark.parametrize("longest", [5, 40])
def test_gradients_of_a_row_with_dropout_are_those_of_its_values(longest: int) -> None:
    layout, inputs = row_inputs(longest, 2)

    def output(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *prefixes: Tensor) -> Tensor:
        torch.manual_seed(3)
        return varlen_attention(query, key, value, bias, prefixes, layout, (1, 0), 0.4)

    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 2, 5, 6), (1, 2, 5, 6), (3, 1, 5, 6), (3, 1, 1, 6)])
def test_gradients_of_attention_with_dropout_are_those_of_its_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(3, 2, 5, 4), (3, 2, 6, 4)]]
    inputs += [torch.randn(3, 2, 6, 4, dtype=torch.float64, requires_grad=True)]
    inputs += [torch.randn(shape, dtype=torch.float64, requires_grad=True)]

    def output(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_with_dropout(*tensors, 0.4)

    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


def test_attention_with_dropout_has_the_mean_of_attention_without() -> None:
    torch.manual_seed(0)
    query, key, value, bias = (
        torch.randn(2, 2, 3, 4),
        torch.randn(2, 2, 5, 4),
        torch.randn(2, 2, 5, 4),
        torch.zeros(1, 2, 3, 5),
    )
    mean = sum(attend_with_dropout(query, key, value, bias, 0.3) for _ in range(4000)) / 4000
    exact = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(mean, exact, rtol=0.0, atol=0.06)


# --- dropout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.3, 0.002, 0.95])
def test_an_element_is_dropped_with_probability_p(p: float) -> None:
    torch.manual_seed(0)
    calls, elements = 400, 50_000
    dropped = torch.tensor([int((dropout(torch.ones(elements), p, True) == 0).sum()) for _ in range(calls)])
    # The threshold is drawn once a call: its share of the variance does not shrink with the elements of a call.
    fraction = 256 * p - math.floor(256 * p)
    variance = p * (1 - p) / elements + fraction * (1 - fraction) / 256**2
    mean = dropped.double().mean() / elements
    assert abs(mean - p) < 4 * math.sqrt(variance / calls)
    assert (dropped.double() / elements).var().item() == pytest.approx(variance, rel=0.35)


def test_what_is_kept_is_scaled_so_that_the_mean_stays() -> None:
    x = torch.randn(1000)
    y = dropout(x, 0.1, True)
    kept = y != 0
    assert 0.8 < kept.float().mean() < 0.97
    torch.testing.assert_close(y[kept], x[kept] / 0.9)


def test_masks_are_uncorrelated_within_a_call_and_between_calls() -> None:
    torch.manual_seed(0)
    masks = torch.stack([(dropout(torch.ones(20_000), 0.1, True) != 0).float() for _ in range(40)]) - 0.9
    variance = 0.09
    for shift in (1, 2, 7, 8, 64, 512):
        correlation = (masks[:, shift:] * masks[:, :-shift]).mean() / variance
        assert abs(correlation) < 4 / math.sqrt(masks.numel()) + 1e-4, shift
    between = (masks[1:] * masks[:-1]).mean() / variance
    assert abs(between) < 4 / math.sqrt(masks.numel()) + 1e-4


def test_every_byte_of_a_word_is_as_random_as_the_others() -> None:
    torch.manual_seed(0)
    drawn = DropMask(80_000 * 8, 0.1).bytes[: 80_000 * 8].view(-1, 8).long()
    for place in range(8):
        counts = torch.bincount(drawn[:, place], minlength=256).double()
        chi_square = ((counts - 312.5).square() / 312.5).sum().item()
        assert 255 - 5 * math.sqrt(510) < chi_square < 255 + 5 * math.sqrt(510), place


def test_nearly_everything_is_dropped_by_a_probability_near_one() -> None:
    torch.manual_seed(0)
    assert (dropout(torch.ones(100_000), 0.999, training=True) == 0).float().mean() == pytest.approx(0.999, abs=5e-4)


def test_dropout_backward_uses_the_mask_of_its_forward_and_the_seed_decides_it() -> None:
    x = torch.randn(30, 50, requires_grad=True)
    torch.manual_seed(5)
    first = dropout(x, 0.3, True)
    (grad,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(grad * x, first)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3, True), first)


def test_dropout_outside_of_training_or_of_nothing_is_the_input_itself() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert not dropout(x, 1.0, True).any()


def test_dropout_takes_views_and_bf16() -> None:
    x = torch.randn(6, 40).t().to(torch.bfloat16)
    y = dropout(x, 0.5, True)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[y != 0], 2 * x[y != 0])


# --- budgets ------------------------------------------------------------------------------------------------------------


def test_a_budget_is_halved_by_an_out_of_memory_alone_and_not_below_its_floor() -> None:
    budget = TokenBudget(tiny(), 200)
    assert not budget.halve_after(RuntimeError("shapes do not match"))
    assert budget.tokens == 200
    assert budget.halve_after(torch.OutOfMemoryError("CUDA out of memory"))
    assert budget.halve_after(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert budget.tokens == 50
    assert not budget.halve_after(MemoryError())


def test_torch_says_out_of_memory_in_the_words_we_look_for() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(error.value)


def kept_bytes_per_token(model: nn.Module) -> float:
    """Bytes that the backward pass of a step reads, without weights, per token of the step."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate(features(40), **PADS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = target_loss(model, batch)
    assert loss.requires_grad
    return sum(kept.values()) / (batch["input_ids"].numel() + batch["labels"].numel())


def test_a_budget_of_its_own_fits_into_half_of_the_memory_and_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(dropout_rate=0.1)
    tokens = {}
    for megabytes in (0, 4, 8, 10**6):
        free = SimpleNamespace(available=megabytes * 10**6)
        monkeypatch.setattr("t5peft.training.micro_batches.psutil.virtual_memory", lambda free=free: free)
        tokens[megabytes] = TokenBudget(model).tokens
    assert tokens[8] == pytest.approx(2 * tokens[4], abs=1)
    assert (tokens[0], tokens[10**6]) == (64, 2048)
    needed = tokens[8] * kept_bytes_per_token(model)
    assert 8e6 / 8 < needed <= 8e6 / 2


@pytest.mark.parametrize("layout", ["padded", "padding_free", "packed"])
def test_micro_batches_hold_every_target_token_once(layout: Any) -> None:
    examples = features(30)
    batches = micro_batches(examples, 60, layout=layout, **PADS)
    assert sorted(index for chosen, _ in batches for index in chosen) == list(range(30))
    targets = [token for _, batch in batches for token in batch["labels"].flatten().tolist() if token != -100]
    assert sorted(targets) == sorted(token for example in examples for token in example["labels"])


def test_layouts_follow_the_device_the_method_and_the_wish() -> None:
    model = tiny()
    assert [layout_of(model, pack) for pack in (None, True)] == ["padded", "padded"]
    with t5peft_attention(model):
        assert [layout_of(model, pack) for pack in (None, True)] == ["padded", "packed"]
    with fast_kernels(model):
        assert [layout_of(model, pack) for pack in (None, True, False)] == ["padding_free", "padding_free", "padded"]


def test_a_step_that_runs_out_of_memory_starts_again_with_half_the_tokens(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5peft import T5PeftTrainer, T5PeftTrainingArguments

    def train(fails_at: int | None) -> tuple[list[Tensor], int]:
        model = tiny()
        arguments = T5PeftTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=12,
            tokens_per_micro_batch=100,
            learning_rate=1e-2,
            optim="sgd",  # Adam would divide rounding by the size of a gradient that is all but zero
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = T5PeftTrainer(model=model, args=arguments, train_dataset=features())
        losses = trainer.summed_loss
        calls = 0

        def summed_loss(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses(*args, **kwargs)

        monkeypatch.setattr(trainer, "summed_loss", summed_loss)
        trainer.train()
        return [parameter.detach() for parameter in model.parameters()], trainer.budget.tokens

    plain, tokens = train(None)
    assert tokens == 100
    after, tokens = train(2)  # the second micro-batch of the first step: its first one has left gradients already
    assert tokens == 50
    for ours, expected in zip(after, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
