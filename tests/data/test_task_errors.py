"""Wrong input of tasks, by the text of its error."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from example_tasks import SENTIMENT, SUMMARY, text_of
from transformers import PreTrainedTokenizerBase
from vocabulary import small_tokenizer

from t5peft.data import Task, preset_task
from t5peft.data.registry import with_validation


def test_a_template_that_names_a_missing_column_lists_those_there(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="names the column 'sentence', which is not in rows 0, 1") as error:
        SENTIMENT.tokenize([{"text": "a", "label": 1}] * 2, mini)
    assert "the columns are: 'text', 'label'" in text_of(error)


def test_a_label_outside_the_target_words_names_its_rows_and_the_labels(mini: PreTrainedTokenizerBase) -> None:
    records = [{"sentence": "a", "label": label} for label in (0, 2, 1, 2)]
    with pytest.raises(
        ValueError, match="The label '2' of the column 'label' in rows 1, 3 has no word; the labels are: '0', '1'"
    ):
        SENTIMENT.tokenize(records, mini)
    with pytest.raises(ValueError, match="The label '2' of the column 'label' in row 0 has no word"):
        SENTIMENT.target_text(records[1])


def test_target_words_that_collide_after_tokenisation_are_refused() -> None:
    task = Task("emoji", "{text}", "{label}", {"sad": "\U0001f641", "glad": "\U0001f642"})
    with pytest.raises(ValueError, match="The words of labels 'sad', 'glad' have the same tokens"):
        task.tokenize([{"text": "a", "label": "sad"}], small_tokenizer())


def test_a_template_that_would_be_truncated_is_refused(mini: PreTrainedTokenizerBase) -> None:
    task = Task("long", "a very long instruction that says much and then: {text}", "{title}", max_source_length=6)
    with pytest.raises(ValueError, match="fills max_source_length=6 tokens and leaves no room") as error:
        task.tokenize([{"text": "words", "title": "x"}], mini)
    assert "it would be truncated. Raise max_source_length, or shorten the template" in text_of(error)


@pytest.mark.parametrize("nothing", ["", "  \n\t"])
def test_empty_sources_and_targets_are_named_together(nothing: str, mini: PreTrainedTokenizerBase) -> None:
    records = [{"text": nothing, "title": "x"}, {"text": "a", "title": nothing}]
    with pytest.raises(ValueError, match="The source is empty in row 0") as error:
        SUMMARY.tokenize(records, mini)
    assert "The target is empty in row 1 (columns: title), so its labels would be only padding" in text_of(error)


def test_no_records_are_refused(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="There are no records; the file or the split is empty"):
        SENTIMENT.tokenize([], mini)


def test_a_column_that_holds_no_text_is_named_with_its_kind(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="The column 'text' holds NoneType in row 1; text or a number was expected"):
        SUMMARY.tokenize([{"text": "a", "title": "b"}, {"text": None, "title": "b"}], mini)


def test_a_missing_cell_is_named_and_never_the_word_nan(mini: PreTrainedTokenizerBase) -> None:
    records: list[dict[str, object]] = [
        {"sentence": "a", "label": "0"},
        {"sentence": float("nan"), "label": np.float32("nan")},
    ]
    with pytest.raises(
        ValueError, match="The column 'sentence' holds NaN, a missing cell, in row 1; text or a"
    ) as error:
        SENTIMENT.tokenize(records, mini)
    assert "The column 'label' holds NaN, a missing cell, in row 1" in text_of(error)
    twice: list[dict[str, object]] = [records[0], {"text": "b", "label": "1"}]
    assert preset_task("classification", [*twice, records[1]], columns={"text": "sentence"}).labels == ("0", "1")


@pytest.mark.parametrize("records", [pd.DataFrame({"text": ["a"], "title": ["b"]}), {"text": ["a"], "title": ["b"]}])
def test_columns_in_place_of_records_are_told_what_to_give(records: Any, mini: PreTrainedTokenizerBase) -> None:
    label = Task("label", "{text}", "{title}", {"b": "b", "c": "c"}, references="text")
    for use in (SUMMARY.tokenize, SUMMARY.sources, label.tokenize):
        with pytest.raises(ValueError, match=r"Record 0 is 'text'.* df.to_dict\('records'\)"):
            use(records, mini)
    with pytest.raises(ValueError, match=r"Record 0 is 'text'.* df.to_dict\('records'\)"):
        preset_task("summarization", records)


def test_half_a_character_is_named_by_its_column_and_rows(mini: PreTrainedTokenizerBase) -> None:
    records = [
        {"text": "cut \ud83d", "title": "a"},
        {"text": "b", "title": "b \udc00"},
        {"text": "\ud83d", "title": "c"},
    ]
    with pytest.raises(
        ValueError, match=r"The column 'text' contains half of a character \(a lone surrogate\) in rows 0, 2"
    ):
        with_validation(SUMMARY, {"train": records})
    with pytest.raises(
        ValueError, match=r"The column 'title' contains half of a character \(a lone surrogate\) in row 1"
    ):
        SUMMARY.tokenize(records, mini)
    with pytest.raises(ValueError, match=r"of label '.ud83d' contains half of a character"):
        preset_task("classification", [{"text": "a", "label": "\ud83d"}, {"text": "b", "label": "c"}])


def test_all_contradictions_of_a_task_are_raised_at_once() -> None:
    with pytest.raises(ValueError, match="Its name is empty") as error:
        Task("", "{text", "no column", metrics=(), max_source_length=1, num_beams=0)
    for part in ("cannot be read", "names no column", "no metric", "max_source_length is 1", "num_beams is 0"):
        assert part in text_of(error)


@pytest.mark.parametrize("template", ["{}", "{a!r}", "{a:>3}"])
def test_fields_that_are_not_plain_columns_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="not the plain name of a column"):
        Task("x", template, "{b}")


def test_target_words_may_be_numbers_and_none_is_told() -> None:
    numbers: dict[Any, Any] = {0: 0, 1: 1}
    assert Task("t", "{text}", "{label}", numbers).candidates == ("0", "1")
    with pytest.raises(ValueError, match="Label '1' has no word in the verbalizer"):
        Task("t", "{text}", "{label}", numbers | {0: "no", 1: None})


def test_numbers_that_would_be_two_labels_are_told_and_decimals_are_numbers() -> None:
    labels = [{"text": "a", "label": label} for label in (1, 1.0, 0)]
    with pytest.raises(ValueError, match=r"Got 1 and 1.0 as numbers in the column 'label', which would be two labels"):
        preset_task("classification", labels)
    assert preset_task("classification", [*labels[::2], {"text": "b", "label": "2.0"}]).labels == ("0", "1", "2.0")
    decimals = [{"text": "a", "label": Decimal(label)} for label in ("1.5", "2")]
    assert preset_task("classification", decimals).answers(decimals[0]) == ["1.5"]


def test_family_tells_of_columns_that_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    records = [{"instruction": "Add.", "input": "1 2", "output": "3"}]
    with caplog.at_level(logging.WARNING):
        assert preset_task("generation", records).source(records[0]) == "Add."
        assert "the source has the column 'instruction', not 'input'" in caplog.text
        assert "such as '{instruction} {input}'" in caplog.text
        caplog.clear()
        preset_task("generation", records, columns={"prompt": "instruction"})
        assert preset_task("generation", records, template="{instruction} {input}").source(records[0]) == "Add. 1 2"
        assert not caplog.text


def test_labels_that_share_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="Labels '0', '1' share the word 'yes'; use a different word for each"):
        Task("x", "{a}", "{b}", {"0": "yes", "1": " yes"})


def test_target_words_need_a_target_of_one_column() -> None:
    with pytest.raises(ValueError, match="names b, c"):
        Task("x", "{a}", "{b} {c}", {"0": "no", "1": "yes"})


# YAML


def test_a_yaml_file_keeps_labels_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ntemplate: 'is it: {text}'\ntarget: '{label}'\nmetrics: [accuracy, f1]\nmax_source_length: 64\n"
        "verbalizer:\n  0: no\n  true: yes\n"
    )
    task = Task.from_yaml(path)
    assert task.verbalizer == {"0": "no", "true": "yes"}
    assert task.metrics == ("accuracy", "f1")
    assert task.max_source_length == 64
