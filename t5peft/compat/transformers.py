"""Call what transformers does not offer to be called; tests/training/private_uses.py lists what is used so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, PreTrainedModel


def logits_processors(t5: PreTrainedModel, source_ids: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
    """Return what greedy search by ``generate`` does to the logits of one source, as the generation config says.

    Args:
        t5: The model.
        source_ids: Token ids of the source.
        max_new_tokens: Tokens of the longest answer.

    Returns:
        The processors; none for most models.
    """
    generator = cast(Any, t5)
    config, _ = generator._prepare_generation_config(None, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False)
    generator._prepare_special_tokens(config, True, device=t5.device)
    # ``generate`` counts the start token.
    config.max_length = 1 + max_new_tokens
    if config.min_new_tokens is not None:
        config.min_length = 1 + config.min_new_tokens
    source = torch.tensor([source_ids], device=t5.device)
    processors: LogitsProcessorList = generator._get_logits_processor(
        config, input_ids_seq_length=1, encoder_input_ids=source, device=t5.device
    )
    return processors
