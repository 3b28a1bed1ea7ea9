"""Training on the command line, on a user's file and on a tiny checkpoint."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from commands import held_elsewhere, own_task, train
from tiny import Geometry, tiny_t5

from t5peft import load_adapter, load_backbone
from t5peft.cli import main
from t5peft.cli.data import load_saved_task
from t5peft.cli.train_config import read_options
from t5peft.data import load_records
from t5peft.evaluation import evaluate_task, rank
from t5peft.training.config import TrainConfig
from t5peft.training.train import training_arguments


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_train_evaluate_predict_from_a_csv_file(
    method: str, backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--method", method, "--learning-rate", "0.05") == 0
    folder = str(tmp_path / "out" / ("" if method == "full" else "adapter"))
    assert "validation: " in capsys.readouterr().out

    task, records = load_saved_task(folder), load_records(table)
    model, tokenizer = load_backbone(folder) if method == "full" else load_adapter(folder)
    assert main(["evaluate", folder, "--data", table]) == 0
    printed = capsys.readouterr().out
    assert "classification, 24 records" in printed
    for name, value in evaluate_task(model, tokenizer, task, records).items():
        assert f"{name}  {value:.4f}" in printed

    output = tmp_path / "answers.jsonl"
    assert main(["predict", folder, "--data", table, "--output", str(output)]) == 0
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    expected, untuned = (
        rank(one, tokenizer, task.sources(records, tokenizer), task.candidates)
        for one in (model, load_backbone(backbone)[0])
    )
    found = torch.tensor([[answer["probability"][label] for label in task.labels] for answer in answers])
    torch.testing.assert_close(found, expected.probabilities, atol=1e-4, rtol=0)
    assert not torch.allclose(found, untuned.probabilities, atol=1e-2), "the weights that were trained must count"
    assert [answer["answer"] for answer in answers] == [task.labels[i] for i in expected.best]
    assert [answer["review"] for answer in answers] == [record["review"] for record in records]


def test_what_would_stop_the_scoring_stops_before_the_training(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.csv").write_text("review,stars\nfilm,\n")
    assert train(backbone, table, tmp_path / "out", "--test", str(tmp_path / "test.csv")) == 2
    assert "in row 0 has no word" in capsys.readouterr().err
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
    assert "Got metrics ['macro_f1'] of the task 'own'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_adapter_is_saved_before_it_is_scored(
    backbone: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("out of memory, say")

    monkeypatch.setattr("t5peft.training.card.EvaluationSet", broken)
    assert train(backbone, table, tmp_path / "out") == 2
    load_adapter(tmp_path / "out" / "adapter")


def test_an_option_that_a_method_does_not_have_is_an_error(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--method", "ia3", "--rank", "4") == 2
    assert "Got options that the method 'ia3' does not take" in capsys.readouterr().err
    assert train(backbone, table, tmp_path / "out", "--method", "prefix", "--rank", "4") == 2
    assert "expected length, sites, projection_size, initial_ids." in capsys.readouterr().err


def test_an_option_that_contradicts_itself_is_an_error(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--target-word", "1=fine", "--column", "text=stars") == 2
    assert "Got --column with 'text' more than once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--training-option", "report_to=nothing_known"], "report_to=nothing_known, which is not installed"),
        (["--training-option", "torch_compile=maybe"], "torch_compile='maybe'; expected torch_compile of bool"),
        (
            ["--training-option", "dataloader_num_workers=1.5"],
            "dataloader_num_workers=1.5; expected dataloader_num_workers",
        ),
        (["--training-option", "activation_cache_bytes=1GB"], "activation_cache_bytes='1GB'"),
        (["--training-option", "pack=perhaps"], "pack='perhaps'; expected pack of bool | None"),
        (["--seed", "-1"], "Got seed=-1; expected a whole number from 0"),
        (["--output", ""], "Got an empty --output; expected a name"),
        (["--backbone", ""], "Got an empty --backbone; expected a name"),
    ],
    ids=str,
)
def test_a_value_that_an_option_does_not_take_is_an_error(
    option: list[str], message: str, backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = train(backbone, table, tmp_path / "out", *option)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", ["logging_steps=1", "z_loss=1", "pack=true", "report_to=[]", "report_to=none", "optim=adamw_torch"]
)
def test_a_value_that_a_training_option_takes_is_used(option: str) -> None:
    name, value = option.split("=")
    given = read_options([option], "--training-option")
    made = training_arguments(TrainConfig(training_options=given), 8, "out")
    assert getattr(made, name) in (given[name], [], [value])


@pytest.mark.parametrize("geometry", ["v1.0", "v1.1"])
def test_full_tuning_says_nothing_of_tied_weights(
    geometry: Geometry, backbone: str, table: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    assert train(backbone, table, tmp_path / "out", *options) == 1
    assert "Lower the learning rate" in capsys.readouterr().err


def runs_command(backbone: str, folder: Path) -> list[str]:
    (folder / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    command = ["train", "--task", "classification", "--train", str(folder / "films.csv"), "--backbone", backbone]
    return [*command, "--steps", "2", "--evaluations", "2", "--output", str(folder / "run")]


def test_an_interrupted_run_is_not_begun_anew_over_its_checkpoints(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = runs_command(backbone, tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("t5peft.adapters.save_adapter", interrupt)
        assert main(command) == 130
    assert "Interrupted; saved files are intact" in capsys.readouterr().err
    assert main(command) == 2
    assert "holds checkpoint-2 of an earlier run; expected a folder without results" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_finished_run_is_replaced_only_where_that_is_asked_for(
    method: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*runs_command(backbone, tmp_path), "--method", method]
    run = tmp_path / "run"
    assert main(command) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for other in (command, [*command, "--seed", "5"], [*command, "--method", "ia3"]):
        capsys.readouterr()
        assert main(other) == 2
        told = capsys.readouterr().err
        assert f"Got the output {run}, which holds " in told
        assert "--overwrite" in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*command, "--resume", "--overwrite"]) == 2
    assert main([*command, "--train", "nowhere.csv", "--overwrite"]) == 2  # nothing goes for a run that does not start
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*command, "--seed", "5", "--steps", "1", "--overwrite"]) == 0
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    weights = [path for path in before if path.suffix == ".safetensors" and "checkpoint" not in str(path)]
    assert len(weights) == 1
    assert weights[0].read_bytes() != before[weights[0]]


def test_a_second_run_into_the_same_folder_is_refused(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = runs_command(backbone, tmp_path)
    with held_elsewhere(tmp_path / "run") as process:
        for other in (command, [*command, "--resume"], [*command, "--overwrite"]):
            assert main(other) == 4
            told = capsys.readouterr().err
            assert f"Got the folder {tmp_path / 'run'}, which another run holds (process {process.pid} on host" in told
            assert "give another output" in told


@pytest.mark.parametrize("folder", ["study", "merged", "pretrained", "bench"])
def test_every_command_with_an_output_holds_it(
    folder: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a text\n" * 50)
    data = ["--task", "classification", "--train", runs_command(backbone, tmp_path)[4], "--backbone", backbone]
    command = {
        "study": ["search", *data],
        "merged": ["merge", "nowhere"],
        "pretrained": ["pretrain", "--text", str(tmp_path / "text.txt"), "--backbone", backbone],
        "bench": ["bench", "--methods", "prompt"],
    }[folder]
    with held_elsewhere(tmp_path / folder):
        assert main([*command, "--output", str(tmp_path / folder)]) == 4
    assert f"Got the folder {tmp_path / folder}, which another run holds" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_line_that_says_so(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("t5peft.adapters.save_adapter", full)
    assert main(runs_command(backbone, tmp_path)) == 3
    told = capsys.readouterr().err
    assert f"Got no space left on the disk of the folder {tmp_path / 'run'}" in told
    assert told.count("\n") == 1
