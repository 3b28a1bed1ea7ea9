"""Which rows of a batch belong to which adapter, and what that makes of each module.

A ``Routing`` is made for one sequence of adapters. What it computes for a module, such as the stacked matrices of several adapters,
it keeps, so that the next decoding step of the same rows finds it.

Letters: B rows, T tokens, H d_model, I inputs, O outputs, R rank, M size of a bottleneck, N heads, P prefix length, D d_kv,
G adapters of a group, m rows of each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad

from t5peft.methods.bottleneck import ACTIVATIONS, Activation
from t5peft.nn.kernels.native import takes_native
from t5peft.nn.kernels.native_rows import LowRankRows
from t5peft.nn.row_prefixes import RowPrefixes
from t5peft.serving.weights import Adapters, AdapterWeights, BottleneckChange

Found = TypeVar("Found")
Options = ParamSpec("Options")


def sort_key(adapter: AdapterWeights | None) -> tuple[bool, bool, str, str, int]:
    """Return by what rows are sorted: prefixes first, rows without an adapter last, and one method and one adapter together."""
    if adapter is None:
        return (True, True, "", "", 0)
    return (False, not adapter.prefixes, adapter.kind, adapter.name, id(adapter))


def order(adapters: Adapters) -> list[int]:
    """Return the order of rows that puts those of one adapter, and of one method, next to each other."""
    return sorted(range(len(adapters)), key=lambda row: sort_key(adapters[row]))


def in_parts(
    adapters: Adapters,
    compute: Callable[[PeftModel | None, list[int]], Iterable[Found]],
    is_apart: Callable[[AdapterWeights], bool] = lambda adapter: adapter.separate is not None,
) -> list[Found]:
    """Compute something for each row: those that share a batch together, and those of each adapter that stands apart.

    Args:
        adapters: One for each row.
        compute: A function of the model of a separate adapter, or None, and of the numbers of its rows in their best order.
        is_apart: Whether an adapter shares no batch with others.

    Returns:
        What was computed, in the order of the rows.
    """
    parts: dict[AdapterWeights | None, list[int]] = {}
    for row in order(adapters):
        adapter = adapters[row]
        parts.setdefault(adapter if adapter is not None and is_apart(adapter) else None, []).append(row)
    found: dict[int, Found] = {}
    for adapter, rows in parts.items():
        found.update(zip(rows, compute(None if adapter is None else adapter.separate, rows), strict=True))
    return [found[row] for row in range(len(adapters))]


class Rows:
    """Some rows of a batch: a slice where they are next to each other, which costs no copy."""

    def __init__(self, indices: Sequence[int], device: torch.device) -> None:
        self.index: slice | Tensor
        if list(indices) == list(range(indices[0], indices[0] + len(indices))):
            self.index = slice(indices[0], indices[0] + len(indices))
        else:
            self.index = torch.tensor(indices, device=device)

    def take(self, x: Tensor) -> Tensor:
        """Return the rows of x [B, ..]; a view where they are next to each other."""
        return x[self.index]

    def put(self, x: Tensor, rows: Tensor) -> None:
        """Write rows into x [B, ..], in the dtype of x."""
        x[self.index] = rows.to(x.dtype)


@dataclass
class RowScale:
    """A factor for each feature of each of some rows."""

    rows: Rows
    scales: Tensor
    """[rows, 1, features]."""

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply the rows of x [B, T, features], in place, and return it."""
        self.rows.put(x, self.rows.take(x) * self.scales)
        return x


@dataclass
class RowNorm:
    """The weights of a norm for each of some rows."""

    rows: Rows
    weights: Tensor
    """[rows, H]."""

    def replace(self, x: Tensor, y: Tensor, epsilon: float) -> None:
        """Write into the rows of the output y [B, .., H] what the norm with their own weights makes of x [B, .., H]."""
        own = self.rows.take(x)
        variance = own.float().square().mean(-1, keepdim=True)
        weights = self.weights.view(len(self.weights), *[1] * (x.dim() - 2), -1)
        self.rows.put(y, own * torch.rsqrt(variance + epsilon) * weights)


@dataclass
class LowRankGroup:
    """LoRA matrices of G adapters of one rank, each with m rows."""

    rows: Rows
    a: Tensor
    """[G, I, R]."""
    b: Tensor
    """[G, R, O]."""

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add ``B A x`` to the rows of y [B, T, O], in place, for x [B, T, I]."""
        own = self.rows.take(x).to(self.a.dtype).reshape(len(self.a), -1, x.shape[-1])
        if isinstance(self.rows.index, slice) and y.dtype == self.a.dtype and y.is_contiguous():
            view = y[self.rows.index].view(len(self.a), -1, y.shape[-1])
            if len(self.a) == 1:
                view[0].addmm_(own[0] @ self.a[0], self.b[0])
            else:
                view.baddbmm_(torch.bmm(own, self.a), self.b)
        else:
            change = torch.bmm(torch.bmm(own, self.a), self.b)
            before = self.rows.take(y)
            self.rows.put(y, before + change.view(before.shape))


@dataclass
class BottleneckGroup:
    """Bottlenecks of G adapters of one shape, each with m rows."""

    rows: Rows
    down: Tensor
    """[G, H, M]."""
    down_bias: Tensor
    """[G, 1, M]."""
    up: Tensor
    """[G, M, H]."""
    up_bias: Tensor
    """[G, 1, H]."""
    activation: Callable[[Tensor], Tensor]
    is_parallel: bool

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the bottlenecks of x (parallel) or y to the rows of y [B, T, H], in place."""
        before = self.rows.take(y)
        read = (self.rows.take(x) if self.is_parallel else before).to(self.down.dtype)
        hidden = torch.baddbmm(self.down_bias, read.reshape(len(self.down), -1, read.shape[-1]), self.down)
        change = torch.baddbmm(self.up_bias, self.activation(hidden), self.up)
        self.rows.put(y, before + change.view(before.shape).to(before.dtype))


def _once(make: Callable[Concatenate[Routing, Options], Found]) -> Callable[Concatenate[Routing, Options], Found]:
    """Let a method of ``Routing`` compute what it returns for a module once."""

    def found(self: Routing, *args: Options.args, **kwargs: Options.kwargs) -> Found:
        key = (make.__name__, *args, *kwargs.items())
        if key not in self._made:
            self._made[key] = make(self, *args, **kwargs)
        return cast(Found, self._made[key])

    return wraps(make)(found)


class Routing:
    """The adapters of the rows of a batch.

    Args:
        adapters: One for each row; None for the backbone as it is.

    Attributes:
        adapters: One for each row.
    """

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = list(adapters)
        self._rows: dict[AdapterWeights, list[int]] = {}
        for row, adapter in enumerate(self.adapters):
            if adapter is not None:
                self._rows.setdefault(adapter, []).append(row)
        self._changed = {
            name
            for adapter in self._rows
            for part in (adapter.maps, adapter.norms, adapter.bottlenecks, adapter.prefixes)
            for name in part
        }
        self._runs = {adapter: list(_runs(rows)) for adapter, rows in self._rows.items()}
        self._made: dict[tuple[Any, ...], Any] = {}
        self._repeated: dict[int, Routing] = {}

    def rows_of(self, x: Tensor) -> Tensor:
        """Return x [B, ..], or a view [T, 1, ..] of one row x [1, T, ..] whose tokens this routes."""
        return x if len(x) == len(self.adapters) else x.transpose(0, 1)

    def changes(self, name: str) -> bool:
        """Return whether an adapter of the batch changes the module ``name``."""
        return name in self._changed

    def at(self, x: Tensor) -> Routing:
        """Return the routing of a batch x [B, ..], which may hold several beams of each row.

        Raises:
            ValueError: The batch is not a multiple of the rows.
        """
        count = len(x)
        if count == len(self.adapters):
            return self
        if count not in self._repeated:
            beams, rest = divmod(count, len(self.adapters))
            adapters = [adapter for adapter in self.adapters for _ in range(beams)]
            if rest and len(self._rows) == 1 and None not in self.adapters:
                adapters = self.adapters[:1] * count  # whatever the rows are, they have the same adapter
            elif rest:
                raise ValueError(
                    f"Got a batch of {count} rows; expected a multiple of the {len(self.adapters)} rows given."
                )
            self._repeated[count] = Routing(adapters)
        return self._repeated[count]

    @_once
    def input_scales(self, name: str) -> RowScale | None:
        """Return the factors of the inputs of a linear map."""
        return self._scales(name, "input_scale")

    @_once
    def output_scales(self, name: str) -> RowScale | None:
        """Return the factors of the outputs of a linear map."""
        return self._scales(name, "output_scale")

    def _per_row(self, tensors: dict[AdapterWeights, Tensor]) -> tuple[Rows, Tensor] | None:
        """Return the rows of some adapters, and the tensor of its adapter for each row."""
        if not tensors:
            return None
        pairs = sorted((row, i) for i, adapter in enumerate(tensors) for row in self._rows[adapter])
        stacked = torch.stack(list(tensors.values()))
        index = torch.tensor([i for _, i in pairs], device=stacked.device)
        return Rows([row for row, _ in pairs], stacked.device), stacked[index]

    def _scales(self, name: str, part: str) -> RowScale | None:
        found = self._per_row(
            {
                adapter: scale[None]
                for adapter in self._rows
                if (change := adapter.maps.get(name)) is not None and (scale := getattr(change, part)) is not None
            }
        )
        return None if found is None else RowScale(*found)

    @_once
    def norms(self, name: str) -> RowNorm | None:
        """Return the weights of a norm."""
        found = self._per_row({adapter: adapter.norms[name] for adapter in self._rows if name in adapter.norms})
        return None if found is None else RowNorm(*found)

    def _groups(self, keys: dict[AdapterWeights, Any]) -> Iterable[tuple[list[AdapterWeights], list[int]]]:
        """Yield adapters with equal keys and equally many rows, with their rows, those of one adapter next to each other."""
        groups: dict[Any, list[AdapterWeights]] = {}
        for adapter, key in keys.items():
            groups.setdefault((len(self._rows[adapter]), key), []).append(adapter)
        for members in groups.values():
            yield members, [row for adapter in members for row in self._rows[adapter]]

    @_once
    def low_rank(self, name: str, is_native: bool) -> Sequence[LowRankRows | LowRankGroup]:
        """Return the LoRA matrices of a linear map, for the compiled function or for that of torch."""
        matrices: dict[AdapterWeights, tuple[Tensor, Tensor]] = {
            adapter: (change.a, change.b)
            for adapter in self._rows
            if (change := adapter.maps.get(name)) is not None and change.a is not None and change.b is not None
        }
        if not matrices:
            return []
        if is_native and all(takes_native(a, b.t()) for a, b in matrices.values()):
            parts = [(*run, *matrices[adapter]) for adapter in matrices for run in self._runs[adapter]]
            return [LowRankRows(parts)]
        groups = []
        for members, rows in self._groups({adapter: len(a) for adapter, (a, _) in matrices.items()}):
            a, b = (_stack(matrices[adapter][i] for adapter in members).transpose(1, 2) for i in range(2))
            groups.append(LowRankGroup(Rows(rows, a.device), a, b))
        return groups

    @_once
    def bottlenecks(self, name: str) -> list[BottleneckGroup]:
        """Return the bottlenecks of a module."""
        groups = []
        changes: dict[AdapterWeights, BottleneckChange] = {
            adapter: adapter.bottlenecks[name] for adapter in self._rows if name in adapter.bottlenecks
        }
        keys: dict[AdapterWeights, tuple[int, Activation, bool]] = {
            adapter: (len(one.down), one.activation, one.is_parallel) for adapter, one in changes.items()
        }
        for members, rows in self._groups(keys):
            _, activation, is_parallel = keys[members[0]]
            down, down_bias, up, up_bias = (
                _stack(getattr(changes[adapter], part) for adapter in members)
                for part in ("down", "down_bias", "up", "up_bias")
            )
            apply, place = ACTIVATIONS[activation], Rows(rows, down.device)
            groups.append(
                BottleneckGroup(place, down.mT, down_bias[:, None], up.mT, up_bias[:, None], apply, is_parallel)
            )
        return groups

    @_once
    def prefixes(self, name: str) -> RowPrefixes | None:
        """Return the prefixes of an attention."""
        own = {adapter: adapter.prefixes[name] for adapter in self._rows if name in adapter.prefixes}
        if not own:
            return None
        longest = max(key.shape[1] for key, _ in own.values())
        parts = []
        for i in range(2):
            found = self._per_row(
                {adapter: pad(pair[i], (0, 0, longest - pair[i].shape[1], 0)) for adapter, pair in own.items()}
            )
            assert found is not None
            parts.append(found)
        (rows, key), (_, value) = parts
        mask = None
        if any(pair[0].shape[1] < longest for pair in own.values()):
            hidden = {
                adapter: torch.arange(longest, device=key.device) < longest - pair[0].shape[1]
                for adapter, pair in own.items()
            }
            masks = self._per_row(hidden)
            assert masks is not None
            mask = masks[1][:, None, None]
        others = sorted({*range(len(self.adapters))} - {row for adapter in own for row in self._rows[adapter]})
        return RowPrefixes(rows.index, Rows(others, key.device).index if others else None, key, value, mask)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the number of ascending rows that are next to each other."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield rows[start], end - start
            start = end


def _stack(tensors: Iterable[Tensor]) -> Tensor:
    """Stack tensors; one becomes a view, without a copy."""
    found = list(tensors)
    return found[0][None] if len(found) == 1 else torch.stack(found)
