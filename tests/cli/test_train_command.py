"""Training on the command line, on a user's file and on a tiny checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import transformers
from commands import own_task, train
from tiny import tiny_t5

from t5peft import load_adapter
from t5peft.cli import main


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
    assert "the label '' in row 0 has no target word" in capsys.readouterr().err
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
    assert "--column names 'text' more than once" in capsys.readouterr().err


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
