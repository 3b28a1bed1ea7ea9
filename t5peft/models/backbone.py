"""Load a T5 and its tokenizer: the embedded one, a checkpoint of the hub, or a local folder.

Covers T5, T5 v1.1, Flan-T5, mT5, umT5, ByT5 and CodeT5, which share one architecture:

* T5 v1.0 has a relu feed-forward and one table for input and output embeddings, and scales the output by ``d_model ** -0.5``;
* v1.1 and what descends from it (Flan-T5, mT5, umT5, ByT5) have a gated feed-forward and an output head of their own.

transformers 5 marks every T5 config as tied, so a later ``resize_token_embeddings``, ``tie_weights`` or ``load_state_dict``
would overwrite the head of a v1.1 checkpoint with its embeddings without a word. :func:`load_backbone` records in the config
what the weights are.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from t5peft.models.families import FAMILIES
from t5peft.models.unwrap import unwrap_t5

logger = logging.getLogger("t5peft")

MINI = Path(__file__).parents[1] / "mini"

Quantization = Literal["int8", "nf4"]


def load_backbone(
    name: str | Path = "mini",
    *,
    quantize: Quantization | None = None,
    quantize_wo: bool = False,
    dtype: torch.dtype | None = None,
    num_labels: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a T5 and its tokenizer.

    Args:
        name: ``"mini"`` (the embedded backbone), a hub name such as ``"google/flan-t5-base"``, or a local folder.
        quantize: ``"int8"`` (LLM.int8) or ``"nf4"`` (4 bit with double quantisation), both of bitsandbytes.
        quantize_wo: with ``"nf4"``, the output maps of the feed-forward too, which are 15 to 28 % of a T5 and which
            transformers leaves out because they break in 8 bits. What it costs in 4 is measured in benchmarks/RESULTS.md.
        dtype: of the weights that are not quantised, but for a classification head, which is trained and in float32; None:
            float32, or bfloat16 for a quantised backbone on a machine that computes in bfloat16.
        num_labels: load ``T5ForSequenceClassification`` with a head of so many classes: that of the checkpoint where it has one
            of as many, else a new one. None: with the checkpoint's own head if there is one, else a language model.

    Raises:
        ValueError: for float16, an unknown ``quantize``, no class at all, or a checkpoint that is no T5, or an encoder alone.
        FileNotFoundError: where nothing is found under ``name``, locally or on the hub, or no tokenizer beside the weights.
    """
    if dtype == torch.float16:
        raise ValueError(
            "Got dtype=torch.float16, in which the feed-forward activations of T5 overflow to inf and NaN; "
            "expected torch.bfloat16 (same size, wider range) or torch.float32."
        )
    if quantize not in (None, "int8", "nf4"):
        raise ValueError(f"Got quantize={quantize!r}; expected None, 'int8' or 'nf4'.")
    if quantize_wo and quantize != "nf4":
        raise ValueError(f"Got quantize_wo=True with quantize={quantize!r}; expected 'nf4', as wo breaks in 8 bits.")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"Got num_labels={num_labels}; expected at least 1.")
    path = _path(name)
    config = _found(AutoConfig, path)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{name} is a {config.model_type!r} checkpoint; expected one of {', '.join(FAMILIES)}.")
    if any("EncoderModel" in name for name in config.architectures or ()):
        raise ValueError(
            f"{name} is an encoder alone, and its decoder would be random. Load it by {config.architectures[0]}.from_pretrained; "
            "lora_wrap and the like take it."
        )
    if num_labels is None and any("ForSequenceClassification" in name for name in config.architectures or ()):
        num_labels = config.num_labels
    if quantize is not None and dtype is None and computes_bfloat16():
        dtype = torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if quantize is not None:
        options["quantization_config"] = _quantization(quantize, options["dtype"])
    if num_labels is not None:
        options["num_labels"] = num_labels
        # another number of classes than the checkpoint's own head has
        options["ignore_mismatched_sizes"] = num_labels != config.num_labels
    tokenizer = load_tokenizer(name)
    auto_class = AutoModelForSeq2SeqLM if num_labels is None else AutoModelForSequenceClassification
    with _no_tying_note():
        model = _found(auto_class, path, **options)
    if quantize is not None:
        _undo_upcast(model, options["dtype"])
        _silence_casts()
    if num_labels is not None and options["dtype"] != torch.float32:
        _head_in_float32(model)
    if quantize_wo:
        _quantize_wo(model, options["dtype"])
    if quantize == "nf4":
        _keep_4_bits(model)
    correct_config(model)
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path = "mini") -> PreTrainedTokenizerBase:
    """The tokenizer of what :func:`load_backbone` finds under ``name``.

    Raises:
        FileNotFoundError: nothing is found, or a checkpoint without a tokenizer, for which transformers makes up one that knows no
            piece: every text would be unknown.
    """
    why = ""
    try:
        tokenizer = _found(AutoTokenizer, _path(name))
        pieces = tokenizer.get_vocab().keys() - {token.content for token in tokenizer.added_tokens_decoder.values()}
    except ValueError as error:  # of some classes it cannot make one up
        pieces, why = set(), f" ({' '.join(str(error).split())})"
    if len(pieces) < 2:
        raise FileNotFoundError(
            f"{name} has no tokenizer that can be read here{why}: expected tokenizer.json beside its weights, or spiece.model "
            "and the package sentencepiece. Save the tokenizer of the checkpoint that it comes from there: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(name)!r})."
        )
    return tokenizer


def quantization_of_model(model: PreTrainedModel) -> Quantization | None:
    """How ``model`` is quantised."""
    t5 = unwrap_t5(model)
    if not getattr(t5, "is_quantized", False):
        return None
    return "int8" if t5.config.quantization_config.load_in_8bit else "nf4"


def has_untied_head(model: PreTrainedModel) -> bool:
    """Whether ``model`` has an output head with weights of its own."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight.data_ptr() != embeddings.weight.data_ptr()


def correct_config(model: PreTrainedModel) -> None:
    """Make the config of ``model`` say what its weights are, in place.

    An untied head is marked as such: from then on nothing ties it again. A decoder that is not as deep as the encoder gets
    its depth where ``generate`` looks for it when it makes a cache.
    """
    if has_untied_head(model) and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys.pop("lm_head.weight", None)
        logger.info("The output head has weights of its own; it is kept apart from the embeddings.")
    if model.config.num_decoder_layers != model.config.num_layers:
        model.config.decoder_layers = model.config.num_decoder_layers


def computes_bfloat16() -> bool:
    """Whether this machine multiplies matrices in bfloat16 by hardware; in software it is some fifty times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())


def _quantization(quantize: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    # bitsandbytes leaves out lm_head by itself only where no list is given; a new head must not be quantised either.
    kept = ["lm_head", "classification_head", "wo"]
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def _undo_upcast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring ``wo``, which transformers puts into float32 for float16's sake, back to ``dtype``."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.to(dtype)


def _head_in_float32(model: PreTrainedModel) -> None:
    """Put the classification head into float32: steps of training are smaller than what bfloat16 tells apart."""
    model.classification_head.float().register_forward_pre_hook(_float_inputs)


def _float_inputs(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(states.float() for states in inputs)


def _quantize_wo(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put every ``wo`` into nf4, stored as ``dtype``: T5 casts its input to the dtype that ``wo.weight`` says it has."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model.config.quantization_config.llm_int8_skip_modules.remove("wo")
    for module in model.modules():
        if isinstance(getattr(module, "wo", None), nn.Linear):
            plain = module.wo
            module.wo = Linear4bit(
                plain.in_features,
                plain.out_features,
                bias=False,
                compute_dtype=dtype,
                quant_storage=dtype,
                device="meta",
            )
            module.wo.weight = Params4bit(
                plain.weight.data, requires_grad=False, quant_type="nf4", quant_storage=dtype
            ).to(plain.weight.device)


def _keep_4_bits(model: PreTrainedModel) -> None:
    """Leave weights of 4 bits as they were stored.

    On a CPU that computes in bfloat16, bitsandbytes repacks them at the first evaluation, with scales in bfloat16 that it cannot
    turn back: from then on the model is another one. What it repacks is uint8, to which T5 then casts the input of ``wo``.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


_CAST_NOTE = "MatMul8bitLt: inputs will be cast"


def _silence_casts() -> None:
    """Drop the note on casting that bitsandbytes writes at every matrix product in 8 bits."""
    warnings.filterwarnings("ignore", message=_CAST_NOTE)
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_note)


@contextmanager
def _no_tying_note() -> Iterator[None]:
    """Drop the advice of transformers to write into the config of an untied head what stands there, as it reads it as tied."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_tying_note)
    try:
        yield
    finally:
        log.removeFilter(_is_no_tying_note)


def _is_no_tying_note(record: logging.LogRecord) -> bool:
    return "The tied weights mapping and config" not in record.getMessage()


def _is_no_cast_note(record: logging.LogRecord) -> bool:
    return _CAST_NOTE not in record.getMessage()


def _path(name: str | Path) -> str:
    return str(MINI if str(name) == "mini" else name)


def _found(auto_class: Any, path: str, **options: Any) -> Any:
    """``auto_class.from_pretrained`` with one clear error where there is nothing to load."""
    try:
        return auto_class.from_pretrained(path, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"No T5 could be loaded from {path!r}: it is no local folder with a config.json, weights and tokenizer, and "
            f"the hub did not answer with one ({type(error).__name__}: {str(error).splitlines()[0]}). Expected 'mini' (the "
            "embedded backbone, which needs no network), a local folder, or, with a network, a hub name such as "
            "'google/flan-t5-base'."
        ) from error
