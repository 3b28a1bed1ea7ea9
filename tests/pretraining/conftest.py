"""A small text, and a vocabulary and a token store made of it."""

from __future__ import annotations

import pytest
from documents import document
from transformers import PreTrainedTokenizerFast

from t5peft.pretraining.tokenizer import train_tokenizer
from t5peft.pretraining.tokens import TokenStore, write_store


@pytest.fixture(scope="session")
def documents() -> list[list[str]]:
    return [document(number) for number in range(120)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[list[str]]) -> PreTrainedTokenizerFast:
    return train_tokenizer(documents, vocabulary=620, sentinels=100, share=1.0, threads=1)


@pytest.fixture(scope="session")
def store(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> TokenStore:
    return write_store(documents, tokenizer, tmp_path_factory.mktemp("store"))
