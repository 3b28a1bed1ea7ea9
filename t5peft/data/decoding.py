r"""Texts from token ids, and texts as a tokenizer can write them.

A tokenizer may lose white space: T5's has no line break, so a model with it answers ``a b`` where the reference is
``a\nb``. ByT5, CodeT5 and the package's own "mini" keep line breaks, tabs and indentation. Answers are decoded with all that
the tokenizer keeps, and references are compared as the tokenizer would give them back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t5peft.data.truncation import encode, special_ids, without_special_tokens


def decode(
    rows: Sequence[Sequence[int]] | Tensor, tokenizer: PreTrainedTokenizerBase, *, keep: Collection[str] = ()
) -> list[str]:
    """Return the text of each row of token ids, without special tokens.

    Spaces before punctuation stay, which tokenizers of T5 remove by default. The space that a tokenizer of T5 puts after
    an added token goes where the text without it has the same ids: ``{b}`` does not become ``{ b}``.

    Args:
        rows: Token ids [B][T], with or without padding.
        tokenizer: The tokenizer that made them.
        keep: Special tokens that stay, such as the sentinels of a target template.
    """
    kept = {found for token in keep if isinstance(found := tokenizer.convert_tokens_to_ids(token), int)}
    dropped = (special_ids(tokenizer) | {tokenizer.unk_token_id}) - kept
    plain = rows.tolist() if isinstance(rows, Tensor) else rows
    bare = [[token for token in row if token not in dropped] for row in plain]
    texts: list[str] = tokenizer.batch_decode(bare, clean_up_tokenization_spaces=False)
    pattern = _space_after_added(tokenizer)
    shorter = {i: pattern.sub(r"\1", text) for i, text in enumerate(texts) if pattern and pattern.search(text)}
    for i, text in shorter.items():
        if encode([text], tokenizer) == encode([texts[i]], tokenizer):
            texts[i] = text
    return texts


def as_written(text: str, tokenizer: PreTrainedTokenizerBase, *, keep: Collection[str] = ()) -> str:
    """Return a text as a model with this tokenizer can write it, where only white space differs.

    A text with characters that the tokenizer does not know keeps them, so that no answer equals it; ``lint`` counts such
    texts. Special tokens that the text spells are broken up, as they are in training.

    Args:
        text: Any text.
        tokenizer: The tokenizer of the model.
        keep: Special tokens that the text may hold.
    """
    ids = encode([text], tokenizer)
    if not keep and special_ids(tokenizer) & set(ids[0][:-1]):
        text = without_special_tokens(text, tokenizer)
        ids = encode([text], tokenizer)
    back = decode(ids, tokenizer, keep=keep)[0]
    return back if letters_of(back) == letters_of(text) else _with_runs_of(text, tokenizer)


def _with_runs_of(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the words of the text, with the white space that the tokenizer keeps between words that it knows."""
    words = text.split()
    back = decode(encode([re.sub(r"\S+", "1", text)], tokenizer), tokenizer)[0]
    runs = back.split("1")
    if len(runs) != len(words) + 1:
        return " ".join(words)
    return runs[0] + "".join(word + run for word, run in zip(words, runs[1:], strict=True))


def letters_of(text: str) -> str:
    """Return the text without white space."""
    return "".join(text.split())


def _space_after_added(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    return re.compile(f"({'|'.join(map(re.escape, tokens))}) ") if tokens else None
