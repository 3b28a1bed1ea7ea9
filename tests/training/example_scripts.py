"""The parts that example scripts and guides have in common: arguments, data, a checkpoint, and a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import DatasetDict, load_dataset
from tiny import tiny_t5
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from t5peft import T5PeftTrainer
from t5peft.evaluation import modules
from t5peft.models.manifest import MANIFEST

TRAINERS = (Seq2SeqTrainer, T5PeftTrainer)
WORDS = (
    "red",
    "blue",
    "old",
    "new",
    "boat",
    "house",
    "river",
    "road",
    "sails",
    "stands",
    "ends",
    "near",
    "far",
    "today",
)
FOREIGN = tuple(word[::-1] for word in WORDS)
ROUGE, BLEU = (str(Path(modules.__file__).with_name(f"{name}.py")) for name in ("rouge", "bleu"))
FEW_LINES = {"--output_dir": "", "--use_cpu": "True", "--report_to": "none", "--disable_tqdm": "True"}
SCRIPT = {
    "--do_train": "True", "--do_eval": "True", "--do_predict": "True", "--per_device_train_batch_size": "4",
    "--per_device_eval_batch_size": "8", "--num_train_epochs": "4", "--learning_rate": "1e-2", "--logging_steps": "1",
    "--predict_with_generate": "True", "--save_strategy": "epoch", "--save_total_limit": "2", "--seed": "11",
}  # fmt: skip


@dataclass
class ModelArguments:
    """The model of a script."""

    model_name_or_path: str


@dataclass
class DataArguments:
    """The data of a script."""

    train_file: str
    validation_file: str
    source_prefix: str = ""
    max_source_length: int = 24
    val_max_target_length: int = 9
    num_beams: int | None = None
    pad_to_max_length: bool = False
    ignore_pad_token_for_loss: bool = field(default=True)


def write(folder: Path, make: Callable[[np.random.Generator, int], dict[str, Any]]) -> dict[str, str]:
    """JSON lines of twelve records to train on and eight others."""
    rng = np.random.default_rng(3)
    files = {}
    for name, count in (("train_file", 12), ("validation_file", 8)):
        path = folder / f"{name}.json"
        path.write_text("".join(json.dumps(make(rng, index)) + "\n" for index in range(count)))
        files[f"--{name}"] = str(path)
    return files


def sentence(rng: np.random.Generator, fewest: int = 3, most: int = 9) -> list[str]:
    return [str(word) for word in rng.choice(WORDS, int(rng.integers(fewest, most)))]


def parsed(folder: Path, **given: str) -> tuple[ModelArguments, DataArguments, Seq2SeqTrainingArguments]:
    options = {**FEW_LINES, **SCRIPT, "--output_dir": str(folder), **given}
    kinds = (ModelArguments, DataArguments, Seq2SeqTrainingArguments)
    parser = HfArgumentParser(kinds)  # type: ignore[arg-type]  # its annotation is a NewType that no class has
    model, data, training = parser.parse_args_into_dataclasses([part for pair in options.items() for part in pair])
    assert isinstance(model, ModelArguments)
    assert isinstance(data, DataArguments)
    assert isinstance(training, Seq2SeqTrainingArguments)
    return model, data, training


def loaded(data: DataArguments, folder: Path) -> DatasetDict:
    files = {"train": data.train_file, "validation": data.validation_file}
    return load_dataset("json", data_files=files, cache_dir=str(folder / "cache"))


def decoded(tokenizer: Any, ids: Any) -> list[str]:
    ids = ids[0] if isinstance(ids, tuple) else ids
    return [text.strip() for text in tokenizer.batch_decode(np.where(ids != -100, ids, 0), skip_special_tokens=True)]


def run_by(trainer: Any, training: Seq2SeqTrainingArguments, data: DataArguments, raw: DatasetDict) -> dict[str, Any]:
    """The second half of an example script: train, save, evaluate, predict, and write what they found."""
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(training.output_dir)))
    trainer.save_model()
    metrics = {**result.metrics, "train_samples": len(raw["train"])}
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    scores = trainer.evaluate(metric_key_prefix="eval")
    trainer.log_metrics("eval", scores)
    trainer.save_metrics("eval", scores)
    return {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "scores": scores,
        "files": {path.name for path in Path(str(training.output_dir)).iterdir()},
    }


def kept_apart(found: dict[str, Any]) -> dict[str, Any]:
    """Scores without what measures time."""
    noise = ("runtime", "per_second", "preparation_time", "cut_share")
    return {name: value for name, value in found.items() if not name.endswith(noise)}


def assert_same(plain: dict[str, Any], ours: dict[str, Any]) -> None:
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert len(ours["losses"]) > 1
    assert ours["losses"][-1] < ours["losses"][0]
    assert kept_apart(ours["scores"]) == pytest.approx(kept_apart(plain["scores"]), rel=1e-4)
    assert ours["predictions"] == plain["predictions"]
    assert any(ours["predictions"]), "the model must say something"
    assert ours["files"] - {MANIFEST} == plain["files"]


def save_checkpoint(folder: Path) -> str:
    """A tiny T5 with a fast tokenizer of words."""
    names = ["<pad>", "</s>", "<unk>", *WORDS, *FOREIGN, ":", "?", "summarize", "translate", "question", "context"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    tiny_t5().save_pretrained(folder)
    return str(folder)
