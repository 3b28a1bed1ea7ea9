"""A task trains on, answers and scores all that a tokenizer can carry; no answer is wrong for what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from paths import PUBLIC_DATA, ROOT
from tiny import tiny_t5
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, T5Tokenizer
from vocabulary import small_tokenizer

from t5peft.cli.predict import answer
from t5peft.data import Task
from t5peft.data.decoding import as_written, decode
from t5peft.evaluation import EvaluationSet, evaluate_task, prediction

CODE = Task("code", "write: {text}", "{code}", metrics=("accuracy",))
FRAME = Task("frame", "fill: {text}", "{a} <extra_id_0> {b}", metrics=("accuracy", "rouge"))


def t5_tokenizer() -> T5Tokenizer:
    if not PUBLIC_DATA.is_dir():
        pytest.skip("no real data: set T5PEFT_DATA to their folder")
    return T5Tokenizer.from_pretrained(PUBLIC_DATA / "t5_vocab")


def t5_with_tokens() -> T5Tokenizer:
    tokenizer = t5_tokenizer()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n", "{", "}")])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "mini": lambda: AutoTokenizer.from_pretrained(ROOT / "t5peft" / "mini"),
    "byt5": ByT5Tokenizer,
    "t5": t5_tokenizer,
    "t5 with tokens": t5_with_tokens,
    "small": small_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return TOKENIZERS[request.param]()


def made(name: str) -> PreTrainedTokenizerBase:
    return TOKENIZERS[name]()


def perfect(task: Task, records: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The answers of a model that writes every target as it was trained to."""
    targets = task.encode(records, tokenizer).targets.ids
    return [task.read(text, tokenizer) for text in decode(targets, tokenizer, keep=task.special_tokens(tokenizer))]


TEXTS = ["if a:\n    x", "a\tb", "a  b", "  a", "a\n\nb ", "it , is . n't", "one two"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_perfect_answer_is_right_with_every_tokenizer(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    record: dict[str, Any] = {"text": "go", "code": text, "refs": ["zzz", text]}
    assert perfect(CODE, [record], tokenizer) == CODE.answers(record, tokenizer)
    several = Task("code", "write: {text}", "{code}", references="refs")
    assert perfect(CODE, [record], tokenizer)[0] in several.answers(record, tokenizer)


@pytest.mark.parametrize("name", ["mini", "byt5"])
def test_a_special_token_in_a_reference_is_broken_up_as_in_training(name: str) -> None:
    record: dict[str, Any] = {"text": "go", "code": "a </s> b"}
    assert perfect(CODE, [record], made(name)) == CODE.answers(record, made(name)) == ["a < /s> b"]


@pytest.mark.parametrize("name", ["mini", "byt5"])
@pytest.mark.parametrize("text", ["if a:\n    x", "a\tb", "a  b", "a\n\nb ", "it , is . n't", "x = [\n  1 ,\n]"])
def test_white_space_that_the_tokenizer_keeps_is_in_the_answer(text: str, name: str) -> None:
    record: dict[str, Any] = {"text": "go", "code": text}
    assert perfect(CODE, [record], made(name)) == [text] == CODE.answers(record)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a\nb", "a\nb"), ("{a}\n\n{b}", "{a}\n\n{b}"), ("a {b}", "a{b}"), ("a\n    b", "a\nb"), ("a , b", "a , b")],
)
def test_added_tokens_are_written_without_a_space_of_the_tokenizers(text: str, answer: str) -> None:
    record: dict[str, Any] = {"text": "go", "code": text}
    assert perfect(CODE, [record], t5_with_tokens()) == [answer] == CODE.answers(record, t5_with_tokens())


@pytest.mark.parametrize(
    ("name", "other"),
    [("mini", "if a: x"), ("byt5", "if a:\n  x"), ("t5 with tokens", "if a: x"), ("mini", "if a:\n\tx")],
)
def test_another_layout_is_another_answer_where_the_tokenizer_can_tell(name: str, other: str) -> None:
    assert perfect(CODE, [{"text": "go", "code": other}], made(name)) != CODE.answers(
        {"code": "if a:\n    x"}, made(name)
    )


def test_letters_that_the_tokenizer_loses_stay_in_the_reference() -> None:
    assert as_written("a {b}\n c", small_tokenizer()) == "a {b} c"
    record: dict[str, Any] = {"text": "go", "code": "a {b}\n c"}
    assert perfect(CODE, [record], small_tokenizer()) != CODE.answers(record, small_tokenizer())


@pytest.mark.parametrize(
    "target",
    ["{a} <extra_id_0> {b}", "<extra_id_0> {a} <extra_id_1> {b}", "{a}<extra_id_0>{b}", "{a} <extra_id_5>\n{b} end"],
)
def test_sentinels_of_the_target_template_are_in_the_answer(target: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Task("frame", "fill: {text}", target)
    record: dict[str, Any] = {"text": "go", "a": "one", "b": "two"}
    assert perfect(task, [record], tokenizer) == task.answers(record, tokenizer)
    assert perfect(task, [record], tokenizer)[0].split() == task.target_text(record).split()


def test_sentinels_that_the_template_does_not_write_are_not_in_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert CODE.special_tokens(tokenizer) == ()
    assert FRAME.special_tokens(tokenizer) == ("<extra_id_0>",)
    ids = tokenizer("<extra_id_1> one <extra_id_0> two")["input_ids"]
    assert "extra_id_1" not in decode([ids], tokenizer, keep=("<extra_id_0>",))[0]
    assert "extra" not in decode([[tokenizer.pad_token_id, *ids]], tokenizer)[0]


def test_labels_may_differ_in_white_space_that_the_tokenizer_keeps() -> None:
    task = Task("layout", "{text}", "{label}", {"0": "a b", "1": "a\nb"}, metrics=("accuracy",))
    assert (task.read("a b"), task.read("a\nb")) == ("0", "1")
    assert task.collisions(ByT5Tokenizer()) == []
    assert "have the same tokens" in task.collisions(small_tokenizer())[0]


@pytest.fixture
def answers_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Task, list[dict[str, Any]]], None]:
    """Let generation give the targets of records, in the order of their sources."""

    def install(task: Task, records: list[dict[str, Any]]) -> None:
        encoded = task.encode(records, ByT5Tokenizer())
        by_source = {
            tuple(source): target for source, target in zip(encoded.sources.ids, encoded.targets.ids, strict=True)
        }

        def generate(model: object, t5: object, rows: list[list[int]], *_: object) -> torch.Tensor:
            found = [[0, *by_source[tuple(row)]] for row in rows]
            longest = max(map(len, found))
            return torch.tensor([[*row, *[0] * (longest - len(row))] for row in found])

        monkeypatch.setattr(prediction, "_generate", generate)

    return install


def test_a_model_of_bytes_answers_and_is_scored_with_its_line_breaks(
    answers_of: Callable[[Task, list[dict[str, Any]]], None],
) -> None:
    model, tokenizer = tiny_t5(), ByT5Tokenizer()
    records = [{"text": "f", "code": "if a:\n    x"}, {"text": "g", "code": "a <b>"}]
    flat = [{"text": "f", "code": "if a: x"}, records[1]]
    answers_of(CODE, records)
    (answers,) = answer(model, tokenizer, CODE, [{"text": "f"}, {"text": "g"}])
    assert [found["answer"] for _, found in answers] == ["if a:\n    x", "a <b>"]
    assert evaluate_task(model, tokenizer, CODE, records)["accuracy"] == 1.0
    assert evaluate_task(model, tokenizer, CODE, flat)["accuracy"] == 0.5
    assert EvaluationSet(CODE, records, tokenizer).score(model).per_example == [1.0, 1.0]
    assert EvaluationSet(CODE, flat, tokenizer).score(model).per_example == [0.0, 1.0]


def test_a_model_that_writes_a_sentinel_is_right(
    answers_of: Callable[[Task, list[dict[str, Any]]], None],
) -> None:
    model, tokenizer = tiny_t5(), ByT5Tokenizer()
    records = [{"text": "f", "a": "one", "b": "two"}]
    answers_of(FRAME, records)
    assert next(answer(model, tokenizer, FRAME, [{"text": "f"}]))[0][1]["answer"] == "one <extra_id_0> two"
    assert evaluate_task(model, tokenizer, FRAME, records)["accuracy"] == 1.0
    assert EvaluationSet(FRAME, records, tokenizer).score(model).scores["accuracy"] == 1.0
