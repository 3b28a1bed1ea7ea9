"""Our kernels equal what they stand in for, in value and gradient."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import stir, trained
from kernel_cases import FAMILIES, PADS, assert_same_gradients, features, gradients, tiny
from narrow import generate
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from t5peft.data.collate import collate, collate_padding_free
from t5peft.methods import METHODS
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.attention import use_attention
from t5peft.nn.fast import FAST_CLASSES, fast_classes, fast_kernels
from t5peft.nn.kernels import linear
from t5peft.nn.kernels.linear import FastLinear, product, product_over_rows, row_multiple
from t5peft.training.micro_batches import (
    supports_padding_free,
)

# --- whole models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [collate, collate_padding_free])
def test_kernels_and_rows_leave_loss_and_gradients_of_full_training_alone(
    family: str, layout: Callable[..., dict[str, Tensor]]
) -> None:
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
        plain = generate(model, **inputs, **options, **extra)
        with fast_kernels(model):
            assert torch.equal(generate(model, **inputs, **options, **extra), plain), extra


def test_the_block_leaves_classes_attention_and_weights_as_they_were() -> None:
    model = METHODS["lora"].wrap(tiny())
    classes = [type(module) for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    attention = unwrap_t5(model).config._attn_implementation

    def fail_inside() -> None:
        with fast_kernels(model):
            assert any(type(module) in FAST_CLASSES.values() for module in model.modules())
            assert list(model.state_dict()) == list(weights)
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail_inside()
    assert [type(module) for module in model.modules()] == classes
    assert unwrap_t5(model).config._attn_implementation == attention
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


@pytest.mark.parametrize("rows", [29, 32])
@pytest.mark.parametrize("engine", ["oneDNN", "torch"])
def test_what_a_map_returns_can_be_changed_in_place(rows: int, engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "oneDNN":
        request.getfixturevalue("always_by_onednn")
    x, layer, added = torch.randn(2, rows, 8), FastLinear(8, 6, bias=False), torch.ones(6, requires_grad=True)
    layer.requires_grad_(False)
    for source in (x, x.clone().requires_grad_()):
        added.grad = None
        result = layer(source)
        result += added
        result.sum().backward()
        torch.testing.assert_close(result.detach(), x @ layer.weight.T + 1)
        torch.testing.assert_close(added.grad, torch.full((6,), 2.0 * rows))


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

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        frozen(x)
    assert all(tensor is frozen.weight or tensor.data_ptr() == frozen.weight.data_ptr() for tensor in kept)


# --- LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"lora_dropout": 0.2}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
def test_lora_layers_equal_pefts(options: dict[str, Any]) -> None:
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
        states = x + 0
        freed: list[bool] = []
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
