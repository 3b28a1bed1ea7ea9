"""Weights of 8 bits are written so that a processor whose sums of two products have 16 bits computes them exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny import Geometry, tiny_t5, tiny_tokenizer
from torch import Tensor, nn

from t5peft import export
from t5peft.compat.ctranslate2 import convert, eight_bits

pytest.importorskip("ctranslate2")

ROWS = {
    "normal": torch.randn(64, 96, generator=torch.Generator().manual_seed(0)),
    "all equal": torch.full((2, 8), 0.3),
    "all negative": torch.full((2, 8), -7.0),
    "one neighbor": torch.tensor([[0.9, 1.0, 0.0, 0.0], [0.0, -1.0, -1.0, 0.0]]),
    "halves": torch.tensor([[63.5, 63.5], [126.5, 0.5], [64.5, 62.5]]),
    "odd": torch.tensor([[1.0, 1.0, 1.0]]),
}


def saturated(inputs: Tensor, weights: Tensor) -> Tensor:
    """Multiply [N, K] by [M, K] as AVX2 does: sums of two neighboring products are cut to 16 bits."""
    products = nn.functional.pad(inputs[:, None] * weights, (0, weights.shape[1] % 2))
    return products.unflatten(-1, (-1, 2)).sum(-1).clamp(-(2**15), 2**15 - 1).sum(-1)


@pytest.mark.parametrize("weight", ROWS.values(), ids=ROWS)
def test_no_sum_of_two_products_exceeds_16_bits(weight: Tensor) -> None:
    rounded, scale = eight_bits(weight)
    assert (rounded.dtype, scale.shape) == (torch.int8, weight.shape[:1])
    inputs = torch.stack([torch.full(weight.shape[1:], 255), torch.randint(1, 256, weight.shape[1:])])
    assert torch.equal(saturated(inputs, rounded.long()), inputs @ rounded.long().T)
    assert ((rounded / scale[:, None] - weight).abs() <= 0.501 / scale[:, None]).all()


def test_a_row_uses_8_bits_where_its_neighbors_leave_them() -> None:
    rounded, scale = eight_bits(torch.tensor([[2.0, -2.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    assert rounded.tolist() == [[127, -127, 127, 0], [64, 64, 0, 0]]
    torch.testing.assert_close(scale, torch.tensor([63.5, 63.5]))


def test_rows_of_zeros_and_of_the_smallest_numbers_stay_numbers() -> None:
    rounded, scale = eight_bits(torch.tensor([[0.0, 0.0], [1e-45, 0.0], [1e38, 1e38]]))
    assert rounded[0].tolist() == [0, 0]
    assert scale.isfinite().all()
    assert (rounded / scale[:, None]).isfinite().all()


def test_what_ctranslate2_would_round_is_rounded_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctranslate2.specs.model_spec import ModelSpec

    written: list[Any] = []
    monkeypatch.setattr(ModelSpec, "save", lambda spec, folder: written.append(spec))
    t5, tokenizer = tiny_t5("v1.1"), tiny_tokenizer()
    tokens = [str(i) for i in range(t5.config.vocab_size)]
    kinds_of_weights: tuple[Literal["int8"] | None, ...] = (None, "int8")
    for quantization in kinds_of_weights:
        convert(
            t5,
            tokenizer,
            tmp_path / "out",
            vocabularies={"source": tokens, "target": tokens},
            quantization=quantization,
        )
    exact, rounded = written
    name = "encoder/layer_0/self_attention/linear_1/weight"
    output = t5.get_parameter("encoder.block.0.layer.0.SelfAttention.o.weight")
    assert torch.equal(torch.as_tensor(exact.variables()[name].numpy()), output)
    for key, expected in zip((name, f"{name}_scale"), eight_bits(output), strict=True):
        assert torch.equal(torch.as_tensor(rounded.variables()[key].numpy()), expected)
    exact._quantize("int8")
    assert kinds(rounded) == kinds(exact)


def kinds(spec: Any) -> dict[str, str]:
    """The type of every variable, or the name of the one that it shares; scales are shared with their weights."""
    return {
        name: getattr(value, "dtype", value) for name, value in spec.variables().items() if not name.endswith("_scale")
    }


@pytest.mark.parametrize("geometry", ["v1.0", "v1.1"])
def test_rows_of_one_sign_answer_as_the_model_does(geometry: Geometry, tmp_path: Path) -> None:
    """All products have one sign, and every sum of two of them would exceed 16 bits where each weight took 8."""
    t5 = tiny_t5(geometry)
    with torch.no_grad():
        for layer in t5.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
    t5.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", to="ct2", quantize="int8").passes
