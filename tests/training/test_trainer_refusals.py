"""Models, batches and metrics that the trainer refuses in one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from narrow import as_dataset
from tiny import EOS, tiny_records, tiny_t5
from trainers import arguments

from t5peft import T5PeftTrainer, lora_wrap


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
            "lists as input_ids, labels from the data_collator; expected",
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
