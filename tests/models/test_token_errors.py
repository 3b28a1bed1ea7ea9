"""Tokens that cannot be added or trained, by the text of the error."""

from __future__ import annotations

from pathlib import Path

import pytest
from token_cases import NEW, small_t5, trained
from vocabulary import small_tokenizer

from t5peft.adapters import load_with_tokens, save_adapter
from t5peft.methods import ia3_wrap, lora_wrap
from t5peft.models.tokens import add_tokens, train_tokens


def test_tokens_that_cannot_be_added_are_told_at_once() -> None:
    model, tokenizer = small_t5("v1.0")
    with pytest.raises(ValueError, match="Got tokens that cannot be added: '' cannot be a token") as error:
        add_tokens(model, tokenizer, ["", "</s>", "{", "{"])
    for part in ("'</s>' is in the vocabulary already, as 1", "'{' is there 2 times"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="Got tokens that cannot be added: 7 cannot be a token"):
        add_tokens(model, tokenizer, [7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"\[\] is not a list of tokens"):
        add_tokens(model, tokenizer, [])
    assert len(tokenizer) == len(small_tokenizer())
    assert len(add_tokens(model, tokenizer, iter(["<g>", "<h>"]))) == 2  # type: ignore[arg-type]


def test_only_lora_adapters_train_tokens_and_once() -> None:
    model, tokenizer = small_t5("v1.0")
    ids = add_tokens(model, tokenizer, NEW)
    with pytest.raises(ValueError, match="expected one wrapped by lora_wrap or qlora_wrap"):
        train_tokens(model, ids)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Got a model with .*IA3"):
        train_tokens(ia3_wrap(model), ids)
    wrapped, _, ids = trained("v1.0")
    with pytest.raises(ValueError, match="trains tokens already; expected all ids in one call"):
        train_tokens(wrapped, ids)


def test_an_id_outside_the_table_is_told() -> None:
    model, _ = small_t5("v1.0")
    with pytest.raises(ValueError, match=r"Got ids \[9999\]; expected ids below"):
        train_tokens(lora_wrap(model), [9999])


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    wrapped, _, _ = trained("v1.0")
    save_adapter(wrapped, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer; expected one with the adapter\. Save"):
        load_with_tokens(tmp_path / "adapter")
