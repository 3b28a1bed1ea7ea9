"""A source that holds its answer is told, with an example; extractive tasks, corrections and copies are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from paths import PUBLIC_DATA
from vocabulary import small_tokenizer

from t5peft.data import Task, load_task
from t5peft.data.leaks import leak_of
from t5peft.data.lint import lint
from t5peft.data.registry import task_names

WORDS = ("bad", "good")
ROWS: list[dict[str, Any]] = [
    {
        "text": f"film {i} has {i % 7} scenes",
        "label": str(i % 2),
        "word": WORDS[i % 2],
        "marked": f"film {i}, which is {WORDS[i % 2].title()}.",
        "headed": f"{WORDS[i % 2]}: film {i}",
        "code": "xy"[i % 2],
        "stars": i % 2 * 2 + i % 4 // 2,
        "answer": f"{i % 7} scenes",
        "prompt": f"film {i} has? {i % 7} scenes",
        "kind": "abc"[i % 3],
        "missing": WORDS[i % 2] if i % 9 else "none",
    }
    for i in range(60)
]
LABELED = Task("films", "film: {text}", "{label}", {"0": "bad", "1": "good"})
FREE = Task("films", "film: {text}", "{answer}")


@pytest.mark.parametrize(
    ("task", "template", "message"),
    [
        (LABELED, "{text} {label}", "column 'label' of the template '{text} {label}' is that of the target"),
        (LABELED, "{label}", "'label' of the template '{label}' is that of the target"),
        (LABELED, "{text} {word}", "'word' of the template '{text} {word}' equals the target"),
        (
            replace(LABELED, target="it is {label}"),
            "{text} {word}",
            "'word' of the template '{text} {word}' equals the target",
        ),
        (LABELED, "{marked}", "'marked' of the template '{marked}' ends with the target"),
        (LABELED, "{headed}", "'headed' of the template '{headed}' begins with the target"),
        (
            LABELED,
            "{text} {code}",
            "'code' of the template '{text} {code}' has few values, of which each stands for one",
        ),
        (LABELED, "{text} {stars}", "'stars' of the template '{text} {stars}' has few values"),
        (FREE, "{text} {answer}", "'answer' of the template '{text} {answer}' is that of the target"),
        (FREE, "{prompt}", "'prompt' of the template '{prompt}' ends with the target"),
    ],
)
def test_a_column_that_holds_the_answer_is_named_with_an_example(task: Task, template: str, message: str) -> None:
    leaky = replace(task, template=template)
    example = f"{leaky.source(ROWS[0])!r} with the target {leaky.target_text(ROWS[0])!r}"
    for records in (ROWS, Dataset.from_list(ROWS), tuple(ROWS)):
        found = leak_of(leaky, records) or ""
        assert message in found
        assert example in found
    for given in (ROWS, iter(ROWS)):
        report = lint(leaky, given, small_tokenizer())
        assert report.advice[0] == found
        assert not report.problems


@pytest.mark.parametrize(
    "task",
    [
        LABELED,
        replace(LABELED, template="{text} {kind}"),
        replace(LABELED, template="{text} {missing}"),
        replace(LABELED, template="{code}"),  # the only column: the task is that easy
        Task("copy", "copy: {text}", "{text}"),
        Task("copy", "copy: {text}", "{same}"),
        Task("copy", "{kind}: {text}", "{same}"),
        Task("extract", "how many? {said}", "{answer}"),
        Task("continue", "{text}", "{text} {answer}"),
        Task("lead", "{led}", "{answer}"),
        Task("constant", "{text} {always}", "{always_too}"),
    ],
)
def test_other_sources_are_not_told(task: Task) -> None:
    rows = [
        row
        | {"same": row["text"], "said": f"a film with {row['answer']} in it", "led": f"{row['answer']} are in it"}
        | {"always": "x y", "always_too": "y"}
        for row in ROWS
    ]
    assert leak_of(task, rows) is None


def test_few_records_are_no_evidence_but_the_name_of_the_column_is() -> None:
    assert leak_of(replace(LABELED, template="{text} {word}"), ROWS[:19]) is None
    assert leak_of(replace(LABELED, template="{text} {label}"), ROWS[:1]) is not None


def test_a_leak_is_found_in_records_that_are_sorted_by_label() -> None:
    rows = sorted(ROWS * 50, key=lambda row: row["label"])
    assert leak_of(replace(LABELED, template="{text} {word}"), rows) is not None


@pytest.mark.parametrize("records", [[], ["text", "label"], [{"text": "a"}], [{"text": "a", "label": "9"}]])
def test_records_that_do_not_fit_are_left_to_other_checks(records: Iterable[Any]) -> None:
    assert leak_of(replace(LABELED, template="{text} {label}"), records) is None


def test_an_iterator_is_not_read() -> None:
    records = iter(ROWS)
    assert leak_of(replace(LABELED, template="{text} {label}"), records) is None
    assert next(records) is ROWS[0]


@pytest.mark.parametrize("kind", ["embedded", "benchmark"])
def test_no_task_of_the_package_is_told(kind: str) -> None:
    if kind == "benchmark" and not PUBLIC_DATA.is_dir():
        pytest.skip("no real data: set T5PEFT_DATA to their folder")
    for name in task_names(kind):
        task, splits = load_task(name)
        assert not [split for split, records in splits.items() if leak_of(task, records)], name
