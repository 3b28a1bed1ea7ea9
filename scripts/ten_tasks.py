"""Do the ten tasks of docs/ten-tasks.md, each from a clean folder, and fill in its table.

    python scripts/ten_tasks.py [NUMBER ...]

Each command is a process of its own, as a user starts it. The table is printed from benchmarks/records/ten_tasks.json.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from t5peft.benchmark.environment import environment
from t5peft.benchmark.tables import fill_markers, markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ten-tasks.md"
RECORD = ROOT / "benchmarks" / "records" / "ten_tasks.json"
LONGEST_SECONDS = 900


@dataclass(frozen=True)
class UserTask:
    """One task of the page."""

    number: int
    title: str
    page: str
    commands: str
    check: str

    @property
    def count(self) -> int:
        """The number of commands, one a line."""
        return len(self.commands.strip().splitlines())


def user_tasks() -> list[UserTask]:
    """Return the tasks of the page."""
    form = r"^## (\d+)\. (.+?)\n\n\[.+?\]\((.+?)\)\n\n```bash\n(.+?)```\n\nDone when: `(.+?)`$"
    found = re.findall(form, PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [UserTask(int(number), title, page, commands, check) for number, title, page, commands, check in found]


def do(task: UserTask) -> float:
    """Do a task in a clean folder, check what it made, and return the seconds.

    Args:
        task: The task.

    Raises:
        RuntimeError: A command failed, or the task is not done.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in (ROOT / "docs" / "data").glob("*.csv"):
            shutil.copy(path, folder)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        variables = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        started = time.monotonic()
        script = f"set -e\n{task.commands}\nset -e\n{task.check}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, timeout=LONGEST_SECONDS
        )
        if done.returncode != 0:
            raise RuntimeError(f"Task {task.number} ended with {done.returncode}: {done.stderr[-2000:]}")
        return time.monotonic() - started


def table() -> str:
    """Return the table of the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    minutes = {int(number): f"{seconds / 60:.1f}" for number, seconds in record["seconds"].items()}
    rows = [
        [f"{task.number}. {task.title}", str(task.count), minutes.get(task.number, "not measured")]
        for task in user_tasks()
    ]
    return markdown_table(["task", "commands", f"minutes ({record['machine']}, {record['cores']} cores)"], rows)


def main(arguments: list[str]) -> int:
    """Do the tasks, write the record, and fill in the table."""
    chosen = {int(number) for number in arguments}
    seconds = json.loads(RECORD.read_text(encoding="utf-8"))["seconds"] if RECORD.is_file() else {}
    for task in user_tasks():
        if not chosen or task.number in chosen:
            seconds[str(task.number)] = round(do(task), 1)
            print(f"{task.number}. {task.title}: {task.count} commands, {seconds[str(task.number)]:.0f} s", flush=True)
            record = {"machine": environment("cpu")["machine"]["name"], "cores": os.cpu_count(), "seconds": seconds}
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    fill_markers(PAGE, {"ten-tasks": table()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
