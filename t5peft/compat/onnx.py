"""Torch's exporter to ONNX by tracing, with two operators that it does not know.

The newer exporter (``dynamo=True``) fails on the reshapes of T5's attention where lengths are dynamic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args

OPSET = 18


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: Path,
    dynamic_axes: Mapping[str, Mapping[int, str]],
) -> None:
    """Trace ``module`` and write its graph.

    Args:
        module: A module whose ``forward`` takes tensors by position and returns tensors.
        inputs: An example of each input, in the order of ``forward``.
        outputs: Names of what it returns.
        path: The file.
        dynamic_axes: The axes of inputs and outputs whose lengths vary, with names.
    """
    with warnings.catch_warnings(), _more_operators(), torch.no_grad():
        # Lengths that decide something are those of the example; the tests run others. The exporter tells of its successor, and
        # of negative indices, which no mask has.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export.*")
        for message in ("Constant folding", "not been mapped", "advanced indexing", "copy construct from a tensor"):
            warnings.filterwarnings("ignore", message=f".*{message}.*", category=UserWarning)
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items()},
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def _more_operators() -> Iterator[None]:
    """Let the exporter know the operators of a ladder's norm and of a prompt's order, for the block."""
    operators: dict[str, Callable[..., Any]] = {"aten::rms_norm": _rms_norm, "aten::take_along_dim": _take_along_dim}
    for name, symbolic in operators.items():
        torch.onnx.register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in operators:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)


def _rms_norm(graph: Any, x: Any, shape: Any, weight: Any, epsilon: Any) -> Any:
    """Norm over the last axis, without a weight."""
    axes = graph.op("Constant", value_t=torch.tensor([-1]))
    square = graph.op("ReduceMean", graph.op("Mul", x, x), axes, keepdims_i=1)
    return graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, epsilon)))


@parse_args("v", "v", "i")
def _take_along_dim(graph: Any, x: Any, index: Any, axis: int) -> Any:
    """Gather by an index that is as long as ``x`` on ``axis``, and has one column or as many on the others."""
    whole = graph.op("Expand", index, graph.op("Shape", x))
    return graph.op("GatherElements", x, whole, axis_i=axis)
