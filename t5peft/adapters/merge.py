"""Merge an adapter into the weights of its backbone.

LoRA, DoRA, IA3 and norm tuning are changes of weights and merge. Always into the unquantised backbone: rounding the merged weights
to 8 or 4 bits again would lose part of what was tuned (6 % of the effect in 8 bits, half of it in 4). Prefixes, prompts, bottleneck
adapters and ladders are no change of a weight; they are served as adapters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters.checkpoint import quantization_of
from t5peft.adapters.tokens import load_saved
from t5peft.methods.base import AdapterLayer
from t5peft.models.backbone import has_untied_head
from t5peft.models.unwrap import unwrap_t5

logger = logging.getLogger("t5peft")

PROBE = "A merged model must say what the adapter said: 0, 1, 2; yes or no?"


@dataclass(frozen=True)
class Parity:
    """Largest difference of logits on a probe text, relative to the largest logit."""

    unmerged: float
    """Between the merged model and the adapter beside the unquantised backbone: rounding of float32 alone."""
    quantised: float | None
    """Between the merged model and the adapter beside the quantised backbone that it was trained with; None without one, or where
    bitsandbytes is not installed."""

    def __str__(self) -> str:
        trained = (
            "" if self.quantised is None else f", {self.quantised:.1e} to the quantised model it was trained beside"
        )
        return f"largest relative difference of logits: {self.unmerged:.1e} to the unmerged adapter{trained}"


def merge(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Parity]:
    """The backbone of the adapter in ``folder``, unquantised, with the adapter in its weights; its tokenizer; the parity.

    ``model.save_pretrained(path)`` then writes a checkpoint that any T5 runtime reads.

    Raises:
        FileNotFoundError, ValueError: as :func:`~t5peft.load_adapter`; for what is no change of a weight.
    """
    model, tokenizer = load_saved(folder)
    kinds = {layer.kind for layer in model.modules() if isinstance(layer, AdapterLayer) and not layer.merges}
    if kinds:
        raise ValueError(
            f"Got a {' and a '.join(sorted(kinds))} in {folder}; expected a method that changes weights, such as LoRA. It cannot "
            "be merged into the weights of T5. Serve it as an adapter."
        )
    ids = tokenizer(PROBE, return_tensors="pt").input_ids.to(model.device)
    unmerged = _logits(model, ids)
    merged = model.merge_and_unload()
    if merged.config.model_type == "umt5" and has_untied_head(merged):
        logger.warning(
            "transformers takes the head of every umT5 for a tied one and makes its logits smaller by the root of d_model: after "
            "from_pretrained of the merged model set model.config.tie_word_embeddings = False, as load_backbone does."
        )
    expected = _logits(merged, ids)
    quantised = None
    if (quantize := quantization_of(folder)) is not None:
        try:
            trained, _ = load_saved(folder, quantize=quantize)
        except ImportError as error:
            logger.warning(
                "The merged model is not compared with the one in %s it was trained beside: %s", quantize, error
            )
        else:
            quantised = _difference(_logits(trained, ids), expected)
    return merged, tokenizer, Parity(_difference(unmerged, expected), quantised)


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [1, T, V] with the text as source and as target, or those of a classification head [1, C]."""
    targets = {"labels": ids} if unwrap_t5(model).can_generate() else {}
    return model.eval()(input_ids=ids, **targets).logits.float()


def _difference(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max() / expected.abs().max())
