"""Training runs from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import held_elsewhere
from films import TASK, config, records
from tiny import tiny_t5
from transformers import TrainerCallback

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_adapter, lora_wrap
from t5peft.cli import main
from t5peft.compat.lock import FolderInUseError
from t5peft.data import Task
from t5peft.training.train import TrainConfig, train, train_and_evaluate, training_arguments


def test_any_option_of_a_wrap_can_be_given(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["train", "--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    given = ["--option", "dropout=0.25", "--option", "dora=true", "--option", "target_modules=[q, k]"]
    assert main([*data, *given, "--steps", "1", "--output", str(tmp_path / "run")]) == 0
    config = load_adapter(tmp_path / "run" / "adapter")[0].active_peft_config
    assert (config.lora_dropout, config.use_dora, config.target_modules) == (0.25, True, {"q", "k"})
    wrong = {
        ("--option", "dropout"): "Got --option 'dropout'; expected NAME=VALUE",
        ("--option", "dropout=0", "--option", "dropout=1"): "each name once",
        ("--rank", "2", "--option", "rank=3"): "Got rank twice",
        ("--option", "target_modules=[q"): "expected a value in YAML",
        ("--option", "droput=0.1"): "expected rank, alpha, dropout",
    }
    for words, message in wrong.items():
        capsys.readouterr()
        assert main([*data, *words, "--output", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"epochs": -1.0}, {"steps": -5}, {"evaluations": -1}, {"learning_rate": 0.0}, {"patience": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_config_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"Got {name}={value}; expected .* above 0"):
        TrainConfig(**wrong)


def test_weight_decay_and_label_smoothing_have_their_limits() -> None:
    with pytest.raises(ValueError, match=r"Got weight_decay=-0\.1; .*Got label_smoothing=1; expected .* less than 1"):
        TrainConfig(weight_decay=-0.1, label_smoothing=1)


@pytest.mark.parametrize(("steps", "evaluations"), [(9, 5), (11, 5), (10, 5), (3, 5)])
def test_validation_is_scored_as_often_as_asked_at_most(steps: int, evaluations: int, tmp_path: Path) -> None:
    args = training_arguments(TrainConfig(steps=steps, evaluations=evaluations), 100, tmp_path)
    assert args.eval_steps is not None
    assert 3 <= -(-steps // args.eval_steps) <= evaluations


def test_the_last_step_is_scored_too(backbone: str, tmp_path: Path) -> None:
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    splits = {"train": records(12), "validation": records(6, 100)}
    train(TASK, splits, replace_fields(config(backbone), steps=7, evaluations=3), tmp_path, callbacks=[Watch()])
    assert seen == [3, 6, 7]


def test_an_epoch_of_two_processes_has_half_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.training.train.T5PeftTrainingArguments", lambda **given: given["max_steps"])
    steps = [training_arguments(TrainConfig(batch_size=4, epochs=2.0), 20, tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [*steps, training_arguments(TrainConfig(batch_size=4, epochs=2.0), 20, tmp_path)] == [10, 6]


def test_a_source_that_holds_its_answer_is_told_once(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": records(12), "validation": records(6, 100)}
    leaky = replace_fields(TASK, template="{text} {label}")
    for task, count in ((TASK, 0), (leaky, 1)):
        train(task, splits, config(backbone), tmp_path, overwrite=True)
        told = [entry.message for entry in caplog.records if "hold their answers" in entry.message]
        assert len(told) == count
    assert "the column 'label' of the template '{text} {label}' is that of the target" in told[0]


def test_tuning_needs_training_and_validation_records(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got no train and no validation records for the task 'film'"):
        train_and_evaluate(TASK, {"test": records(4)}, config(backbone), tmp_path)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_data_frame_in_place_of_records_is_told(split: str, backbone: str, tmp_path: Path) -> None:
    splits = {"train": records(4), "validation": records(4), "test": records(4)}
    with pytest.raises(ValueError, match=r"Record 0 is 'text'.*For a pandas DataFrame, pass df\.to_dict"):
        train_and_evaluate(TASK, splits | {split: pd.DataFrame(records(4))}, config(backbone), tmp_path)


def test_references_that_only_the_test_split_has_are_used_there_and_nowhere_else(backbone: str, tmp_path: Path) -> None:
    task = Task("echo", "{text}", "{label}", metrics=("exact_match",), max_target_length=4, references="references")
    test = [record | {"references": ["a", "b"]} for record in records(4)]
    splits: dict[str, Sequence[dict[str, Any]]] = {"train": records(8), "validation": records(4), "test": test}
    assert set(train_and_evaluate(task, splits, config(backbone), tmp_path).scores) == {"validation", "test"}
    with pytest.raises(ValueError, match="'references', which is in none of the 8 records"):
        train_and_evaluate(task, splits | {"test": records(4)}, config(backbone), tmp_path, overwrite=True)


def test_an_earlier_run_is_replaced_only_where_that_is_asked_for(backbone: str, tmp_path: Path) -> None:
    splits = {"train": records(8), "validation": records(4)}
    train(TASK, splits, config(backbone), tmp_path)
    with pytest.raises(ValueError, match=r"which holds checkpoint-2 of an earlier run; .*overwrite=True"):
        train(TASK, splits, config(backbone), tmp_path)
    with pytest.raises(ValueError, match="Got both resume and overwrite"):
        train(TASK, splits, config(backbone), tmp_path, resume=True, overwrite=True)
    train(TASK, splits, config(backbone), tmp_path, resume=True)
    train(TASK, splits, replace_fields(config(backbone), steps=1), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("run", [train, train_and_evaluate])
def test_a_folder_that_another_run_holds_is_refused(run: Callable[..., Any], backbone: str, tmp_path: Path) -> None:
    splits = {"train": records(8), "validation": records(4)}
    with held_elsewhere(tmp_path / "run"), pytest.raises(FolderInUseError, match="Wait for that run or stop it"):
        run(TASK, splits, config(backbone), tmp_path / "run")


def test_a_trainer_holds_its_folder_where_it_saves(backbone: str, tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}] * 4
    with held_elsewhere(tmp_path):
        for strategy in ("steps", "no"):
            arguments = T5PeftTrainingArguments(str(tmp_path), max_steps=1, save_strategy=strategy, report_to="none")
            trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments, train_dataset=rows)
            with pytest.raises(FolderInUseError) if strategy == "steps" else nullcontext():
                trainer.train()


def test_arguments_of_0_1_still_work(backbone: str, tmp_path: Path) -> None:
    splits = {"train": records(8), "validation": records(4)}
    with pytest.warns(DeprecationWarning, match="argument recipe of train is deprecated.*use config"):
        train(TASK, splits, recipe=config(backbone), output=tmp_path)  # type: ignore[call-arg]


def test_a_run_that_was_killed_before_its_first_checkpoint_resumes_at_its_beginning(
    backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": records(8), "validation": records(4, 100)}
    whole, _ = train(TASK, splits, config(backbone), tmp_path / "whole")
    (tmp_path / "killed" / "checkpoint-1").mkdir(parents=True)  # without a manifest: its save was not finished
    killed, _ = train(TASK, splits, config(backbone), tmp_path / "killed", resume=True)
    assert "has no complete checkpoint; training starts from the beginning" in caplog.text
    for (name, expected), found in zip(whole.named_parameters(), killed.parameters(), strict=True):
        assert torch.equal(expected, found), name


def test_every_setting_of_a_config_reaches_the_trainer(tmp_path: Path) -> None:
    config = TrainConfig(
        scheduler="cosine",
        warmup=0.25,
        optimizer="adafactor",
        max_grad_norm=0.5,
        gradient_accumulation=2,
        gradient_checkpointing=True,
        weight_decay=0.1,
        label_smoothing=0.2,
        learning_rate=0.01,
        batch_size=4,
        epochs=2.0,
        evaluations=2,
        seed=3,
        training_options={"z_loss": 1e-4, "logging_steps": 7},
    )
    args = training_arguments(config, 20, tmp_path)
    assert args.max_steps == 6
    assert args.get_warmup_steps(args.max_steps) == 2
    given = {
        "lr_scheduler_type": "cosine",
        "optim": "adafactor",
        "max_grad_norm": 0.5,
        "gradient_accumulation_steps": 2,
        "activation_checkpointing": True,
        "weight_decay": 0.1,
        "label_smoothing_factor": 0.2,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 4,
        "eval_steps": 3,
        "seed": 3,
        "z_loss": 1e-4,
        "logging_steps": 7,
    }
    assert {name: getattr(args, name) for name in given} == given
    assert training_arguments(TrainConfig(), 20, tmp_path).optim.startswith("adamw_torch")
