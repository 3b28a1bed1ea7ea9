"""Keep what a frozen backbone computes of each example. From the second epoch on, a ladder then trains without running it.

Nothing trained stands before what a ladder reads. So it reads the same of an example in every epoch, as long as the backbone
drops nothing. Inside ``cached_activations`` (in ``ladder.py``) the backbone runs as in evaluation, and only the side has dropout.

The states of an example are those of the batch that it first came in, and those of another batch differ by rounding. So a
checkpoint holds the tokens of these batches, from which a run that is resumed fills its cache with the same bits.

Letters: B batch, T tokens, H d_model, L layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from t5peft.nn.kernels.varlen import VarlenLayout

logger = logging.getLogger("t5peft")


class Activations:
    """The states of a backbone by example, in main memory.

    Attributes:
        limit_bytes: Most bytes of states.
        bytes: Bytes of the states that are cached.
        batches: The batches that were computed to fill the cache, in their order.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self.batches: list[Mapping[str, Any]] = []
        self._noted_bytes = 0
        self._states: dict[bytes, Tensor] = {}
        self._source_keys: list[bytes | None] = []
        self._is_full = False

    def __reduce__(self) -> Any:
        # A copy or a pickle of a model that is being trained goes without what is cached.
        return type(None), ()

    def states(
        self,
        stack: PreTrainedModel,
        inputs: Mapping[str, Any],
        options: Mapping[str, Any],
        run: Callable[[], Any],
        target_lengths: Sequence[int] | None = None,
    ) -> Any:
        """Return what ``run`` returns for ``inputs``, and call it only for examples that are not cached.

        A target is cached together with its source, so the batch of the encoder comes before that of the decoder. The batch is
        computed anew where tokens do not identify an example: with embeddings in place of tokens, or with a mask that hides more
        than padding at the end of a source.

        Args:
            stack: The encoder or the decoder of the backbone.
            inputs: Tokens and masks.
            options: The other arguments of the stack.
            run: Runs the stack; its output has L + 1 hidden states of [B, T, H].
            target_lengths: The positions of each target up to the last one whose label counts. None: all positions are cached,
                padding too, because the tokens do not say which of them count.
        """
        tokens, layout = inputs["input_ids"], options.get("layout")
        source_keys, self._source_keys = self._source_keys, []
        if tokens is None or any(name.endswith("block_mask") for name in options):
            return run()
        spans = _spans(stack, inputs, layout, target_lengths)
        if not spans or (stack.config.is_decoder and len(source_keys) != len(spans)):
            return run()
        examples = [tokens[row, part] for row, part in spans]
        keys = _target_keys(source_keys, examples) if stack.config.is_decoder else _source_keys(stack, examples, layout)
        if not stack.config.is_decoder:
            self._source_keys = keys
        if any(key is not None for key in keys) and all(key is None or key in self._states for key in keys):
            return self._output(keys, spans, tokens.shape, tokens.device)
        output = run()
        for key, (row, part) in zip(keys, spans, strict=True):
            if key is not None:
                self._keep(key, torch.stack([states[row, part] for states in output.hidden_states]))
        return output

    def note(self, batch: Mapping[str, Any]) -> None:
        """Keep the tokens of a batch of the model if it has filled the cache since the last call.

        Args:
            batch: What the model has just computed.
        """
        if self.bytes != self._noted_bytes:
            self._noted_bytes = self.bytes
            self.batches.append({name: _compact(value) for name, value in batch.items()})

    def save_batches(self, path: Path) -> None:
        """Save the tokens of the batches that filled the cache.

        Args:
            path: The file.
        """
        torch.save(self.batches, path)

    def _keep(self, key: bytes, states: Tensor) -> None:
        if key in self._states:
            return
        if self.bytes + states.nbytes > self.limit_bytes:
            if not self._is_full:
                logger.warning(
                    "The activation cache of %.2f GB is full after %d sources and targets: batches with any other are "
                    "computed anew in every epoch. Raise activation_cache_bytes, or train on fewer examples.",
                    self.limit_bytes / 1e9,
                    len(self._states),
                )
            self._is_full = True
            return
        self._states[key] = states.cpu()
        self.bytes += states.nbytes

    def _output(
        self, keys: list[bytes | None], spans: list[tuple[int, slice]], shape: torch.Size, device: torch.device
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        first = self._states[next(key for key in keys if key is not None)]
        states = first.new_zeros(len(first), *shape, first.shape[-1], device=device)
        for key, (row, part) in zip(keys, spans, strict=True):
            if key is not None:
                states[:, row, part] = self._states[key].to(device, non_blocking=True)
        hidden_states = states.unbind(0)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states[-1], hidden_states=hidden_states
        )


def read_batches(path: Path) -> list[dict[str, Any]]:
    """Return the batches that ``Activations.save_batches`` saved; none where there is no file.

    Args:
        path: The file.

    Returns:
        Batches of the model.
    """
    if not path.is_file():
        return []
    batches = torch.load(path, map_location="cpu", weights_only=True)
    return [{name: _restored(value) for name, value in batch.items()} for batch in batches]


def _compact(value: Any) -> Any:
    if isinstance(value, VarlenLayout):
        return value.source_lengths, value.target_lengths
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.int() if value.dtype == torch.int64 else value.clone()
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, tuple):
        return VarlenLayout(*value)
    return value.long() if isinstance(value, Tensor) and value.dtype == torch.int32 else value


def _source_keys(stack: PreTrainedModel, examples: list[Tensor], layout: VarlenLayout | None) -> list[bytes | None]:
    """Return a key for each source; None for the padding that fills a padding-free row."""
    padding = stack.config.pad_token_id
    return [
        None if layout is not None and bool((tokens == padding).all()) else _to_bytes(tokens) for tokens in examples
    ]


def _target_keys(source_keys: list[bytes | None], examples: list[Tensor]) -> list[bytes | None]:
    """Return a key for each target with its source."""
    return [
        None if source is None else b"%d:" % len(source) + source + _to_bytes(tokens)
        for source, tokens in zip(source_keys, examples, strict=True)
    ]


def _to_bytes(tokens: Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()


def _spans(
    stack: PreTrainedModel,
    inputs: Mapping[str, Any],
    layout: VarlenLayout | None,
    target_lengths: Sequence[int] | None,
) -> list[tuple[int, slice]]:
    """Return the row and the part of it for each example; nothing where a mask hides more than padding at the end."""
    if layout is not None:
        in_row = layout.target_lengths if stack.config.is_decoder else layout.source_lengths
        ends: list[int] = torch.tensor(in_row).cumsum(0).tolist()
        return [(0, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    mask = inputs.get("attention_mask")
    rows, width = inputs["input_ids"].shape
    lengths = [width] * rows
    if mask is not None and not mask.all():
        if stack.config.is_decoder or mask.dim() != 2:
            return []
        real = mask.bool()
        last = (real * torch.arange(1, width + 1, device=real.device)).amax(1)
        if not torch.equal(last, real.sum(1)):
            return []
        lengths = last.tolist()
    elif stack.config.is_decoder and target_lengths is not None:
        lengths = list(target_lengths)
    return [(row, slice(0, max(1, length))) for row, length in enumerate(lengths)]
