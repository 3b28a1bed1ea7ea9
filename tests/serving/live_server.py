"""``t5peft serve`` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fresh import Fresh, start_fresh

COMMAND = "import sys; from t5peft.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Live:
    process: Fresh
    url: str

    def stop(self, signal_number: int) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(timeout=60)


@contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Live]:
    """A server of ``folder`` on a free port, ready when the block begins."""
    port = () if "--port" in arguments else ("--port", "0")
    command = ("serve", "--backbone", folder / "base", "--adapters", folder / "adapters", *port, *arguments)
    with start_fresh(COMMAND, *command, env=os.environ | environment) as process:
        line = process.wait_for_line()
        found = re.search(r"on (http://127\.0\.0\.1:\d+)$", line.strip())
        assert found, line or process.stderr
        yield Live(process, found[1])
