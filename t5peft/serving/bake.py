"""Bake a prompt into the vocabulary: its rows become embeddings of new tokens that the tokenizer writes before every source.

Any engine that uses the saved tokenizer then runs the prompt. The head must never emit these tokens, and log-probabilities of the
old vocabulary must stay those of the adapter. There are three cases:

* CTranslate2 has a vocabulary for sources and one for targets. Only that of the sources grows; the head stays as it is.
* transformers has one vocabulary. Where the table has spare rows behind the tokenizer's (T5 and Flan-T5 have 28), the prompt takes
  these. The head keeps its rows, a tied one as a copy divided by the root of d_model, so every logit stays the same.
* Else both tables grow, and the head needs rows without probability. A linear head without a bias has none: a row may be the
  likeliest for some state. So the model gets ``MORE_DIMENSIONS`` more dimensions. One of them is a small constant in every
  embedding, which no layer reads or writes. The final norm of the decoder hands it to the head, where the new rows multiply it by a
  huge negative number. Norms are corrected for the larger width.

``generation_config.json`` suppresses the tokens in the second and third case.

Letters: V vocabulary, P prompt length, H d_model.
"""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any, cast

import torch
from peft import PeftModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from t5peft.methods.prompt import PromptEncoder
from t5peft.models.backbone import has_untied_head

MORE_DIMENSIONS = 8
"""So many that matrices of processors and GPUs stay aligned."""
_CONSTANT = 1e-4  # times the size of the embeddings; its square is lost in the rounding of a norm
_NEVER = -1e12  # a new row gets the logit -1e8 where the last state has the size of the embeddings
_TABLES = ("shared.weight", "embed_tokens.weight", "lm_head.weight")


def prompt_token(index: int) -> str:
    """Return the name of a token of a baked prompt."""
    return f"<prompt_{index}>"


def prompt_of(model: PeftModel) -> Tensor | None:
    """Return the rows [P, H] of the active prompt of ``model``; None without one."""
    for module in model.modules():
        if isinstance(module, PromptEncoder) and (names := module.active_adapters_here()):
            return torch.cat([module.t5prompt[name].detach() for name in names]).float()
    return None


def bake(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """Make the prompt of ``model`` a part of the encoder's embeddings, in place.

    Args:
        model: A T5 with a prompt and a language model head.
        tokenizer: Its tokenizer, which stays as it is.

    Returns:
        The T5, whose encoder now has a table of its own, a tokenizer that writes the prompt before every text, and the ids of the
        prompt.

    Raises:
        ValueError: The tokenizer cannot be made to write tokens by itself.
    """
    prompt = prompt_of(model)
    assert prompt is not None  # the caller has looked
    writing, ids = with_prompt(tokenizer, len(prompt))
    t5 = cast(PreTrainedModel, model.unload())
    old = cast(Tensor, t5.get_input_embeddings().weight).detach()
    table = old.new_zeros(max(len(old), ids[-1] + 1), old.shape[1])
    table[: len(old)] = old
    table[ids] = prompt.to(table)
    encoder = cast(Any, t5.get_encoder())
    encoder.embed_tokens = nn.Embedding.from_pretrained(table)
    return t5, writing, ids


def with_prompt(tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a copy of ``tokenizer`` that writes ``length`` new tokens before every text, and their ids."""
    writing = _byte_tokenizer(tokenizer) if isinstance(tokenizer, ByT5Tokenizer) else deepcopy(tokenizer)
    if not writing.is_fast:
        raise ValueError(
            f"Got a {type(tokenizer).__name__}, which cannot add a prompt before a text; expected a tokenizer with a "
            "tokenizer.json. Save the backbone with one, or export to ONNX, whose graph has the prompt."
        )
    names = [prompt_token(i) for i in range(length)]
    known = writing.get_vocab().keys() & set(names)
    if known:
        raise ValueError(
            f"Got a tokenizer that knows {sorted(known)[0]}; expected none of the tokens of a prompt. Export an adapter on a "
            "backbone without a baked prompt."
        )
    writing.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = cast(list[int], writing.convert_tokens_to_ids(names))
    _put_before(writing, dict(zip(names, ids, strict=True)))
    return writing, ids


def _as_template(processor: dict[str, Any] | None) -> dict[str, Any]:
    if processor is not None and processor["type"] == "TemplateProcessing":
        return processor
    if processor is not None and processor["type"] in ("RobertaProcessing", "BertProcessing"):
        (start, start_id), (end, end_id) = processor["cls"], processor["sep"]
        template = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            pair=f"{start} $A {end} {end} $B {end}",
            special_tokens=[(start, start_id), (end, end_id)],
        )
    elif processor is None:
        template = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    else:
        raise ValueError(
            f"Got a tokenizer with the post-processor {processor['type']}; expected a template. Export to ONNX, whose graph has "
            "the prompt."
        )
    return cast(dict[str, Any], json.loads(template.__getstate__()))


def _put_before(tokenizer: PreTrainedTokenizerBase, ids: dict[str, int]) -> None:
    """Let a tokenizer write tokens before every text, in place; its template can be changed only as JSON."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    template = _as_template(state["post_processor"])
    prompt = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ids]
    new = {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ids.items()}
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*prompt, *template["single"]],
        "pair": [*prompt, *template["pair"]],
        "special_tokens": template["special_tokens"] | new,
    }
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


def _byte_tokenizer(tokenizer: ByT5Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a tokenizer.json that gives the ids of ``tokenizer``, which computes them in Python."""
    added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    first = tokenizer.offset  # special tokens before the bytes
    vocabulary = {str(token): index for index, token in enumerate(added[:first])}
    vocabulary |= {letter: first + byte for byte, letter in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token=tokenizer.unk_token))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Bytes that are not text become U+FFFD; ByT5's tokenizer leaves them out.
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\ufffd", "")])
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A {end[0]} $B {end[0]}", special_tokens=[end]
    )
    backend.add_special_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=added[tokenizer.pad_token_id],
        eos_token=added[tokenizer.eos_token_id],
        unk_token=added[tokenizer.unk_token_id],
        additional_special_tokens=added[first:],
    )


@torch.no_grad()
def into_one_table(t5: PreTrainedModel, prompt_ids: list[int]) -> PreTrainedModel:
    """Return a T5 with one vocabulary that holds the rows of a baked prompt, which its head cannot emit.

    Args:
        t5: What ``bake`` returns; it may be changed in place.
        prompt_ids: Ids of the prompt's tokens.

    Returns:
        The T5 for transformers, with a head of its own.
    """
    table = cast(Tensor, cast(Any, t5.get_encoder()).embed_tokens.weight).detach()
    head = cast(nn.Linear, t5.get_output_embeddings())
    rows = head.weight.detach().clone()
    if not has_untied_head(t5):
        rows *= t5.config.d_model**-0.5
    one = t5 if len(table) == len(rows) else _wider(t5, len(table))
    size = one.config.d_model
    new_table = nn.functional.pad(table, (0, size - table.shape[1]))
    new_rows = nn.functional.pad(rows, (0, size - rows.shape[1], 0, len(table) - len(rows)))
    if size > table.shape[1]:
        new_table[:, -1] = _CONSTANT * float(table.square().mean().sqrt())
        new_rows[len(rows) :, -1] = _NEVER
    for module in one.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape == (one.config.vocab_size, size):
            module.weight = nn.Parameter(new_table, requires_grad=False)
    cast(nn.Linear, one.get_output_embeddings()).weight = nn.Parameter(new_rows, requires_grad=False)
    one.config.tie_word_embeddings = one.config.scale_decoder_outputs = False
    one.all_tied_weights_keys.pop("lm_head.weight", None)
    if one.generation_config is not None:
        one.generation_config.suppress_tokens = list(prompt_ids)
    return one


def _wider(t5: PreTrainedModel, vocabulary: int) -> PreTrainedModel:
    """Return a T5 of ``MORE_DIMENSIONS`` more dimensions that computes the same; its tables and head are still to be filled."""
    config = deepcopy(t5.config)
    narrow, wide = config.d_model, config.d_model + MORE_DIMENSIONS
    config.d_model, config.vocab_size = wide, vocabulary
    config.layer_norm_epsilon *= narrow / wide
    wider = type(t5)(config).eval()
    wider.generation_config = deepcopy(t5.generation_config)
    old = dict(t5.named_parameters())
    for name, parameter in wider.named_parameters():
        if name.endswith(_TABLES):
            continue
        weight = old[name]
        parameter.zero_()
        parameter[tuple(slice(size) for size in weight.shape)] = weight * (
            (narrow / wide) ** 0.5 if weight.dim() == 1 else 1
        )
    cast(Any, wider.get_decoder()).final_layer_norm.weight[-1] = 1
    return wider
