"""The compiled kernels compute what the same operations written by hand in float64 do, and nothing needs them."""

from __future__ import annotations

import itertools
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from t5peft.nn import notes
from t5peft.nn.kernels import choice, native
from t5peft.nn.kernels.attention import varlen_attention
from t5peft.nn.kernels.dropout import DropMask, dropout
from t5peft.nn.kernels.native_attention import native_attention
from t5peft.nn.kernels.norm import _RMSNorm
from t5peft.nn.kernels.varlen import VarlenLayout


@pytest.fixture
def compiled() -> None:
    if native._library() is None:
        pytest.skip("the kernels need gcc on Linux")


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process that has compiled nothing and said nothing."""
    for made in (native._compiled, notes.say_once):
        made.cache_clear()
    yield
    monkeypatch.undo()
    native._compiled.cache_clear()


def inputs_of(sources: tuple[int, ...], targets: tuple[int, ...], size: int, prefix: int) -> list[Tensor]:
    """Query, key, value, bias, and the prefix's keys and values, with two heads."""
    longest = max(*sources, *targets)
    shapes = [(1, 2, sum(targets), size), *[(1, 2, sum(sources), size)] * 2, (1, 2, longest, longest)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes + [(1, 2, prefix, size)] * 2 * bool(prefix)]


def attend(inputs: list[Tensor], layout: VarlenLayout, p: float = 0.0) -> Tensor:
    query, key, value, bias, *prefixes = inputs
    return varlen_attention(
        query, key, value, bias, (prefixes[0], prefixes[1]) if prefixes else None, layout, (1, 0), p
    )


def by_hand(inputs: list[Tensor], layout: VarlenLayout, mask: DropMask | None) -> Tensor:
    query, key, value, bias, *prefixes = inputs
    parts, start = [], 0
    examples = zip(
        query.split(layout.target_lengths, 2),
        key.split(layout.source_lengths, 2),
        value.split(layout.source_lengths, 2),
        strict=True,
    )
    for q, k, v in examples:
        own = bias[..., : q.shape[2], : k.shape[2]]
        if prefixes:
            own = nn.functional.pad(own, (prefixes[0].shape[2], 0))
            k, v = torch.cat([prefixes[0], k], 2), torch.cat([prefixes[1], v], 2)
        probabilities = (q @ k.transpose(2, 3) + own).softmax(-1)
        if mask is not None:
            probabilities = probabilities * mask.factors(start, probabilities.float())
            start += probabilities.numel()
        parts.append((probabilities @ v).transpose(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "lengths", [((3, 1, 20), (1, 7, 2)), ((17, 100, 64, 2), (50, 3, 1, 97)), ((1,), (1,))], ids=str
)
@pytest.mark.parametrize("size", [4, 12, 64])
@pytest.mark.parametrize(("prefix", "p"), [(0, 0.0), (0, 0.1), (5, 0.3)])
def test_attention_equals_that_by_hand(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], size: int, prefix: int, p: float
) -> None:
    layout = VarlenLayout(*lengths)
    inputs = inputs_of(*lengths, size, prefix)
    torch.manual_seed(1)
    output = attend(inputs, layout, p)
    assert "NativeAttention" in str(output.grad_fn.next_functions)  # type: ignore[union-attr]
    torch.manual_seed(1)
    mask = DropMask(sum(2 * t * (prefix + s) for s, t in zip(*lengths, strict=True)), p) if p else None
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = by_hand(exact, layout, mask)
    weights = torch.randn_like(output)
    grads = torch.autograd.grad((output * weights).sum(), inputs)
    exact_grads = torch.autograd.grad((expected * weights).sum(), exact)
    for ours, right in zip((output, *grads), (expected, *exact_grads), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=1e-5 * float(right.detach().abs().max()))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("wanted", [c for n in (1, 2) for c in itertools.combinations(range(6), n)], ids=str)
def test_gradients_that_are_not_needed_are_not_computed(wanted: tuple[int, ...]) -> None:
    layout, inputs = VarlenLayout((5, 9), (8, 3)), inputs_of((5, 9), (8, 3), 8, 3)
    output = attend(inputs, layout)
    everything = torch.autograd.grad(output.square().sum(), inputs)
    some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(inputs)]
    output = attend(some, layout)
    output.square().sum().backward()
    for i, tensor in enumerate(some):
        assert tensor.grad is None if i not in wanted else torch.equal(tensor.grad, everything[i])  # type: ignore[arg-type]


@pytest.mark.usefixtures("compiled")
def test_what_is_not_finite_stays_in_its_example_and_is_seen_there() -> None:
    layout, inputs = VarlenLayout((20, 30), (20, 30)), inputs_of((20, 30), (20, 30), 8, 0)
    with torch.no_grad():
        inputs[1][0, 1, 25] = torch.nan
        inputs[3][..., 10:] = -torch.inf
        output = attend(inputs, layout).view(50, 2, 8)
        inputs[1][0, 1, 25] = 1e30
        assert attend(inputs, layout).isfinite()[:20].all()
    assert output[20:, 1].isnan().all()
    assert output[:20].isfinite().all()
    assert output[:, 0].isfinite().all()


@pytest.mark.usefixtures("compiled")
def test_keys_that_are_hidden_get_no_weight_at_all() -> None:
    inputs = inputs_of((6,), (6,), 8, 0)
    with torch.no_grad():
        inputs[3].masked_fill_(torch.ones(6, 6).triu(1).bool(), -torch.inf)
        before = attend(inputs, VarlenLayout((6,), (6,)))
        inputs[2][:, :, 3:] = torch.finfo(torch.float32).max
        after = attend(inputs, VarlenLayout((6,), (6,)))
    assert torch.equal(before[:, :3], after[:, :3])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1.0, 1e-4])  # epsilon counts for small ones
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (300, 512)])
def test_dropout_and_norm_equal_those_of_torch(shape: tuple[int, ...], size: float, threads: int) -> None:
    torch.set_num_threads(threads)
    x, weight = (size * torch.randn(shape)).requires_grad_(), torch.randn(shape[-1])
    torch.manual_seed(3)
    dropped = dropout(x, 0.3, True)
    torch.manual_seed(3)
    assert torch.equal(dropped, x * DropMask(x.numel(), 0.3).factors(0, x))
    normal = _RMSNorm.apply(x, weight, 1e-6)
    exact = x.detach().double().requires_grad_()
    expected = weight.double() * exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normal.double(), expected, rtol=1e-5, atol=1e-6)
    rates = torch.randn(shape)
    (grad,), (right,) = torch.autograd.grad(normal, x, rates), torch.autograd.grad(expected, exact, rates.double())
    torch.testing.assert_close(grad.double(), right, rtol=1e-5, atol=1e-5 / size)


def test_the_layout_is_checked_before_memory_is_read() -> None:
    query, key, value, bias = inputs_of((4, 4), (3, 3), 8, 0)
    layout = VarlenLayout((4, 5), (3, 3))
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    assert native_attention(query, key, value, bias[0], (None, None), layout, (1, 0), 0.0) is None
    narrow, layout = bias[0, :, :, :3], VarlenLayout((4, 4), (3, 3))
    assert native_attention(query, key, value, narrow, (None, None), layout, (1, 0), 0.0) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_kinds_of_numbers_take_the_way_of_torch(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, dtype=dtype)
    assert not native.takes_native(x)
    assert not native.takes_native(torch.randn(8, 4).t())
    assert not native.takes_native(torch.randn(4, device="meta"))


def no_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setenv("PATH", str(folder))
    return "gcc"


def broken_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    program = folder / "my-gcc"
    program.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    return "no such flag"


def no_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    return "file"


def no_home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    return "Set XDG_CACHE_HOME"


def other_threads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setattr(native, "_threads_are_of_gcc", lambda: False)
    return "other threads"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is compiled outside of Linux")
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("obstacle", [no_compiler, broken_compiler, no_folder, no_home, other_threads])
def test_without_the_library_torch_computes_the_same_and_one_line_says_so(
    obstacle: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layout, inputs = VarlenLayout((5, 9), (8, 3)), inputs_of((5, 9), (8, 3), 8, 3)
    expected = attend(inputs, layout)
    native._compiled.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = obstacle(monkeypatch, tmp_path)  # type: ignore[operator]
    with caplog.at_level(logging.INFO, logger="t5peft"):
        for _ in range(2):
            output = attend(inputs, layout)
    assert not native.takes_native(torch.ones(3))
    torch.testing.assert_close(output, expected)
    (line,) = [record.getMessage() for record in caplog.records if "not compiled" in record.getMessage()]
    assert named in line
    assert choice.takes_onednn(torch.ones(64, 64), torch.ones(64, 64))
    assert not list(tmp_path.glob("cache/t5peft/*"))


def test_plain_kernels_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, choice.PLAIN)
    assert not native.takes_native(torch.ones(3))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.usefixtures("anew", "compiled")
def test_a_library_is_compiled_once_and_again_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    real = native._compile

    def compile_and_count(source: bytes, file: Path) -> None:
        calls.append(file)
        real(source, file)

    monkeypatch.setattr(native, "_compile", compile_and_count)
    for folder, expected in (("first", 1), ("first", 1), ("second", 2), ("second", 2)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        if folder == "second" and len(calls) == 1:
            (tmp_path / "second" / "t5peft").mkdir(parents=True)
            (tmp_path / "second" / "t5peft" / calls[0].name).write_bytes(b"no library")
        native._compiled.cache_clear()
        assert native.takes_native(torch.ones(3))
        assert len(calls) == expected
        assert [file.name for file in (tmp_path / folder / "t5peft").iterdir()] == [calls[0].name]
