"""Best checkpoints, resuming, and saving in the middle of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from narrow import as_peft, model_of
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from tiny import tiny_records, tiny_t5
from trainers import TUNED, arguments, seeded
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
)

from t5peft import METHODS, T5PeftTrainer, full_wrap, load_adapter, lora_wrap, save_adapter
from t5peft.adapters import write_manifest
from t5peft.adapters.checkpoints import newest_complete
from t5peft.methods.adalora import Reallocation
from t5peft.models.manifest import UNFINISHED, verify
from t5peft.training.checkpoints import newest_resumable


@pytest.mark.parametrize("method", TUNED)
def test_best_checkpoint_and_early_stopping_work_with_every_method(method: str, tmp_path: Path) -> None:
    records = tiny_records(8)
    args = arguments(
        tmp_path,
        max_steps=12,
        learning_rate=1e-2 if method != "full" else 1e-3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        label_smoothing_factor=0.1,
        save_total_limit=2,
    )
    model = METHODS[method].wrap(tiny_t5())
    trainer = T5PeftTrainer(
        model, args, train_dataset=records, eval_dataset=records[:5], callbacks=[EarlyStoppingCallback(2)]
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("names", [["mine"], ["default", "second"]], ids="+".join)
def test_the_best_checkpoint_is_loaded_into_the_adapter_that_is_trained_whatever_its_name(
    names: list[str], tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(seeded(tiny_t5), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[-1])
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, greater_is_better=True,  # the first step then is the best
    )  # fmt: skip
    trainer = T5PeftTrainer(model, args, train_dataset=tiny_records(8), eval_dataset=tiny_records(4))
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    (tmp_path / "checkpoint-1" / names[-1] / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"without weights of the adapter '{names[-1]}'"):
        trainer._load_best_model()


@pytest.mark.parametrize("method", TUNED)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    records = tiny_records(8)
    weights = []
    for stop_at in (4, 2):
        folder = tmp_path / f"stop-{stop_at}"
        settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "max_steps": -1}
        first = T5PeftTrainer(
            METHODS[method].wrap(seeded(tiny_t5)), arguments(folder, **settings), train_dataset=records
        )
        first.train()
        if stop_at == 2:
            for path in (folder / "checkpoint-4").iterdir():
                path.unlink()
            first = T5PeftTrainer(
                METHODS[method].wrap(seeded(tiny_t5)), arguments(folder, **settings), train_dataset=records
            )
            first.train(resume_from_checkpoint=True)
        weights.append({name: p.detach().clone() for name, p in model_of(first).named_parameters() if p.requires_grad})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: lora_wrap(tiny_t5(seed=9)), "it was trained on another backbone"),
        (
            lambda: lora_wrap(tiny_t5(), alpha=1),
            r"the settings of its adapter differ from the model's \(.*'lora_alpha': \(32, 1\)",
        ),
        (lambda: lora_wrap(tiny_t5(), rank=4), r"'r': \(16, 4\)"),
        (lambda: lora_wrap(tiny_t5(), target_modules=["q", "k"]), r"'target_modules': \(\['q', 'v'\], \['k', 'q'\]\)"),
        (lambda: METHODS["ia3"].wrap(tiny_t5()), r"'peft_type': \('LORA', 'IA3'\)"),
        (lambda: full_wrap(tiny_t5()), "it contains an adapter, but the model has none"),
        (lambda: get_peft_model(tiny_t5(), LoraConfig(target_modules=["q"]), "mine"), "it has no adapter 'mine'"),
    ],
    ids=["backbone", "alpha", "rank", "targets", "method", "full", "name"],
)
def test_a_checkpoint_of_another_model_is_not_resumed(other: Any, message: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", max_steps=1)
    T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train()
    trainer = T5PeftTrainer(other(), arguments(tmp_path, max_steps=2), train_dataset=tiny_records(8))
    before = {name: p.detach().clone() for name, p in model_of(trainer).named_parameters()}
    with pytest.raises(ValueError, match=rf"checkpoint-1, which cannot be resumed from: .*{message}"):
        trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(p, before[name]) for name, p in model_of(trainer).named_parameters())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": "sgd"}, r"another optimizer than SGD with 2 groups \(it has no .*momentum"),
        ({"optim": "adafactor"}, r"another optimizer than Adafactor .*decay_rate"),
        ({"lora_plus_ratio": 4.0}, r"another optimizer than AdamW with 3 groups \(it has 2 groups of parameters\)"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_optimizer_is_not_resumed(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    args = arguments(tmp_path, save_strategy="steps", max_steps=1)
    T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train()
    args = arguments(tmp_path, max_steps=2, **changed)
    with pytest.raises(ValueError, match=rf"optimizer\.pt of {message}"):
        T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train(True)


def test_a_folder_that_is_no_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    for name, message in (("adapter", "it has no trainer_state.json"), ("nothing", "there is no such folder")):
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path), train_dataset=tiny_records(8))
        with pytest.raises(ValueError, match=f"cannot be resumed from: {message}"):
            trainer.train(str(tmp_path / name))


def test_other_dropout_and_initialisation_do_not_stop_resuming(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", max_steps=1)
    T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train()
    trainer = T5PeftTrainer(
        lora_wrap(tiny_t5(), dropout=0.1), arguments(tmp_path, max_steps=2), train_dataset=tiny_records(8)
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_a_run_whose_steps_are_done_is_not_trained_further(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "lr_scheduler_type": "constant"}
    weights, steps = [], []
    for resume in (None, True):
        trainer = T5PeftTrainer(
            seeded(lambda: lora_wrap(tiny_t5())), arguments(tmp_path, **settings), train_dataset=tiny_records(40)
        )
        trainer.train(resume)
        steps.append(trainer.state.global_step)
        weights.append(
            {name: p.detach().clone() for name, p in model_of(trainer).named_parameters() if p.requires_grad}
        )
    assert steps == [3, 3]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_resuming_weights_without_their_optimizer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for only, words in ((False, 0), (True, 1)):
        folder, settings = tmp_path / str(only), {"save_strategy": "steps", "save_only_model": only}
        for resume in (None, True):
            args = arguments(folder, max_steps=2 if resume else 1, **settings)
            T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train(resume)
        assert (
            caplog.text.count("has no optimizer: its state and the learning rate schedule start from the beginning")
            == words
        )


def test_a_checkpoint_holds_the_adapter_alone(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="steps", save_steps=4)
    T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train()
    files = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files


def test_a_model_saved_over_an_adapter_loads(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    save_adapter(model, tmp_path)
    trainer = T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(8))
    trainer.train()
    trainer.save_model()
    loaded, _ = load_adapter(tmp_path, model=tiny_t5())
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert all(
        torch.equal(saved[n], p) for n, p in get_peft_model_state_dict(loaded, save_embedding_layers=False).items()
    )


# What the plain Trainer serves too


class PutInfinity(TrainerCallback):
    """Makes one gradient infinite before the given step, whose loss is still a number."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(float("inf"))


@pytest.mark.parametrize("wrap", [lora_wrap, full_wrap])
def test_weights_that_are_no_numbers_are_not_saved_and_the_last_whole_checkpoint_stays(
    wrap: Any, tmp_path: Path
) -> None:
    args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer = T5PeftTrainer(wrap(tiny_t5()), args, train_dataset=tiny_records(16), callbacks=[PutInfinity(3)])
    with pytest.raises(FloatingPointError, match="After step 3 these weights contain NaN or infinity"):
        trainer.train()
    newest = newest_complete(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-2"


def test_a_last_step_that_leaves_no_numbers_is_told(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=3, save_strategy="no")
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(16), callbacks=[PutInfinity(3)])
    with pytest.raises(FloatingPointError, match="After step 3"):
        trainer.train()


def test_a_checkpoint_of_weights_that_are_no_numbers_is_not_whole_whatever_file_they_are_in(tmp_path: Path) -> None:
    model = full_wrap(tiny_t5())
    next(model.parameters()).data.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    write_manifest(tmp_path, model)
    assert "hold NaN or infinity" in verify(tmp_path)[0]


class AskForASave(TrainerCallback):
    """The save that a SIGTERM asks for where ``enable_jit_checkpoint=True``."""

    trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if state.global_step == 2 and type(callback).__name__ == "JITCheckpointCallback":
                callback.jit_manager.is_checkpoint_requested = True


def test_a_checkpoint_saved_on_a_signal_is_resumed_from(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=4, save_strategy="no", enable_jit_checkpoint=True)
    ask = AskForASave()
    first = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(16), callbacks=[ask])
    ask.trainer = first
    first.train()
    newest = newest_complete(tmp_path)
    assert newest is not None
    resumed = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path, max_steps=4), train_dataset=tiny_records(16))
    assert resumed.train(resume_from_checkpoint=True).global_step == 4


def with_two_active_adapters() -> Any:
    torch.manual_seed(0)
    model = lora_wrap(tiny_t5())
    model.add_adapter("b", LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"))
    cast(BaseTuner, model.base_model).set_adapter(["default", "b"])
    return model


def test_a_first_checkpoint_without_its_last_files_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After plain Trainer's files, which would pass for a checkpoint of plain Trainer."""

    def trainer() -> T5PeftTrainer:
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        return T5PeftTrainer(METHODS["adalora"].wrap(tiny_t5()), args, train_dataset=tiny_records(8))

    def killed(self: Reallocation) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reallocation, "state", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer().train()
    checkpoint = tmp_path / "checkpoint-1"
    assert (checkpoint / "trainer_state.json").is_file()
    assert newest_resumable(tmp_path) is None
    with pytest.raises(ValueError, match="its save was not finished"):
        trainer().train(resume_from_checkpoint=str(checkpoint))
    trainer().train()
    assert newest_resumable(tmp_path) == tmp_path / "checkpoint-2"
    assert not list(tmp_path.rglob(UNFINISHED))


def test_all_active_adapters_are_resumed(tmp_path: Path) -> None:
    records = tiny_records(16)
    whole = T5PeftTrainer(with_two_active_adapters(), arguments(tmp_path / "whole", max_steps=4), train_dataset=records)
    whole.train()
    args = arguments(tmp_path / "cut", max_steps=4, save_strategy="steps", save_steps=2)
    T5PeftTrainer(with_two_active_adapters(), args, train_dataset=records, callbacks=[StopAfter(2)]).train()
    resumed = T5PeftTrainer(with_two_active_adapters(), args, train_dataset=records)
    resumed.train(resume_from_checkpoint=True)
    assert as_peft(model_of(resumed)).active_adapters == ["default", "b"]
    ours, theirs = dict(model_of(resumed).named_parameters()), dict(model_of(whole).named_parameters())
    assert [name for name, p in ours.items() if p.requires_grad] == [n for n, p in theirs.items() if p.requires_grad]
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("step", [2, 3], ids=["halfway", "when it was stopped"])
def test_a_resumed_run_is_stopped_early_where_one_that_nobody_interrupted_is(step: int, tmp_path: Path) -> None:
    def train(folder: Path, checkpoint: Path | None = None) -> T5PeftTrainer:
        args = arguments(
            folder, max_steps=6, learning_rate=0.0, eval_strategy="steps", eval_steps=1, save_steps=1, save_strategy="steps",
            logging_steps=1, load_best_model_at_end=True,
        )  # fmt: skip
        model = lora_wrap(seeded(tiny_t5), rank=2)
        records, stopping = tiny_records(8), EarlyStoppingCallback(2)
        trainer = T5PeftTrainer(model, args, train_dataset=records, eval_dataset=records[:5], callbacks=[stopping])
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    whole = train(tmp_path / "whole")
    assert whole.state.global_step == 3  # nothing is learned, so the first evaluation stays the best
    resumed = train(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{step}")
    assert resumed.state.global_step == 3
    assert [line["step"] for line in resumed.state.log_history] == [line["step"] for line in whole.state.log_history]


@pytest.mark.parametrize(
    "options",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"accelerator_config": {"use_seedable_sampler": False}},
        {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_run_resumed_in_its_second_epoch_is_the_run_that_nobody_interrupted(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def train(folder: Path, checkpoint: Path | None = None) -> tuple[list[Any], dict[str, torch.Tensor]]:
        args = arguments(folder, max_steps=8, save_steps=7, save_strategy="steps", logging_steps=1, **options)
        model = lora_wrap(
            seeded(lambda: tiny_t5(dropout_rate=0.1)), rank=2
        )  # of which dropout draws, beside the sampler
        trainer = T5PeftTrainer(model, args, train_dataset=tiny_records(9), eval_dataset=tiny_records(2))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        losses = [(line["step"], line.get("loss"), line.get("eval_loss")) for line in trainer.state.log_history[:-1]]
        return losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    losses, weights = train(tmp_path / "whole")
    resumed_losses, resumed_weights = train(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-7")
    assert resumed_losses == losses
    assert all(torch.equal(weight, resumed_weights[name]) for name, weight in weights.items())
