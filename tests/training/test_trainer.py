"""Promises of T5PeftTrainer beside the splits (tests/training/test_splits.py) and the stack's faults (tests/test_stack.py)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import sampled
from narrow import model_of
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import PAD, tiny_classifier, tiny_config, tiny_records, tiny_t5
from trainers import TUNED, arguments, losses_of, seeded
from transformers import (
    Seq2SeqTrainingArguments,
    TrainerCallback,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, full_wrap, lora_wrap
from t5peft.models.unwrap import unwrap_t5
from t5peft.training.micro_batches import supports_padding_free
from t5peft.training.progress import format_logs


def test_a_model_without_anything_to_train_is_refused(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5()).requires_grad_(False)
    trainer = T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4))
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient; .* load_adapter\(.*trainable=True\)"):
        trainer.train()


def test_features_padded_by_the_users_own_tokenising_give_the_same_step(tmp_path: Path) -> None:
    records = tiny_records(4)
    padded = [
        {
            "input_ids": record["input_ids"] + [PAD] * (20 - len(record["input_ids"])),
            "attention_mask": [1] * len(record["input_ids"]) + [0] * (20 - len(record["input_ids"])),
            "labels": torch.tensor(record["labels"] + [-100] * (20 - len(record["labels"]))),
        }
        for record in records
    ]
    losses = []
    for data in (records, padded):
        trainer = T5PeftTrainer(
            lora_wrap(seeded(tiny_t5)), arguments(tmp_path, max_steps=2, logging_steps=1), train_dataset=data
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_packed_examples_do_not_see_each_other_without_our_kernels(tmp_path: Path) -> None:
    losses = []
    for pack in (False, True):
        model = lora_wrap(seeded(tiny_t5))
        args = arguments(tmp_path, max_steps=2, logging_steps=1, pack=pack, fast_kernels=False)
        losses.append(losses_of(T5PeftTrainer(model, args, train_dataset=tiny_records(8))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert model.config._attn_implementation != "t5peft"


def test_a_model_of_model_init_is_trained_on_our_kernels(tmp_path: Path) -> None:
    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rows.append(supports_padding_free(kwargs["model"]))

    rows: list[bool] = []
    args = arguments(tmp_path, max_steps=2, logging_steps=1, per_device_train_batch_size=8)
    given: dict[str, Any] = {"train_dataset": tiny_records(8), "callbacks": [Watch()]}
    made = T5PeftTrainer(None, args, model_init=lambda: lora_wrap(seeded(tiny_t5)), **given)
    plain = T5PeftTrainer(lora_wrap(seeded(tiny_t5)), args, **given)
    assert losses_of(made) == pytest.approx(losses_of(plain), rel=1e-5)
    assert rows == [True] * 4
    assert not supports_padding_free(model_of(made))


def test_operations_are_six_a_weight_and_source_token(tmp_path: Path) -> None:
    model, records = lora_wrap(seeded(tiny_t5)), tiny_records(4)
    trainer = T5PeftTrainer(
        model, arguments(tmp_path, max_steps=3, per_device_train_batch_size=4), train_dataset=records
    )
    trainer.train()
    weights = unwrap_t5(model).num_parameters(exclude_embeddings=True)
    assert trainer.state.total_flos == 3 * 6 * weights * sum(len(record["input_ids"]) for record in records)


@pytest.mark.parametrize("which", ["all", "non_padding"])
def test_source_tokens_that_were_seen_are_counted(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [len(record["input_ids"]) for record in tiny_records(4)]
    args = arguments(tmp_path, max_steps=3, include_num_input_tokens_seen=which)
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(4))
    monkeypatch.setattr("transformers.trainer.logger.warning", pytest.fail)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 3 * (4 * max(lengths) if which == "all" else sum(lengths))


@dataclass
class MyArguments(Seq2SeqTrainingArguments):
    """Arguments of the user's own, with a property."""

    mine: str = "of the user's own"

    @property
    def doubled(self) -> int:
        return 2 * self.per_device_train_batch_size


def test_the_users_own_arguments_are_trained_on_and_not_changed(tmp_path: Path) -> None:
    args = MyArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=1, save_strategy="no",
        disable_tqdm=True, report_to="none", use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    before = args.to_dict()
    trainer = T5PeftTrainer(full_wrap(tiny_t5()), args, train_dataset=tiny_records(8))
    assert trainer.args is args
    trainer.train()
    assert args.to_dict() == before
    assert trainer.args.doubled == 4


def test_arguments_that_change_after_the_trainer_was_made_are_followed(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=9, logging_steps=1, per_device_train_batch_size=2)
    trainer = T5PeftTrainer(seeded(lambda: lora_wrap(tiny_t5())), args, train_dataset=tiny_records(8))
    args.max_steps, args.z_loss, args.gradient_accumulation_steps = 2, 0.1, 2
    changed = losses_of(trainer)
    given = arguments(
        tmp_path, max_steps=2, logging_steps=1, z_loss=0.1, gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    plain = losses_of(T5PeftTrainer(seeded(lambda: lora_wrap(tiny_t5())), given, train_dataset=tiny_records(8)))
    assert changed == plain
    assert len(changed) == 2


def test_fp16_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overflow to inf and NaN; expected bf16=True"):
        arguments(tmp_path, fp16=True)


@pytest.mark.parametrize(
    "drawn", [{"per_device_train_batch_size": 2}, {"gradient_accumulation_steps": 2}, {"seed": 2}], ids=str
)
def test_a_search_draws_the_batches_of_a_step_and_the_examples_of_a_batch(
    drawn: dict[str, float], tmp_path: Path
) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sizes = []

    class Watch(T5PeftTrainer):
        def micro_batches(self, features: Any) -> Any:
            sizes.append(len(features))
            return super().micro_batches(features)

    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    given: dict[str, Any] = {"train_dataset": tiny_records(24), "eval_dataset": tiny_records(2)}
    trainer = Watch(None, args, model_init=lambda: lora_wrap(tiny_t5()), **given)
    trainer.hyperparameter_search(lambda trial: drawn, n_trials=2, direction="minimize", backend="optuna")
    steps = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4} | drawn
    assert sizes == [steps["per_device_train_batch_size"] * steps["gradient_accumulation_steps"]] * 2


@pytest.mark.parametrize(("method", "pack"), sampled(TUNED, [None, False], every=3))
def test_training_in_bf16_has_the_loss_of_float32(method: str, pack: bool | None, tmp_path: Path) -> None:
    losses = []
    for bf16 in (False, True):
        model = METHODS[method].wrap(seeded(lambda: tiny_t5(dropout_rate=0.1)))
        args = arguments(tmp_path, max_steps=2, logging_steps=1, learning_rate=1e-3, bf16=bf16, pack=pack)
        losses.append(losses_of(T5PeftTrainer(model, args, train_dataset=tiny_records(8))))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_training_stops_at_the_first_loss_that_is_no_number(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        parameter[0, 0] = float("nan")
    trainer = T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(8))
    with pytest.raises(FloatingPointError, match=f"The loss is nan at step 1; .*{name}"):
        trainer.train()


def test_arguments_that_would_be_without_effect_are_refused_together(tmp_path: Path) -> None:
    refused: dict[str, Any] = {
        "neftune_noise_alpha": 5.0,
        "bf16_full_eval": True,
        "lora_plus_ratio": 2.0,
        "batch_eval_metrics": True,
    }
    refused |= {"sortish_sampler": True, "use_liger_kernel": True, "label_names": ["words"]}
    args = arguments(tmp_path, **refused)
    model = lora_wrap(tiny_t5())
    optimizers = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(ValueError, match="does not support") as error:
        T5PeftTrainer(model, args, train_dataset=tiny_records(4), optimizers=optimizers)
    assert all(name in str(error.value) for name in refused)


def test_a_log_is_one_line_with_its_units() -> None:
    logs = {
        "loss": 1.25, "learning_rate": 1e-3, "tokens_per_second": 1234.5, "padding_share": 0.25,
        "peak_memory_bytes": 3 * 2**20, "epoch": 0.5,
    }  # fmt: skip
    line = format_logs(7, logs)
    assert line == "step 7 | loss 1.2500 | lr 1.00e-03 | 1,234 tokens/s | 25% padding | epoch 0.50 | peak 3 MiB"


def test_several_processes_without_a_gpu_exchange_gradients_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert T5PeftTrainingArguments(str(tmp_path)).use_cpu
    plain = Seq2SeqTrainingArguments(str(tmp_path), dataloader_pin_memory=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="gradients are not exchanged otherwise"):
        T5PeftTrainer(lora_wrap(tiny_t5()), plain, train_dataset=tiny_records(4))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_lora_plus_trains_b_at_its_own_rate_and_decays_as_asked(method: str, tmp_path: Path) -> None:
    moved = {}
    for ratio in (1.0, 8.0):
        torch.manual_seed(0)
        model = METHODS[method].wrap(tiny_t5())
        args = arguments(tmp_path, max_steps=1, lora_plus_ratio=ratio, weight_decay=0.1, learning_rate=1e-3)
        trainer = T5PeftTrainer(model, args, train_dataset=tiny_records(4))
        trainer.train()
        optimizer = trainer.optimizer
        assert optimizer is not None
        rates = {
            id(parameter): (group["initial_lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {rates[id(p)] for name, p in trained.items() if "lora_A" in name} == {(1e-3, 0.1)}
        assert {rates[id(p)] for name, p in trained.items() if "lora_B" in name} == {(1e-3 * ratio, 0.1)}
        moved[ratio] = torch.cat([p.detach().flatten() for name, p in trained.items() if "lora_B" in name])
    # B begins at zero, and the first step of Adam has the length of the learning rate.
    assert torch.allclose(moved[8.0], 8 * moved[1.0], rtol=1e-4, atol=1e-7)
    assert float(moved[8.0].abs().max()) == pytest.approx(8e-3, rel=1e-2)


def test_lora_plus_needs_lora(tmp_path: Path) -> None:
    trainer = T5PeftTrainer(full_wrap(tiny_t5()), arguments(tmp_path, lora_plus_ratio=4), train_dataset=tiny_records(4))
    with pytest.raises(ValueError, match=r"lora_plus_ratio=4 for a model with 0 LoRA layers; expected .* lora_wrap"):
        trainer.train()


class ScheduleFree(torch.optim.SGD):
    """An optimizer with two modes, as those of schedulefree have."""

    mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def step(self, closure: Any = None) -> Any:
        assert self.mode == "train"
        return super().step(closure)


def test_an_optimizer_with_modes_is_in_the_right_one(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    optimizer = ScheduleFree([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    data: dict[str, Any] = {"train_dataset": tiny_records(8), "eval_dataset": tiny_records(4)}
    T5PeftTrainer(model, args, optimizers=(optimizer, None), **data).train()
    assert optimizer.mode == "eval"


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_untied_umt5_that_plain_transformers_loaded_has_the_loss_of_its_weights(
    wrapped: bool, tmp_path: Path
) -> None:
    config = UMT5Config(**{**tiny_config().to_dict(), "tie_word_embeddings": False})
    torch.manual_seed(0)
    UMT5ForConditionalGeneration(config).save_pretrained(tmp_path / "umt5")
    saved = json.loads((tmp_path / "umt5" / "config.json").read_text())
    (tmp_path / "umt5" / "config.json").write_text(json.dumps({**saved, "tie_word_embeddings": True}))

    def loss(wrap: Any) -> float:
        model = UMT5ForConditionalGeneration.from_pretrained(tmp_path / "umt5")
        return T5PeftTrainer(wrap(model), arguments(tmp_path), eval_dataset=tiny_records(8)).evaluate()["eval_loss"]

    assert loss(full_wrap if wrapped else lambda model: model) == pytest.approx(loss(lora_wrap), rel=1e-6)


@pytest.mark.parametrize(("count", "steps"), [(20, 2), (12, 1), (18, 1)])
def test_a_last_step_of_fewer_batches_is_not_dropped_with_the_last_batch(
    count: int, steps: int, tmp_path: Path
) -> None:
    changes = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 4, "dataloader_drop_last": True}
    args = arguments(tmp_path, per_device_train_batch_size=4, **changes)
    assert T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(count)).train().global_step == steps


def test_peers_prompt_learning_is_refused_by_name(tmp_path: Path) -> None:
    model = get_peft_model(tiny_t5(), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match=r"peft's own PROMPT_TUNING \(wrap with prompt_wrap"):
        T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4))


def test_a_frozen_classification_head_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lora_wrap(tiny_classifier())
    model.add_adapter("b", LoraConfig(r=4, target_modules=["q", "v"]))
    model.set_adapter("b")
    records = [{"input_ids": record["input_ids"], "labels": 1} for record in tiny_records(4)]
    T5PeftTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=records).train()
    assert "modules_to_save=['classification_head']" in caplog.text


@pytest.mark.parametrize(
    "given",
    [{"learning_rate": math.nan}, {"learning_rate": -1.0}, {"weight_decay": math.inf}, {"max_grad_norm": math.nan}],
    ids=str,
)
def test_a_rate_that_is_not_a_number_or_negative_is_refused(given: dict[str, float], tmp_path: Path) -> None:
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"Got {name}={value}; expected finite numbers of at least 0"):
        arguments(tmp_path, **given)
