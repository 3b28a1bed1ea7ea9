"""The ten tasks of a new user are done with the commands of their page."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from t5peft.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import ten_tasks  # noqa: E402

TASKS = ten_tasks.user_tasks()


def test_there_are_ten_tasks_and_the_table_is_that_of_the_record() -> None:
    assert [task.number for task in TASKS] == list(range(1, 11))
    assert all((ten_tasks.PAGE.parent / task.page).is_file() for task in TASKS)
    shown = (
        ten_tasks.PAGE.read_text(encoding="utf-8").split("<!-- table:ten-tasks -->\n")[1].split("\n<!-- /table -->")[0]
    )
    assert shown == ten_tasks.table()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.number))
def test_the_commands_of_a_task_are_valid(task: ten_tasks.UserTask, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.partition(" & ")[0] for line in task.commands.splitlines() if line.startswith("t5peft ")]
    assert lines
    for words in map(shlex.split, lines):
        monkeypatch.setattr(import_module(COMMANDS[words[1]][0]), "run", lambda args: 0)
        assert main(words[1:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task.number))
def test_a_task_is_done_from_a_clean_folder(task: ten_tasks.UserTask) -> None:
    assert ten_tasks.do(task) > 0
