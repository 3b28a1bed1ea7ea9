"""The door for sources: every iterable of texts or token ids is served, and everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from tiny import tiny_classifier, tiny_t5
from transformers import ByT5Tokenizer

from t5peft.data.collate import pad_rows
from t5peft.data.sources import read_candidates, read_sources
from t5peft.evaluation import classify, predict, rank

TEXTS = ["one", "two words"]
IDS = [[5, 6, 1], [7, 1]]
TOKENIZER = ByT5Tokenizer()

TEXT_FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "map": lambda: map(str, TEXTS),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "array": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "Series": lambda: pd.Series(TEXTS),
    "column": lambda: Dataset.from_dict({"text": TEXTS})["text"],
    "Arrow": lambda: pa.array(TEXTS),
}
ID_FORMS: dict[str, Callable[[], Any]] = {
    "lists": lambda: IDS,
    "tuples": lambda: tuple(tuple(row) for row in IDS),
    "generator": lambda: (row for row in IDS),
    "arrays": lambda: [np.array(row) for row in IDS],
    "tensors": lambda: [torch.tensor(row) for row in IDS],
    "column": lambda: Dataset.from_dict({"input_ids": IDS})["input_ids"],
    "Arrow": lambda: pa.array(IDS),
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_texts_are_read_from_every_iterable(form: str) -> None:
    found = read_sources(TEXT_FORMS[form]())
    assert found == TEXTS
    assert all(type(text) is str for text in found)


@pytest.mark.parametrize("form", ID_FORMS)
def test_token_ids_are_read_from_every_iterable(form: str) -> None:
    found = read_sources(ID_FORMS[form]())
    assert found == IDS
    assert all(type(token) is int for row in found for token in row)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (lambda: "one", r"Got one text as sources, 'one'; expected a list"),
    "bytes": (lambda: b"one", "Got builtins.bytes as sources"),
    "None": (lambda: None, "Got builtins.NoneType as sources"),
    "number": (lambda: 3, "Got builtins.int as sources"),
    "table": (lambda: pd.DataFrame({"text": TEXTS}), r"Got pandas.DataFrame as sources; .* table\['text'\]"),
    "Dataset": (lambda: Dataset.from_dict({"text": TEXTS}), "Got datasets.Dataset as sources"),
    "Arrow table": (lambda: pa.table({"text": TEXTS}), "Got pyarrow.Table as sources"),
    "set": (lambda: {"a", "b"}, r"Got builtins.set as sources; .*no order that answers could follow\. Write sorted"),
    "mapping": (lambda: {"input_ids": IDS}, r"Got builtins.dict as sources; .* batch\['input_ids'\]"),
    "batch": (lambda: TOKENIZER(TEXTS), "Got transformers.BatchEncoding as sources"),
    "missing": (lambda: ["one", None], r"source 1 is None \(NoneType, a missing value\)"),
    "only missing": (lambda: [None], r"Got None \(NoneType, a missing value\) as source 0"),
    "NaN": (
        lambda: pd.Series(["one", None], dtype=object).replace({None: np.nan}),
        "source 1 is nan .float, a missing",
    ),
    "numbers": (lambda: [1.5, 2.5], r"Got 1.5 \(float\) as source 0"),
    "ids of one source": (lambda: [5, 6, 1], r"Got 5 \(int\) as source 0"),
    "tensor of one source": (lambda: torch.tensor([5, 6, 1]), r"Got 5 \(int\) as source 0"),
    "records": (lambda: [{"text": "one"}], r"\(dict\) as source 0"),
    "negative ids": (lambda: [[5, -100]], r"Got \[5, -100\] \(list\) as source 0"),
    "mixed": (lambda: [[5, 1], "one"], "several kinds: source 0 is .* source 1 is 'one'"),
    "empty ids": (lambda: [[5, 1], []], "Got no token ids as source 1"),
    "bytes inside": (lambda: [b"one"], r"Got b'one' \(bytes\) as source 0"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_everything_else_is_refused_by_name(form: str) -> None:
    given, message = REFUSED[form]
    with pytest.raises(ValueError, match=message):
        read_sources(given())


def test_every_evaluation_takes_its_sources_by_this_door() -> None:
    model, head = tiny_t5(), tiny_classifier()
    answers = predict(model, TOKENIZER, (text for text in TEXTS), max_new_tokens=3)
    assert list(answers) == list(predict(model, TOKENIZER, TEXTS, max_new_tokens=3))
    assert len(answers) == 2
    ranking = rank(model, TOKENIZER, iter(TEXTS), (word for word in ("a", "b")))
    assert torch.equal(ranking.probabilities, rank(model, TOKENIZER, TEXTS, ["a", "b"]).probabilities)
    assert classify(head, TOKENIZER, iter(TEXTS)).best == classify(head, TOKENIZER, TEXTS).best
    for call in (
        lambda table: predict(model, TOKENIZER, table, max_new_tokens=3),
        lambda table: rank(model, TOKENIZER, table, ["a", "b"]),
        lambda table: classify(head, TOKENIZER, table),
    ):
        with pytest.raises(ValueError, match=r"Got pandas.DataFrame as sources"):
            call(pd.DataFrame({"text": TEXTS}))


def test_padding_around_token_ids_changes_no_answer() -> None:
    padded = torch.tensor([[0, 0, 5, 6, 0, 1], [7, 1, 0, 0, 0, 0]])
    bare = [[5, 6, 0, 1], [7, 1]]
    found = rank(tiny_t5(), TOKENIZER, padded, ["a", "b"]).log_probabilities
    assert torch.equal(found, rank(tiny_t5(), TOKENIZER, bare, ["a", "b"]).log_probabilities)


def test_candidates_are_read_by_the_same_door() -> None:
    assert read_candidates(pd.Series(["a", "b"])) == ["a", "b"]
    assert read_candidates(iter([("a", "b"), np.array(["c"])])) == [["a", "b"], ["c"]]
    for wrong, message in (
        ("ab", "Got one text as candidates"),
        ([["a"], "bc"], r"Got \['a'\] \(list\) as number 0 of candidates"),
        ([["a", None]], r"Got None .* as number 1 of the candidates of source 0"),
        (["a", float("nan")], "Got nan .* as number 1 of candidates"),
        (pd.DataFrame({"a": ["b"]}), "Got pandas.DataFrame as candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            read_candidates(wrong)


def test_rows_are_padded_on_the_right() -> None:
    assert pad_rows([[1, 2, 3], [], (4,)], -1).tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    assert pad_rows([range(2)], 0).dtype == torch.int64
