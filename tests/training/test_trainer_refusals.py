"""Models, batches and metrics that the trainer refuses in one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from narrow import as_dataset
from tiny import EOS, tiny_records, tiny_t5
from torch.optim import LBFGS, AdamW, SparseAdam
from torch.optim.lr_scheduler import ConstantLR
from trainers import arguments

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, lora_wrap


def test_metrics_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    args, records = arguments(tmp_path, predict_with_generate=True), as_dataset(tiny_records(2))
    for found in (None, 0.5):
        trainer = T5PeftTrainer(lora_wrap(tiny_t5()), args, compute_metrics=lambda _, found=found: found)
        with pytest.raises(ValueError, match=f"Got {found} from compute_metrics; expected a dictionary"):
            trainer.evaluate(records)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "a NoneType from the data_collator; expected a dictionary of tensors"),
        (
            {"input_ids": [[3, EOS]], "labels": [[3, EOS]]},
            "lists or arrays as input_ids, labels from the data_collator; expected",
        ),
        (
            {"input_ids": np.ones((1, 2)), "labels": torch.ones(1, 2)},
            "lists or arrays as input_ids from the data_collator",
        ),
    ],
)
def test_batches_that_are_no_tensors_are_refused(batch: Any, message: str, tmp_path: Path) -> None:
    trainer = T5PeftTrainer(
        lora_wrap(tiny_t5()), arguments(tmp_path), data_collator=lambda _: batch, train_dataset=tiny_records(4)
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize("model", [("model", "tokenizer"), "google-t5/t5-small"])
def test_what_is_no_model_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"as model; expected a T5\."):
        T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4))


def test_a_merged_adapter_is_not_trained(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    model.merge_adapter()
    trainer = T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4))
    with pytest.raises(
        ValueError, match=r"into whose weights the adapter\(s\) \['default'\] are merged; .*unmerge_adapter"
    ):
        trainer.train()
    model.unmerge_adapter()
    trainer.train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"args": {"output_dir": "out"}}, r"Got args=\{.*\(dict\); expected args to be T5PeftTrainingArguments"),
        ({"args": T5PeftTrainingArguments}, r"\(type\); expected args to be T5PeftTrainingArguments"),
        (
            {"callbacks": ["early"]},
            r"callbacks=\['early'\] \(list\); expected callbacks to be a list of TrainerCallback",
        ),
        (
            {"data_collator": "seq2seq", "compute_metrics": "rouge"},
            "data_collator to be a function; compute_metrics to be a",
        ),
        ({"optimizers": (AdamW, None)}, r"expected optimizers to be an optimizer whose step needs no closure"),
        ({"optimizers": (None, ConstantLR)}, "expected optimizers to be an optimizer"),
        ({"optimizers": AdamW([torch.zeros(1)])}, r"Got optimizers=AdamW \( Parameter Group.* \(AdamW\); expected"),
        ({"optimizers": (LBFGS([torch.zeros(1)]), None)}, "whose step needs no closure"),
    ],
)
def test_parts_of_another_type_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"args": arguments(tmp_path), "train_dataset": tiny_records(4)} | given
    with pytest.raises(ValueError, match=message):
        T5PeftTrainer(lora_wrap(tiny_t5()), **parts)


@pytest.mark.parametrize("data", [pd.DataFrame(tiny_records(4)), "train.csv"], ids=["frame", "path"])
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_data_that_was_not_read_is_refused(name: str, data: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"Got a (DataFrame|str) as {name}; expected records with `input_ids`"):
        T5PeftTrainer(lora_wrap(tiny_t5()), arguments(tmp_path), **{name: data})


@pytest.mark.parametrize("of", ["another model", "the frozen weights"])
def test_an_optimizer_without_the_trained_weights_is_refused(of: str, tmp_path: Path) -> None:
    base = tiny_t5()
    optimizer = AdamW((tiny_t5() if of == "another model" else base).parameters())
    trainer = T5PeftTrainer(
        lora_wrap(base), arguments(tmp_path), train_dataset=tiny_records(4), optimizers=(optimizer, None)
    )
    with pytest.raises(ValueError, match="holds none of the 24 parameters that require a gradient"):
        trainer.train()


def test_an_optimizer_of_some_of_the_trained_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lora_wrap(tiny_t5())
    trained = [p for p in model.parameters() if p.requires_grad]
    for held, said in ((trained, 0), (trained[3:], 1)):
        optimizers = (AdamW(held, lr=1e-3), None)
        T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4), optimizers=optimizers).train()
        assert caplog.text.count("does not hold 3 of the") == said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": "1e-3"}, "Got learning_rate='1e-3'; expected learning_rate of float"),
        ({"pack": "False", "max_steps": 2.5}, "Got max_steps=2.5, pack='False'; expected max_steps of int"),
        ({"max_steps": True}, "Got max_steps=True; expected max_steps of int"),
        ({"per_device_train_batch_size": 0}, r"Got per_device_train_batch_size=0 \(at least 1\)"),
        ({"gradient_accumulation_steps": 0}, r"Got gradient_accumulation_steps=0 \(at least 1\)"),
        ({"max_steps": -1, "num_train_epochs": -2}, r"Got num_train_epochs=-2 \(at least 0\)"),
        ({"tokens_per_micro_batch": 0}, r"Got tokens_per_micro_batch=0 \(at least 1\)"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **given)


def test_numbers_of_numpy_are_arguments(tmp_path: Path) -> None:
    made = arguments(tmp_path, learning_rate=np.float32(0.5), max_steps=np.int64(3), seed=np.int32(4))
    assert (made.learning_rate, made.max_steps, made.seed) == (0.5, 3, 4)


def test_what_transformers_takes_for_another_type_is_taken(tmp_path: Path) -> None:
    given: dict[str, Any] = {"output_dir": tmp_path, "bf16": 0}
    made = T5PeftTrainingArguments(**given, max_steps=3, report_to="none")
    assert made.output_dir == str(tmp_path)
    trainer = T5PeftTrainer(lora_wrap(tiny_t5()), made, train_dataset=tiny_records(4))
    assert trainer.train().global_step == 3


def test_an_optimizer_for_sparse_gradients_is_named(tmp_path: Path) -> None:
    model = lora_wrap(tiny_t5())
    optimizer = SparseAdam([p for p in model.parameters() if p.requires_grad])
    trainer = T5PeftTrainer(model, arguments(tmp_path), train_dataset=tiny_records(4), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="Got the optimizer SparseAdam, which does not take dense gradients"):
        trainer.train()
