"""Write each log as one line: step, loss, learning rate, tokens per second, share of padding, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class Throughput:
    """The speed of training steps between two logs."""

    def __init__(self) -> None:
        self.restart()

    def add(self, tokens: int, padded_tokens: int) -> None:
        """Count the tokens of one micro-batch that is about to be trained on, without and with padding."""
        if not self.padded_tokens:
            self.since = time.perf_counter()
        self.tokens += tokens
        self.padded_tokens += padded_tokens

    def restart(self) -> None:
        """Start counting anew, as after an evaluation, whose time does not count."""
        self.tokens = 0
        self.padded_tokens = 0
        self.since = 0.0

    def read(self) -> dict[str, float]:
        """Return the figures since the last call; empty if nothing was trained."""
        if not self.padded_tokens:
            return {}
        figures = {
            "tokens_per_second": self.tokens / (time.perf_counter() - self.since),
            "padding_share": 1 - self.tokens / self.padded_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.restart()
        return figures


def peak_memory_bytes() -> int:
    """Return the most memory held so far: of the CUDA device, or else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class LineProgress(ProgressCallback):
    """The progress bar of transformers, with one readable line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the logs above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.write(format_logs(state.global_step, logs))


class LinePrinter(PrinterCallback):
    """The same lines without a bar, for ``disable_tqdm``."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the logs."""
        if state.is_world_process_zero and logs:
            print(format_logs(state.global_step, logs), flush=True)


_FORMATS = {
    "loss": "loss {:.4f}",
    "eval_loss": "eval loss {:.4f}",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "gradient norm {:.3g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "padding_share": "{:.0%} padding",
    "epoch": "epoch {:.2f}",
}
_LEFT_OUT = ("total_flos", "peak_memory_bytes", "train_samples_per_second", "train_steps_per_second")


def format_logs(step: int, logs: dict[str, Any]) -> str:
    """Return one line: the step, the known figures with their units, then all others by name."""
    parts = [f"step {step}"]
    parts += [form.format(logs[name]) for name, form in _FORMATS.items() if name in logs]
    if "peak_memory_bytes" in logs:
        parts.append(f"peak {logs['peak_memory_bytes'] / 2**20:,.0f} MiB")
    rest = {name: value for name, value in logs.items() if name not in _FORMATS and name not in _LEFT_OUT}
    parts += [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in rest.items()]
    return " | ".join(parts)
