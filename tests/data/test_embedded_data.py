"""The data sets that the package holds: what their cards promise, clean splits, and generators that give the same files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from paths import ROOT

DATA = ROOT / "t5peft" / "data" / "embedded"
SCRIPT = ROOT / "benchmarks" / "make_embedded_data.py"
SPLITS = ("train", "validation", "test")
COLUMNS = {
    "finance": {"id", "headline", "sentiment", "date"},
    "restaurants": {"id", "mr", "text"},
    "correction": {"id", "text", "corrected"},
    "passages": {"id", "passage", "question", "answer"},
    "subjects": {"id", "body", "subject"},
    "phrases": {"id", "english", "german"},
}
AT_LEAST = {
    "finance": (300, 50, 100),
    "restaurants": (900, 100, 150),
    "correction": (800, 100, 150),
    "passages": (900, 100, 150),
    "subjects": (500, 60, 100),
    "phrases": (900, 100, 150),
}
# The columns in which no row of a split may resemble one of another, and the Jaccard index of words that counts as alike.
COMPARED = {
    "finance": (("headline",), 0.6),
    "restaurants": (("mr", "text"), 0.8),
    "correction": (("text", "corrected"), 0.8),
    "passages": (("passage",), 0.8),
    "subjects": (("body",), 0.8),
    "phrases": (("english", "german"), 0.8),
}
GENERATED = tuple(name for name in COLUMNS if name != "finance")

every_set = pytest.mark.parametrize("name", COLUMNS)


@cache
def rows_of(name: str, split: str) -> tuple[dict, ...]:
    lines = (DATA / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def all_rows(name: str) -> list[dict]:
    return [row for split in SPLITS for row in rows_of(name, split)]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+(?:'\w+)*", text.lower()))


def closest(some: set[str], others: set[str], threshold: float) -> list[tuple[str, str]]:
    """Pairs of texts whose word sets have a Jaccard index of the threshold or more."""
    sets = [(text, words(text)) for text in others]
    pairs = []
    for text in some:
        mine = words(text)
        for other, known in sets:
            shared = len(mine & known)
            if shared >= threshold * (len(mine) + len(known) - shared):
                pairs.append((text, other))
    return pairs


@every_set
def test_each_split_has_its_rows_and_every_row_its_columns(name: str) -> None:
    for split, least in zip(SPLITS, AT_LEAST[name], strict=True):
        rows = rows_of(name, split)
        assert len(rows) >= least
        extra = {"references"} if name == "restaurants" and split != "train" else set()
        assert all(set(row) == COLUMNS[name] | extra for row in rows)


@every_set
def test_no_text_is_empty_or_has_stray_blanks_and_ids_are_unique(name: str) -> None:
    rows = all_rows(name)
    assert len({row["id"] for row in rows}) == len(rows)
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    texts += [reference for row in rows for reference in row.get("references", [])]
    assert [text for text in texts if not text.strip() or text != " ".join(text.split())] == []
    assert [text for text in texts if re.search(r"[{}|]|\bNone\b| [,.?!]|[,.?!]{2}", text)] == []


@every_set
def test_no_row_resembles_one_of_another_split(name: str) -> None:
    columns, threshold = COMPARED[name]
    for column in columns:
        for one, other in combinations(SPLITS, 2):
            assert closest(
                {row[column] for row in rows_of(name, one)}, {row[column] for row in rows_of(name, other)}, threshold
            ) == []  # fmt: skip


def test_no_headline_resembles_another() -> None:
    sets = [words(row["headline"]) for row in all_rows("finance")]
    assert max(len(a & b) / len(a | b) for a, b in combinations(sets, 2)) < 0.6


def test_headlines_are_of_three_sentiments_and_of_headline_length() -> None:
    rows = all_rows("finance")
    counts = Counter(row["sentiment"] for row in rows)
    assert set(counts) == {"negative", "neutral", "positive"}
    assert min(counts.values()) >= 120
    assert len(rows) >= 480
    assert all(8 <= len(row["headline"].split()) <= 25 for row in rows)
    for split in SPLITS:
        assert len({row["sentiment"] for row in rows_of("finance", split)}) == 3


def test_headlines_are_in_the_order_of_the_days_of_2025_and_the_test_split_comes_last() -> None:
    days = [date.fromisoformat(row["date"]) for row in all_rows("finance")]
    assert days == sorted(days)
    assert {day.year for day in days} == {2025}
    assert len({day.month for day in days}) == 12
    for one, other in (("train", "validation"), ("validation", "test")):
        assert rows_of("finance", one)[-1]["date"] < rows_of("finance", other)[0]["date"]


def test_one_week_of_the_test_headlines_has_a_surge_of_negative_news() -> None:
    weeks: dict[int, list[str]] = {}
    for row in rows_of("finance", "test"):
        weeks.setdefault(date.fromisoformat(row["date"]).isocalendar().week, []).append(row["sentiment"])
    negative = {week: found.count("negative") for week, found in weeks.items()}
    surge = max(negative, key=lambda week: negative[week])
    assert surge == date(2025, 10, 6).isocalendar().week
    assert negative[surge] >= 20
    assert negative[surge] / len(weeks[surge]) > 0.9
    assert max(count for week, count in negative.items() if week != surge) * 3 <= negative[surge]


def test_every_text_about_a_restaurant_says_what_must_be_said_word_for_word() -> None:
    silent = []
    for row in all_rows("restaurants"):
        slots = dict(re.findall(r"([\w-]+)\[([^\]]+)\]", row["mr"]))
        for text in row.get("references", [row["text"]]):
            silent += [
                (key, text)
                for key in ("name", "kind", "food", "area", "rating", "near")
                if slots.get(key, "") not in text
            ]
    assert silent == []


def test_restaurants_have_references_and_their_names_and_combinations_are_of_one_split() -> None:
    for split in ("validation", "test"):
        for row in rows_of("restaurants", split):
            assert 2 <= len(row["references"]) <= 4
            assert row["references"][0] == row["text"]
            assert len(set(row["references"])) == len(row["references"])
    names = [{row["mr"].split("]")[0] for row in rows_of("restaurants", split)} for split in SPLITS]
    rest = [{row["mr"].partition("], ")[2] for row in rows_of("restaurants", split)} for split in SPLITS]
    for one, other in combinations(range(3), 2):
        assert not names[one] & names[other]
        assert not rest[one] & rest[other]


def test_most_sentences_to_correct_have_errors_and_some_have_none() -> None:
    for split in SPLITS:
        changed = [row["text"] != row["corrected"] for row in rows_of("correction", split)]
        assert 0.7 <= sum(changed) / len(changed) <= 0.95
    assert len({row["corrected"] for row in all_rows("correction")}) == len(all_rows("correction"))


def test_every_answer_is_one_span_of_its_passage() -> None:
    assert [row for row in all_rows("passages") if row["passage"].count(row["answer"]) != 1] == []
    assert all(re.search(rf"\b{re.escape(row['answer'])}\b", row["passage"]) for row in all_rows("passages"))
    assert all(3 <= len(re.findall(r"[.](?: |$)", row["passage"])) <= 5 for row in all_rows("passages"))


def test_no_passage_is_in_two_splits() -> None:
    passages = [{row["passage"] for row in rows_of("passages", split)} for split in SPLITS]
    assert all(not one & other for one, other in combinations(passages, 2))


def test_subjects_are_short_and_not_the_first_sentence() -> None:
    for row in all_rows("subjects"):
        first = re.split(r"(?<=[.?!]) ", row["body"])[0]
        assert 3 <= len(row["subject"].split()) <= 8
        assert row["subject"].lower() not in first.lower()
        assert not words(row["subject"]) <= words(first)


def test_german_sentences_end_as_the_english_ones_do() -> None:
    assert all(row["english"][-1] == row["german"][-1] for row in all_rows("phrases"))
    assert all(row["german"][-1] in ".?!" for row in all_rows("phrases"))


def test_every_word_of_the_phrases_to_test_was_in_training() -> None:
    for column in ("english", "german"):
        known, asked = (
            frozenset().union(*(words(row[column]) for row in rows_of("phrases", split))) for split in ("train", "test")
        )
        assert asked <= known


@every_set
def test_a_card_names_the_licence_each_column_and_the_rows_of_each_split(name: str) -> None:
    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    assert "CC0-1.0" in card
    assert [column for column in COLUMNS[name] if f"| `{column}` |" not in card] == []
    for split in SPLITS:
        assert f"| {split} | {len(rows_of(name, split))} |" in card
    for heading in ("## Who wrote it", "## Columns", "## Use", "## Limits", "## Baselines"):
        assert heading in card


@pytest.mark.processes
def test_the_cards_quote_the_baselines_as_they_come_out() -> None:
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, SCRIPT, "--baselines"], capture_output=True, text=True, check=True)
    printed = [line.split(": ", 1) for line in done.stdout.splitlines()]
    assert {name for name, _ in printed} == set(COLUMNS)
    missing = [
        f"{name}: {line}"
        for name, line in printed
        if f"- {line}" not in (DATA / name / "README.md").read_text(encoding="utf-8")
    ]
    assert missing == []


@pytest.mark.processes
def test_the_generators_give_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], check=True, capture_output=True, text=True)
    for name in GENERATED:
        for split in SPLITS:
            assert (tmp_path / name / f"{split}.jsonl").read_bytes() == (DATA / name / f"{split}.jsonl").read_bytes()


def test_the_files_are_small() -> None:
    sizes = [(DATA / name / f"{split}.jsonl").stat().st_size for name in COLUMNS for split in SPLITS]
    assert max(sizes) < 400_000
    assert sum(sizes) < 1_500_000
