"""Help answers at once, shows defaults, and wrong words are told with the nearest right one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from t5peft.benchmark.suites import suite_names
from t5peft.cli import ALIASES, COMMANDS, EXIT_CODES, main, names
from t5peft.data import PRESETS
from t5peft.methods import METHODS
from t5peft.pretraining.init import Shape
from t5peft.pretraining.optimizers import LEARNING_RATES
from t5peft.pretraining.pretrainer import PretrainConfig


def test_the_names_that_help_shows_are_those_of_the_tables() -> None:
    assert tuple(METHODS) == names.METHODS
    kinds = {name: kind for method in METHODS.values() for name, kind in method.options.items()}
    numbers = {int: int, float: float, int | None: int, float | None: float}
    assert {name: numbers[kind] for name, kind in kinds.items() if kind in numbers} == names.NUMERIC_OPTIONS
    assert tuple(PRESETS) == names.PRESETS
    assert names.suite_names() == list(suite_names())
    assert vars(Shape()) == names.PRETRAIN_SHAPE
    assert names.PRETRAIN_LEARNING_RATES == LEARNING_RATES
    config = vars(PretrainConfig())
    assert {name: (config[name], text) for name, (_, text) in names.PRETRAIN_CONFIG.items()} == names.PRETRAIN_CONFIG
    assert {name for name, value in config.items() if type(value) is int} == set(names.PRETRAIN_CONFIG)


HELP = """
import contextlib, io, sys
from t5peft.cli import COMMANDS, main
for name in ("", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([name, "--help"] if name else ["--help"])
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {"torch", "transformers", "numpy", "datasets", "pandas", "peft", "yaml"} & set(done.stdout.split()) == set()


@pytest.fixture(params=sorted(COMMANDS))
def help_text(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([request.param, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_command_describes_itself(help_text: str) -> None:
    assert "usage: t5peft " in help_text
    assert "[options]" in help_text


def test_the_help_of_all_names_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in printed
        assert text in printed
    for code, text in EXIT_CODES.items():
        assert f"{code}  {text}" in printed
        assert f"| {code} | {text} |" in (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--method", "lroa"], "argument --method: got 'lroa'; expected one of full, lora, "),
        (["train", "--method", "lroa"], "Did you mean 'lora'? See t5peft train --help."),
        (["plan", "--method", "prefx"], "Did you mean 'prefix'?"),
        (["lint", "--task", "finance", "--bakcbone", "mini"], "unrecognized arguments: --bakcbone mini"),
        (["lint", "--task", "finance", "--bakcbone", "mini"], "Did you mean '--backbone'?"),
        (["train"], "The following arguments are required: --task, --output. See t5peft train --help."),
        (["train", "--task", "a", "--output", "b", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
    ],
)
def test_a_wrong_word_ends_in_one_line_with_the_nearest_right_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert message.lower() in printed.lower()
    assert printed.count("\n") == 1


def test_an_unknown_option_of_a_method_is_told_with_the_nearest(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "--task",
        "classification",
        "--train",
        table,
        "--column",
        "text=review",
        "--column",
        "label=stars",
    ]
    command += ["--backbone", backbone, "--output", str(tmp_path / "run"), "--option", "droput=0.1"]
    assert main(command) == 2
    assert "Did you mean 'dropout'?" in capsys.readouterr().err


def test_the_name_of_0_1_for_continue_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert ALIASES == {"retune": "continue"}
    with pytest.raises(SystemExit) as stop:
        main(["retune", "--help"])
    assert stop.value.code == 0
    assert "usage: t5peft continue" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "name: [", "- a", "\x00", ""])
def test_a_damaged_file_of_a_task_or_a_suite_ends_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.yaml"
    path.write_text(content)
    for command in (["lint", "--task", str(path)], ["bench", "--suite", str(path)]):
        assert main(command) == 2
        printed = capsys.readouterr().err
        assert str(path) in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_choices(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*COMMANDS, "gradient-checkpointing", *METHODS))
    if shell == "bash":
        ask = "COMP_WORDS=(t5peft {}); COMP_CWORD={}; _t5peft; echo ${{COMPREPLY[@]}}"
        asked = "\n".join(ask.format(*given) for given in (("tra", 1), ("train --warm", 2), ("plan --method pref", 3)))
        done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["train", "--warmup", "prefix"]
