"""New tokens for a T5: only their rows are trained and stored, and an untied head stays as it was.

    model, tokenizer = load_backbone("google/flan-t5-base")
    ids = add_tokens(model, tokenizer, ["{", "}", "<br>"])
    model = lora_wrap(model)
    train_tokens(model, ids)

transformers' own ``resize_token_embeddings`` ties the output head of T5 v1.1 and Flan-T5 to the embeddings without a warning; here
the tables are lengthened by hand. The rows are trained by peft's trainable tokens. Beside an untied head, and in a classifier, peft
by itself would wrap the table ``shared``, which neither stack reads, or give encoder and decoder rows of their own, which merging
loses: here both read one parameter.

A T5 tokenizer puts a space after an added token when it decodes: ``{b}`` comes back as ``{ b}``.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from t5peft.compat.peft import train_rows
from t5peft.models.backbone import correct_config, has_untied_head
from t5peft.models.families import ensure_has, family_of
from t5peft.models.unwrap import ensure_unwrapped, unwrap_t5

NOT_FOR_PEFT = "(rows beside an untied head: load this adapter by load_adapter or load_with_tokens of t5peft)"
"""A name among the tables of rows that no module has, at which peft's own loaders stop with an error that shows it."""


def add_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Add tokens to a plain T5 and its tokenizer, in place.

    Each new row [H] is initialized with the mean of the rows of the pieces that spell the token, in the embeddings and in an untied
    head. A token of unknown letters is initialized with the mean of all pieces. Old rows, head and tying do not change. Unused rows
    of the table, of which T5 has 28, are filled before it grows.

    Args:
        model: A plain T5.
        tokenizer: Its tokenizer.
        tokens: New tokens.

    Returns:
        The ids of the tokens, in their order.

    Raises:
        ValueError: The model is wrapped, the list is empty, or some tokens are empty, repeated or in the vocabulary already.
    """
    ensure_unwrapped(model)
    ensure_has(model.config, "new tokens", "new tokens", "Spell them by the pieces that the tokenizer has.")
    tokens = tokens if isinstance(tokens, str) else list(tokens)
    _check_tokens(tokens, tokenizer)
    correct_config(model)
    old_size = len(tokenizer)
    pieces = [_pieces(token, tokenizer) for token in tokens]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert isinstance(ids, list)  # of a list of tokens

    def lengthen(weight: Tensor) -> nn.Parameter:
        rows = _lengthened(weight.detach(), ids, pieces, old_size)
        return nn.Parameter(rows, requires_grad=weight.requires_grad)

    untied = has_untied_head(model)
    old = model.get_input_embeddings().get_parameter("weight")
    table = lengthen(old)
    for reader in model.modules():
        if isinstance(reader, nn.Embedding) and reader.weight.data_ptr() == old.data_ptr():
            reader.weight, reader.num_embeddings = table, len(table)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        head.weight = lengthen(head.weight) if untied else table
        head.out_features = len(table)
    model.config.vocab_size = len(table)
    return ids


def train_tokens(model: PeftModel, ids: Sequence[int]) -> None:
    """Train the rows of these tokens beside a LoRA adapter, in place; only these rows are saved and loaded with it.

    Beside an untied head, peft's own loaders would put the rows into a head that they tie, or into no head. So the adapter's
    configuration names a module that only exists for ``load_adapter`` and ``load_with_tokens``: peft stops there with an error.

    Args:
        model: A model with one active adapter.
        ids: Ids of tokens, as ``add_tokens`` returns them.

    Raises:
        ValueError: The active adapter is not LoRA (nor QLoRA), the only one with a place for rows in peft's files; it trains tokens
            already; or an id is not in the table.
    """
    name = model.active_adapter if isinstance(model, PeftModel) else None
    config = model.peft_config[name] if isinstance(name, str) else None
    if not isinstance(name, str) or not isinstance(config, LoraConfig):
        kind = type(model).__name__ if config is None else config.peft_type
        raise ValueError(f"Got a model with {kind}; expected one wrapped by lora_wrap or qlora_wrap, which store rows.")
    if config.trainable_token_indices is not None:
        raise ValueError(f"Got the adapter {name!r}, which trains tokens already; expected all ids in one call.")
    t5 = unwrap_t5(model)
    outside = [i for i in ids if not 0 <= i < t5.config.vocab_size]
    if outside or not ids:
        raise ValueError(
            f"Got ids {outside or list(ids)}; expected ids below {t5.config.vocab_size}, as add_tokens returns."
        )
    tables: tuple[str, ...] = ("encoder.embed_tokens", "decoder.embed_tokens")
    is_untied = has_untied_head(t5)
    if t5.get_output_embeddings() is not None:
        tables = (*tables, family_of(t5.config).head) if is_untied else ("shared",)
    config.trainable_token_indices = {table: list(ids) for table in tables}
    train_rows(t5, config, name)
    if is_untied:
        config.trainable_token_indices[NOT_FOR_PEFT] = []
    model.set_adapter(name)  # peft leaves the rows of every adapter but the first without gradients


def _check_tokens(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    problems = [] if tokens and not isinstance(tokens, str) else [f"{tokens!r} is not a list of tokens"]
    vocabulary = tokenizer.get_vocab()
    for token in dict.fromkeys(tokens):
        if not token or token == " " or not isinstance(token, str):
            problems.append(f"{token!r} cannot be a token")
        if token in vocabulary:
            problems.append(f"{token!r} is in the vocabulary already, as {vocabulary[token]}")
        if list(tokens).count(token) > 1:
            problems.append(f"{token!r} is there {list(tokens).count(token)} times")
    if problems:
        raise ValueError(
            f"Got tokens that cannot be added: {'; '.join(problems)}; expected texts that are new to the vocabulary. None was "
            "added."
        )


def _pieces(token: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the known pieces that spell the token, without the space before it."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i != tokenizer.unk_token_id and tokenizer.convert_ids_to_tokens(i) != "▁"]


def _lengthened(table: Tensor, ids: Sequence[int], pieces: Sequence[list[int]], old_size: int) -> Tensor:
    """Return the table [V, H] with a row for each id."""
    grown = table.new_zeros(max(len(table), max(ids) + 1), table.shape[1])
    grown[: len(table)] = table
    everything = table[: min(old_size, len(table))].float().mean(0)
    for index, of_token in zip(ids, pieces, strict=True):
        grown[index] = (table[of_token].float().mean(0) if of_token else everything).to(table.dtype)
    return grown
