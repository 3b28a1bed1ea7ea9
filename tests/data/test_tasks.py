"""Tasks: what a record becomes, what an answer means, and what every wrong input is told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from example_tasks import SENTIMENT, SUMMARY, text_of
from narrow import text
from paths import PUBLIC_DATA
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, T5Tokenizer
from vocabulary import small_tokenizer

from t5peft.data import PRESETS, Task, preset_task
from t5peft.data.template import Template
from t5peft.data.truncation import special_ids, without_special_tokens

needs_real_data = pytest.mark.skipif(not PUBLIC_DATA.is_dir(), reason="no real data: set T5PEFT_DATA to their folder")


@pytest.fixture(scope="module", params=["mini", "small", "t5", "byt5"])
def tokenizer(request: pytest.FixtureRequest, mini: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if request.param == "mini":
        return mini
    if request.param == "byt5":
        return ByT5Tokenizer()
    if request.param == "small":
        return small_tokenizer()
    if not PUBLIC_DATA.is_dir():
        pytest.skip("no real data: set T5PEFT_DATA to their folder")
    return T5Tokenizer.from_pretrained(PUBLIC_DATA / "t5_vocab")


# What a record becomes


def test_source_and_target_are_the_templates_over_the_columns() -> None:
    record = {"sentence": "a fine film", "label": 1}
    assert SENTIMENT.source(record) == "sentence: a fine film"
    assert SENTIMENT.target_text(record) == "positive"


def test_a_template_may_hold_braces_and_columns_with_spaces() -> None:
    task = Task("json", '{{"text": "{the text}"}}', "{n}")
    assert task.source({"the text": "a"}) == '{"text": "a"}'
    assert task.target_text({"n": 2.5}) == "2.5"


def test_an_answer_is_read_as_its_label_and_else_as_itself() -> None:
    assert SENTIMENT.read(" positive ") == "1"
    assert SENTIMENT.read("so  so\n") == "so  so\n"
    assert SENTIMENT.answers({"label": 0}) == ["0"]


def test_a_cloze_target_is_read_with_and_without_its_sentinel() -> None:
    task = Task("cloze", "{text} It was <extra_id_0>.", "<extra_id_0> {label}", {"0": "bad", "1": "good"})
    assert task.candidates == ("<extra_id_0> bad", "<extra_id_0> good")
    assert task.read("<extra_id_0> good") == task.read("good") == "1"


def test_references_are_the_answers_where_there_are_several() -> None:
    task = Task("text", "{mr}", "{text}", references="texts")
    assert task.answers({"mr": "x", "text": "a", "texts": ["a", " b  c"]}) == ["a", " b  c"]
    assert task.answers({"mr": "x", "text": "a", "texts": []}) == ["a"]
    assert task.answers({"mr": "x", "text": "a", "texts": "one only"}) == ["one only"]
    assert task.answers({"mr": "x", "text": "a", "texts": np.array(["b", "c"])}) == ["b", "c"]


def test_a_reference_that_is_missing_is_no_word() -> None:
    task = Task("text", "{mr}", "{text}", references="texts")
    for missing in (None, float("nan")):
        assert task.answers({"mr": "x", "text": "a", "texts": ["b", missing]}) == ["b"]
        assert task.answers({"mr": "x", "text": "a", "texts": missing}) == ["a"]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ({"text": ["Bob"], "answer_start": [1]}, "nested columns"),
        ([{"text": "Bob"}], "nested columns"),
        (np.array([{"text": "Bob"}]), "nested columns"),
        ([["Bob"]], "lists of lists, or bytes,"),
        (b"Bob", "lists of lists, or bytes,"),
    ],
    ids=str,
)
def test_references_that_are_no_texts_are_refused(cell: object, kind: str, mini: PreTrainedTokenizerBase) -> None:
    task = Task("qa", "{question}", "{answer}", references="answers")
    record = {"question": "who?", "answer": "Bob", "answers": cell}
    for read in (task.answers, lambda record: task.tokenize([record], mini)):
        with pytest.raises(ValueError, match=f"in the column 'answers', which contains {kind} in row 0"):
            read(record)


def test_records_that_are_none_are_refused(mini: PreTrainedTokenizerBase) -> None:
    task = Task("qa", "{question}", "{answer}")
    for read in (task.encode, task.tokenize, task.sources):
        with pytest.raises(ValueError, match="Got None as records; expected a list of mappings"):
            read(None, mini)  # type: ignore[arg-type]


def test_references_to_labels_are_read_as_labels() -> None:
    task = Task("sentiment", "{text}", "{label}", SENTIMENT.verbalizer, references="labels")
    assert task.answers({"text": "a", "label": 1, "labels": ["negative", 1]}) == ["0", "1"]


def test_tokenized_records_end_in_end_of_sequence_and_hold_no_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = SENTIMENT.tokenize([{"sentence": "a fine film", "label": 1}, {"sentence": "no", "label": 0}], tokenizer)
    assert dataset.column_names == ["input_ids", "labels"]
    for row in dataset:
        for ids in (row["input_ids"], row["labels"]):
            assert ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.eos_token_id) == 1
            assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(dataset[0]["labels"], skip_special_tokens=True) == "positive"


def test_a_data_set_and_a_list_of_records_become_the_same(mini: PreTrainedTokenizerBase) -> None:
    records = [{"sentence": "a fine film", "label": 1}, {"sentence": "no", "label": 0}]
    from_list = SENTIMENT.tokenize(records, mini)
    from_dataset = SENTIMENT.tokenize(Dataset.from_list(records), mini)
    assert from_list.to_list() == from_dataset.to_list()


# Special tokens in a user's text (STACK D3)

SPELLED = ["a </s> b", "a</s>b", "＜/s＞ b", "<extra_id_0> and <pad>", "<<//s>s> </s", "< /s>"]


@pytest.mark.parametrize("text", ["a </s> b", "<extra_id_0> and <pad>"])
@pytest.mark.parametrize("split_special_tokens", [False, True])
@pytest.mark.xfail(strict=True, reason="the tokenizer makes special tokens of text that spells them, split or not")
def test_the_plain_tokenizer_keeps_special_tokens_out_of_text(
    text: str, split_special_tokens: bool, mini: PreTrainedTokenizerBase
) -> None:
    ids = mini(text, split_special_tokens=split_special_tokens, add_special_tokens=False)["input_ids"]
    assert not set(ids) & special_ids(mini)


@pytest.mark.parametrize("text", SPELLED)
def test_text_that_spells_special_tokens_never_becomes_them(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    task = Task("echo", "say: {text} now", "{text}")
    row = task.tokenize([{"text": text}], tokenizer)[0]
    for ids in (row["input_ids"], row["labels"]):
        assert ids[-1] == tokenizer.eos_token_id
        assert not set(ids[:-1]) & special_ids(tokenizer)
    assert len(row["labels"]) > 2


def test_what_is_broken_up_is_reported_and_the_rest_is_untouched(
    mini: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"text": "plain words", "title": "x"}, {"text": "words </s> more", "title": "x"}]
    with caplog.at_level(logging.WARNING):
        SUMMARY.tokenize(records, mini)
    assert "special tokens spelled out in 1 of 2 sources were broken up" in caplog.text
    assert SUMMARY.sources(records, mini) == ["summarize: plain words end", "summarize: words < /s> more end"]


def test_special_tokens_of_target_words_are_trained_as_they_are_ranked(mini: PreTrainedTokenizerBase) -> None:
    words = {"0": "<extra_id_0> bad", "1": "<extra_id_0> good"}
    task = Task("cloze", "{text} <extra_id_0>", "{label}", verbalizer=words, metrics=("accuracy",))
    labels = task.tokenize([{"text": "a film", "label": 1}, {"text": "a play", "label": 0}], mini)["labels"]
    assert list(labels) == [mini(word)["input_ids"] for word in ("<extra_id_0> good", "<extra_id_0> bad")]


def test_truth_values_of_numpy_are_text(mini: PreTrainedTokenizerBase) -> None:
    task = Task("truth", "{text}", "{label}", verbalizer={"True": "yes", "False": "no"}, metrics=("accuracy",))
    assert [task.target_text({"text": "a", "label": kind(1)}) for kind in (bool, np.bool_)] == ["yes", "yes"]


def test_special_tokens_that_the_template_writes_stay(mini: PreTrainedTokenizerBase) -> None:
    sentinel = mini.convert_tokens_to_ids("<extra_id_0>")
    task = Task("cloze", "{text} It was <extra_id_0>.", "<extra_id_0> {label}", {"0": "bad", "1": "good"})
    row = task.tokenize([{"text": "fine <extra_id_0>", "label": 1}], mini)[0]
    assert row["input_ids"].count(sentinel) == 1
    assert row["labels"][0] == sentinel


def test_a_special_token_half_in_the_template_and_half_in_the_column_is_refused(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="form together, in '</s>'; expected none"):
        Task("odd", "<{text}>", "{text}").tokenize([{"text": "/s"}], mini)


def test_breaking_up_leaves_other_text_alone(mini: PreTrainedTokenizerBase) -> None:
    assert without_special_tokens("a < b and c > d", mini) == "a < b and c > d"


# Long sources and targets


def test_a_long_column_is_cut_and_the_template_is_whole(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"text": "one two three four five " * 20, "title": "a"}, {"text": "x", "title": "long words " * 9}]
    with caplog.at_level(logging.WARNING):
        dataset = SUMMARY.tokenize(records, tokenizer)
    source = text(tokenizer.decode(dataset[0]["input_ids"], skip_special_tokens=True))
    assert source.startswith("summarize: one tw"[:17])
    assert source.endswith(" end")
    assert 20 <= len(dataset[0]["input_ids"]) <= 24
    assert len(dataset[1]["labels"]) <= 8
    assert dataset[1]["labels"][-1] == tokenizer.eos_token_id
    assert "1 of 2 sources were longer than 24 tokens; their columns were truncated, not the template" in caplog.text
    assert "1 of 2 targets were longer than 8 tokens" in caplog.text


def test_the_longest_column_is_cut_first(mini: PreTrainedTokenizerBase) -> None:
    task = Task("qa", "question: {question} context: {context}", "{answer}", max_source_length=32)
    record = {"question": "who came here", "context": "many people came there and here " * 20, "answer": "x"}
    (source,) = task.sources([record], mini)
    assert source.startswith("question: who came here context: many people")


@pytest.mark.parametrize("words", range(1, 60, 7))
def test_a_cut_source_is_as_long_as_the_limit_allows(words: int, mini: PreTrainedTokenizerBase) -> None:
    text = " ".join(f"word{i}" for i in range(words))
    (source,) = SUMMARY.sources([{"text": text}], mini)
    kept = source.removeprefix("summarize: ").removesuffix(" end")
    assert text.startswith(kept)
    assert len(mini(source)["input_ids"]) <= 24
    if kept != text:
        template = Template.parse(SUMMARY.template)
        one_more = template.render({"text": text[: len(kept) + 1]})
        assert len(mini(source)["input_ids"]) == 24 or len(mini(one_more)["input_ids"]) > 24


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_a_field_of_a_yaml_file_may_say_that_there_is_none(nothing: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\ntemplate: '{{text}}'\nreferences: {nothing}\ntarget_words: {nothing}\n")
    task = Task.from_yaml(path)
    assert (task.references, task.verbalizer) == (None, None)


def test_a_yaml_file_with_wrong_fields_names_them_all(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\ntemplat: x\nnum_beams: many\n")
    with pytest.raises(ValueError, match="It has no field 'templat'") as error:
        Task.from_yaml(path)
    assert "'template' is missing" in text_of(error)
    assert "num_beams is 'many'; a whole number was expected" in text_of(error)


def test_a_task_that_is_neither_file_nor_name_lists_the_names() -> None:
    with pytest.raises(FileNotFoundError, match="no task 'nothing'; expected a YAML file or one of"):
        Task.from_yaml("nothing")


# Families over a user's columns

EXAMPLES = {
    "classification": ({"text": "a", "label": "x"}, "classify: a", "x"),
    "sentence_pairs": ({"premise": "a", "hypothesis": "b", "label": "x"}, "sentence1: a sentence2: b", "x"),
    "summarization": ({"dialogue": "a", "summary": "b"}, "summarize: a", "b"),
    "question_answering": ({"passage": "a", "question": "b", "answer": "c"}, "question: b context: a", "c"),
    "translation": ({"en": "a", "fr": "b"}, "translate English to French: a", "b"),
    "dialogue": ({"message": "a", "reply": "b"}, "reply: a", "b"),
    "data_to_text": ({"mr": "a", "ref": "b"}, "describe: a", "b"),
    "correction": ({"source": "a", "text": "b", "corrected": "c"}, "correct: b", "c"),
    "generation": ({"instruction": "a", "output": "b"}, "a", "b"),
    "recommendation": ({"history": "a", "item": "x"}, "recommend next: a", "x"),
}


@pytest.mark.parametrize("family", PRESETS)
def test_a_family_finds_common_columns(family: str) -> None:
    record, source, target = EXAMPLES[family]
    records = [record, record | {"label": "y", "item": "y"}] if PRESETS[family].has_labels else [record]
    task = preset_task(family, records)
    assert task.source(record) == source
    assert task.target_text(record) == target


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [("translation.en", "translation.de", "English to German"), ("EN", "Portuguese", "English to Portuguese")],
)
def test_a_translation_names_the_languages_of_its_columns(source: str, target: str, said: str) -> None:
    task = preset_task("translation", [{source: "a", target: "b"}], columns={"source": source, "target": target})
    assert task.template == f"translate {said}: {{{source}}}"


def test_columns_of_a_translation_that_are_no_languages_ask_for_a_template() -> None:
    records = [{"source": "a", "target": "b"}]
    with pytest.raises(ValueError, match=r"'source', 'target' do not name a language; .* give a template .*English to"):
        preset_task("translation", records)
    assert preset_task("translation", records, template="to German: {source}").source(records[0]) == "to German: a"


def test_a_family_takes_named_columns_words_and_a_template() -> None:
    records = [{"review": "a", "stars": 5}, {"review": "b", "stars": 1}]
    task = preset_task(
        "classification",
        records,
        columns={"text": "review", "label": "stars"},
        verbalizer={"1": "bad", "5": "good"},
        template="review: {review}",
    )
    assert (task.source(records[0]), task.target_text(records[0])) == ("review: a", "good")


def test_a_family_takes_lists_of_references_from_any_record_of_any_split_and_no_other_column_of_that_name() -> None:
    plain, several = {"mr": "a", "ref": "b"}, {"mr": "a", "ref": "b", "references": ["b", "c"]}
    assert preset_task("data_to_text", [plain, several]).references == "references"
    assert preset_task("data_to_text", [plain], scored=[plain, several]).references == "references"
    assert preset_task("data_to_text", [plain | {"references": "Smith 2020"}]).references is None


def test_a_family_says_all_that_it_cannot_find() -> None:
    with pytest.raises(ValueError, match="no role 'txt'; its roles are text, label") as error:
        preset_task("classification", [{"a": "x", "b": "y"}], columns={"txt": "a", "label": "c"})
    for part in ("no column 'c' for the role 'label'", "no column for the role 'text'", "are: 'a', 'b'"):
        assert part in text_of(error)
    with pytest.raises(ValueError, match="no preset 'poetry'; expected one of classification"):
        preset_task("poetry", [{"a": "x"}])


def test_a_column_with_hundreds_of_values_is_no_label() -> None:
    with pytest.raises(
        ValueError, match=r"Got 201 different values in the column 'label'; expected at most 200. If it is a label"
    ):
        preset_task("classification", [{"text": "a", "label": str(i)} for i in range(201)])
