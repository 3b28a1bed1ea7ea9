"""The commands, on a user's file and on a tiny checkpoint."""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import transformers
from datasets import Dataset
from tiny import tiny_t5, tiny_tokenizer
from transformers import UMT5Config, UMT5ForConditionalGeneration

import t5peft
from t5peft import load_adapter, load_backbone, lora_wrap, save_adapter
from t5peft.benchmark.data import data_of, load_data
from t5peft.cli import COMMANDS, bench, main
from t5peft.cli.data import add_data_arguments, load_saved_task, read_data, save_task
from t5peft.cli.predict import answered
from t5peft.data import Task, load_records, preset_task
from t5peft.evaluation import classify, rank
from t5peft.models.backbone import load_tokenizer


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    tiny_t5().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "reviews.csv"
    rows = [f"{'good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(24)]
    path.write_text("\n".join(["review,stars", *rows]))
    return str(path)


def train(backbone: str, table: str, output: Path, *more: str) -> int:
    return main(
        ["train", "--task", "classification", "--train", table, "--column", "text=review", "--column", "label=stars",
         "--target-word", "0=bad", "--target-word", "1=good", "--backbone", backbone, "--output", str(output),
         "--steps", "2", "--batch-size", "4", *more]
    )  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_train_evaluate_predict_from_a_csv_file(
    method: str, backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--method", method) == 0
    folder = str(tmp_path / "out" / ("" if method == "full" else "adapter"))
    assert "validation: " in capsys.readouterr().out

    assert main(["evaluate", folder, "--data", table]) == 0
    printed = capsys.readouterr().out
    assert "classification, 24 records" in printed
    assert "accuracy" in printed

    output = tmp_path / "answers.jsonl"
    assert main(["predict", folder, "--data", table, "--output", str(output)]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(answers) == 24
    assert {answer["answer"] for answer in answers} <= {"0", "1"}
    assert all(sum(answer["probability"].values()) == pytest.approx(1, abs=1e-3) for answer in answers)


def test_what_would_stop_the_scoring_stops_before_the_training(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.csv").write_text("review,stars\nfilm,\n")
    assert train(backbone, table, tmp_path / "out", "--test", str(tmp_path / "test.csv")) == 2
    assert "The label '' of the column 'label' in row 0 has no word" in capsys.readouterr().err
    path = Path(own_task(tmp_path, "own", "train"))
    path.write_text(path.read_text().replace("[accuracy]", "[accuracy, macro_f1]"))
    arguments = [
        "train",
        "--task",
        str(path),
        "--backbone",
        backbone,
        "--steps",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    assert "names metrics that there are not: ['macro_f1']" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_adapter_is_saved_before_it_is_scored(
    backbone: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("out of memory, say")

    monkeypatch.setattr("t5peft.training.train.evaluate_task", broken)
    assert train(backbone, table, tmp_path / "out") == 2
    load_adapter(tmp_path / "out" / "adapter")


def own_task(folder: Path, name: str, *splits: str) -> str:
    """A task's YAML file in ``folder``, with six records a split."""
    rows = "".join(f"film {i},{i % 2}\n" for i in range(6))
    (folder / "own.csv").write_text(f"text,label\n{rows}")
    files = ", ".join(f"{split}: own.csv" for split in splits)
    path = folder / "own.yaml"
    path.write_text(
        f"name: {name}\ntemplate: 'film: {{text}}'\ntarget: '{{label}}'\ntarget_words: {{0: bad, 1: good}}\n"
        f"metrics: [accuracy]\ndata:\n  files: {{{files}}}\n"
    )
    return str(path)


@pytest.mark.parametrize("name", ["own", "finance"])
def test_evaluate_scores_on_the_test_records_that_the_given_task_brings(
    name: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", backbone, "--task", own_task(tmp_path, name, "test")]) == 0
    assert f"{name}, 6 records" in capsys.readouterr().out


def test_evaluate_asks_for_data_where_the_task_brings_no_test_records(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", backbone, "--task", own_task(tmp_path, "own", "train")]) == 2
    assert "'own' brings no test records, only train, validation; give --data FILE" in capsys.readouterr().err


def test_evaluate_asks_for_data_where_a_task_is_only_called_as_one_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_task(preset_task("correction", [{"text": "he go", "corrected": "he goes"}]), tmp_path)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "not the package's task 'correction', only called so" in capsys.readouterr().err


def test_a_saved_task_comes_back_whatever_letters_and_locale_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("größe", "{text} ☺", "{label}", {"a\x85b": "schön", "c": "\u2028 d"}, metrics=("accuracy",))
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "latin-1")  # as where the locale has it
    save_task(task, tmp_path)
    assert load_saved_task(tmp_path) == task


def test_the_packages_task_of_a_familys_name_is_reached_without_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--task", "correction"]) == 0
    assert "correction" in capsys.readouterr().out


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    """A folder with a file for each split, whose texts say which."""
    for split, rows in (("train", 24), ("test", 6)):
        lines = "".join(f"{split} {i},{i % 2}\n" for i in range(rows))
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{lines}")
    return str(tmp_path)


@pytest.mark.parametrize("origin", ["folder", "here", "hub"])
def test_a_folder_and_a_data_set_of_the_hub_give_the_split_that_is_asked_for(
    origin: str, data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, config: str | None, split: str) -> Dataset:
        return Dataset.from_list(load_records(data_set, split))

    monkeypatch.setattr("t5peft.data.files.load_dataset", load)
    monkeypatch.chdir(data_set)
    path = {"folder": data_set, "here": ".", "hub": "someone/reviews"}[origin]
    given = ["--task", "classification", "--train", path, "--test", path]
    for_training, for_bench = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_data_arguments(for_training)
    _, splits = read_data(for_training.parse_args(given))
    bench.add_arguments(for_bench)
    (own,) = bench.suite_of(for_bench.parse_args(given)).tasks
    assert own.name == ("reviews" if origin == "hub" else Path(data_set).name)
    _, of_bench = load_data(data_of(own), {})
    for found in (splits, of_bench):
        said = {split: {record["text"].split()[0] for record in records} for split, records in found.items()}
        assert said == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}


def test_evaluate_and_predict_take_the_test_records_of_a_folder(
    backbone: str, data_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = own_task(tmp_path, "own", "test")
    assert main(["evaluate", backbone, "--task", task, "--data", data_set]) == 0
    assert "own, 6 records" in capsys.readouterr().out
    assert main(["predict", backbone, "--task", task, "--data", data_set]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [
        f"test {i}" for i in range(6)
    ]


def test_an_answer_is_the_likeliest_label_also_where_the_printed_shares_are_equal() -> None:
    words = {str(i): f"{i:04}" for i in range(200)}
    task, records = Task("number", "{text}", "{label}", words), [{"text": text} for text in ("a", "bc", "def")]
    model, tokenizer = tiny_t5(), tiny_tokenizer()
    model.lm_head.weight.data *= 1e-4
    best = rank(model, tokenizer, task.sources(records, tokenizer), task.candidates).best
    answers = [record["answer"] for record in answered(model, tokenizer, task, records)]
    assert answers == [task.labels[i] for i in best] != ["0"] * 3


def test_columns_that_an_answer_would_take_the_place_of_are_told() -> None:
    for target, taken in (("{name}", "answer"), ("{answer}", "prediction")):
        task = Task("question", "{question}", target, max_target_length=4)
        records = [{"question": "who?", "name": "Bob", "answer": "Bob", "prediction": "Eve"}]
        with pytest.raises(ValueError, match=rf"columns that predict adds \({taken}\); rename them"):
            list(answered(tiny_t5(), tiny_tokenizer(), task, records))


def test_predict_writes_dates_and_takes_one_kind_of_input(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "dated.parquet")
    parquet.write_table(pa.Table.from_pylist([{"text": "film", "seen": date(2020, 1, 2)}]), path)
    task = own_task(tmp_path, "own", "test")
    assert main(["predict", backbone, "--task", task, "--data", path]) == 0
    assert json.loads(capsys.readouterr().out)["seen"] == "2020-01-02"
    assert main(["predict", backbone, "--task", task, "--data", path, "--text", "film"]) == 2
    assert "Got both --data and --text; expected one of them" in capsys.readouterr().err


def test_answers_are_json_whatever_the_other_columns_hold(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "film", "scores": [NaN, 1.5], "cut": "\\ud83d"}\n')
    output = tmp_path / "answers.jsonl"
    arguments = ["predict", backbone, "--task", own_task(tmp_path, "own", "test"), "--data", str(tmp_path / "a.jsonl")]
    assert main([*arguments, "--output", str(output)]) == 0
    answer = json.loads(output.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (answer["scores"], answer["cut"]) == ([None, 1.5], "\ud83d")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert main(arguments) == 0
    sys.stdout.seek(0)
    assert json.loads(sys.stdout.read())["cut"] == "\ud83d"


def test_texts_that_are_cut_before_they_are_answered_are_told(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("echo", "{text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",), max_source_length=8)
    model, tokenizer = load_backbone(backbone)
    assert len(list(answered(model, tokenizer, task, [{"text": "far too long"}, {"text": "short"}]))) == 2
    assert "Task echo: 1 of 2 sources were longer than 8 tokens" in caplog.text


def test_the_file_of_answers_is_made_before_a_model_is_loaded_and_so_is_its_folder(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", backbone, "--task", own_task(tmp_path, "own", "test"), "--text", "film", "--output"]
    output = tmp_path / "new" / "answers.jsonl"
    assert main([*arguments, str(output)]) == 0
    assert json.loads(output.read_text())["text"] == "film"
    monkeypatch.setattr("t5peft.cli.predict.load_tuned", lambda folder: pytest.fail("the model was loaded"))
    assert main([*arguments, str(tmp_path)]) == 2
    assert f"Is a directory: '{tmp_path}'" in capsys.readouterr().err


def test_merge_writes_a_checkpoint_that_answers_as_the_adapter_did(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out", "--learning-rate", "0.01")
    adapter, merged = str(tmp_path / "out" / "adapter"), str(tmp_path / "merged")
    assert main(["merge", adapter, "--output", merged]) == 0
    assert "to the unmerged adapter" in capsys.readouterr().out
    answers = []
    for folder in (adapter, merged):
        main(["predict", folder, "--text", "a good film"])
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


def test_a_trained_classification_head_answers_alone_beside_its_backbone_and_merged(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("film", "{review}", "{stars}", {"0": "bad", "1": "good"}, metrics=("accuracy",))
    records = load_records(table)
    model, tokenizer = load_backbone(backbone, num_labels=2)
    torch.nn.init.normal_(model.classification_head.out_proj.weight)
    wrapped = lora_wrap(model, target_modules="all-linear")
    expected = classify(wrapped, tokenizer, task.sources(records, tokenizer)).probabilities[:, 1]
    assert expected.std() > 1e-3
    adapter, merged = str(save_adapter(wrapped, tmp_path / "adapter")), str(tmp_path / "merged")
    save_task(task, adapter)
    assert main(["merge", adapter, "--output", merged]) == 0
    accuracies = []
    for folder in (adapter, merged):
        capsys.readouterr()
        assert main(["predict", folder, "--data", table]) == 0
        answers = [json.loads(line)["probability"]["1"] for line in capsys.readouterr().out.splitlines()]
        assert answers == pytest.approx(expected.tolist(), abs=1e-4)
        assert main(["evaluate", folder, "--data", table]) == 0
        accuracies.append(re.findall("accuracy +(.+)", capsys.readouterr().out))
    assert accuracies[0] == accuracies[1]


def test_a_whole_model_is_not_saved_over_an_adapter_which_would_be_served_in_its_place(
    backbone: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter"
    monkeypatch.setattr("t5peft.cli.merge.merge", lambda folder: pytest.fail("the adapter was merged"))
    monkeypatch.setattr("t5peft.cli.train.fit", lambda *args, **kwargs: pytest.fail("the model was trained"))
    assert main(["merge", str(adapter), "--output", str(adapter)]) == 2
    assert f"{adapter} holds an adapter, which would be taken for the model" in capsys.readouterr().err
    assert train(backbone, table, adapter, "--method", "full") == 2
    assert f"{adapter} holds an adapter, which would be taken for the model" in capsys.readouterr().err


def test_a_prefix_is_not_merged_and_the_error_says_why(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out", "--method", "prefix")
    assert main(["merge", str(tmp_path / "out" / "adapter"), "--output", str(tmp_path / "merged")]) == 2
    assert "expected a method that changes weights, such as LoRA. It cannot be merged" in capsys.readouterr().err


def test_the_version_names_the_stack_for_a_report_of_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"t5peft {t5peft.__version__}" in printed
    assert f"transformers {transformers.__version__}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "'tune' is no command; expected one of train, evaluate"),
        (["train", "--task", "classification", "--train", "no.csv", "--output", "x"], "no.csv"),
        (["train", "--task", "classification", "--output", "x"], "without records; expected files, by --train"),
        (
            ["lint", "--task", "finance", "--template", "{text}", "--column", "text=x"],
            "Got --column, --template with 'finance'; expected a family",
        ),
        (["bench", "--task", "finance", "--template", "{text}"], "Got --template, which go with files of your own"),
        (["evaluate", "nowhere"], "Got no folder nowhere"),
        (["plan", "--micro-batch", "0"], "micro_batch is 0, expected at least 1"),
    ],
)
def test_wrong_input_ends_in_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_a_report_names_a_command_that_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/t5peft", "bench", "--template", "intent: {text}"])
    assert bench._command() == "t5peft bench --template 'intent: {text}'"


def test_the_folder_of_a_run_names_that_of_its_adapter(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "run", "--steps", "1") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--data", table]) == 2
    assert f"expected its adapter, {tmp_path / 'run' / 'adapter'}" in capsys.readouterr().err


def test_an_option_that_a_method_does_not_have_is_an_error(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--method", "ia3", "--rank", "4") == 2
    assert "'ia3' takes no such option" in capsys.readouterr().err
    assert train(backbone, table, tmp_path / "out", "--method", "prefix", "--rank", "4") == 2
    assert "it takes length, sites, projection_size, initial_ids." in capsys.readouterr().err


def test_an_option_that_contradicts_itself_is_an_error(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--target-word", "1=fine", "--column", "text=stars") == 2
    assert "Got --column with 'text' more than once" in capsys.readouterr().err


def test_every_command_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0


@pytest.mark.parametrize("geometry", ["v1.0", "v1.1"])
def test_full_tuning_says_nothing_of_tied_weights(
    geometry: str, backbone: str, table: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_t5(geometry).save_pretrained(backbone)
    loggers = [logging.getLogger(f"transformers.{module}") for module in ("modeling_utils", "trainer")]
    transformers.logging.set_verbosity_warning()
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        assert train(backbone, table, tmp_path / "out", "--method", "full", "--steps", "3") == 0
        assert main(["evaluate", str(tmp_path / "out"), "--data", table]) == 0
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
        transformers.logging.set_verbosity_error()
    assert [note for note in caplog.messages if "tie" in note or "missing keys" in note] == []


def test_a_training_that_diverges_ends_in_one_line(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "full", "--learning-rate", "1e30", "--steps", "5", "--evaluations", "1"]
    assert train(backbone, table, tmp_path / "out", *options) == 2
    assert "Lower the learning rate" in capsys.readouterr().err


def test_a_whole_model_beside_the_adapter_of_another_run_is_evaluated(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("lora", "full"):
        assert train(backbone, table, tmp_path / "out", "--method", method) == 0
    assert main(["evaluate", str(tmp_path / "out"), "--data", table]) == 0


def test_an_adapter_whose_backbone_is_elsewhere_says_where_it_was(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--steps", "1") == 0
    Path(backbone).rename(tmp_path / "elsewhere")
    assert main(["evaluate", str(tmp_path / "out" / "adapter"), "--data", table]) == 2
    assert f"cannot be loaded as in training, by {backbone!r}" in capsys.readouterr().err


def test_a_merged_umt5_says_what_transformers_makes_of_its_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"vocab_size": 8192, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    model = UMT5ForConditionalGeneration(UMT5Config(**shape))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(8192, 32))
    model.save_pretrained(tmp_path / "umt5")
    load_tokenizer("mini").save_pretrained(tmp_path / "umt5")
    adapter = save_adapter(lora_wrap(load_backbone(tmp_path / "umt5")[0]), tmp_path / "adapter")
    assert main(["merge", str(adapter), "--output", str(tmp_path / "merged")]) == 0
    assert "set model.config.tie_word_embeddings = False" in caplog.text
    ids = torch.tensor([[7, 8, 9, 1]])
    expected = load_adapter(adapter)[0](input_ids=ids, labels=ids).logits
    plain = UMT5ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert not torch.allclose(plain(input_ids=ids, labels=ids).logits, expected, atol=1e-3), "the warning can go"
    plain.config.tie_word_embeddings = False
    assert torch.allclose(plain(input_ids=ids, labels=ids).logits, expected, atol=1e-4)


def test_an_interrupted_run_is_not_begun_anew_over_its_checkpoints(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    command = ["train", "--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    command += ["--steps", "2", "--evaluations", "2", "--output", str(tmp_path / "run")]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("t5peft.cli.train.save_adapter", interrupt)
        assert main(command) == 130
    assert "interrupted; what was saved stays" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds checkpoint-2 of a run that was interrupted; give --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert main(command) == 0  # one that came to its end may be repeated


def test_predictions_stand_beside_the_answers_of_question_answering(backbone: str) -> None:
    model, tokenizer = load_backbone(backbone)
    task = Task("qa", "question: {question}", "{answer}", metrics=("exact_match",))
    (row,) = answered(model, tokenizer, task, [{"question": "who?", "answer": "me"}])
    assert row.keys() == {"question", "answer", "prediction"}
    assert row["answer"] == "me"


def test_references_that_the_task_does_not_name_are_told(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "label": "b", "references": ["b", "c"]}))
    (tmp_path / "own.yaml").write_text(
        "name: own\ntemplate: '{text}'\ntarget: '{label}'\nmetrics: [rouge]\nmax_target_length: 4\n"
    )
    task = str(tmp_path / "own.yaml")
    assert main(["evaluate", backbone, "--task", task, "--data", str(tmp_path / "a.jsonl")]) == 0
    assert "give --references references to score by them" in caplog.text


def test_labels_that_are_empty_are_named_by_row() -> None:
    records = [{"text": "a", "label": "x"}, {"text": "b", "label": ""}, {"text": "c", "label": "y"}]
    with pytest.raises(
        ValueError, match="Got a column 'label' of labels that is empty in row 1 of the training records"
    ):
        preset_task("classification", records)
