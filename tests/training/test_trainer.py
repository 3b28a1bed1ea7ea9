"""Promises of T5PeftTrainer beside the splits (tests/training/test_splits.py) and the stack's faults (tests/test_stack.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from narrow import array, as_dataset, as_peft, model_of
from peft import LoraConfig, PromptTuningConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from tiny import EOS, PAD, tiny_classifier, tiny_config, tiny_records, tiny_t5, tiny_tokenizer
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    GenerationConfig,
    PrinterCallback,
    Seq2SeqTrainingArguments,
    T5EncoderModel,
    TrainerCallback,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, full_wrap, load_adapter, lora_wrap, save_adapter
from t5peft.adapters import write_manifest
from t5peft.adapters.checkpoints import newest_complete
from t5peft.models.manifest import verify
from t5peft.models.unwrap import unwrap_t5
from t5peft.training.micro_batches import supports_padding_free
from t5peft.training.progress import format_logs

# every kind of training: all weights, weights beside the model's, keys and values, input vectors, factors, modules
TUNED = ["full", "lora", "prefix", "prompt", "ia3", "pfeiffer"]


def arguments(folder: Path, **changes: Any) -> T5PeftTrainingArguments:
    settings: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "seed": 1}
    settings |= {
        "output_dir": str(folder),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
    }
    return T5PeftTrainingArguments(**(settings | changes))


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


def seeded(make: Any) -> Any:
    torch.manual_seed(5)
    return make()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: lora_wrap(tiny_t5(seed=9)), "it was trained on another backbone"),
        (
            lambda: lora_wrap(tiny_t5(), alpha=1),
            r"its adapter has other settings than the model's \(.*'lora_alpha': \(32, 1\)",
        ),
        (lambda: lora_wrap(tiny_t5(), rank=4), r"'r': \(16, 4\)"),
        (lambda: lora_wrap(tiny_t5(), target_modules=["q", "k"]), r"'target_modules': \(\['q', 'v'\], \['k', 'q'\]\)"),
        (lambda: METHODS["ia3"].wrap(tiny_t5()), r"'peft_type': \('LORA', 'IA3'\)"),
        (lambda: full_wrap(tiny_t5()), "it holds an adapter, which the model has not"),
        (lambda: get_peft_model(tiny_t5(), LoraConfig(target_modules=["q"]), "mine"), "it holds no adapter 'mine'"),
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


@pytest.mark.parametrize(
    ("examples", "seed", "message"),
    [
        (8, 0, None),
        (9, 0, "(examples 9, not 8)"),
        (8, 3, "(seed 3, not 0)"),
        (9, 3, "(examples 9, not 8, seed 3, not 0)"),
    ],
)
def test_resuming_with_other_data_says_so(
    examples: int, seed: int, message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for records, order, steps in ((8, 0, 1), (examples, seed, 2)):
        args = arguments(tmp_path, save_strategy="steps", max_steps=steps, seed=order)
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(records))
        trainer.train(resume_from_checkpoint=steps == 2)
    said = [text for text in caplog.messages if "of a run with other training data" in text]
    assert len(said) == (message is not None)
    assert message is None or message in said[0]


def test_resuming_weights_without_their_optimizer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for only, words in ((False, 0), (True, 1)):
        folder, settings = tmp_path / str(only), {"save_strategy": "steps", "save_only_model": only}
        for resume in (None, True):
            args = arguments(folder, max_steps=2 if resume else 1, **settings)
            T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(8)).train(resume)
        assert caplog.text.count("holds no optimizer: its state and the learning rate schedule start anew") == words


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


def losses_of(trainer: T5PeftTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(tiny_records(6))


@pytest.mark.parametrize(
    "make", [Stream, lambda: Dataset.from_list(tiny_records(6)).to_iterable_dataset()], ids=["torch", "datasets"]
)
def test_streams_are_trained_and_evaluated_on(make: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=5, logging_steps=1, predict_with_generate=True)
    trainer = T5PeftTrainer(lora_wrap(seeded(tiny_t5)), args, train_dataset=make(), eval_dataset=make())
    assert len(losses_of(trainer)) == 5  # two steps an epoch
    of_list = T5PeftTrainer(trainer.model, args, eval_dataset=tiny_records(6))
    assert trainer.evaluate()["eval_loss"] == of_list.evaluate()["eval_loss"]
    assert array(trainer.predict(as_dataset(make())).predictions).shape[0] == 6


def test_a_stream_in_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path), train_dataset=Stream(), eval_dataset=Stream())
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(num_processes=2))
    for dataloader in (trainer.get_train_dataloader, trainer.get_eval_dataloader):
        with pytest.raises(ValueError, match=r"Got a stream \(Stream\) in 2 processes; expected a list"):
            dataloader()


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


@pytest.mark.parametrize("pack", [None, False], ids=["rows", "padded"])
@pytest.mark.parametrize("method", TUNED)
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


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "an empty train_dataset; expected at least one record"),
        ([{"input_ids": [3, EOS], "labels": [-100, -100]}], "targets that are all padding"),
        ([{"input_ids": [], "labels": [3, EOS]}], "sources of no tokens"),
        ([{"input_ids": [3, EOS], "target": [3, EOS]}], "expected `input_ids` and `labels`"),
        ([{"input_ids": [384, EOS], "labels": [3, EOS]}], "`input_ids` reach from 1 to 384; expected 0 to 383 .do tok"),
        (
            [{"input_ids": [3, EOS], "labels": [3, -100, 384]}],
            "`labels` reach from 3 to 384; expected 0 to 383, or -100 where",
        ),
        ([{"input_ids": [3, EOS], "labels": [-1, EOS]}], "`labels` reach from -1 to 1; expected 0 to 383, or -100"),
        ([{"input_ids": [3, EOS], "labels": 2}], "`labels` such as 2; expected a list of token ids"),
        ([{"input_ids": [3, EOS], "labels": None}], "`labels` such as None; expected a list of token ids"),
        ([{"input_ids": [3, EOS], "labels": [0.5]}], r"`labels` such as \[0.5\]; expected a list of token ids"),
        (
            [{"input_ids": torch.tensor([[3, EOS]]), "labels": [3]}],
            r"`input_ids` such as \[\[3, 1\]\]; expected a list",
        ),
        (
            DatasetDict(train=Dataset.from_list([{"input_ids": [3], "labels": [3]}])),
            r"train_dataset .*'train'\]; .* one",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_ends_in_one_clear_error(records: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path), train_dataset=records).train()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "`labels` reach from 3 to 3; expected 0 to 2, or -100"),
        (2.0, "`labels` such as 2.0; expected one class, a whole number"),
        ("2", "`labels` such as '2'; expected one class, a whole number"),
        ([2], r"`labels` such as \[2\]; expected a list of 3 labels from 0 to 1"),
        (None, "`labels` such as None; expected one class, a whole number"),
    ],
    ids=repr,
)
def test_a_label_that_is_no_class_ends_in_one_clear_error(label: Any, message: str, tmp_path: Path) -> None:
    records = [{"input_ids": [3, EOS], "labels": label}]
    trainer = T5PeftTrainer(tiny_classifier(), arguments(tmp_path), train_dataset=records, eval_dataset=records)
    for use in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=message):
            use()


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def test_data_that_cannot_be_evaluated_on_ends_in_one_clear_error(tmp_path: Path) -> None:
    args, misspelt = arguments(tmp_path), [{"input_ids": [3, EOS], "lables": [3, EOS]}]
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args)
    for data, message in (
        ({"a": tiny_records(2), "b": misspelt}, r"eval_dataset\['b'\] has a column 'lables' and none called 'labels'"),
        ({"a": tiny_records(2), "b": []}, r"an empty eval_dataset\['b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            T5PeftTrainer(lora_wrap(tiny_t5()), args, eval_dataset=data)
    for use in (trainer.evaluate, trainer.predict):
        nothing: list[Any] = [[], Nothing()]
        for empty in nothing:
            with pytest.raises(ValueError, match=r"Got an empty .*; expected at least one record"):
                use(as_dataset(empty))
        for wrong in (misspelt, Dataset.from_list(misspelt)):
            with pytest.raises(ValueError, match="has a column 'lables' and none called 'labels'"):
                use(as_dataset(wrong))
    with pytest.raises(ValueError, match="`labels` reach from 1 to 500; expected 0 to 383"):
        trainer.evaluate(as_dataset([{"input_ids": [3, EOS], "labels": [500, EOS]}]))


def test_predictions_and_labels_hold_no_minus_100_and_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    records = tiny_records(7)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions, prediction.label_ids))
        return {"rows": float(len(prediction.predictions))}

    model = lora_wrap(tiny_t5())
    args = arguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=3)
    trainer = T5PeftTrainer(
        model, args, eval_dataset=records, compute_metrics=metrics, processing_class=tiny_tokenizer()
    )
    scores = trainer.evaluate()
    predictions, labels = seen[0]
    assert scores["eval_rows"] == 7
    assert (predictions >= 0).all()
    assert [row[: len(r["labels"])].tolist() for row, r in zip(labels, records, strict=True)] == [
        r["labels"] for r in records
    ]
    limit = max(len(record["labels"]) for record in records)
    for row, record in zip(predictions, records, strict=True):
        alone = model.generate(input_ids=torch.tensor([record["input_ids"]]), max_new_tokens=limit)[0, 1:].tolist()
        assert [token for token in row.tolist() if token != PAD] == [token for token in alone if token != PAD]
    assert tiny_tokenizer().batch_decode(labels)
    ended = [EOS in row.tolist() for row in predictions]
    assert scores["eval_cut_share"] == pytest.approx(1 - sum(ended) / 7)


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["list", "datasets"])
def test_a_collator_of_the_users_evaluates_and_predicts_what_the_default_one_does(make: Any, tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    args = arguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=2)
    labelled = [{**record, "text": "as it was"} for record in tiny_records(5)]
    unlabelled = [{"input_ids": record["input_ids"], "text": "as it was"} for record in labelled]
    found = []
    for collator in (None, DataCollatorForSeq2Seq(tiny_tokenizer(), model=model)):
        trainer = T5PeftTrainer(model, args, data_collator=collator)
        predicted = trainer.predict(make(unlabelled), max_new_tokens=6)
        assert predicted.label_ids is None
        found.append((trainer.evaluate(as_dataset(make(labelled)))["eval_loss"], array(predicted.predictions).tolist()))
    assert found[1] == (pytest.approx(found[0][0], rel=1e-6), found[0][1])


def test_labels_that_begin_with_minus_100_come_back_padded(tmp_path: Path) -> None:
    records = [{"input_ids": [5, EOS], "labels": [-100, 7, -100, EOS]}, {"input_ids": [5, EOS], "labels": [7, EOS]}]
    args = arguments(tmp_path, predict_with_generate=True)
    output = T5PeftTrainer(lora_wrap(tiny_t5()), args).predict(as_dataset(records))
    assert array(output.label_ids).tolist() == [[PAD, 7, PAD, EOS], [7, EOS, PAD, PAD]]


def test_callbacks_see_the_data_of_an_evaluation_and_the_printer_goes_by_its_name(tmp_path: Path) -> None:
    class Watch(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(len(kwargs["eval_dataloader"]))

    seen: list[int] = []
    args = arguments(tmp_path, per_device_eval_batch_size=2)
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, eval_dataset=tiny_records(5), callbacks=[Watch()])
    trainer.evaluate()
    assert seen == [3, 3, 3]
    before = len(trainer.callback_handler.callbacks)
    trainer.remove_callback(PrinterCallback)
    assert len(trainer.callback_handler.callbacks) == before - 1


def test_prediction_works_without_labels(tmp_path: Path) -> None:
    records = [{"input_ids": record["input_ids"]} for record in tiny_records(5)]
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path, predict_with_generate=True))
    output = trainer.predict(as_dataset(records), max_new_tokens=6)
    assert array(output.predictions).shape[0] == 5
    assert output.label_ids is None


def test_a_model_is_left_without_dropout_by_evaluation(tmp_path: Path) -> None:
    trainer = T5PeftTrainer(lora_wrap(tiny_t5(dropout_rate=0.3)), arguments(tmp_path), train_dataset=tiny_records(4))
    for evaluation in (trainer.evaluate, trainer.predict):
        trainer.train()
        assert model_of(trainer).training
        evaluation(as_dataset(tiny_records(4)))
        assert not model_of(trainer).training


@pytest.mark.parametrize("wrap", [full_wrap, lora_wrap])
@pytest.mark.parametrize("by", ["arguments", "model"])
def test_a_generation_config_is_followed(by: str, wrap: Any, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=2, decoder_start_token_id=PAD, eos_token_id=EOS, pad_token_id=PAD)
    model = tiny_t5()
    if by == "model":
        model.generation_config = config
    args = arguments(tmp_path, predict_with_generate=True, generation_config=config if by == "arguments" else None)
    trainer = T5PeftTrainer(wrap(model), args)
    assert array(trainer.predict(as_dataset(tiny_records(3))).predictions).shape == (3, 2)
    assert array(trainer.predict(as_dataset(tiny_records(3)), max_new_tokens=4).predictions).shape == (3, 4)


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
    with pytest.raises(ValueError, match="does not serve") as error:
        T5PeftTrainer(model, args, train_dataset=tiny_records(4), optimizers=optimizers)
    assert all(name in str(error.value) for name in refused)


def test_a_classification_head_is_trained_and_its_scores_reach_the_metrics(tmp_path: Path) -> None:
    records = [{"input_ids": record["input_ids"], "labels": i % 3} for i, record in enumerate(tiny_records(9))]
    model = lora_wrap(tiny_classifier())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = T5PeftTrainer(
        model,
        arguments(tmp_path, max_steps=40, learning_rate=3e-2),
        train_dataset=records,
        eval_dataset=records,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    assert any("classification_head" in name for name in before)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert trainer.evaluate()["eval_accuracy"] > 0.8


def test_eval_loss_is_the_mean_over_target_tokens_for_every_batch_size(tmp_path: Path) -> None:
    records = tiny_records(7)
    model = tiny_t5()
    summed, tokens = 0.0, 0
    with torch.no_grad():
        for record in records:
            labels = torch.tensor([record["labels"]])
            loss = model(input_ids=torch.tensor([record["input_ids"]]), labels=labels).loss
            summed, tokens = summed + float(loss) * labels.numel(), tokens + labels.numel()
    for size in (1, 3, 7):
        trainer = T5PeftTrainer(model, arguments(tmp_path, per_device_eval_batch_size=size), eval_dataset=records)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(summed / tokens, rel=1e-6)


@pytest.mark.parametrize("head", [False, True], ids=["text", "class head"])
def test_eval_loss_is_the_plain_cross_entropy_whatever_training_adds_to_it(head: bool, tmp_path: Path) -> None:
    records = [{**record, "labels": 1} for record in tiny_records(4)] if head else tiny_records(4)
    losses = []
    for added in ({}, {"label_smoothing_factor": 0.1, "z_loss": 0.0 if head else 0.01}):
        model = tiny_classifier() if head else tiny_t5()
        losses.append(T5PeftTrainer(model, arguments(tmp_path, **added), eval_dataset=records).evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_an_example_without_a_class_does_not_count_in_the_loss_of_a_class_head(tmp_path: Path) -> None:
    records = [{**record, "labels": i % 3} for i, record in enumerate(tiny_records(4))]
    trainer = T5PeftTrainer(tiny_classifier(), arguments(tmp_path))
    with_more = trainer.evaluate(as_dataset([*records, {**records[0], "labels": -100}]))
    assert with_more["eval_loss"] == pytest.approx(trainer.evaluate(as_dataset(records))["eval_loss"], rel=1e-6)


def test_a_model_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"T5EncoderModel .expected a T5 with a head for text, classes or spans"):
        T5PeftTrainer(T5EncoderModel(tiny_config()), arguments(tmp_path), train_dataset=tiny_records(4))


def test_z_loss_of_a_class_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="z_loss for a class head"):
        T5PeftTrainer(tiny_classifier(), arguments(tmp_path, z_loss=1e-4))


def test_a_log_is_one_line_with_its_units() -> None:
    logs = {
        "loss": 1.25, "learning_rate": 1e-3, "tokens_per_second": 1234.5, "padding_share": 0.25,
        "peak_memory_bytes": 3 * 2**20, "epoch": 0.5,
    }  # fmt: skip
    line = format_logs(7, logs)
    assert line == "step 7 | loss 1.2500 | lr 1.00e-03 | 1,234 tokens/s | 25% padding | epoch 0.50 | peak 3 MiB"


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


def test_several_processes_without_a_gpu_exchange_gradients_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert T5PeftTrainingArguments(str(tmp_path)).use_cpu
    plain = Seq2SeqTrainingArguments(str(tmp_path), dataloader_pin_memory=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="gradients would not be exchanged otherwise"):
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


def words_of(records: list[dict[str, list[int]]]) -> list[dict[str, Any]]:
    return [{"source": record["input_ids"], "target": record["labels"]} for record in records]


def collate_words(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def pad(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in lists], True, value)

    sources, labels = pad([row["source"] for row in rows], PAD), pad([row["target"] for row in rows], -100)
    return {"input_ids": sources, "labels": labels}


def test_a_collator_that_makes_the_tokens_evaluates_and_predicts(tmp_path: Path) -> None:
    records = tiny_records(8, shortest=5, longest=5)
    kept: dict[str, Any] = {}

    def keep(predictions: Any) -> dict[str, float]:
        kept[str(len(kept))] = predictions
        return {"n": len(predictions.label_ids)}

    found = []
    for data, collator in ((records, None), (words_of(records), collate_words)):
        args = arguments(tmp_path, remove_unused_columns=False, predict_with_generate=True, max_steps=1)
        options: dict[str, Any] = {
            "train_dataset": data,
            "eval_dataset": data,
            "data_collator": collator,
            "compute_metrics": keep,
        }
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, **options)
        found.append(trainer.evaluate(max_new_tokens=6))
        trainer.train()
    assert found[1]["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
    assert found[1]["eval_n"] == 8
    for part in ("predictions", "label_ids"):
        assert np.array_equal(getattr(kept["0"], part), getattr(kept["1"], part))


def test_a_loader_of_ones_own_is_trained_on_and_its_checkpoints_are_sealed(tmp_path: Path) -> None:
    class OwnLoader(T5PeftTrainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(
                DataLoader(as_dataset(tiny_records(16)), batch_size=4, collate_fn=self.data_collator)
            )

    OwnLoader(lora_wrap(tiny_t5()), arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)).train()
    assert newest_complete(tmp_path) is not None


@pytest.mark.parametrize(("count", "steps"), [(20, 2), (12, 1), (18, 1)])
def test_a_last_step_of_fewer_batches_is_not_dropped_with_the_last_batch(
    count: int, steps: int, tmp_path: Path
) -> None:
    changes = {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 4, "dataloader_drop_last": True}
    args = arguments(tmp_path, per_device_train_batch_size=4, **changes)
    assert T5PeftTrainer(lora_wrap(tiny_t5()), args, train_dataset=tiny_records(count)).train().global_step == steps


def test_peers_prompt_learning_is_refused_by_name(tmp_path: Path) -> None:
    model = get_peft_model(tiny_t5(), PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4))
    with pytest.raises(ValueError, match=r"peft's own PROMPT_TUNING \(wrap by prompt_wrap"):
        T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4))


def test_a_frozen_classification_head_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lora_wrap(tiny_classifier())
    model.add_adapter("b", LoraConfig(r=4, target_modules=["q", "v"]))
    model.set_adapter("b")
    records = [{"input_ids": record["input_ids"], "labels": 1} for record in tiny_records(4)]
    T5PeftTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=records).train()
    assert "modules_to_save=['classification_head']" in caplog.text
