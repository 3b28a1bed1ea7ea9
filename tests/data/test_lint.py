"""The tokenizer lint: what it counts, against counting by hand, and what it says to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import PUBLIC_DATA, ROOT
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, T5Tokenizer
from vocabulary import small_tokenizer

from t5peft.cli import main
from t5peft.data import Task
from t5peft.data.lint import fate_of, lint

ECHO = Task("echo", "say: {text}", "{title}", max_source_length=16, max_target_length=8)


@pytest.fixture(scope="module")
def mini() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "t5peft" / "mini")


@pytest.fixture
def t5() -> PreTrainedTokenizerBase:
    if not PUBLIC_DATA.is_dir():
        pytest.skip("no real data: set T5PEFT_DATA to their folder")
    return T5Tokenizer.from_pretrained(PUBLIC_DATA / "t5_vocab")


def test_plain_text_is_said_to_lose_nothing(mini: PreTrainedTokenizerBase) -> None:
    report = lint(ECHO, [{"text": "plain words here", "title": "plain"}], mini)
    assert not report.advice
    assert not report.problems
    assert str(report).endswith("nothing is lost")


def test_unknown_pieces_are_counted_as_by_hand(t5: PreTrainedTokenizerBase) -> None:
    records = [{"text": "a {b} <c>", "title": "x"}, {"text": "fine", "title": "~"}]
    report = lint(ECHO, records, t5)
    assert report.sources.lost == {"{": 1, "}": 1, "<": 1}
    assert report.sources.unknown_tokens == 3
    assert report.sources.unknown_rows == 1
    assert report.sources.tokens == sum(len(t5(ECHO.source(record))["input_ids"]) for record in records)
    assert report.targets.lost == {"~": 1}
    assert report.unwritable == 1
    assert "unknown pieces: " in str(report)
    assert "'{' in 1" in str(report)
    assert "no answer can equal 1 of 2 (50.0 %) of them exactly; exact match is at most 0.500" in str(report)


@pytest.mark.parametrize(
    ("character", "fate"),
    [
        ("a", "a"),
        ("\n", " "),
        ("\t", " "),
        ("{", None),
        ("<", None),
        ("\ufb01", "fi"),
        ("\u0301", "\u0301"),
        (" ", " "),
    ],
)
def test_the_fate_of_a_character_in_t5s_vocabulary(
    character: str, fate: str | None, t5: PreTrainedTokenizerBase
) -> None:
    expected = fate if character != "\u0301" else fate_of(character, t5)
    assert fate_of(character, t5) == expected


def test_bytes_lose_no_character() -> None:
    report = lint(ECHO, [{"text": "a {b}\n", "title": "\U0001f642"}], ByT5Tokenizer())
    assert not report.sources.lost
    assert not report.sources.changed
    assert not report.unwritable


def test_line_breaks_are_said_to_become_spaces() -> None:
    report = lint(ECHO, [{"text": "a\nb", "title": "x"}] * 3, small_tokenizer())
    assert report.sources.changed["\n"] == (" ", 3)
    assert "reach the model as a space or not at all" in str(report)


def test_repeated_spaces_are_said_to_become_one_where_the_tokenizer_joins_them(mini: PreTrainedTokenizerBase) -> None:
    records = [{"text": "a  b", "title": "x"}, {"text": "a b", "title": "x"}]
    assert lint(ECHO, records, small_tokenizer()).sources.changed["  "] == (" ", 1)
    assert not lint(ECHO, records, mini).sources.changed
    assert not lint(ECHO, records, ByT5Tokenizer()).sources.changed


def test_a_line_break_that_was_added_as_a_token_is_not_lost(t5: PreTrainedTokenizerBase) -> None:
    records = [{"text": "x", "title": "a\n{b}"}]
    before = lint(ECHO, records, t5)
    assert before.targets.changed["\n"] == (" ", 1)
    assert before.unwritable == 1
    t5.add_tokens([AddedToken(token, normalized=False) for token in ("\n", "{", "}")])
    after = lint(ECHO, records, t5)
    assert not after.targets.changed
    assert not after.targets.lost
    assert not after.unwritable


def test_special_tokens_in_the_text_are_counted(mini: PreTrainedTokenizerBase) -> None:
    report = lint(ECHO, [{"text": "a </s> b", "title": "x"}, {"text": "a", "title": "x"}], mini)
    assert report.sources.special_rows == 1
    assert "special tokens spelled out: in 1 of 2 (50.0 %)" in str(report)
    assert "are broken up (</s> becomes < /s>)" in str(report)


def test_texts_longer_than_the_limits_are_counted_with_the_limit_that_would_keep_them(
    mini: PreTrainedTokenizerBase,
) -> None:
    records = [{"text": "one two three four five " * 6, "title": "x"}, *[{"text": "one", "title": "x"}] * 19]
    report = lint(ECHO, records, mini)
    longest = len(mini(ECHO.source(records[0]))["input_ids"])
    short = len(mini(ECHO.source(records[1]))["input_ids"])
    assert report.sources.cut_rows == 1
    assert report.sources.lengths[-1] == longest
    assert f"max_source_length={longest} would keep all of every row, {short} that of 95 %" in str(report)


def test_what_would_stop_training_is_reported_and_not_raised() -> None:
    task = Task("t", "{text}", "{label}", {"0": "\U0001f641", "1": "\U0001f642"}, max_source_length=16)
    report = lint(
        task, [{"text": "a", "label": 0}, {"text": "", "label": 1}, {"text": "b", "label": 2}], small_tokenizer()
    )
    text = str(report)
    assert len(report.problems) == 3
    assert "error: The label '2' of the column 'label' in row 2 has no word" in text
    assert "error: The words of labels '0', '1' have the same tokens" in text
    assert "error: The source is empty in row 1" in text
    assert "the words of 2 of 3 (66.7 %) hold characters that the tokenizer loses; choose other words" in text


def test_records_without_the_columns_are_refused(mini: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="names the column 'text', which is not in row 0"):
        lint(ECHO, [{"body": "a", "title": "x"}], mini)


def test_the_command_prints_a_report_a_split_and_fails_on_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": f"words {i}\nmore", "label": i % 2}) + "\n" for i in range(20)))
    small_tokenizer().save_pretrained(tmp_path / "small")
    arguments = ["lint", "--task", "classification", "--train", str(train), "--backbone", str(tmp_path / "small")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "== train\ntokenizer lint of task 'classification'" in out
    assert "== validation" in out
    words = ["--target-word", "0=\U0001f641", "--target-word", "1=\U0001f642"]
    assert main([*arguments, *words]) == 1
    assert "have the same tokens" in capsys.readouterr().out
