"""The parts of a text that is decoded token by token are the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from t5peft.data.decoding import decode
from t5peft.models.backbone import load_tokenizer
from t5peft.serving.text_stream import Pieces, TextStream, cut_at

BYTES, PIECES = tiny_tokenizer(), load_tokenizer("mini")
BRACES = load_tokenizer("mini")
BRACES.add_tokens(["{", "}", "<sep>"])
PIECES_OF = {id(tokenizer): Pieces(tokenizer) for tokenizer in (BYTES, PIECES, BRACES)}


def parts_of(ids: list[int], tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(PIECES_OF[id(tokenizer)], stop)
    return [*(stream.push(token) for token in ids), stream.finish()]


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=20))
@settings(deadline=None, max_examples=100)
def test_the_parts_of_bytes_are_the_whole_text(ids: list[int]) -> None:
    assert "".join(parts_of(ids, BYTES)) == decode([ids], BYTES)[0]


@given(st.text("aé漢🙂 ", max_size=12))
@settings(deadline=None, max_examples=50)
def test_characters_of_several_bytes_come_whole(text: str) -> None:
    ids = BYTES(text)["input_ids"]
    parts = parts_of(ids, BYTES)
    assert "".join(parts) == decode([ids], BYTES)[0]
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("tokenizer", [PIECES, BRACES], ids=["mini", "with added tokens"])
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_parts_of_pieces_are_the_whole_text(tokenizer: PreTrainedTokenizerBase, data: st.DataObject) -> None:
    size = len(tokenizer)
    ids = data.draw(
        st.lists(st.one_of(st.integers(0, size - 1), st.integers(size - 3, size - 1), st.integers(4, 259)), max_size=20)
    )
    assert "".join(parts_of(ids, tokenizer)) == decode([ids], tokenizer)[0]


def test_added_tokens_keep_the_spaces_that_the_whole_text_has() -> None:
    ids = BRACES("say {a} and { b } <sep>c")["input_ids"]
    assert "".join(parts_of(ids, BRACES)) == decode([ids], BRACES)[0]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    ids = PIECES("This is a short sentence of words.")["input_ids"]
    parts = parts_of(ids, PIECES)
    assert sum(map(bool, parts)) > 4
    assert parts[-1] == ""


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(deadline=None, max_examples=100)
def test_a_stop_text_and_its_beginning_never_show(text: str, stop: list[str]) -> None:
    ids = BYTES(text)["input_ids"]
    parts = parts_of(ids, BYTES, tuple(stop))
    # The first to be complete ends the answer; nothing of it was given out.
    joined = "".join(parts)
    assert text.startswith(joined)
    assert not any(one in joined for one in stop)
    if not any(one in text for one in stop):
        assert joined == text
    else:
        assert any(text[len(joined) :].startswith(one) for one in stop)


def test_a_text_is_cut_at_the_first_of_several_stop_texts() -> None:
    assert cut_at("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at("one two three", ["four"]) == ("one two three", False)
