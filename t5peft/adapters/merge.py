"""Merge an adapter into the weights of its backbone.

LoRA, DoRA, IA3 and norm tuning change weights and can be merged, always into the unquantized backbone. Rounding the merged weights
to 8 or 4 bits again would lose part of what was tuned (6 % of the effect in 8 bits, half of it in 4). Prefixes, prompts, bottleneck
adapters and ladders do not change weights; serve them as adapters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.adapters.load import load_saved
from t5peft.adapters.manifest import quantization_of
from t5peft.methods.base import AdapterLayer
from t5peft.models.backbone import has_untied_head
from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5

logger = logging.getLogger("t5peft")

PROBE = "A merged model must say what the adapter said: 0, 1, 2; yes or no?"


@dataclass(frozen=True)
class Parity:
    """Largest difference of logits on a probe text, relative to the largest logit."""

    unmerged: float
    """Between the merged model and the adapter beside the unquantized backbone: only the rounding of float32."""
    quantized: float | None
    """Between the merged model and the adapter beside the quantized backbone that it was trained with; None without one, or where
    bitsandbytes is not installed."""

    @property
    def quantised(self) -> float | None:
        """The name of ``quantized`` in 0.1."""
        return self.quantized

    def __str__(self) -> str:
        trained = (
            "" if self.quantized is None else f", {self.quantized:.1e} to the quantized model that it was trained on"
        )
        return f"largest relative difference of logits: {self.unmerged:.1e} to the unmerged adapter{trained}"


def merge(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Parity]:
    """Merge the adapter in ``folder`` into its unquantized backbone.

    To write a checkpoint that any T5 runtime can read, use ``t5peft.adapters.save_model(model, path)``.

    Args:
        folder: A folder from ``save_adapter``.

    Returns:
        The merged model, its tokenizer, and the parity with the adapter.

    Raises:
        FileNotFoundError: ``folder`` does not contain an adapter, or its backbone is not found.
        ValueError: As for ``load_adapter``, or the method cannot be merged into weights.
    """
    model, tokenizer = load_saved(folder)
    if kinds := unmergeable(model):
        raise ValueError(
            f"Got a {' and a '.join(kinds)} in {folder}; expected a method that changes weights, such as LoRA. It cannot "
            "be merged into the weights of T5. Serve it as an adapter."
        )
    ids = tokenizer(PROBE, return_tensors="pt").input_ids.to(model.device)
    unmerged = _logits(model, ids)
    merged = model.merge_and_unload()
    if family_of(merged.config).scales_untied_head and has_untied_head(merged):
        logger.warning(
            "transformers takes the head of every umT5 for a tied one and divides its logits by the root of d_model: after "
            "from_pretrained of the merged model, set model.config.tie_word_embeddings = False, as load_backbone does."
        )
    expected = _logits(merged, ids)
    quantized = None
    if (quantize := quantization_of(folder)) is not None:
        try:
            trained, _ = load_saved(folder, quantize=quantize)
        except ImportError as error:
            logger.warning(
                "The merged model is not compared with the one in %s it was trained beside: %s", quantize, error
            )
        else:
            quantized = _difference(_logits(trained, ids), expected)
    return merged, tokenizer, Parity(_difference(unmerged, expected), quantized)


def unmergeable(model: PeftModel) -> list[str]:
    """Return the kinds of layers in ``model`` that do not change weights, such as a prefix; empty if it can be merged."""
    return sorted({layer.kind for layer in model.modules() if isinstance(layer, AdapterLayer) and not layer.merges})


@torch.no_grad()
def _logits(model: PreTrainedModel | PeftModel, ids: Tensor) -> Tensor:
    """Return the logits [1, T, V] with the text as source and as target, or what the head of another model computes."""
    targets = {"labels": ids} if unwrap_t5(model).can_generate() else {}
    outputs = model.eval()(input_ids=ids, **targets)
    name = next(name for name in ("logits", "pooler_output", "last_hidden_state") if name in outputs)
    scores: Tensor = outputs[name]
    return scores.float()


def _difference(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).abs().max() / expected.abs().max())
