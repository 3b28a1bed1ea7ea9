"""Load adapters that bring tokens of their own."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from t5peft.adapters.checkpoint import CONFIG, backbone_of, load_adapter
from t5peft.models.backbone import Quantization
from t5peft.models.tokens import add_tokens, share_rows
from t5peft.models.unwrap import unwrap_t5


def brings_tokens(folder: str | Path) -> bool:
    """Whether the adapter trains rows of tokens and was saved with the tokenizer that knows them: for ``load_with_tokens``."""
    config = Path(folder) / CONFIG
    if not config.is_file() or not (Path(folder) / "tokenizer_config.json").is_file():
        return False
    return json.loads(config.read_text()).get("trainable_token_indices") is not None


def load_saved(
    folder: str | Path, *, trainable: bool = False, quantize: Quantization | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """An adapter beside its backbone, with the tokens that it brings if it does.

    Raises:
        FileNotFoundError, ValueError: what ``load_adapter`` says.
    """
    load = load_with_tokens if brings_tokens(folder) else load_adapter
    model, tokenizer = load(folder, trainable=trainable, quantize=quantize)
    assert tokenizer is not None  # as no model was given
    return model, tokenizer


def load_with_tokens(
    folder: str | Path, *, trainable: bool = False, quantize: Quantization | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load an adapter that was saved with its tokenizer, beside its backbone, quantised or not, with the tokens added.

    Raises:
        FileNotFoundError: the folder holds no adapter, or no tokenizer (``save_adapter(..., tokenizer=tokenizer)``).
        ValueError: what ``load_adapter`` says.
    """
    try:
        saved = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer; save the adapter by save_adapter(model, folder, tokenizer=tokenizer)."
        ) from error
    model, tokenizer = backbone_of(folder, quantize=quantize)
    known = tokenizer.get_vocab()
    new = sorted((index, token) for token, index in saved.get_added_vocab().items() if token not in known)
    if new:
        add_tokens(model, tokenizer, [token for _, token in new])
    wrapped, _ = load_adapter(folder, model=model, trainable=trainable)
    share_rows(unwrap_t5(wrapped), str(wrapped.active_adapter))
    return wrapped, tokenizer
