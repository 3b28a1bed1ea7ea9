"""``t5peft auto``: the task from the columns, methods by memory, a search that survives a kill, baselines, a report."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from tiny import tiny_t5, tiny_tokenizer

import t5peft
from t5peft import load_adapter
from t5peft.benchmark.statistics import Difference
from t5peft.cli import auto as auto_command
from t5peft.cli import main
from t5peft.cli.auto_report import TFIDF, Baseline, advice_of, correlation_of_numbers
from t5peft.cli.auto_run import fitting_methods, prepare
from t5peft.cli.auto_task import UnclearTaskError, Wording, guess_task, round_numbers
from t5peft.data import Task
from t5peft.data.lint import lint
from t5peft.evaluation import rank
from t5peft.evaluation.scores import EvaluationSet
from t5peft.models.backbone import load_tokenizer
from t5peft.planning.job import Job
from t5peft.planning.plan import step_bytes
from t5peft.training.config import TrainConfig


def rows(count: int = 60, **columns: Any) -> list[dict[str, Any]]:
    return [{name: make(i) for name, make in columns.items()} for i in range(count)]


def text(word: str) -> Any:
    return lambda i: f"{word} number {i} of many"


@pytest.mark.parametrize(
    ("columns", "family", "roles"),
    [
        ({"id": int, "review": text("film"), "stars": lambda i: i % 5 + 1}, "classification", ("review", "stars")),
        ({"q": text("a"), "answer": lambda i: ("yes", "no")[i % 2]}, "classification", ("q", "answer")),
        (
            {"premise": text("a"), "hypothesis": text("b"), "label": lambda i: i % 3},
            "sentence_pairs",
            ("premise", "hypothesis", "label"),
        ),
        (
            {"one": text("a"), "two": text("b"), "score": lambda i: i / 12},
            "sentence_pairs",
            ("one", "two", "score"),
        ),
        (
            {"title": text("a"), "section": lambda i: "abc"[i % 3], "article": text("b"), "summary": text("c")},
            "summarization",
            ("article", "summary"),
        ),
        ({"en": text("a"), "de": text("b")}, "translation", ("en", "de")),
        (
            {"question": text("a"), "context": text("b"), "answer": text("c")},
            "question_answering",
            ("question", "context", "answer"),
        ),
        ({"before": text("a"), "after": text("b")}, "generation", ("before", "after")),
        ({"text": text("a"), "label": lambda i: ["a", "b"][: i % 2 + 1]}, "classification", ("text", "label")),
    ],
)
def test_the_columns_tell_the_task(columns: dict[str, Any], family: str, roles: tuple[str, ...]) -> None:
    guess = guess_task(rows(**columns))
    assert (guess.family, tuple(guess.columns.values())) == (family, roles)
    assert (guess.step is not None) == ("score" in columns)
    task, splits, reasons = prepare(None, {"train": rows(**columns)}, {}, None)
    assert {"train", "validation", "test"} == set(splits)
    assert sum(map(len, splits.values())) == 60
    assert reasons[0].startswith("Records: ")
    assert task.template


def test_several_texts_with_a_label_are_one_template() -> None:
    guess = guess_task(rows(title=text("a"), body=text("b"), note=text("c"), label=lambda i: i % 2))
    assert guess.template == "classify: title: {title} body: {body} note: {note}"


@pytest.mark.parametrize(
    "columns",
    [
        {"text": text("a"), "mood": lambda i: i % 2, "topic": lambda i: i % 3},
        {"one": text("a"), "two": text("b"), "three": text("c")},
        {"text": text("a")},
        {"a": lambda i: i % 2, "label": lambda i: i % 2},
    ],
)
def test_columns_that_do_not_tell_the_task_are_listed(columns: dict[str, Any]) -> None:
    with pytest.raises(UnclearTaskError, match=r"Name the column to predict, with --column label=NAME") as error:
        guess_task(rows(**columns))
    assert all(f"\n  - {name} (" in str(error.value) for name in columns)


def test_the_user_says_which_column_is_predicted() -> None:
    table = rows(text=text("a"), mood=lambda i: i % 2, topic=lambda i: i % 3)
    for guess in (guess_task(table, target="topic"), guess_task(table, columns={"label": "topic"})):
        assert guess.columns == {"text": "text", "label": "topic"}


def test_a_template_tells_which_columns_are_read_and_leaves_what_is_predicted() -> None:
    table = rows(title=text("a"), body=text("b"), note=text("c"), mood=lambda i: "01"[i % 2], topic=lambda i: i % 3)
    with pytest.raises(UnclearTaskError, match=r"topic \(label"):
        guess_task(table, template="mood: {title} {body}")
    wording = Wording("mood: {title}", {"0": "bad", "1": "good"}, max_source_length=9)
    task, splits, _ = prepare(None, {"train": table}, {"label": "mood"}, None, wording)
    assert (task.template, task.target, task.max_source_length) == ("mood: {title}", "{mood}", 9)
    assert task.verbalizer == {"0": "bad", "1": "good"}
    assert task.source(splits["train"][0]).startswith("mood: a number")
    texts = [{name: row[name] for name in ("title", "body", "note")} for row in table]
    guess = guess_task(texts, template="{note} of {title}")
    assert guess.columns["completion"] == "body"
    task, _, _ = prepare(None, {"train": texts}, {}, None, Wording("{note} of {title}", references="body"))
    assert (task.template, task.references) == ("{note} of {title}", "body")
    with pytest.raises(UnclearTaskError, match=r"Got a template with head; expected columns of the records: title"):
        guess_task(table, template="{head}")


def test_words_of_the_command_line_need_no_task(films: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def search(train: Any, output: str, **options: Any) -> None:
        given.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("t5peft.cli.auto_run.auto", search)
    words = ["--template", "mood: {review}", "--target-word", "1=good", "--target-word", "0=bad"]
    words += ["--references", "stars", "--max-source-length", "30", "--max-target-length", "4"]
    assert main(["auto", films, *words, "--output", str(tmp_path / "out")]) == 2
    assert given["task"] is None
    assert given["wording"] == Wording("mood: {review}", {"1": "good", "0": "bad"}, "stars", 30, 4)


def test_numbers_are_rounded_to_few_steps_of_one_form() -> None:
    table = rows(one=text("a"), score=lambda i: i / 12)
    step = guess_task(table).step
    assert step == 0.5
    assert [row["score"] for row in round_numbers(table, "score", step)[:5]] == ["0.0", "0.0", "0.0", "0.0", "0.5"]
    assert len({row["score"] for row in round_numbers(table, "score", step)}) == 11


@pytest.fixture
def films(tmp_path: Path) -> str:
    path = tmp_path / "films.csv"
    path.write_text("review,stars\n" + "".join(f"{'good' if i % 2 else 'bad'} film {i},{i % 2}\n" for i in range(80)))
    return str(path)


@pytest.mark.processes
def test_methods_that_do_not_fit_are_left_out(backbone: str) -> None:
    task, splits, _ = prepare(None, {"train": rows(review=text("a"), stars=lambda i: i % 2)}, {}, None)
    checked = lint(task, splits["train"], load_tokenizer(backbone))
    config = TrainConfig(backbone=backbone)
    everything, none = fitting_methods(config, checked, None, 10**12)
    assert none == []
    assert "qlora" not in everything
    source, target = checked.sources.lengths[-1], checked.targets.lengths[-1]
    one_row = Job(backbone, "full", source, target, 16, 1, device="cpu", checkpointing=True)
    fitting, dropped = fitting_methods(config, checked, None, step_bytes(one_row).needed_bytes - 1)
    assert set(fitting) < set(everything)
    assert any(line.startswith("full is left out: it needs ") for line in dropped)
    assert any("tokens_per_micro_batch" in change.get("training_options", {}) for change in fitting.values())
    with pytest.raises(ValueError, match="in which no method fits"):
        fitting_methods(config, checked, None, 1000)
    with pytest.raises(ValueError, match="Got methods lroa; expected some of"):
        fitting_methods(config, checked, ["lroa"], None)


def test_the_report_says_where_a_baseline_is_better() -> None:
    def baseline(low: float, high: float) -> Baseline:
        return Baseline(TFIDF, Difference(0.8, 0.7, 0.9), Difference((low + high) / 2, low, high))

    assert advice_of([baseline(0.1, 0.2)]) == ["The tuned model is clearly better than every baseline."]
    assert f"{TFIDF} is better than the tuned model" in advice_of([baseline(-0.2, -0.1)])[0]
    assert "cannot separate the tuned model from" in advice_of([baseline(-0.1, 0.1)])[0]


def command(backbone: str, films: str, output: Path) -> list[str]:
    words = ["auto", films, "--backbone", backbone, "--methods", "lora", "full", "--batch-size", "4"]
    return [*words, "--minutes", "0.05", "--output", str(output)]


def test_from_a_file_to_an_adapter_with_its_report(
    backbone: str, films: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main([*command(backbone, films, output)[:5], "lora", *command(backbone, films, output)[7:], "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((output / "results.json").read_text())
    assert set(results["baselines"]) == {"the most frequent answer", TFIDF}
    report = (output / "report.md").read_text()
    for words in (
        "| tuned model, lora |",
        f"| {TFIDF} |",
        "## Trials",
        "t5peft serve --backbone",
        "The column 'stars'",
    ):
        assert words in report
    assert "most frequent label" in (output / "adapter" / "README.md").read_text()
    load_adapter(output / "adapter")
    assert Task.from_yaml(output / "adapter" / "task.yaml").template == "classify: {review}"
    capsys.readouterr()
    for line in results["commands"][1:]:
        assert main(line.replace("...", "film").split()[1:]) == 0
    found = capsys.readouterr().out
    assert f"accuracy  {results['test']['scores']['accuracy']:.4f}" in found
    assert not (output / ".trials").exists()


def test_an_unclear_file_is_one_error_with_the_flag_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,mood,topic\n" + "".join(f"a long text {i},{i % 2},{i % 3}\n" for i in range(60)))
    assert main(["auto", str(path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "with --column label=NAME" in told
    assert "- topic (label, 3 different values)" in told
    assert main(["auto", "--output", str(tmp_path / "out")]) == 2
    assert "Got neither a file nor --task" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_no_finished_trial(backbone: str, films: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [sys.executable, "-c", "from t5peft.cli import main; main()", *command(backbone, films, output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trials = output / "trials.jsonl"

    def finished() -> list[str]:
        return [line for line in trials.read_text().splitlines() if "trial" in line] if trials.is_file() else []

    with subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while len(finished()) < 3 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = finished()
    assert len(before) >= 3
    assert not (output / "results.json").exists()
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "trials of an interrupted search were found" in done.stdout
    after = finished()
    assert after[: len(before)] == before
    keys = [
        (entry["rung"], str(entry["arm"]))
        for entry in (json.loads(line)["trial"] for line in after if '"trial"' in line)
    ]
    assert len(keys) == len(set(keys))
    assert (output / "results.json").is_file()


def test_the_function_is_public() -> None:
    from t5peft.cli.auto_run import auto

    assert t5peft.auto is auto


def test_labels_that_are_numbers_are_also_scored_by_their_correlation() -> None:
    model, tokenizer = tiny_t5(), tiny_tokenizer()
    records = [{"text": f"film {i}", "score": str(i % 4)} for i in range(8)]
    task = Task("score", "{text}", "{score}", {str(i): str(i) for i in range(4)}, ("accuracy",))
    found = correlation_of_numbers(model, EvaluationSet(task, records, tokenizer))["pearson"]
    ranking = rank(model, tokenizer, task.sources(records, tokenizer), task.candidates)
    expected = [sum(i * share for i, share in enumerate(row)) for row in ranking.probabilities.tolist()]
    assert found == pytest.approx(np.corrcoef(expected, [i % 4 for i in range(8)])[0, 1], abs=1e-4)
    words = Task("mood", "{text}", "{score}", {str(i): str(i) for i in range(2)}, ("accuracy",))
    assert correlation_of_numbers(model, EvaluationSet(words, records[:2], tokenizer)) == {}


def test_a_terminal_is_asked_for_the_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("9\nwhat\n2\n"))
    assert auto_command._ask(("mood", "topic"), {"mood": 1, "topic": "film"}) == "topic"
    assert "  2  topic, such as 'film'" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("mood\n"))
    assert auto_command._ask(("mood", "topic"), {}) == "mood"
    with pytest.raises(ValueError, match="Give --column label=NAME"):
        auto_command._ask(("mood", "topic"), {})
