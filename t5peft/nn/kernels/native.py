"""Compile ``native.c`` and ``rows.c`` once for this processor, and call their functions.

A step of short examples spends a third of its time outside of matrix products. Attention, dropouts and norms go through memory
several times there. The compiled functions do so once. gcc takes about a second, and the library goes to the user's cache folder,
named by the source and the processor. Without gcc, outside of Linux, or with ``T5PEFT_KERNELS=plain``, torch computes everything.
Results and gradients are the same up to rounding (benchmarks/SPEED.md).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t5peft.nn.kernels.choice import PLAIN, VARIABLE, cache_folder
from t5peft.nn.notes import say_once

_SOURCES = ("native.c", "rows.c")
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
_SECONDS = 60
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float


class Layout(ctypes.Structure):
    """The structure of the same name in ``native.c``."""

    _fields_ = (
        *((name, _LONG) for name in ("examples", "heads", "size", "prefix")),
        *((name, _POINTER) for name in ("query_starts", "queries", "key_starts", "keys", "places", "bias")),
        *((name, _LONG) for name in ("bias_head", "bias_row")),
        *(("mask", _POINTER), ("threshold", _INT), ("scale", _FLOAT), ("threads", _INT)),
        *(("prefixes", _POINTER), ("prefix_head", _LONG)),
    )


class Queries(ctypes.Structure):
    """The structure of the same name in ``rows.c``."""

    _fields_ = (
        *((name, _LONG) for name in ("rows", "heads", "size", "keys", "query_row", "query_head")),
        *((f"{name}_{stride}", _LONG) for name in ("key", "value") for stride in ("row", "head", "step")),
        *(("bias", _POINTER), ("bias_row", _LONG), ("bias_head", _LONG), ("mask", _POINTER), ("mask_row", _LONG)),
        *(("prefixes", _POINTER), ("longest_prefix", _LONG), ("prefix_head", _LONG)),
        *(("scale", _FLOAT), ("threads", _INT)),
    )


_ARGUMENTS = {
    "add_low_rank": (_POINTER, _LONG, _POINTER, _LONG, _POINTER, _LONG, _INT),
    "attend_rows": (ctypes.POINTER(Queries), *[_POINTER] * 4),
    "attention_forward": (ctypes.POINTER(Layout), *[_POINTER] * 7),
    "attention_backward": (ctypes.POINTER(Layout), *[_POINTER] * 13),
    "bias_backward": (ctypes.POINTER(Layout), *[_POINTER] * 2),
    "dropout": (_POINTER, _POINTER, _LONG, _INT, _FLOAT, _POINTER, _INT),
    "norm_forward": (_POINTER, _POINTER, _LONG, _LONG, _FLOAT, _POINTER, _POINTER, _INT),
    "norm_backward": (_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _INT),
}


def takes_native(*tensors: Tensor | None) -> bool:
    """Return whether the compiled functions take these tensors: contiguous ones in float32 in the memory of the CPU."""
    return takes_strided(*tensors) and all(tensor is None or tensor.is_contiguous() for tensor in tensors)


def takes_strided(*tensors: Tensor | None) -> bool:
    """Return the same of tensors of which only the elements of the last dimension must be next to each other."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _library() is None:
        return False
    return all(
        tensor is None
        or (
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.dtype is torch.float32
            and tensor.device.type == "cpu"
            and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1)
        )
        for tensor in tensors
    )


def _library() -> ctypes.CDLL | None:
    return None if os.environ.get(VARIABLE) == PLAIN else _compiled()


@cache
def _compiled() -> ctypes.CDLL | None:
    """Return the library, compiled if it is not in the cache folder; None where that is not possible."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        if not _threads_are_of_gcc():
            raise OSError("torch runs on other threads than those of gcc")
        source = b"".join(files("t5peft.nn.kernels").joinpath(name).read_bytes() for name in _SOURCES)
        key = hashlib.sha256(b"\0".join([source, " ".join(_FLAGS).encode(), _processor()])).hexdigest()[:16]
        library = _load(source, cache_folder() / f"native-{key}.so")
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        reason = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        say_once(f"Kernels were not compiled ({reason}). Those of torch are used, which take longer on short texts.")
        return None
    return library


def _threads_are_of_gcc() -> bool:
    """Return whether torch and the library would share threads. Two sets of them wait for each other."""
    loaded = Path("/proc/self/maps").read_text(errors="replace")
    return "/libgomp" in loaded and not any(name in loaded for name in ("/libiomp", "/libomp"))


def _processor() -> bytes:
    """Return what the processor is and can do."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    wanted = (b"model name", b"cpu family", b"model", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.partition(b":")[0].strip() in wanted}))


def _load(source: bytes, file: Path) -> ctypes.CDLL:
    if file.is_file():
        with suppress(OSError):  # a damaged file is compiled again
            return ctypes.CDLL(str(file))
    _compile(source, file)
    return ctypes.CDLL(str(file))


def _compile(source: bytes, file: Path) -> None:
    """Compile into a file that appears whole, as other processes may do the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    named = os.environ.get("CC", "")
    compiler = shlex.split(named) if "gcc" in named else ["gcc"]
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".so")
    os.close(handle)
    try:
        command = [*compiler, *_FLAGS, "-x", "c", "-o", name, "-", "-lm"]
        subprocess.run(command, input=source, check=True, capture_output=True, timeout=_SECONDS)
        os.replace(name, file)
    finally:
        with suppress(OSError):
            os.remove(name)


def call(name: str, *arguments: Any) -> int:
    """Call a function of the library.

    Args:
        name: Its name.
        arguments: Tensors that ``takes_native`` accepts, of the shapes that ``native.c`` states. They are not checked.

    Returns:
        What the function returns.
    """
    found: int = getattr(_compiled(), name)(
        *(argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    )
    return found
