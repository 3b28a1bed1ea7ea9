"""What a frozen backbone computes of each example, kept over epochs: from the second on, a ladder trains without running it.

Nothing trained stands before what a ladder reads, so it reads the same of an example in every epoch, as long as the backbone
drops nothing: inside ``cached_activations`` (in `ladder.py`) it runs as in evaluation, and dropout is the side's alone.

Letters: B batch, T tokens, H d_model, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

logger = logging.getLogger("t5peft")


class Activations:
    """The states of a backbone by example, in main memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._kept: dict[bytes, Tensor] = {}
        self._sources: list[bytes | None] = []
        self._full = False

    def states(
        self, stack: nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any], run: Callable[[], Any]
    ) -> Any:
        """What ``run`` returns for ``inputs``, L + 1 hidden states of [B, T, H] among it; run only for what is not known.

        A target is known together with its source, so the encoder's batch comes before the decoder's. Examples that cannot be told
        apart by their tokens alone are run: with masks that block more than padding at the end, or embeddings in place of tokens.
        """
        tokens, layout = inputs["input_ids"], options.get("layout")
        sources, self._sources = self._sources, []
        apart = tokens is not None and not any(name.endswith("block_mask") for name in options)
        spans = _spans(stack, inputs, layout) if apart else []
        if not spans or (stack.is_decoder and len(sources) != len(spans)):
            return run()
        names = self._names(sources, [tokens[row, part] for row, part in spans], stack)
        if all(name is None or name in self._kept for name in names):
            return self._output(names, spans, tokens.shape, tokens.device)
        output = run()
        for name, (row, part) in zip(names, spans, strict=True):
            if name is not None:
                self._keep(name, torch.stack([states[row, part] for states in output.hidden_states]))
        return output

    def _names(self, sources: list[bytes | None], examples: list[Tensor], stack: nn.Module) -> list[bytes | None]:
        """What tells each source, or each target with its source, from others; None for padding that fills a row."""
        names = [tokens.cpu().numpy().tobytes() for tokens in examples]
        if not stack.is_decoder:
            filling = [bool((tokens == stack.config.pad_token_id).all()) for tokens in examples]
            self._sources = [None if fills else name for fills, name in zip(filling, names, strict=True)]
            return list(self._sources)
        return [
            None if source is None else b"%d:" % len(source) + source + name
            for source, name in zip(sources, names, strict=True)
        ]

    def _keep(self, name: bytes, states: Tensor) -> None:
        if name in self._kept:
            return
        if self.bytes + states.nbytes > self.limit_bytes:
            if not self._full:
                logger.warning(
                    "The %.2g GB for kept activations are full after %d sources and targets: batches with any other are "
                    "computed anew in every epoch. Give more with activation_cache_bytes=, or train on fewer examples.",
                    self.limit_bytes / 1e9,
                    len(self._kept),
                )
            self._full = True
            return
        self._kept[name] = states.cpu()
        self.bytes += states.nbytes

    def _output(self, names: list[bytes | None], spans: list[tuple[int, slice]], shape: torch.Size, device: Any) -> Any:
        first = self._kept[next(name for name in names if name is not None)]
        states = first.new_zeros(len(first), *shape, first.shape[-1], device=device)
        for name, (row, part) in zip(names, spans, strict=True):
            if name is not None:
                states[:, row, part] = self._kept[name].to(device, non_blocking=True)
        hidden_states = states.unbind(0)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states[-1], hidden_states=hidden_states
        )


def _spans(stack: nn.Module, inputs: Mapping[str, Any], layout: Any) -> list[tuple[int, slice]]:
    """Where the tokens of each example stand: the row, and the part of it; nothing where a mask has holes."""
    if layout is not None:
        ends = torch.tensor(layout.target_lengths if stack.is_decoder else layout.source_lengths).cumsum(0).tolist()
        return [(0, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows, width = tokens.shape
    if mask is None and not stack.is_decoder:
        return [(row, slice(0, width)) for row in range(rows)]  # padding that no mask hides is read as well
    real = tokens != stack.config.pad_token_id if mask is None else mask.bool()
    lengths = (real * torch.arange(1, width + 1, device=real.device)).amax(1)
    if mask is not None and not torch.equal(lengths, real.sum(1)):
        return []
    if mask is None and (tokens[lengths > 0, lengths[lengths > 0] - 1] == stack.config.eos_token_id).any():
        return []  # a target that goes on behind its end, in padding that counts
    # The first token of a target is padding by its number.
    return [(row, slice(0, max(1, length))) for row, length in enumerate(lengths.tolist())]
