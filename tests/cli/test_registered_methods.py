"""A method of another package is a method of the command line, by an entry point or by ``register_method``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import train
from own_method import NAME, register_own_method
from paths import ROOT

from t5peft.cli import main, names
from t5peft.methods import METHODS

RUN = """
import contextlib, io, sys
from t5peft.cli import main
with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
    main(["train", "--help"])
assert "own-scale" in "".join(printed.getvalue().split()), "not in the help"
assert "torch" not in sys.modules, "help imports torch"
from commands import train
sys.exit(train(sys.argv[1], sys.argv[2], sys.argv[3], "--method", "own-scale", "--option", "groups=2"))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of packages with one that names a method of its own, and two that cannot be registered."""
    package = tmp_path / "site" / "own-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        f"[t5peft.methods]\n{NAME} = own_method:METHOD\ngone = no_such_package:METHOD\nno-method = own_method:NAME\n"
    )
    return package.parent


@pytest.mark.processes
def test_a_method_of_an_installed_package_is_trained_by_the_command(
    installed: Path, backbone: str, table: str, tmp_path: Path
) -> None:
    paths = os.pathsep.join(map(str, (installed, ROOT, ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")]))))
    done = subprocess.run(
        [sys.executable, "-c", RUN, backbone, table, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["groups"]) == ("OWN_SCALE", 2)
    assert "Left out the method 'gone', no_such_package:METHOD" in done.stderr
    assert "Got a str; expected a Method." in done.stderr


def test_a_method_that_the_process_registered_is_one_of_the_command(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert NAME not in names.method_names()
    with pytest.raises(SystemExit):
        train(backbone, table, tmp_path / "out", "--method", NAME)
    assert "got 'own-scale'; expected one of full, lora" in capsys.readouterr().err
    register_own_method()
    try:
        assert main(["plan", "--method", NAME, "--source", "8", "--target", "4", "--batch-size", "1"]) in (0, 1)
        assert NAME in capsys.readouterr().out
    finally:
        del METHODS[NAME]


def test_a_method_that_cannot_be_imported_is_told_when_it_is_asked_for(
    installed: Path,
    backbone: str,
    table: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(installed)
    assert train(backbone, table, tmp_path / "out", "--method", "gone") == 2
    assert "Got method='gone'; expected one of full, lora" in capsys.readouterr().err
