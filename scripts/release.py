"""Build the release and check it: metadata, versions, size, licenses, and the wheel in an empty environment.

    python scripts/release.py [--dist FOLDER]

The empty environment gets the wheel only. What it depends on is read from this environment, by a path file, so that nothing is
downloaded. Publishing is left to a person: ``twine upload dist/*``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LARGEST_WHEEL_BYTES = 20_000_000
SMOKE = """
import sys, t5peft
from pathlib import Path
assert Path(t5peft.__file__).is_relative_to(sys.prefix), t5peft.__file__
assert t5peft.__version__ == "VERSION"
from t5peft import load_adapter, load_backbone, lora_wrap, predict, save_adapter
from t5peft.data import load_task
task, data = load_task("finance")
backbone, tokenizer = load_backbone("mini")
folder = save_adapter(lora_wrap(backbone, rank=1), Path(sys.prefix) / "adapter")
model, tokenizer = load_adapter(folder)
print(predict(model, tokenizer, task.sources(data["test"][:1], tokenizer), max_new_tokens=4))
"""


def main(arguments: list[str] | None = None) -> int:
    """Build and check.

    Args:
        arguments: The words of the command.

    Returns:
        0, or 1 where something is not ready for a release.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the wheel and the sdist are written")
    dist = parser.parse_args(arguments).dist
    version = project_version()
    problems = version_problems(version)
    for old in dist.glob("t5peft-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", str(dist), str(ROOT))
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.glob("t5peft-*"))))
    (wheel,) = dist.glob(f"t5peft-{version}-*.whl")
    problems += wheel_problems(wheel)
    if not problems:
        try_wheel(wheel, version)
    for problem in problems:
        print(f"not ready: {problem}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB" + ("" if problems else ", ready"))
    return 1 if problems else 0


def project_version() -> str:
    """Return the version in ``pyproject.toml``."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found is None:
        raise SystemExit("Got no version in pyproject.toml; expected one.")
    return found[1]


def version_problems(version: str) -> list[str]:
    """Return the places that name another version than ``pyproject.toml``, or no date."""
    found = {
        "t5peft/__init__.py": rf'^__version__ = "{re.escape(version)}"$',
        "CHANGELOG.md": rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$",
    }
    problems = [
        f"{name} has no line {pattern}"
        for name, pattern in found.items()
        if not re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    if citation["version"] != version:
        problems.append(f"CITATION.cff has the version {citation['version']}, not {version}")
    date = re.search(
        rf"^## {re.escape(version)} \((.+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE
    )
    if date and date[1] != str(citation["date-released"]):
        problems.append(f"CITATION.cff has the date {citation['date-released']}, CHANGELOG.md {date[1]}")
    return problems


def wheel_problems(wheel: Path) -> list[str]:
    """Return why a wheel is not ready: its size, files that are missing, or files that do not belong there."""
    problems = []
    if wheel.stat().st_size >= LARGEST_WHEEL_BYTES:
        problems.append(f"the wheel has {wheel.stat().st_size / 1e6:.1f} MB; expected less than 20")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("t5peft/py.typed", "t5peft/mini/model.safetensors", "LICENSE", "LICENSES.md"):
        if not any(name.endswith(needed) for name in names):
            problems.append(f"{needed} is missing from the wheel")
    for folder in sorted((ROOT / "t5peft" / "data" / "embedded").iterdir()):
        if folder.is_dir() and f"t5peft/data/embedded/{folder.name}/README.md" not in names:
            problems.append(f"the card of the data set {folder.name}, with its license, is missing from the wheel")
    problems += [f"{name} does not belong into the wheel" for name in names if not re.match(r"t5peft[/-]", name)]
    return problems


def try_wheel(wheel: Path, version: str) -> None:
    """Install a wheel into an empty environment and use it from there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "venv"
        venv.create(folder, with_pip=False)
        python = folder / "bin" / "python"
        (site,) = folder.glob("lib/python*/site-packages")
        run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
        run(str(python), "-I", "-c", SMOKE.replace("VERSION", version), folder=Path(temporary))
        run(str(folder / "bin" / "t5peft"), "--help", folder=Path(temporary))


def run(*command: str, folder: Path = ROOT) -> None:
    """Run a command, and end with it where it fails."""
    print("$", *(word if len(word) < 80 else "..." for word in command), flush=True)
    # With a path to the sources pip takes the package for installed.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=folder, env=variables, check=True)


if __name__ == "__main__":
    sys.exit(main())
