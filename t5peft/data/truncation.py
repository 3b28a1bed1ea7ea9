"""Token ids of rendered templates: truncated only in the columns, and free of special tokens that a user's text spells.

T5's tokenizer turns ``</s>`` or ``<extra_id_0>`` in a user's text into the special token itself, which ends the sequence or
asks for a span. ``split_special_tokens=True`` does not help: the special tokens are also pieces of the unigram vocabulary,
so the model of the vocabulary finds them again, and its normalizer makes them out of full-width letters (``＜/s＞``).
Therefore the ids are checked. Where one is special that the template did not write, the value that brought it is normalized
as the tokenizer does it and broken up (``< /s>``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from t5peft.data.template import Template

Row = dict[str, str]
_MANY = 16


@dataclass(frozen=True)
class Truncated:
    """Texts and their token ids, and the rows that had to be changed or cannot be used.

    Args:
        texts: The rendered templates, as they were tokenized.
        ids: Token ids of each text, ending in ``</s>``.
        cut: Rows that were too long and lost the ends of their columns.
        escaped: Rows whose text spelled special tokens.
        empty: Rows whose columns leave no token.
        crowded_out: Rows where the template leaves no room for its columns.
    """

    texts: list[str]
    ids: list[list[int]]
    cut: list[int]
    escaped: list[int]
    empty: list[int]
    crowded_out: list[int]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that only a template may write; not the unknown piece, as any text may hold unknown letters."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each text [B][S], ending in ``</s>`` also where the tokenizer does not add it."""
    texts = list(texts)
    if not texts:
        return []
    end = tokenizer.eos_token_id
    many = len(texts) >= _MANY and tokenizer.is_fast
    first = texts[:1] if many else texts  # the call also drops settings that earlier ones have left
    encoded = tokenizer(first, verbose=False, return_attention_mask=False, return_token_type_ids=False)["input_ids"]
    if many:
        # without the places of the tokens in the texts, which take a tenth of the time
        encoded = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]
    return [ids if ids and ids[-1] == end else [*ids, end] for ids in encoded]


def as_targets(ids: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of targets without a start token, where the model starts its decoder by that token itself.

    The tokenizers of Gemma put it before each text and no ``</s>`` after it. Those of CodeT5 put both, as the model was trained.

    Args:
        ids: As ``encode`` returns them.
        tokenizer: The tokenizer.
    """
    start, bare = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    if start is None or bare[0] != start or bare[-1] == tokenizer.eos_token_id:
        return list(ids)
    return [row[1:] if row[0] == start else row for row in ids]


def truncate(
    template: Template,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    first_row: int = 0,
) -> Truncated:
    """Render the template over rows and tokenize, so that each has at most ``max_tokens`` tokens with ``</s>``.

    A text that is too long loses the ends of its longest columns; the template's own words stay whole. Rows that cannot be
    used are returned, and the caller decides what to raise.

    Args:
        template: The template.
        rows: The texts of its columns.
        tokenizer: The tokenizer.
        max_tokens: The limit.
        first_row: The number of the first row, for errors.

    Raises:
        ValueError: Special tokens appear that neither the template nor a single column has written.
    """
    rendered = _Rendered(template, rows, tokenizer)
    ids, bare = rendered.ids, rendered.bare
    escaped = rendered.escape(first_row)
    too_long = [i for i, tokens in enumerate(ids) if len(tokens) > max_tokens]
    crowded_out = rendered.cut(too_long, max_tokens)
    blank = {i for i, row in enumerate(rendered.rows) if not any(value.strip() for value in row.values())}
    empty = [i for i, tokens in enumerate(ids) if (i in blank or tokens == bare) and i not in crowded_out]
    return Truncated(rendered.texts, ids, too_long, escaped, empty, sorted(crowded_out))


class _Rendered:
    """Rows in a template, as texts and as token ids, which are changed together; ``bare`` is the template without them."""

    def __init__(self, template: Template, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.rows, self.tokenizer = template, list(rows), tokenizer
        self.texts = [template.render(row) for row in self.rows]
        self.ids = encode(self.texts, tokenizer)
        self.bare = encode([template.empty()], tokenizer)[0]

    def escape(self, first_row: int) -> list[int]:
        """Break up special tokens that columns spell, and return the rows changed."""
        rows, texts, ids = self.rows, self.texts, self.ids
        special, end = special_ids(self.tokenizer), self.tokenizer.eos_token_id
        others = special - {end}

        def count(tokens: list[int]) -> int:
            # Of most rows only </s> is special; this tells it without a step of Python for each token.
            return tokens.count(end) if others.isdisjoint(tokens) else sum(token in special for token in tokens)

        allowed = count(self.bare)
        changed = [i for i, tokens in enumerate(ids) if count(tokens) > allowed]
        for i in changed:
            rows[i] = {column: without_special_tokens(value, self.tokenizer) for column, value in rows[i].items()}
            texts[i] = self.template.render(rows[i])
            ids[i] = encode([texts[i]], self.tokenizer)[0]
            if count(ids[i]) > allowed:
                raise ValueError(
                    f"Got a special token in row {first_row + i} that the template {self.template.text!r} and its columns form "
                    f"together, in {texts[i][:80]!r}; expected none. Put a space between the template's text and the column."
                )
        return changed

    def cut(self, too_long: list[int], max_tokens: int) -> set[int]:
        """Truncate each long row's columns to the most characters that fit, and return the rows with no room at all.

        One search runs over all rows at once, so that the tokenizer is called about ten times in all. It guesses from the
        tokens per character and halves the interval in turn; a row that fills the limit exactly is done.
        """
        low = dict.fromkeys(too_long, (0, len(self.bare)))
        high = {i: (max(map(len, self.rows[i].values())), len(self.ids[i])) for i in too_long}
        best: dict[int, tuple[str, list[int]]] = {}
        open_rows, guess = too_long, True
        while open_rows := [i for i in open_rows if high[i][0] - low[i][0] > 1 and low[i][1] < max_tokens]:
            trials = {i: _trial(low[i], high[i], max_tokens, guess) for i in open_rows}
            trial_texts = [self.template.render(self.rows[i], trials[i]) for i in open_rows]
            for i, text, tokens in zip(open_rows, trial_texts, encode(trial_texts, self.tokenizer), strict=True):
                if len(tokens) <= max_tokens:
                    low[i], best[i] = (trials[i], len(tokens)), (text, tokens)
                else:
                    high[i] = (trials[i], len(tokens))
            guess = not guess
        for i, (text, tokens) in best.items():
            self.texts[i], self.ids[i] = text, tokens
        return {i for i in too_long if i not in best}


def without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text with every special token that it spells broken by a space: ``</s>`` becomes ``< /s>``."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    if normalizer is not None:
        text = normalizer.normalize_str(text)
    for token in sorted(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))), key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _trial(low: tuple[int, int], high: tuple[int, int], max_tokens: int, guess: bool) -> int:
    """Return a number of characters between low and high, both (characters, tokens): by proportion, or the middle."""
    share = (max_tokens - low[1]) / max(1, high[1] - low[1]) if guess else 0.5
    return min(max(low[0] + int((high[0] - low[0]) * share), low[0] + 1), high[0] - 1)
