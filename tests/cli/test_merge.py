"""Merging on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import train
from transformers import UMT5Config, UMT5ForConditionalGeneration

from t5peft import load_adapter, load_backbone, lora_wrap, save_adapter
from t5peft.cli import main
from t5peft.cli.data import save_task
from t5peft.data import Task, load_records
from t5peft.evaluation import classify
from t5peft.models.backbone import load_tokenizer


def test_merge_writes_a_checkpoint_that_answers_as_the_adapter_did(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out", "--learning-rate", "0.01")
    adapter, merged = str(tmp_path / "out" / "adapter"), str(tmp_path / "merged")
    assert main(["merge", adapter, "--output", merged]) == 0
    assert "to the unmerged adapter" in capsys.readouterr().out
    weights = (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert main(["merge", adapter, "--output", merged]) == 2
    assert f"Got the output {merged}, which holds a model; expected a folder without one" in capsys.readouterr().err
    assert main(["merge", adapter, "--output", merged, "--overwrite"]) == 0
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == weights
    capsys.readouterr()
    answers = []
    for folder in (adapter, merged):
        main(["predict", folder, "--text", "a good film"])
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]


def test_a_trained_classification_head_answers_alone_beside_its_backbone_and_merged(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("film", "{review}", "{stars}", {"0": "bad", "1": "good"}, metrics=("accuracy",))
    records = load_records(table)
    model, tokenizer = load_backbone(backbone, num_labels=2)
    torch.nn.init.normal_(model.get_parameter("classification_head.out_proj.weight"))
    wrapped = lora_wrap(model, target_modules="all-linear")
    expected = classify(wrapped, tokenizer, task.sources(records, tokenizer)).probabilities[:, 1]
    assert expected.std() > 1e-3
    adapter, merged = str(save_adapter(wrapped, tmp_path / "adapter")), str(tmp_path / "merged")
    save_task(task, adapter)
    assert main(["merge", adapter, "--output", merged]) == 0
    accuracies = []
    for folder in (adapter, merged):
        capsys.readouterr()
        assert main(["predict", folder, "--data", table]) == 0
        answers = [json.loads(line)["probability"]["1"] for line in capsys.readouterr().out.splitlines()]
        assert answers == pytest.approx(expected.tolist(), abs=1e-4)
        assert main(["evaluate", folder, "--data", table]) == 0
        accuracies.append(re.findall("accuracy +(.+)", capsys.readouterr().out))
    assert accuracies[0] == accuracies[1]


def test_a_whole_model_is_not_saved_over_an_adapter_which_would_be_served_in_its_place(
    backbone: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter"
    monkeypatch.setattr("t5peft.adapters.merge", lambda folder: pytest.fail("the adapter was merged"))
    monkeypatch.setattr("t5peft.training.train.train", lambda *args, **kwargs: pytest.fail("the model was trained"))
    assert main(["merge", str(adapter), "--output", str(adapter)]) == 2
    assert f"Got the output {adapter}, which holds an adapter (adapter_config.json)" in capsys.readouterr().err
    assert train(backbone, table, adapter, "--method", "full", "--overwrite") == 2
    assert f"Got {adapter}, which contains an adapter that would be loaded instead" in capsys.readouterr().err


def test_a_prefix_is_not_merged_and_the_error_says_why(
    backbone: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(backbone, table, tmp_path / "out", "--method", "prefix")
    assert main(["merge", str(tmp_path / "out" / "adapter"), "--output", str(tmp_path / "merged")]) == 2
    assert "It cannot be merged into the weights of T5" in capsys.readouterr().err


def test_a_merged_umt5_says_what_transformers_makes_of_its_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape: dict[str, Any] = {"vocab_size": 8192, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2}
    model = UMT5ForConditionalGeneration(UMT5Config(**shape))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(8192, 32))
    model.save_pretrained(tmp_path / "umt5")
    load_tokenizer("mini").save_pretrained(tmp_path / "umt5")
    adapter = save_adapter(lora_wrap(load_backbone(tmp_path / "umt5")[0]), tmp_path / "adapter")
    assert main(["merge", str(adapter), "--output", str(tmp_path / "merged")]) == 0
    assert "set model.config.tie_word_embeddings = False" in caplog.text
    ids = torch.tensor([[7, 8, 9, 1]])
    expected = load_adapter(adapter)[0](input_ids=ids, labels=ids).logits
    plain = UMT5ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert not torch.allclose(plain(input_ids=ids, labels=ids).logits, expected, atol=1e-3), "the warning can go"
    plain.config.tie_word_embeddings = False
    assert torch.allclose(plain(input_ids=ids, labels=ids).logits, expected, atol=1e-4)
