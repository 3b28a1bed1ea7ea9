"""Encoders of other families whose passes a trace cannot follow as they are, made so that it can.

LongT5 fills its source up to whole blocks, and a trace keeps whether it had to. Here each source is filled up before, to at least
one block, so that nothing is left to decide. Columns of padding on the right change no state of the text. T5Gemma 2 makes the
mask of its windows by a map over functions, which is not traced. It takes a finished mask, which is made here.

Letters: B batch, S source tokens, H d_model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.models.longt5.modeling_longt5 import LongT5Stack
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextEncoder, sliding_window_mask_function

_SOURCES = ("input_ids", "inputs_embeds", "attention_mask")


@contextmanager
def traceable(t5: PreTrainedModel) -> Iterator[None]:
    """Let the encoder of ``t5`` be traced inside the block, with the same results.

    Args:
        t5: A T5, plain or wrapped.
    """
    handles, filled = [], []
    for module in t5.modules():
        if isinstance(module, LongT5Stack) and not module.is_decoder:
            vars(module)["forward"] = _in_blocks(module)
            filled.append(module)
        elif isinstance(module, T5Gemma2TextEncoder):
            handles.append(module.register_forward_pre_hook(_finish_mask, with_kwargs=True))
    try:
        yield
    finally:
        for module in filled:
            del vars(module)["forward"]
        for handle in handles:
            handle.remove()


def _in_blocks(stack: LongT5Stack) -> Callable[..., Any]:
    """Return the forward of a stack on sources that are filled up to whole blocks of both kinds."""
    forward, config = stack.forward, cast(Any, stack.config)
    block = math.lcm(config.local_radius + 1, config.global_block_size)

    def run(**options: Any) -> Any:
        sources = {name: options[name] for name in _SOURCES if options.get(name) is not None}
        length = sources["attention_mask"].shape[1]
        more = -length % block
        for name, source in sources.items():
            options[name] = pad(source, (0, 0, 0, more) if source.dim() == 3 else (0, more))
        output = forward(**options)
        output.last_hidden_state = output.last_hidden_state[:, :length]
        return output

    return run


def _finish_mask(
    encoder: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace a mask [B, S] by additive ones [B, 1, S, S] for whole and for sliding attentions."""
    config: Any = encoder.config
    mask, states = options["attention_mask"], options["inputs_embeds"]
    place = torch.arange(mask.shape[1], device=mask.device)
    none = torch.zeros_like(place)
    near = sliding_window_mask_function(config.sliding_window, is_causal=False)(none, none, place[:, None], place)
    seen = mask.bool()[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
    masks = {"full_attention": _additive(seen, states), "sliding_attention": _additive(seen & near, states)}
    return inputs, {**options, "attention_mask": masks}


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(visible, zero, torch.finfo(like.dtype).min)
