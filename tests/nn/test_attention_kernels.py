"""Attention on the CPU equals that of torch, and dropout has the statistics it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from t5peft.nn.kernels.attention import attend_with_dropout, toeplitz, varlen_attention
from t5peft.nn.kernels.dropout import DropMask, dropout
from t5peft.nn.kernels.varlen import VarlenLayout

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
    query, key, value, bias = inputs[:4]
    prefixes = (inputs[4], inputs[5]) if prefix else None
    assert len(layout.groups) == 1 if longest == 5 else len(layout.groups) > 2
    output = varlen_attention(query, key, value, bias, prefixes, layout, (1, 0), 0.0)
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

    def output(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *prefix: Tensor) -> Tensor:
        torch.manual_seed(3)
        keys, values = prefix
        return varlen_attention(query, key, value, bias, (keys, values), layout, (1, 0), 0.4)

    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 2, 5, 6), (1, 2, 5, 6), (3, 1, 5, 6), (3, 1, 1, 6)])
def test_gradients_of_attention_with_dropout_are_those_of_its_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(3, 2, 5, 4), (3, 2, 6, 4)]]
    inputs += [torch.randn(3, 2, 6, 4, dtype=torch.float64, requires_grad=True)]
    inputs += [torch.randn(shape, dtype=torch.float64, requires_grad=True)]

    def output(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_with_dropout(query, key, value, mask, 0.4)

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
