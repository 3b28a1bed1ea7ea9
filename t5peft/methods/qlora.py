"""QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) on T5: LoRA beside frozen weights of 8 or 4 bits.

8 bits are LLM.int8 (Dettmers et al. 2022), 4 bits are nf4 with double quantization, both by bitsandbytes. LoRA stands at every
linear map, as in the paper.

Differs from ``prepare_model_for_kbit_training`` of peft, which puts everything that is not quantized into float32. Here ``wo``,
the embeddings and the head stay in the dtype that ``load_backbone`` chose, and only the adapter is in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedModel

from t5peft.deprecated import renamed_arguments
from t5peft.methods.lora import lora_wrap
from t5peft.models.unwrap import ensure_unwrapped


@renamed_arguments(targets="target_modules")
def qlora_wrap(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | Literal["all-linear"] = "all-linear",
) -> PeftModel:
    """Wrap a quantized ``model`` for LoRA, in place.

    Args:
        model: A T5 from ``load_backbone(name, quantize="int8")`` or ``"nf4"``.
        rank: R, the rank of A and B.
        alpha: Numerator of the scale; None for twice the rank.
        dropout: Dropout probability of the inputs of A during training.
        target_modules: Names of linear layers, or ``"all-linear"`` for every linear layer of attention and feed-forward.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is not quantized, or as for ``lora_wrap``.
    """
    ensure_unwrapped(model)
    if not getattr(model, "is_quantized", False):
        raise ValueError(
            "Got a model that is not quantized; expected a quantized model for qlora_wrap. Load it by load_backbone(name, "
            "quantize='int8') or 'nf4', or call lora_wrap."
        )
    return lora_wrap(model, rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules)
