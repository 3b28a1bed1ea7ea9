"""``t5peft serve`` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import t5peft

COMMAND = "import sys; from t5peft.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Live:
    process: subprocess.Popen[str]
    url: str

    def stop(self, signal_number: int) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=60)


@contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Live]:
    """A server of ``folder`` on a free port, ready when the block begins."""
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "serve",
        "--backbone",
        str(folder / "base"),
        "--adapters",
        str(folder / "adapters"),
    ]
    package = str(Path(t5peft.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": package, "OMP_NUM_THREADS": "1"} | environment
    port = () if "--port" in arguments else ("--port", "0")
    with subprocess.Popen([*command, *port, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"on (http://127\.0\.0\.1:\d+)$", line.strip())
            assert found, line
            yield Live(process, found[1])
        finally:
            if process.poll() is None:
                process.kill()
