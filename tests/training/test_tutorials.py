"""Scripts that users of transformers write after its examples and guides run with only the import of the Trainer changed.

Each function below is such a script: it tokenizes by ``map``, trains, evaluates, predicts, and writes the files that the examples
write. It is run with plain ``Seq2SeqTrainer`` and with ``T5PeftTrainer``, and must give the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from datasets import DatasetDict, load_dataset
from tiny import tiny_t5
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint, speed_metrics

from t5peft import T5PeftTrainer
from t5peft.evaluation import compute, modules
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny T5 with a fast tokenizer of words."""
    folder = tmp_path_factory.mktemp("checkpoint")
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
    parser = HfArgumentParser((ModelArguments, DataArguments, Seq2SeqTrainingArguments))
    return parser.parse_args_into_dataclasses([part for pair in options.items() for part in pair])


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


def summarize(kind: Any, checkpoint: str, folder: Path, files: dict[str, str], **given: str) -> dict[str, Any]:
    """Summarization as by an example script, scored by ROUGE."""
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


def for_questions(kind: Any) -> Any:
    """A Trainer that scores answers to the questions of whole examples, as an example script subclasses it."""

    class QuestionTrainer(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, eval_examples: Any = None, post_process: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.eval_examples, self.post_process = eval_examples, post_process

        def evaluate(
            self, eval_dataset: Any = None, eval_examples: Any = None, ignore_keys: Any = None,
            metric_key_prefix: str = "eval", **generation: Any,
        ) -> dict[str, float]:  # fmt: skip
            if generation.get("max_length") is None and self.args.generation_max_length is not None:
                generation["max_length"] = self.args.generation_max_length
            self._gen_kwargs = generation
            dataset = self.eval_dataset if eval_dataset is None else eval_dataset
            examples = self.eval_examples if eval_examples is None else eval_examples
            output = self._without_metrics(
                self.get_eval_dataloader(dataset), "Evaluation", ignore_keys, metric_key_prefix
            )
            metrics = self._scored(examples, dataset, output, metric_key_prefix)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def predict(
            self,
            test_dataset: Any,
            examples: Any,
            ignore_keys: Any = None,
            metric_key_prefix: str = "test",
            **given: Any,
        ) -> Any:
            self._gen_kwargs = given
            output = self._without_metrics(
                self.get_test_dataloader(test_dataset), "Prediction", ignore_keys, metric_key_prefix
            )
            answers = self.post_process(examples, test_dataset, output)
            return answers, self._scored(examples, test_dataset, output, metric_key_prefix)

        def _without_metrics(self, loader: Any, description: str, ignore_keys: Any, prefix: str) -> Any:
            compute_metrics, self.compute_metrics = self.compute_metrics, None
            start = time.time()
            try:
                output = self.evaluation_loop(
                    loader, description=description, prediction_loss_only=None, ignore_keys=ignore_keys,
                    metric_key_prefix=prefix,
                )  # fmt: skip
            finally:
                self.compute_metrics = compute_metrics
            output.metrics.update(speed_metrics(prefix, start, num_samples=output.num_samples))
            return output

        def _scored(self, examples: Any, dataset: Any, output: Any, prefix: str) -> dict[str, float]:
            scores = self.compute_metrics(self.post_process(examples, dataset, output))
            return {f"{prefix}_{name}": value for name, value in scores.items()} | output.metrics

    return QuestionTrainer


def answer(kind: Any, checkpoint: str, folder: Path, files: dict[str, str]) -> dict[str, Any]:
    """Answering questions about a context of several windows, as by an example script."""
    model_args, data, training = parsed(
        folder, **{"--model_name_or_path": checkpoint, "--max_source_length": "14", **files},
        **{"--eval_strategy": "epoch", "--generation_max_length": "8", "--remove_unused_columns": "True"},
    )  # fmt: skip
    set_seed(training.seed)
    raw = loaded(data, folder.parent)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, use_fast=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_args.model_name_or_path)

    def sources_and_targets(examples: dict[str, list[Any]]) -> tuple[list[str], list[str]]:
        pairs = zip(examples["question"], examples["context"], strict=True)
        sources = [f"question : {question.strip()} context : {context.strip()}" for question, context in pairs]
        return sources, [found["text"][0] if found["text"] else "" for found in examples["answers"]]

    def tokenize_training(examples: dict[str, list[Any]]) -> Any:
        sources, targets = sources_and_targets(examples)
        inputs = tokenizer(sources, max_length=data.max_source_length, padding=False, truncation=True)
        inputs["labels"] = tokenizer(text_target=targets, max_length=8, padding=False, truncation=True)["input_ids"]
        return inputs

    def tokenize_validation(examples: dict[str, list[Any]]) -> Any:
        sources, targets = sources_and_targets(examples)
        inputs = tokenizer(
            sources, max_length=data.max_source_length, padding=False, truncation=True, return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )  # fmt: skip
        labels = tokenizer(text_target=targets, max_length=8, padding=False, truncation=True)["input_ids"]
        example_of = inputs.pop("overflow_to_sample_mapping")
        inputs["example_id"] = [examples["id"][index] for index in example_of]
        inputs["labels"] = [labels[index] for index in example_of]
        return inputs

    columns = raw["train"].column_names
    train_dataset = raw["train"].map(tokenize_training, batched=True, remove_columns=columns)
    eval_dataset = raw["validation"].map(tokenize_validation, batched=True, remove_columns=columns)
    assert len(eval_dataset) > len(raw["validation"]), "a context must have several windows"

    def post_process(examples: Any, features: Any, outputs: Any) -> EvalPrediction:
        answers = decoded(tokenizer, outputs.predictions)
        window_of = {feature["example_id"]: index for index, feature in enumerate(features)}
        found = [{"id": row["id"], "prediction_text": answers[window_of[row["id"]]]} for row in examples]
        return EvalPrediction(predictions=found, label_ids=[{"id": row["id"], **row["answers"]} for row in examples])

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        answers = [found["prediction_text"] for found in prediction.predictions]
        return compute("token_f1", predictions=answers, references=[row["text"] for row in prediction.label_ids])

    trainer = for_questions(kind)(
        model=model, args=training, train_dataset=train_dataset, eval_dataset=eval_dataset,
        eval_examples=raw["validation"], processing_class=tokenizer, post_process=post_process,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        compute_metrics=compute_metrics,
    )  # fmt: skip
    found = run_by(trainer, training, data, raw)
    predicted, scores = trainer.predict(eval_dataset, raw["validation"], max_length=8, num_beams=2)
    found["predictions"] = [row["prediction_text"] for row in predicted.predictions]
    found["scores"] |= scores
    return found


def test_answering_questions_by_an_example_script(checkpoint: str, tmp_path: Path) -> None:
    def record(rng: np.random.Generator, index: int) -> dict[str, Any]:
        words = sentence(rng, 6, 18)
        start = int(rng.integers(0, len(words) - 3))
        found = {"text": [f"near {words[start + 1]}"], "answer_start": [len(" ".join(words[:start]))]}
        return {"id": f"q{index}", "question": f"near {words[start]} ?", "context": " ".join(words), "answers": found}

    files = write(tmp_path, record)
    plain, ours = (answer(kind, checkpoint, tmp_path / kind.__name__, files) for kind in TRAINERS)
    assert_same(plain, ours)


def by_a_guide(
    kind: Any, checkpoint: str, folder: Path, path: str, source: str, target: str, metric: str
) -> dict[str, Any]:
    """Summarization or translation as by a task guide, and an answer of the saved model."""
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
