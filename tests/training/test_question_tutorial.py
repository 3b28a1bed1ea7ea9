"""A script for answering questions, whose Trainer is a subclass, runs with only the import of the Trainer changed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_scripts import (
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
    EvalPrediction,
    set_seed,
)
from transformers.trainer_utils import speed_metrics

from t5peft.evaluation import compute


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def for_questions(kind: Any) -> Any:
    """A Trainer that scores answers to the questions of whole examples, as an example script subclasses it.

    Long because a subclass overrides both evaluation and prediction.
    """

    class QuestionTrainer(kind):
        control: Any
        compute_metrics: Any

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
    """Answering questions about a context of several windows, as by an example script.

    Long because a script runs from its arguments to its files.
    """
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
        references = [{"id": row["id"], **row["answers"]} for row in examples]
        return EvalPrediction(found, references)  # type: ignore[arg-type]  # example scripts give lists, not arrays

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
