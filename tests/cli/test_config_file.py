"""Options of a command in a YAML file, the config that train writes, and results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import train

from t5peft.cli import main, parser_of
from t5peft.cli.train_config import read_config
from t5peft.training.config import TrainConfig

CONFIG = """
task: classification
train: films.csv
column: {text: review, label: stars}
batch_size: 4
learning-rate: 1e-3
warmup: 0.1
bf16: true
gradient-checkpointing: false
target-modules: [q, v]
option: {sites: [encoder, decoder], dora: true}
training-option: {lora_plus_ratio: 8}
steps:
output: runs/a
"""


def parse(command: str, *words: str) -> Any:
    return parser_of(command).parse_args(words)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def test_a_config_file_gives_options_and_the_command_line_wins(path: Path) -> None:
    args = parse("train", "--config", str(path), "--batch-size=8", "--column", "text=film", "--output", "b")
    assert (args.task, args.train, args.output, args.column) == ("classification", "films.csv", "b", ["text=film"])
    config = read_config(args)
    assert config == TrainConfig(
        batch_size=8,
        learning_rate=1e-3,
        warmup=0.1,
        bf16=True,
        options={"target_modules": ["q", "v"], "sites": ["encoder", "decoder"], "dora": True},
        training_options={"lora_plus_ratio": 8.0},
    )
    assert parse("train", f"--config={path}").column == ["text=review", "label=stars"]
    (path.parent / "evaluate.yaml").write_text("model: runs/a/adapter\ndata: a.csv\n")
    assert parse("evaluate", "--config", str(path.parent / "evaluate.yaml")).model == "runs/a/adapter"
    assert parse("evaluate", "--config", str(path.parent / "evaluate.yaml"), "other").model == "other"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batchsize: 4\nspeed: 1", "with batchsize, speed; expected names of options. Did you mean 'batch-size'? "),
        ("batch-size: many", "run.yaml: argument --batch-size: invalid int value: 'many'. See"),
        ("method: lroa", "Did you mean 'lora'? See"),
        ("batch-size: [1, 2]", 'Got batch-size: ["1", "2"]; expected one value. See'),
        ("bf16: perhaps", "Got bf16: perhaps; expected true or false. See"),
        ("batch_size: 1\nbatch-size: 2", "with batch-size more than once"),
        ("steps: 1\nsteps: 2", "the key 'steps' stands more than once"),
        ("target_word: {pos: a, pos: b}", "the key 'pos' stands more than once"),
        ("- a", "which is not a mapping; expected options by name"),
        ("a: [", "which is not YAML in UTF-8"),
        ("config: other.yaml", "with config; expected names of options"),
        (None, "Got no config file"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        parse("train", "--config", str(path), "--task", "a", "--output", "b")
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


GIVEN = ("--task", "a", "--output", "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config", "a.yaml", "--config=b.yaml"), "Got --config a.yaml and --config b.yaml; expected one file."),
        (("--target-modules", "q", "--target-modules", "v"), "got ['v'] after ['q']; expected one list. Write all"),
    ],
)
def test_two_config_files_and_two_lists_are_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("train", *GIVEN, *words)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("--rank", "4", "--rank=8"), "--rank 4 and 8"),
        (("--projection-size", "4", "--reparametrise", "8"), "--reparametrise 4 and 8"),
        (("--output", "c"), "--output b and c"),
    ],
)
def test_the_last_of_two_values_is_used_and_that_is_told(
    words: tuple[str, ...], values: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parse("train", *GIVEN, *words)
    assert (args.rank or args.projection_size or args.output) in (8, "c")
    assert capsys.readouterr().err == f"t5peft train: Got {values}; the last one is used.\n"


def test_nothing_is_told_of_options_that_say_the_same_twice_or_take_several_values(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--quiet", "--quiet", "--rank", "4", "--rank=4", "--option", "a=1", "--option", "b=2", "--batch-size", "9")
    args = parse("train", *GIVEN, *words, "--config", str(path), f"--config={path}")
    assert (args.quiet, args.rank, args.option, args.batch_size) == (True, 4, ["a=1", "b=2"], 9)
    parser = parser_of("train")
    assert [parser.parse_args([*GIVEN, "--rank", rank]).rank for rank in ("4", "8")] == [4, 8]
    assert not capsys.readouterr().err


def test_train_writes_the_config_that_repeats_it(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "lora-all", "--option", "dora=true", "--warmup", "0.5", "--scheduler", "cosine"]
    options += ["--optimizer", "adafactor", "--max-source-length", "20", "--gradient-accumulation", "2"]
    options += ["--best-metric", "accuracy", "--gradient-checkpointing", "--evaluations", "2", "--quiet"]
    assert train(backbone, table, tmp_path / "a", *options) == 0
    quiet = capsys.readouterr().out
    assert quiet.startswith("validation: ")
    assert quiet.count("\n") == 1
    state = json.loads(next((tmp_path / "a").glob("checkpoint-*/trainer_state.json")).read_text())
    assert "eval_accuracy" in next(log for log in state["log_history"] if "eval_loss" in log)
    written = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert written["optimizer"] == "adafactor"
    assert "quiet" not in written
    command = ["train", "--config", str(tmp_path / "a" / "config.yaml"), "--output", str(tmp_path / "b"), "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert "saved to" in printed.err
    assert "%|" not in printed.err, "bars are for terminals"
    assert results["output"] == str(tmp_path / "b" / "adapter")
    assert {"accuracy", "f1_macro"} <= results["scores"]["validation"].keys()
    first, second = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert yaml.safe_load((tmp_path / "a" / "adapter" / "task.yaml").read_text())["max_source_length"] == 20
    adapter = str(tmp_path / "a" / "adapter")
    assert main(["evaluate", adapter, "--data", table, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 24
    assert main(["merge", adapter, "--output", str(tmp_path / "merged"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["unmerged"] >= 0


def test_lint_and_plan_print_json(table: str, backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--task", "classification", "--train", table, "--column", "text=review", "--column", "label=stars"]
    assert main(["lint", *data, "--backbone", backbone, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["train"]["sources"]["rows"] + report["validation"]["sources"]["rows"] == 24
    assert main(["plan", "--memory", "1MB", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is False
    assert plan["peak_bytes"] > 1e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--best-metric", "acuracy"], "Got best_metric='acuracy'; expected one of loss, accuracy, f1"),
        (["--training-option", "warmup_stps=3"], "Got training_options warmup_stps; expected arguments of"),
        (["--training-option", "learning_rate=3"], "Got training_options learning_rate; expected arguments of"),
        (["--training-option", "num_train_epochs=3"], "Got training_options num_train_epochs; expected arguments of"),
        (["--max-grad-norm", "-1", "--warmup", "-1"], "Got warmup=-1.0; expected at least 0. Got max_grad_norm=-1.0"),
    ],
)
def test_a_wrong_setting_of_training_is_one_line(
    options: list[str], message: str, backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
