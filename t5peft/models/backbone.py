"""Load a T5 and its tokenizer: the embedded one, a checkpoint of the hub, or a local folder.

T5, T5 v1.1, Flan-T5, mT5, umT5, ByT5 and CodeT5 share one architecture:

* T5 v1.0 has a relu feed-forward and one table for input and output embeddings, and scales the output by ``d_model ** -0.5``.
* v1.1 and what descends from it (Flan-T5, mT5, umT5, ByT5) have a gated feed-forward and an output head of their own.

transformers 5 marks every T5 config as tied. A later ``resize_token_embeddings``, ``tie_weights`` or ``load_state_dict`` would
overwrite the head of a v1.1 checkpoint with its embeddings, without a warning. ``load_backbone`` records in the config what the
weights are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from t5peft.compat.bitsandbytes import compute_dtypes, stored_numbers
from t5peft.compat.hub import note_commit
from t5peft.compat.torch import computes_bfloat16
from t5peft.models.embedded import EMBEDDED, resolve_backbone
from t5peft.models.encoders import EncoderHead, encoder_class, head_of_config, trained_head
from t5peft.models.families import FAMILIES, ensure_has, family_of
from t5peft.models.folders import ensure_holds_model, recover
from t5peft.models.manifest import MANIFEST, non_finite_names, read_json, verify
from t5peft.models.quantized import Quantization, finish_quantization, quantization_config
from t5peft.models.sentence_transformers import stored_projection

logger = logging.getLogger("t5peft")

MINI = EMBEDDED["mini"]


def load_backbone(
    name: str | Path = "mini",
    *,
    quantize: Quantization | None = None,
    quantize_wo: bool = False,
    dtype: torch.dtype | None = None,
    head: EncoderHead | None = None,
    num_labels: int | None = None,
    embedding_size: int | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a T5 and its tokenizer.

    Args:
        name: ``"mini"`` (the embedded backbone), a hub name such as ``"google/flan-t5-base"``, or a local folder. A folder with a
            manifest is verified.
        quantize: ``"int8"`` (LLM.int8) or ``"nf4"`` (4 bits with double quantization), both from bitsandbytes.
        quantize_wo: With ``"nf4"``, also quantize the output layers of the feed-forward, which are 15 to 28 % of a T5.
            transformers does not, because they break in 8 bits. benchmarks/RESULTS.md has the cost in 4 bits.
        dtype: The dtype of the weights that are not quantized. A classification head is trained and stays in float32. None:
            float32, or bfloat16 for a quantized backbone on a machine that computes in bfloat16.
        head: Load only the encoder, with this head: ``"sequence"`` (a class, labels or numbers, from the mean of the hidden
            states), ``"tokens"`` (a class per token), ``"embedding"`` (a unit-length vector) or ``"states"`` (no head, as in the
            text encoder of an image model). None: the whole T5, or the encoder and head of the checkpoint.
        num_labels: The number of labels of the head. The head of the checkpoint is used if it has this number, else a new one.
            Without ``head``, load ``T5ForSequenceClassification``, which has a decoder. None: the head of the checkpoint, else a
            language model head.
        embedding_size: Add a new linear layer that maps embeddings to this size. None: the layer of the checkpoint, if any.
        revision: The branch, tag or commit on the hub; None: the main branch.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ValueError: The arguments are invalid, the checkpoint is not a T5, it is only an encoder and ``head`` is None, its files
            are damaged, or its weights contain NaN or infinity.
        FileNotFoundError: ``name`` is not found locally or on the hub, or it has no tokenizer.
    """
    _check_arguments(quantize, quantize_wo, dtype, num_labels)
    path = resolve_backbone(name)
    _verify_folder(Path(path))
    config = _from_pretrained(AutoConfig, path, **_at(revision))
    head = head or head_of_config(config)
    _check_architecture(name, config, head)
    _check_head(head, num_labels, embedding_size)
    if num_labels is None and any("Classification" in kind for kind in config.architectures or ()):
        num_labels = config.num_labels
    if dtype is None:
        dtype = torch.bfloat16 if quantize is not None and computes_bfloat16() else torch.float32
    options: dict[str, Any] = {"dtype": dtype, **_at(revision)}
    if quantize is not None:
        options["quantization_config"] = quantization_config(quantize, dtype, family_of(config))
    if num_labels is not None and head not in ("embedding", "states"):
        # The checkpoint's own head may have another number of classes.
        options |= {"num_labels": num_labels, "ignore_mismatched_sizes": num_labels != config.num_labels}
    tokenizer = load_tokenizer(name, revision)
    if head is not None:
        model = _load_encoder(path, config, head, embedding_size, options)
    else:
        kind = AutoModelForSeq2SeqLM if num_labels is None else AutoModelForSequenceClassification
        with _without_notes():
            model = _from_pretrained(kind, path, **options)
    if quantize is not None:
        finish_quantization(model, quantize, dtype, quantize_wo=quantize_wo)
    if dtype != torch.float32 and (trained := trained_head(model)):
        # Steps of training are smaller than what bfloat16 tells apart.
        model.get_submodule(trained).float().register_forward_pre_hook(_to_float32)
    _ensure_finite(name, model)
    correct_config(model)
    note_commit(model, path, revision)
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path = "mini", revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of what ``load_backbone`` finds under ``name``.

    Args:
        name: As for ``load_backbone``.
        revision: As for ``load_backbone``.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: Nothing is found, or a checkpoint without a tokenizer, for which transformers makes up one that knows no
            piece: every text would be unknown.
    """
    reason, path = "", resolve_backbone(name)
    try:
        tokenizer = _from_pretrained(AutoTokenizer, path, **_at(revision))
        pieces = tokenizer.get_vocab().keys() - {token.content for token in tokenizer.added_tokens_decoder.values()}
    except ValueError as error:  # of some classes it cannot make one up
        pieces, reason = set(), f" ({' '.join(str(error).split())})"
    if len(pieces) < 2:
        raise FileNotFoundError(
            f"Got no tokenizer that can be read from {name}{reason}; expected tokenizer.json beside its weights, or spiece.model "
            "and the package sentencepiece. Save the tokenizer of the checkpoint that it comes from there: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(name)!r})."
        )
    return tokenizer


def ensure_trainable_dtype(model: nn.Module) -> None:
    """Refuse to train a model that computes in float16, in which the feed-forward of T5 overflows.

    Args:
        model: A T5, plain or wrapped.

    Raises:
        ValueError: It has parameters in float16, or weights of 4 bits that are multiplied in float16.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]
    if names or torch.float16 in compute_dtypes(model):
        where = f"{len(names)} parameters in float16, such as {names[0]}" if names else "4 bits that compute in float16"
        raise ValueError(
            f"Got a model with {where}; expected float32 or bfloat16, as activations of T5 overflow in float16 to infinity and "
            "NaN. Load it by load_backbone(name, dtype=torch.bfloat16), which is as small."
        )


def has_untied_head(model: PreTrainedModel) -> bool:
    """Return whether ``model`` has an output head with weights of its own."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    reads = model.get_decoder() if family_of(model.config).head_reads_decoder_table else model
    table = cast(torch.Tensor, reads.get_input_embeddings().weight).data_ptr()
    # A head of the user's may have several weights, or others than a linear layer.
    own = [head.weight] if isinstance(getattr(head, "weight", None), torch.Tensor) else head.parameters()
    return any(weight.data_ptr() != table for weight in own)


def correct_config(model: PreTrainedModel) -> None:
    """Make the config of ``model`` say what its weights are, in place.

    An untied head is marked as such: from then on nothing ties it again. Where the config has parts, the size of the vocabulary and
    the start token of the decoder are copied into the whole. Where the decoder is not as deep as the encoder, its depth
    is written where ``generate`` looks for it when it makes a cache.

    Args:
        model: A plain T5.
    """
    family = family_of(model.config)
    for name, value in family.facts_of_parts(model.config).items():
        setattr(model.config, name, value)
    if has_untied_head(model) and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys.pop(f"{family.head}.weight", None)
        logger.info("The output head has weights of its own; it is kept apart from the embeddings.")
    encoder, decoder = family.stacks(model.config)
    if decoder.layers != encoder.layers and family.configs == ("", ""):
        model.config.decoder_layers = decoder.layers


def _check_arguments(
    quantize: Quantization | None, quantize_wo: bool, dtype: torch.dtype | None, num_labels: int | None
) -> None:
    problems = []
    if dtype == torch.float16:
        problems.append(
            "Got dtype=torch.float16, in which the feed-forward activations of T5 overflow to inf and NaN; "
            "expected torch.bfloat16 (same size, wider range) or torch.float32."
        )
    if quantize not in (None, "int8", "nf4"):
        problems.append(f"Got quantize={quantize!r}; expected None, 'int8' or 'nf4'.")
    elif quantize_wo and quantize != "nf4":
        problems.append(f"Got quantize_wo=True with quantize={quantize!r}; expected 'nf4', as wo breaks in 8 bits.")
    if num_labels is not None and num_labels < 1:
        problems.append(f"Got num_labels={num_labels}; expected at least 1.")
    if problems:
        raise ValueError(" ".join(problems))


def _check_head(head: EncoderHead | None, num_labels: int | None, embedding_size: int | None) -> None:
    problems = []
    if head not in (None, *get_args(EncoderHead)):
        problems.append(f"Got head={head!r}; expected None or one of {', '.join(get_args(EncoderHead))}.")
    if num_labels is not None and head in ("embedding", "states"):
        problems.append(f"Got num_labels={num_labels} with head={head!r}; expected none, as it has no labels.")
    if embedding_size is not None and (head != "embedding" or embedding_size < 1):
        problems.append(f"Got embedding_size={embedding_size} with head={head!r}; expected 1 or more with 'embedding'.")
    if problems:
        raise ValueError(" ".join(problems))


def _load_encoder(
    path: str, config: Any, head: EncoderHead, embedding_size: int | None, options: dict[str, Any]
) -> PreTrainedModel:
    """Load an encoder with a head; what a checkpoint has of a decoder is left out."""
    revision = options.get("revision")
    stored = stored_projection(path, revision) if head == "embedding" and embedding_size is None else None
    if head == "embedding":
        own = getattr(config, "embedding_size", None)
        config.embedding_size = embedding_size or (own if stored is None else len(stored))
        options = options | {"config": config, "ignore_mismatched_sizes": embedding_size not in (None, own)}
    with _without_notes():
        model, found = _from_pretrained(
            encoder_class(head, config.model_type), path, output_loading_info=True, **options
        )
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    with torch.no_grad():
        if stored is not None:
            model.embedding_projection.weight.copy_(stored)
        if head == "tokens" and "classifier.weight" in new:
            # transformers draws it with a deviation of 1, and logits of a new head would be as large as d_model's root.
            model.classifier.weight.normal_(std=config.d_model**-0.5)
    if lost := sorted(new - {"classifier.weight", "classifier.bias", "embedding_projection.weight"}):
        raise ValueError(
            f"Got {path} without the weights {lost[:3]} of an encoder; expected a whole checkpoint. Restore it."
        )
    return cast(PreTrainedModel, model)


def _at(revision: str | None) -> dict[str, str]:
    """Return the option of ``from_pretrained`` for a revision, where one is given."""
    return {} if revision is None else {"revision": revision}


def _verify_folder(path: Path) -> None:
    """Complete an interrupted save of a local folder, and verify that it holds a model, by its manifest if it has one."""
    recover(path)
    ensure_holds_model(path)
    if (path / "config.json").is_file():
        read_json(path / "config.json")
    problems = verify(path) if (path / MANIFEST).is_file() else []
    if problems:
        raise ValueError(
            f"Got a damaged model in {path}: {'; '.join(problems)}; expected the files as they were saved. Restore them; if you "
            f"changed them on purpose, delete {MANIFEST}."
        )


def _check_architecture(name: str | Path, config: Any, head: EncoderHead | None) -> None:
    if config.model_type not in FAMILIES:
        raise ValueError(f"Got {name}, a {config.model_type!r} checkpoint; expected one of {', '.join(FAMILIES)}.")
    if head is not None:
        ensure_has(config, "encoders", f"an encoder with head={head!r}", "Load the whole model.")
    if head is None and any("EncoderModel" in kind for kind in config.architectures or ()):
        raise ValueError(
            f"Got {name}, which is only an encoder, and its decoder would be random; expected a whole T5, or a head. Load it with "
            f"head=, one of {', '.join(get_args(EncoderHead))}."
        )


def _ensure_finite(name: str | Path, model: PreTrainedModel) -> None:
    if broken := non_finite_names(stored_numbers(model)):
        raise ValueError(
            f"Got weights of {name} that hold NaN or infinity: {broken[:5]}; expected finite numbers. Restore the checkpoint, or "
            "take an earlier one."
        )


def _to_float32(head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(states.float() for states in inputs)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Drop what transformers says of an untied head, which ``correct_config`` marks, and of the weights of encoders."""
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_is_no_note)
    try:
        yield
    finally:
        log.removeFilter(_is_no_note)


def _is_no_note(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "The tied weights mapping and config" not in message and not (
        "LOAD REPORT" in message and _ENCODERS.search(message)
    )


# Of which ``_load_encoder`` checks what is missing, and the decoder is left out on purpose.
_ENCODERS = re.compile(r"(TokenClassification|EncoderForSequenceClassification|EncoderForEmbedding|EncoderModel)\b")


def _from_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
    """Call ``auto_class.from_pretrained`` with one clear error where there is nothing to load, or only damaged files."""
    try:
        return auto_class.from_pretrained(path, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"Got {path!r}, from which no T5 could be loaded: it is not a local folder with a config.json, weights and tokenizer, "
            f"and the hub did not answer with one ({type(error).__name__}: {str(error).splitlines()[0]}); expected 'mini' (the "
            "embedded backbone, which needs no network), a local folder, or, with a network, a hub name such as "
            "'google/flan-t5-base'."
        ) from error
    except (ImportError, ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors and tokenizers raise classes of their own for damaged files
        raise ValueError(
            f"Got {path!r}, whose files cannot be read ({type(error).__name__}: {error}); expected a T5 as it was saved. Restore "
            "the folder."
        ) from error
