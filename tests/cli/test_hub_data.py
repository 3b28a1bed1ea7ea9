"""Commands take data sets of the hub by name, by the hub's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub, running_hub

from t5peft.cli import main
from t5peft.data import load_records

NAME = "someone/films"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a data set of two splits, whose texts say which."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Films\n")
    for split, rows in (("train", 24), ("test", 6)):
        lines = "".join(f"{split} film {i},{i % 2}\n" for i in range(rows))
        (folder / f"{split}.csv").write_text(f"review,stars\n{lines}")
    with pytest.MonkeyPatch.context() as patch, running_hub(patch, tmp_path_factory.mktemp("cache")) as hub:
        hub.add(f"datasets/{NAME}", folder)
        yield hub


def test_records_of_a_hub_data_set_by_split(hub: Hub) -> None:
    test = load_records(NAME, "test")
    assert [record["review"] for record in test] == [f"test film {i}" for i in range(6)]
    assert test.origin == f"{NAME}, split test"
    assert f"GET /datasets/{NAME}/resolve/" in "\n".join(hub.requests)
    with pytest.raises(FileNotFoundError, match=r"someone/others.*cannot be read"):
        load_records("someone/others", "test")
    with pytest.raises(FileNotFoundError, match="Unknown split"):
        load_records(NAME, "validation")


def test_a_hub_data_set_is_trained_on_and_answered(
    hub: Hub, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    data = ["--task", "classification", "--train", NAME, "--test", NAME, "--column", "label=stars"]
    options = ["--backbone", backbone, "--method", "lora", "--steps", "2", "--evaluations", "1", "--batch-size", "4"]
    assert main(["train", *data, *options, "--output", str(output), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["scores"]["test"]["accuracy"] >= 0
    assert main(["predict", str(output / "adapter"), "--data", NAME, "--output", str(answers)]) == 0
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [record["review"] for record in found] == [f"test film {i}" for i in range(6)]
