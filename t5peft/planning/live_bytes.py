"""Count the bytes of the tensors that live while operations run on tensors without values."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that operations make: alive now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def count(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor`` until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += self._sizes[key]
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation. If its result depends on values, assume the largest batch: no padding."""
        if func is _aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        if func is _aten.nonzero.default:
            result = args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
        else:
            result = _result_of(func, args, kwargs or {})
        for leaf in tree_iter(result):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return result


_RESULTS: dict[Any, Any] = {}
"""The shapes, strides and dtypes that an operation returned for arguments of these shapes, or None if it has to run each time."""
_MOST_RESULTS = 1 << 14


def _result_of(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation; one that was seen before, on tensors without values, is not run again.

    The layers of a stack are alike, and torch finds most shapes in Python, which takes several times as long.
    """
    try:
        key = func, _spec_of(args), _spec_of(tuple(kwargs.items()))
        known = _RESULTS.get(key, key)
    except TypeError:  # a tensor with values, or an argument without a hash
        return func(*args, **kwargs)
    if known is not None and known is not key:
        return _made_anew(known)
    result = func(*args, **kwargs)
    if known is key:
        if len(_RESULTS) == _MOST_RESULTS:
            _RESULTS.clear()
        _RESULTS[key] = _repeatable(func, (args, kwargs), result)
    return result


def _spec_of(value: Any) -> Any:
    """Return what decides the shape of a result, with a hash: of a tensor its shape, strides and dtype."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError
        return Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_spec_of, value))
    return type(value), value


def _repeatable(func: Any, given: Any, result: Any) -> Any:
    """Return the specs of a result, or None where it shares memory with an argument or is not made of new tensors."""
    if func._schema.is_mutable or any(value.alias_info is not None for value in func._schema.returns):
        return None
    leaves = list(result) if isinstance(result, list | tuple) else [result]
    shared = {leaf.untyped_storage()._cdata for leaf in tree_iter(given) if isinstance(leaf, Tensor)}
    for leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor) or not leaf.is_meta or leaf.untyped_storage()._cdata in shared:
            return None
        if leaf.untyped_storage().nbytes() != _empty(leaf.shape, leaf.stride(), leaf.dtype).untyped_storage().nbytes():
            return None
    return _spec_of(result)


def _made_anew(spec: Any) -> Any:
    kind, *what = spec
    if kind is Tensor:
        return _empty(*what)
    return kind(map(_made_anew, what[0])) if kind in (list, tuple) else what[0]


def _empty(shape: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
