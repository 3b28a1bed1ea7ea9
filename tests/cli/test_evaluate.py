"""Scores on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import own_task, train

from t5peft import load_backbone
from t5peft.cli import main
from t5peft.cli.data import load_saved_task, save_task
from t5peft.data import load_records, preset_task
from t5peft.evaluation import evaluate_task, rank


@pytest.mark.parametrize("name", ["own", "finance"])
def test_evaluate_scores_on_the_test_records_that_the_given_task_brings(
    name: str, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", backbone, "--task", own_task(tmp_path, name, "test")]) == 0
    assert f"{name}, 6 records" in capsys.readouterr().out


def test_evaluate_asks_for_data_where_the_task_brings_no_test_records(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", backbone, "--task", own_task(tmp_path, "own", "train")]) == 2
    assert "'own', which has only train, validation records; expected --data FILE" in capsys.readouterr().err


def test_evaluate_asks_for_data_where_a_task_is_only_called_as_one_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_task(preset_task("correction", [{"text": "he go", "corrected": "he goes"}]), tmp_path)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "Got a saved task 'correction' that is not the package's task of this name" in capsys.readouterr().err


def test_references_that_the_task_does_not_name_are_told(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "label": "b", "references": ["b", "c"]}))
    (tmp_path / "own.yaml").write_text(
        "name: own\ntemplate: '{text}'\ntarget: '{label}'\nmetrics: [rouge]\nmax_target_length: 4\n"
    )
    task = str(tmp_path / "own.yaml")
    assert main(["evaluate", backbone, "--task", task, "--data", str(tmp_path / "a.jsonl")]) == 0
    assert "To score with the references, use --references references." in caplog.text


def test_a_whole_model_beside_the_adapter_of_another_run_is_evaluated(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(backbone, table, out, "--method", "lora") == 0
    assert train(backbone, table, out, "--method", "full", "--learning-rate", "0.05", "--overwrite") == 0
    capsys.readouterr()
    shares = []
    for folder in (out, out / "adapter"):
        assert main(["predict", str(folder), "--data", table]) == 0
        shares.append([json.loads(line)["probability"]["1"] for line in capsys.readouterr().out.splitlines()])
    task, (model, tokenizer) = load_saved_task(out), load_backbone(out)
    whole = rank(model, tokenizer, task.sources(load_records(table), tokenizer), task.candidates).probabilities[:, 1]
    assert shares[0] == pytest.approx(whole.tolist(), abs=1e-4)
    assert shares[1] != pytest.approx(whole.tolist(), abs=1e-2)
    assert main(["evaluate", str(out), "--data", table]) == 0
    assert (
        f"accuracy  {evaluate_task(model, tokenizer, task, load_records(table))['accuracy']:.4f}"
        in capsys.readouterr().out
    )


def test_an_adapter_whose_backbone_is_elsewhere_says_where_it_was(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "out", "--steps", "1") == 0
    Path(backbone).rename(tmp_path / "elsewhere")
    assert main(["evaluate", str(tmp_path / "out" / "adapter"), "--data", table]) == 2
    assert f"cannot be loaded as in training, by {backbone!r}" in capsys.readouterr().err


def test_the_folder_of_a_run_names_that_of_its_adapter(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(backbone, table, tmp_path / "run", "--steps", "1") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--data", table]) == 2
    assert f"expected its adapter, {tmp_path / 'run' / 'adapter'}" in capsys.readouterr().err
