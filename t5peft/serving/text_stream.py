"""Texts from tokens that come one by one: the parts put together are exactly the text of all tokens."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from t5peft.data.decoding import decode
from t5peft.data.truncation import special_ids

_HALF_CHARACTER = "\ufffd"


class Pieces:
    """Decode token by token with a tokenizer whose tables are read once, as reading them takes longer than decoding.

    Args:
        tokenizer: Of the model.
        keep: Special tokens that stay in texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep: Collection[str] = ()) -> None:
        self.tokenizer, self.keep = tokenizer, keep
        kept = {found for token in keep if isinstance(found := tokenizer.convert_tokens_to_ids(token), int)}
        self._dropped = (special_ids(tokenizer) | {tokenizer.unk_token_id}) - kept
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
        self._added = re.compile("|".join(map(re.escape, added))) if added else None
        # A run of byte pieces is decoded as a whole: wrong bytes at its end change its beginning.
        self._bytes = {i for piece, i in tokenizer.get_vocab().items() if re.fullmatch(r"<0x[0-9A-F]{2}>", piece)}

    def certain(self, ids: Sequence[int]) -> str:
        """Return the text of the first tokens of an answer as far as no later token can change it.

        Args:
            ids: The tokens so far.

        Returns:
            The text without spaces and half characters at its end, and without all from the first added token on.
        """
        bare = [token for token in ids if token not in self._dropped]
        while bare and bare[-1] in self._bytes:
            bare.pop()
        text: str = self.tokenizer.batch_decode([bare], clean_up_tokenization_spaces=False)[0]
        if self._added is not None and (found := self._added.search(text)):
            text = text[: found.start()]
        return text.rstrip().rstrip(_HALF_CHARACTER).rstrip()

    def complete(self, ids: Sequence[int]) -> str:
        """Return the text of all tokens of an answer.

        Args:
            ids: The tokens.
        """
        return decode([ids], self.tokenizer, keep=self.keep)[0]


class TextStream:
    """Give out the text of an answer as far as later tokens cannot change it.

    Held back are spaces at the end, the end itself where a character is not complete, all from the first added token on (the
    space behind it may go when the text is complete), and all that may be the beginning of a stop text.

    Args:
        pieces: Of the tokenizer.
        stop: Texts at which the answer ends; they are not part of it.
    """

    def __init__(self, pieces: Pieces, stop: Sequence[str] = ()) -> None:
        self._pieces, self._stop = pieces, stop
        self._ids: list[int] = []
        self._given = 0
        self.offset = 0  # where the text of the next token begins
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take a token and return the text that became certain.

        Args:
            token_id: The next token of the answer.

        Returns:
            The text behind what was returned before; empty after a stop text.
        """
        self._ids.append(token_id)
        if self.stopped:
            return ""
        text = self._pieces.certain(self._ids)
        self.offset = len(text)
        text, self.stopped = cut_at(text, self._stop)
        return self._give(text if self.stopped else text[: len(text) - _begun(text, self._stop)])

    def finish(self) -> str:
        """Return the rest of the text, when no token follows."""
        if self.stopped:
            return ""
        text, self.stopped = cut_at(self._pieces.complete(self._ids), self._stop)
        return self._give(text)

    def _give(self, text: str) -> str:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before the first of the stop texts in it.

    Args:
        text: The text.
        stop: Stop texts.

    Returns:
        The text before, and whether it was cut.
    """
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _begun(text: str, stop: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a stop text."""
    return max((size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])), default=0)
