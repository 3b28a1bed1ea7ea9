"""Choose between the matrix products of MKL and oneDNN by a short measurement on this machine.

oneDNN is faster for the shapes of T5 on processors with AVX-512, and is taken there. On others it is slower for many, so each class
of shapes is measured the first time that it is met, which takes some milliseconds. The result goes to a file in the user's cache
folder, named by the processor, the number of threads and the version of torch. Both ways round differently. A run, and the run
that resumes it, therefore read the same choice: the first line of the file for a class counts, whoever wrote it. Where the file
cannot be written, nothing is measured.

``T5PEFT_KERNELS`` pins the way: ``plain`` takes ``torch.nn.functional.linear`` everywhere and no compiled kernels, ``onednn`` takes
oneDNN, and ``measure`` measures on every processor.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

VARIABLE = "T5PEFT_KERNELS"
ONEDNN, PLAIN, MEASURE = "onednn", "plain", "measure"
FALLBACK = ONEDNN
"""The choice where none can be kept."""

_MOST_MULTIPLICATIONS = 200_000_000  # of one product that is measured; more rows are left out
_REPEATS = 4
_GAIN = 0.95  # MKL must take less than this share of oneDNN's time; what differs less is noise

ShapeClass = tuple[int, int, int, bool, bool]
"""Doublings of rows, outputs and inputs, and whether input and weight are laid out by rows."""
Multiply = Callable[[Tensor, Tensor], Tensor]

_choices: dict[tuple[int, ...], str] = {}  # by the number of threads and the class of shapes
_guard = threading.Lock()


def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` by oneDNN."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN computes the product of these shapes here.

    Args:
        x: The input, of rows that are filled up.
        weight: The weight.

    Shapes:
        x: [M, I].
        weight: [O, I].

    Raises:
        ValueError: The environment variable has another value than the three.
    """
    if x.is_meta:  # of a plan, which counts what oneDNN fills up
        return True
    key = (torch.get_num_threads(), *shape_class(x, weight))
    if key not in _choices:  # once a class, because this comes before each product
        with _guard:
            _choices[key] = _choose(x, weight)
    return _choices[key] == ONEDNN


def _choose(x: Tensor, weight: Tensor) -> str:
    mode = os.environ.get(VARIABLE) or _default()
    if mode not in (ONEDNN, PLAIN, MEASURE):
        raise ValueError(f"Got {VARIABLE}={mode!r}; expected {MEASURE}, {PLAIN} or {ONEDNN}. Set one of these.")
    return mode if mode != MEASURE else _read_or_measure(shape_class(x, weight), x, weight)


def _default() -> str:
    return ONEDNN if "AVX512" in torch.backends.cpu.get_cpu_capability() else MEASURE


def shape_class(x: Tensor, weight: Tensor) -> ShapeClass:
    """Return the class of a product: shapes within a doubling, in the same layout."""
    rows, inputs = x.shape
    return (
        rows.bit_length(),
        len(weight).bit_length(),
        inputs.bit_length(),
        x.is_contiguous(),
        weight.is_contiguous(),
    )


def cache_folder() -> Path:
    """Return the folder of what is found out about this machine once.

    Raises:
        OSError: The user has no folder, as in a container whose user is only a number.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "t5peft"
    except RuntimeError as error:
        raise OSError(f"Got no home folder ({error}); expected one. Set XDG_CACHE_HOME.") from error


def choices_file() -> Path:
    """Return the file of the choices for this processor, number of threads and version of torch."""
    return cache_folder() / _name(torch.get_num_threads(), str(torch.__version__))


@lru_cache(maxsize=16)
def _name(threads: int, version: str) -> str:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"kernels-{_processor()}-{threads}-threads-torch-{version}")
    return f"{name}.jsonl"


def faster(seconds: dict[str, float]) -> str:
    """Return the way to take.

    Args:
        seconds: What each way took.
    """
    return PLAIN if seconds[PLAIN] < _GAIN * seconds[ONEDNN] else ONEDNN


def measure(x: Tensor, weight: Tensor) -> dict[str, float]:
    """Return the seconds of either way, of the fastest of some repeats.

    Args:
        x: The input; tensors of ones in its shape and layout are multiplied.
        weight: Likewise.

    Shapes:
        x: [M, I].
        weight: [O, I].
    """
    rows = max(32, min(len(x), _MOST_MULTIPLICATIONS // weight.numel() // 32 * 32))
    left = torch.ones(rows, x.shape[1]) if x.is_contiguous() else torch.ones(x.shape[1], rows).t()
    right = torch.ones(weight.shape) if weight.is_contiguous() else torch.ones(weight.shape[::-1]).t()
    ways: dict[str, Multiply] = {PLAIN: nn.functional.linear, ONEDNN: by_onednn}
    seconds = dict.fromkeys(ways, float("inf"))
    for repeat in range(_REPEATS + 1):
        for name, multiply in ways.items():
            start = time.perf_counter()
            multiply(left, right)
            if repeat:  # the first one prepares kernels
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _read_or_measure(shape: ShapeClass, x: Tensor, weight: Tensor) -> str:
    try:
        file = choices_file()
        known = _read(file)
        if shape not in known:
            file.parent.mkdir(parents=True, exist_ok=True)
            seconds = measure(x, weight)
            line = json.dumps({"shape": shape, "choice": faster(seconds), "seconds": seconds})
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{line}\n")
            known = _read(file)  # another process may have been first
        return known.get(shape, FALLBACK)
    except OSError:
        return FALLBACK


def _read(file: Path) -> dict[ShapeClass, str]:
    """Return the choices of a file; damaged lines are left out."""
    found: dict[ShapeClass, str] = {}
    if not file.is_file():
        return found
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            rows, outputs, inputs, *layout = entry["shape"]
            shape = (int(rows), int(outputs), int(inputs), bool(layout[0]), bool(layout[1]))
            if entry["choice"] in (ONEDNN, PLAIN):
                found.setdefault(shape, entry["choice"])
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability: str = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor() or platform.machine()}-{capability}"
