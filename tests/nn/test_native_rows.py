"""Attention and LoRA of rows by compiled kernels are those by hand in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t5peft.nn.kernels import native
from t5peft.nn.kernels.attention import varlen_attention
from t5peft.nn.kernels.native_rows import LowRankRows, attend_rows
from t5peft.nn.kernels.varlen import VarlenLayout
from t5peft.nn.row_prefixes import RowPrefixes

HIDDEN = torch.finfo(torch.float32).min


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native._library() is None:
        pytest.skip("the kernels need gcc on Linux")


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def cache(rows: int, heads: int, keys: int, size: int) -> Tensor:
    """Keys or values in a larger tensor, some columns of which are not used yet."""
    return torch.randn(rows, heads, keys + 9, size)[:, :, 3 : keys + 3]


def prefixes_of(rows: int, heads: int, size: int, lengths: list[int]) -> RowPrefixes:
    """Prefixes of the last rows, in the reverse order, with these lengths."""
    longest, own = max(lengths), torch.arange(rows - 1, rows - 1 - len(lengths), -1)
    others = torch.arange(rows - len(lengths)) if rows > len(lengths) else None
    key, value = (torch.randn(len(lengths), heads, longest, size) for _ in range(2))
    hidden = torch.arange(longest) < longest - torch.tensor(lengths)[:, None]
    return RowPrefixes(own, others, key, value, hidden[:, None, None] if min(lengths) < longest else None)


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None, prefix: RowPrefixes | None
) -> Tensor:
    """Attend in float64, row by row: query [B, N, Q, D] -> [B, Q, N, D]."""
    rows = []
    for row in range(len(query)):
        q, k, v = (tensor[row].double() for tensor in (query, key, value))
        extra = torch.zeros(query.shape[1], query.shape[2], k.shape[1], dtype=torch.float64)
        extra = extra if bias is None else extra + bias[row % len(bias)].double()
        extra = extra if mask is None else extra + mask[row].double().masked_fill(mask[row] == HIDDEN, -torch.inf)
        own = [] if prefix is None else (torch.arange(len(query))[prefix.rows] == row).nonzero().flatten().tolist()
        for i in own:
            assert prefix is not None
            shown = slice(0 if prefix.hidden is None else int(prefix.hidden[i].sum()), None)
            k, v = (torch.cat([part[i, :, shown].double(), t], 1) for part, t in ((prefix.key, k), (prefix.value, v)))
            extra = nn.functional.pad(extra, (k.shape[1] - extra.shape[-1], 0))
        rows.append((((q @ k.mT) + extra).softmax(-1) @ v).transpose(0, 1))
    return torch.stack(rows)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("rows", "heads", "keys", "size"), [(1, 1, 1, 4), (3, 2, 5, 12), (5, 3, 40, 64), (40, 8, 70, 33)]
)
@pytest.mark.parametrize("masked", [None, "left", "right", "both"])
@pytest.mark.parametrize("lengths", [None, [3], [2, 7, 5]], ids=str)
@torch.inference_mode()
def test_attention_of_one_query_equals_that_by_hand(
    rows: int, heads: int, keys: int, size: int, masked: str | None, lengths: list[int] | None
) -> None:
    query = torch.randn(rows, 1, heads, size).transpose(1, 2)
    key, value = cache(rows, heads, keys, size), cache(rows, heads, keys, size)
    bias = torch.randn(1, keys, heads).permute(2, 0, 1)[None] if masked != "left" else None  # as T5 lays it out
    mask = torch.zeros(rows, 1, 1, keys) if masked else None
    if mask is not None:
        for row in range(rows):
            if masked in ("left", "both"):
                mask[row, ..., : row % keys // 2] = HIDDEN
            if masked in ("right", "both"):
                mask[row, ..., keys - (row % keys) // 2 :] = HIDDEN
    prefix = None if lengths is None else prefixes_of(rows, heads, size, lengths[:rows])
    output = attend_rows(query, key, value, bias, mask, prefix, 1.0)
    assert output is not None
    assert output.is_contiguous()
    expected = by_hand(query, key, value, bias, mask, prefix)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    halved = attend_rows(2 * query, key, value, bias, mask, prefix, 0.5)
    torch.testing.assert_close(halved, output, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bias_of_each_row_and_prefixes_of_all_rows() -> None:
    query, key, value = torch.randn(4, 2, 1, 8), cache(4, 2, 6, 8), cache(4, 2, 6, 8)
    bias, shared = torch.randn(4, 2, 1, 6), torch.randn(1, 2, 3, 8)
    for part in (shared.expand(4, -1, -1, -1), torch.randn(4, 2, 3, 8)):  # the same memory for all rows, or its own
        prefix = RowPrefixes(slice(None), None, part, part, None)
        output = attend_rows(query, key, value, bias, None, prefix, 1.0)
        assert output is not None
        torch.testing.assert_close(
            output.double(), by_hand(query, key, value, bias, None, prefix), rtol=1e-5, atol=1e-5
        )


@torch.inference_mode()
def test_hidden_columns_are_not_read_and_do_not_change_a_bit() -> None:
    query, key, value = torch.randn(3, 2, 1, 16), cache(3, 2, 50, 16), cache(3, 2, 50, 16)
    mask = torch.zeros(3, 1, 1, 50)
    hidden = torch.ones(50, dtype=torch.bool)
    hidden[4:30] = False
    mask[..., hidden] = HIDDEN
    output = attend_rows(query, key, value, None, mask, None, 1.0)
    key[:, :, hidden] = torch.nan
    value[:, :, hidden] = torch.inf
    alone = attend_rows(query[1:2], key[1:2], value[1:2], None, mask[1:2], None, 1.0)
    assert output is not None
    assert alone is not None
    assert torch.equal(alone[0], output[1])
    value[1, :, 29] = torch.nan  # in sight
    seen = attend_rows(query, key, value, None, mask, None, 1.0)
    assert seen is not None
    assert seen[1].isnan().all()
    assert torch.equal(seen[0], output[0])


@torch.inference_mode()
def test_a_row_that_sees_nothing_weighs_all_columns_as_torch_does() -> None:
    query, key, value = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)
    mask = torch.full((1, 1, 1, 5), HIDDEN)
    output = attend_rows(query, key, value, None, mask, None, 1.0)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    assert output is not None
    torch.testing.assert_close(output.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


def test_what_the_function_does_not_take_is_left_to_torch() -> None:
    query, key, value = torch.randn(2, 2, 1, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    bias, mask = torch.randn(1, 2, 1, 5), torch.zeros(2, 1, 1, 5)
    usual: tuple[Any, ...] = (query, key, value, bias, mask, None, 1.0)
    others: list[tuple[Any, ...]] = [
        (torch.randn(2, 2, 3, 8), *usual[1:]),  # several queries
        (query, key[:1], value[:1], *usual[3:]),
        (query, key.mT.contiguous().mT, *usual[2:]),  # features that are not next to each other
        tuple(part.bfloat16() if isinstance(part, Tensor) else part for part in usual),
        (*usual[:-1], None),
        *(
            (*usual[:3], torch.randn(shape), *usual[4:])
            for shape in ((1, 2, 1, 4), (1, 1, 1, 5), (1, 2, 3, 5), (3, 2, 1, 5))
        ),
        *((*usual[:4], torch.zeros(shape), *usual[5:]) for shape in ((1, 1, 1, 4), (2, 2, 1, 5), (2, 1, 2, 5))),
    ]
    assert attend_rows(*usual) is None  # gradients may be wanted
    with torch.inference_mode():
        assert attend_rows(*usual) is not None
        for other in others:
            assert attend_rows(*other) is None


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_holds_operations_of_torch() -> None:
    key = torch.randn(2, 2, 5, 8)

    def follow(query: Tensor) -> Tensor:
        output = attend_rows(query, key, key, None, None, None, 1.0)
        return query + 1 if output is None else output

    query = torch.randn(2, 2, 1, 8)
    assert not torch.equal(follow(query), query + 1)
    assert torch.equal(torch.jit.trace(follow, query)(2 * query), 2 * query + 1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("tokens", [(), (1,), (7,)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (12, 40), (256, 64), (100, 515)])
@torch.inference_mode()
def test_low_rank_rows_equal_those_by_hand(tokens: tuple[int, ...], inputs: int, outputs: int) -> None:
    x, y = torch.randn(14, *tokens, inputs), torch.randn(14, *tokens, outputs)
    parts, expected = [], y.double()
    for first, count, rank in ((0, 1, 1), (1, 2, 8), (3, 3, 19), (8, 5, 4)):  # nobody has rows 6, 7 and 13
        a, b = torch.randn(rank, inputs), torch.randn(rank, outputs).t()
        parts.append((first, count, a, b))
        rows = slice(first, first + count)
        expected[rows] += x[rows].double() @ a.double().t() @ b.double().t()
    own = y.clone()
    LowRankRows(parts).add(x, own)
    torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(own[row], y[row]) for row in (6, 7, 13))
    for first, count, a, b in parts:  # whatever stands beside it
        one = y[first : first + count].clone()
        LowRankRows([(0, count, a, b)]).add(x[first : first + count].contiguous(), one)
        assert torch.equal(one, own[first : first + count])


@pytest.mark.parametrize("size", [4, 64])
@torch.inference_mode()
def test_examples_of_a_row_have_prefixes_of_their_own(size: int) -> None:
    lengths = (3, 20, 1, 100)
    query, key, value = (torch.randn(1, 2, sum(lengths), size) for _ in range(3))
    bias = torch.randn(1, 2, 100, 100)
    prefix = prefixes_of(4, 2, size, [2, 40])
    layout = VarlenLayout(lengths, lengths)
    output = varlen_attention(query, key, value, bias, prefix, layout, (0, 0), 0.0)
    start = 0
    for example, length in enumerate(lengths):
        own = slice(start, start + length)
        places = (prefix.rows == example).nonzero().flatten()  # type: ignore[union-attr]
        one = RowPrefixes(
            slice(0, len(places)), None, prefix.key[places], prefix.value[places],
            None if prefix.hidden is None else prefix.hidden[places],
        )  # fmt: skip
        expected = by_hand(query[:, :, own], key[:, :, own], value[:, :, own], bias[:, :, :length, :length], None, one)
        torch.testing.assert_close(output[:, own].double(), expected, rtol=1e-5, atol=1e-5)
        start += length
