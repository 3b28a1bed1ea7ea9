"""No command writes its files among those of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_t5

from t5peft import lora_wrap, save_adapter
from t5peft.cli import main

KINDS = {
    "a search of `t5peft auto`": ["trials.jsonl", "adapter/adapter_config.json"],
    "a search of `t5peft search`": ["study.db"],
    "a pretraining": ["state.pt", "model/config.json"],
    "an export": ["export.json", "config.json", "model.safetensors"],
    "an adapter": ["adapter_config.json", "scores.json"],
    "a training run": ["adapter/adapter_config.json", "config.yaml"],
    "a model": ["model.safetensors", "config.json"],
}
"""Some files of each kind of output."""

COMMANDS = {
    "merge ADAPTER": {"a model"},
    "export ADAPTER --to transformers": {"an export"},
    "export ADAPTER --to diffusers": {"an export"},
    "train --task sst2 --train TABLE --overwrite": {"a training run", "a model", "an adapter"},
    "search --task sst2 --train TABLE": {"a search of `t5peft search`"},
    "auto TABLE --overwrite": {"a search of `t5peft auto`"},
    "bench --suite quick": set(),
    "pretrain --text TABLE": {"a pretraining"},
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "table.csv").write_text("sentence,label\n" + "a good film,1\na bad film,0\n" * 4)
    save_adapter(lora_wrap(tiny_t5()), folder / "adapter")
    return {"ADAPTER": str(folder / "adapter"), "TABLE": str(folder / "table.csv")}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_into_the_output_of_another(
    command: str, words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, names in KINDS.items():
        if kind in COMMANDS[command]:
            continue
        folder = tmp_path / kind.split()[-1].strip("`") / kind.split()[0]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        arguments = [words.get(word, word) for word in command.split()]
        assert main([*arguments, "--output", str(folder)]) == 2, kind
        assert f"Got the output {folder}, which holds {kind} ({names[0]}); expected a new" in capsys.readouterr().err
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(names)
