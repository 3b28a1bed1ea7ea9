"""Tokens of rendered templates: cut in the columns only, and free of special tokens that a user's text spells out.

T5's tokenizer turns ``</s>`` or ``<extra_id_0>`` inside a user's text into the special token itself, which ends the
sequence or asks for a span. ``split_special_tokens=True`` does not help: the special tokens are pieces of the unigram
vocabulary too, so the model of the vocabulary finds them again, and its normaliser makes them out of full-width
letters (``＜/s＞``) besides. So the ids are looked at, and where one is special that the template did not write, the
value that brought it is normalised as the tokenizer does it and broken up (``< /s>``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from t5peft.data.template import Template

Row = dict[str, str]


@dataclass(frozen=True)
class Fitted:
    """Texts and their token ids, which end in ``</s>``, and the rows that had to be changed or cannot be used."""

    texts: list[str]
    ids: list[list[int]]
    cut: list[int]
    escaped: list[int]
    empty: list[int]
    crowded_out: list[int]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that only a template may write. The unknown piece is not among them: any text may hold unknown letters."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, ending in ``</s>`` also where the tokenizer does not add it. Nothing is cut."""
    texts = list(texts)
    if not texts:
        return []
    end = tokenizer.eos_token_id
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    return [list(ids) if ids and ids[-1] == end else [*ids, end] for ids in encoded]


def fit(template: Template, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Fitted:
    """Render the template over rows and tokenise, so that each has at most ``max_tokens`` tokens with ``</s>``.

    A text that is too long loses the ends of its longest columns; the template's own words stay whole. Rows whose
    columns leave no token are returned as ``empty``, rows where the template leaves no room for them as
    ``crowded_out``: the caller decides what to say.

    Raises:
        ValueError: special tokens appear that neither the template nor one column alone has written.
    """
    rows = list(rows)
    texts = [template.render(row) for row in rows]
    ids = encode(texts, tokenizer)
    bare = encode([template.empty()], tokenizer)[0]
    escaped = _escape(template, rows, texts, ids, bare, tokenizer)
    too_long = [i for i, tokens in enumerate(ids) if len(tokens) > max_tokens]
    crowded_out = _cut(template, rows, texts, ids, too_long, tokenizer, max_tokens)
    blank = {i for i, row in enumerate(rows) if not any(value.strip() for value in row.values())}
    empty = [i for i, tokens in enumerate(ids) if (i in blank or tokens == bare) and i not in crowded_out]
    return Fitted(texts, ids, too_long, escaped, empty, sorted(crowded_out))


def _escape(
    template: Template,
    rows: list[Row],
    texts: list[str],
    ids: list[list[int]],
    bare: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Break up special tokens that columns spell out, in place, and name the rows changed."""
    special = special_ids(tokenizer)

    def count(tokens: list[int]) -> int:
        return sum(token in special for token in tokens)

    allowed = count(bare)
    changed = [i for i, tokens in enumerate(ids) if count(tokens) > allowed]
    for i in changed:
        rows[i] = {column: without_special_tokens(value, tokenizer) for column, value in rows[i].items()}
        texts[i] = template.render(rows[i])
        ids[i] = encode([texts[i]], tokenizer)[0]
        if count(ids[i]) > allowed:
            raise ValueError(
                f"row {i}: the template {template.text!r} and its columns together spell a special token in "
                f"{texts[i][:80]!r}; put a space between the template's text and the column"
            )
    return changed


def without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with every special token that it spells broken by a space: ``</s>`` becomes ``< /s>``."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    for token in sorted(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))), key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _cut(
    template: Template,
    rows: list[Row],
    texts: list[str],
    ids: list[list[int]],
    too_long: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> set[int]:
    """Cut each long row's columns, in place, to the most characters that fit, and name the rows with no room at all.

    One search runs over all rows at once, so that the tokenizer is called some ten times in all. It guesses from the
    tokens per character and halves the interval in turn; a row that fills the limit exactly is done.
    """
    bare = len(encode([template.empty()], tokenizer)[0])
    low = dict.fromkeys(too_long, (0, bare))
    high = {i: (max(map(len, rows[i].values())), len(ids[i])) for i in too_long}
    best: dict[int, tuple[str, list[int]]] = {}
    open_rows, guess = too_long, True
    while open_rows := [i for i in open_rows if high[i][0] - low[i][0] > 1 and low[i][1] < max_tokens]:
        trials = {i: _trial(low[i], high[i], max_tokens, guess) for i in open_rows}
        trial_texts = [template.render(rows[i], trials[i]) for i in open_rows]
        for i, text, tokens in zip(open_rows, trial_texts, encode(trial_texts, tokenizer), strict=True):
            if len(tokens) <= max_tokens:
                low[i], best[i] = (trials[i], len(tokens)), (text, tokens)
            else:
                high[i] = (trials[i], len(tokens))
        guess = not guess
    for i, (text, tokens) in best.items():
        texts[i], ids[i] = text, tokens
    return {i for i in too_long if i not in best}


def _trial(low: tuple[int, int], high: tuple[int, int], max_tokens: int, guess: bool) -> int:
    """A number of characters between low and high, both (characters, tokens): guessed by proportion, or the middle."""
    share = (max_tokens - low[1]) / max(1, high[1] - low[1]) if guess else 0.5
    return min(max(low[0] + int((high[0] - low[0]) * share), low[0] + 1), high[0] - 1)
