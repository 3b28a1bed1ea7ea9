"""Scripts that users of transformers write after its examples and guides run with only the import of the Trainer changed.

Each function below is such a script: it tokenizes by ``map``, trains, evaluates, predicts, and writes the files that the examples
write. It is run with plain ``Seq2SeqTrainer`` and with ``T5PeftTrainer``, and must give the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from datasets import load_dataset
from example_scripts import (
    BLEU,
    ROUGE,
    TRAINERS,
    assert_same,
    decoded,
    loaded,
    parsed,
    run_by,
    save_checkpoint,
    sentence,
    write,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    EvalPrediction,
    Seq2SeqTrainingArguments,
    set_seed,
)

from t5peft.evaluation import compute


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def summarize(kind: Any, checkpoint: str, folder: Path, files: dict[str, str], **given: str) -> dict[str, Any]:
    """Summarization as by an example script, scored by ROUGE.

    Long because a script runs from its arguments to its files.
    """
    model_args, data, training = parsed(
        folder, **{"--model_name_or_path": checkpoint, "--source_prefix": "summarize :", **files, **given}
    )
    set_seed(training.seed)
    raw = loaded(data, folder.parent)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, use_fast=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    padding = "max_length" if data.pad_to_max_length else False

    def tokenize(examples: dict[str, list[str]]) -> Any:
        sources = [f"{data.source_prefix} {text}" for text in examples["document"]]
        inputs = tokenizer(sources, max_length=data.max_source_length, padding=padding, truncation=True)
        labels = tokenizer(
            text_target=examples["summary"], max_length=data.val_max_target_length, padding=padding, truncation=True
        )
        if padding == "max_length" and data.ignore_pad_token_for_loss:
            labels["input_ids"] = [
                [token if token != tokenizer.pad_token_id else -100 for token in ids] for ids in labels["input_ids"]
            ]
        inputs["labels"] = labels["input_ids"]
        return inputs

    columns = raw["train"].column_names
    with training.main_process_first(desc="tokenize"):
        encoded = raw.map(tokenize, batched=True, remove_columns=columns, desc="Tokenize")
    collator = DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100, pad_to_multiple_of=None)
    metric = evaluate.load(ROUGE)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers, references = (decoded(tokenizer, ids) for ids in (prediction.predictions, prediction.label_ids))
        lines = [["\n".join(text.split(" near ")) for text in texts] for texts in (answers, references)]
        scores = metric.compute(predictions=lines[0], references=lines[1])
        scores = {name: round(value * 100, 4) for name, value in scores.items()}
        lengths = [np.count_nonzero(ids != tokenizer.pad_token_id) for ids in prediction.predictions]
        return scores | {"gen_len": float(np.mean(lengths))}

    if training.generation_max_length is None:
        training.generation_max_length = data.val_max_target_length
    if data.num_beams is not None:
        training.generation_num_beams = data.num_beams
    trainer = kind(
        model=model, args=training, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        processing_class=tokenizer, data_collator=collator,
        compute_metrics=compute_metrics if training.predict_with_generate else None,
    )  # fmt: skip
    found = run_by(trainer, training, data, raw)
    predicted = trainer.predict(encoded["validation"], metric_key_prefix="predict")
    trainer.log_metrics("predict", predicted.metrics)
    trainer.save_metrics("predict", predicted.metrics)
    assert trainer.is_world_process_zero()
    found["predictions"] = decoded(tokenizer, predicted.predictions)
    (folder / "generated_predictions.txt").write_text("\n".join(found["predictions"]))
    trainer.create_model_card(finetuned_from=checkpoint, tasks="summarization", dataset="of words", language="en")
    assert "library_name: transformers" in (folder / "README.md").read_text()
    found["files"] = {path.name for path in folder.iterdir()}
    assert json.loads((folder / "all_results.json").read_text())["eval_rouge1"] == found["scores"]["eval_rouge1"]
    return found


@pytest.mark.parametrize(
    "given", [{}, {"--pad_to_max_length": "True", "--num_beams": "3", "--label_smoothing_factor": "0.1"}], ids=str
)
def test_summarization_by_an_example_script(given: dict[str, str], checkpoint: str, tmp_path: Path) -> None:
    def record(rng: np.random.Generator, _: int) -> dict[str, Any]:
        words = sentence(rng, 6, 20)
        return {"document": " ".join(words), "summary": " ".join(["today", *words[:3]])}

    files = write(tmp_path, record)
    plain, ours = (summarize(kind, checkpoint, tmp_path / kind.__name__, files, **given) for kind in TRAINERS)
    if "--label_smoothing_factor" in given:  # which belongs to training: losses of evaluations are ours without it
        assert ours["scores"].pop("eval_loss") < plain["scores"].pop("eval_loss")
    assert_same(plain, ours)


def translate(kind: Any, checkpoint: str, folder: Path, files: dict[str, str]) -> dict[str, Any]:
    """Translation as by an example script, scored by BLEU, with early stopping on it."""
    model_args, data, training = parsed(
        folder,
        **{"--model_name_or_path": checkpoint, "--source_prefix": "translate :", **files},
        **{"--eval_strategy": "epoch", "--load_best_model_at_end": "True", "--metric_for_best_model": "eval_bleu"},
        **{"--generation_max_length": "9"},
    )
    set_seed(training.seed)
    raw = loaded(data, folder.parent)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path)

    def tokenize(examples: dict[str, list[dict[str, str]]]) -> Any:
        sources = [f"{data.source_prefix} {pair['en']}" for pair in examples["translation"]]
        targets = [pair["ne"] for pair in examples["translation"]]
        inputs = tokenizer(sources, max_length=data.max_source_length, padding=False, truncation=True)
        labels = tokenizer(text_target=targets, max_length=data.val_max_target_length, padding=False, truncation=True)
        return {**inputs, "labels": labels["input_ids"]}

    encoded = raw.map(tokenize, batched=True, remove_columns=raw["train"].column_names, load_from_cache_file=False)

    def compute_metrics(predictions: Any) -> dict[str, float]:
        answers, labels = predictions
        references = [[text] for text in decoded(tokenizer, labels)]
        score = compute("bleu", predictions=decoded(tokenizer, answers), references=references)["bleu"]
        lengths = [np.count_nonzero(ids != tokenizer.pad_token_id) for ids in answers]
        return {"bleu": round(score, 4), "gen_len": round(float(np.mean(lengths)), 4)}

    trainer = kind(
        model,
        training,
        DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        encoded["train"],
        encoded["validation"],
        tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    found = run_by(trainer, training, data, raw)
    lengths = {"max_length": data.val_max_target_length, "num_beams": 2}
    scores = trainer.evaluate(**lengths, metric_key_prefix="again")
    found["scores"] |= {name: scores[name] for name in ("again_bleu", "again_gen_len", "again_loss")}
    predicted = trainer.predict(encoded["validation"], metric_key_prefix="predict", **lengths)
    found["predictions"] = decoded(tokenizer, predicted.predictions)
    trainer.create_model_card(finetuned_from=checkpoint, tasks="translation", language=["en", "ne"])
    found["scores"]["best"] = trainer.state.best_metric
    return found


def test_translation_by_an_example_script(checkpoint: str, tmp_path: Path) -> None:
    def record(rng: np.random.Generator, _: int) -> dict[str, Any]:
        words = sentence(rng)
        return {"translation": {"en": " ".join(words), "ne": " ".join(["yadot", *(word[::-1] for word in words)])}}

    files = write(tmp_path, record)
    plain, ours = (translate(kind, checkpoint, tmp_path / kind.__name__, files) for kind in TRAINERS)
    assert_same(plain, ours)


def by_a_guide(
    kind: Any, checkpoint: str, folder: Path, path: str, source: str, target: str, metric: str
) -> dict[str, Any]:
    """Summarization or translation as by a task guide, and an answer of the saved model.

    Long because a script runs from its arguments to its files.
    """
    set_seed(0)
    raw = load_dataset("json", data_files=path, split="train", cache_dir=str(folder.parent / "cache"))
    raw = raw.train_test_split(test_size=0.25, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def tokenize(examples: dict[str, list[str]]) -> Any:
        sources = ["summarize : " + text for text in examples[source]]
        inputs = tokenizer(sources, max_length=32, truncation=True)
        inputs["labels"] = tokenizer(text_target=examples[target], max_length=8, truncation=True)["input_ids"]
        return inputs

    encoded = raw.map(tokenize, batched=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    training = Seq2SeqTrainingArguments(
        output_dir=str(folder), eval_strategy="epoch", learning_rate=1e-2, per_device_train_batch_size=4,
        per_device_eval_batch_size=4, weight_decay=0.01, save_total_limit=2, num_train_epochs=4,
        predict_with_generate=True, generation_max_length=8, logging_steps=1, use_cpu=True, report_to="none",
        disable_tqdm=True, push_to_hub=False,
    )  # fmt: skip

    def compute_metrics(prediction: Any) -> dict[str, float]:
        predictions, labels = prediction
        references = tokenizer.batch_decode(np.where(labels != -100, labels, 0), skip_special_tokens=True)
        scores = evaluate.load(metric).compute(
            predictions=tokenizer.batch_decode(predictions, skip_special_tokens=True),
            references=[[text] for text in references] if metric == BLEU else references,
        )
        lengths = [np.count_nonzero(ids != tokenizer.pad_token_id) for ids in predictions]
        return {name: round(value, 4) for name, value in {**scores, "gen_len": np.mean(lengths)}.items()}

    trainer = kind(
        model=model, args=training, train_dataset=encoded["train"], eval_dataset=encoded["test"],
        processing_class=tokenizer, compute_metrics=compute_metrics,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, model=checkpoint),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    saved = AutoModelForSeq2SeqLM.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("summarize : red boat sails today", return_tensors="pt").input_ids
    answers = saved.generate(inputs, max_new_tokens=8, do_sample=False)
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 4
    return {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "scores": {f"{i} {name}": value for i, line in enumerate(evaluations) for name, value in line.items()},
        "predictions": [tokenizer.decode(answers[0], skip_special_tokens=True)],
        "files": {file.name for file in folder.iterdir()},
    }


@pytest.mark.parametrize(
    ("source", "target", "metric"),
    [("text", "summary", ROUGE), ("en", "fr", BLEU)],
    ids=["summarization", "translation"],
)
def test_a_guide_of_a_task(source: str, target: str, metric: str, checkpoint: str, tmp_path: Path) -> None:
    def record(rng: np.random.Generator, _: int) -> dict[str, Any]:
        words = sentence(rng, 4, 12)
        return {source: " ".join(words), target: " ".join(["today", *words[:3]])}

    path = write(tmp_path, record)["--train_file"]
    given = (path, source, target, metric)
    plain, ours = (by_a_guide(kind, checkpoint, tmp_path / kind.__name__, *given) for kind in TRAINERS)
    assert_same(plain, ours)
