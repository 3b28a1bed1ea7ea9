"""The base of the classes that stand in for those of torch, transformers, peft and bitsandbytes during a step."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


class FastModule(nn.Module):
    """A module with a cheaper pass. The last base of its class is the plain class, and copies and pickles are of that class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The form of protocol 0 names the class as an argument; later ones want it to be that of the object.
        function, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(0))
        fast, plain = type(self), type(self).__bases__[-1]
        return (function, tuple(plain if argument is fast else argument for argument in arguments), *rest)


def runs_on_cpu(tensor: Tensor) -> bool:
    """Return whether kernels for the CPU take ``tensor``: one in its memory, or one without memory, which a plan simulates."""
    return tensor.device.type in ("cpu", "meta")
