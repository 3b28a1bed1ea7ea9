"""Scores of whole tasks against their definition, losses and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scored import (
    SOURCES,
    TOKENIZER,
    WORDS,
    MakeModel,
    by_hand,
    generated_alone,
    headed,
    ids_of,
    teacher_forced,
    v1_0,
    wide,
    wrapped,
)
from torch import nn

from t5peft.data.on_disk import ValueFile
from t5peft.data.task import Task
from t5peft.evaluation import (
    METRICS,
    EvaluationSet,
    Ranking,
    classify,
    compute,
    evaluate_task,
    expected_calibration_error,
    fit_temperature,
    loss_and_perplexity,
    predict,
    rank,
)
from t5peft.models.unwrap import unwrap_t5


def test_classify_gives_the_probabilities_of_a_head() -> None:
    model = headed(3)
    found = classify(model, TOKENIZER, SOURCES, tokens_per_batch=40)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([ids_of(source)])).logits for source in SOURCES])
    torch.testing.assert_close(found.probabilities, logits.softmax(-1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"T5ForSequenceClassification, which has no .* to score texts"):
        rank(model, TOKENIZER, SOURCES, WORDS)
    with pytest.raises(ValueError, match=r"no language model head; expected one, to generate\. Use classify"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"expected a classification head\. Use rank"):
        classify(v1_0(), TOKENIZER, SOURCES)


SENTIMENT = Task(
    "sentiment",
    "sentiment: {text}",
    "it is {label}",
    {"0": "negative", "1": "very positive", "2": "neutral"},
    metrics=("accuracy", "f1", "matthews", "perplexity"),
)
LABELLED: list[dict[str, Any]] = [
    {"text": text, "label": i % 3} for i, text in enumerate(text for text in SOURCES if text)
]


def test_a_task_with_target_words_is_scored_by_ranking_them() -> None:
    model = v1_0()
    targets = ["it is negative", "it is very positive", "it is neutral"]
    sources = [f"sentiment: {record['text']}" for record in LABELLED]
    expected = by_hand(model, sources, targets)
    best = [str(i) for i in expected.argmax(-1).tolist()]
    truths = [str(record["label"]) for record in LABELLED]
    found = evaluate_task(model, TOKENIZER, SENTIMENT, LABELLED)
    for name in ("accuracy", "f1", "matthews"):
        for key, value in compute(name, best, truths).items():
            assert found[key] == pytest.approx(value)
    tokens = [len(ids_of(targets[record["label"]])) for record in LABELLED]
    nats = [-float(expected[i, record["label"]]) for i, record in enumerate(LABELLED)]
    assert found["loss"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-4)
    labels = [record["label"] for record in LABELLED]
    assert found["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(expected.softmax(-1), labels), abs=1e-5
    )


def test_a_task_with_target_words_is_scored_by_the_head_where_there_is_one() -> None:
    model = headed(3)
    task = Task("sentiment", "{text}", "{label}", SENTIMENT.verbalizer, metrics=("accuracy",))
    best = classify(model, TOKENIZER, [record["text"] for record in LABELLED]).best
    right = sum(column == record["label"] for column, record in zip(best, LABELLED, strict=True))
    assert evaluate_task(model, TOKENIZER, task, LABELLED)["accuracy"] == pytest.approx(right / len(LABELLED))
    with pytest.raises(
        ValueError, match="whose head has 2 classes; expected 3, the target words of the task 'sentiment'"
    ):
        evaluate_task(headed(2), TOKENIZER, task, LABELLED)


def test_a_class_head_has_no_perplexity() -> None:
    task = Task("sentiment", "{text}", "{label}", SENTIMENT.verbalizer, metrics=("accuracy", "perplexity"))
    with pytest.raises(
        ValueError, match="which has no language model head; expected one, as perplexity is that of its targets"
    ):
        evaluate_task(headed(3), TOKENIZER, task, LABELLED)


def test_one_set_scores_several_models_and_each_example() -> None:
    task = Task("sentiment", "sentiment: {text}", "it is {label}", SENTIMENT.verbalizer, metrics=("accuracy", "f1"))
    held = EvaluationSet(task, iter(LABELLED), TOKENIZER)
    for model in (v1_0(), wide()):
        found = held.score(model)
        assert found.diagnostics | found.scores == evaluate_task(model, TOKENIZER, task, LABELLED)
        assert found.example_metric == held.lead == "accuracy"
        assert sum(found.per_example) == pytest.approx(len(LABELLED) * found.scores["accuracy"])
        features = task.tokenize(LABELLED, TOKENIZER).to_list()
        assert held.loss(model) == loss_and_perplexity(model, features)["loss"]


@pytest.mark.parametrize("metrics", [("accuracy", "f1", "perplexity"), ("rouge", "gleu", "bleu", "chrf")])
def test_scores_of_values_in_files_are_those_of_lists(
    metrics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = SENTIMENT.verbalizer if "accuracy" in metrics else None
    task = Task("either", "echo: {text}", "{label}", words, metrics=metrics, max_target_length=7)
    wanted = EvaluationSet(task, LABELLED, TOKENIZER).score(v1_0())
    monkeypatch.setattr("t5peft.data.on_disk.VALUES_IN_MEMORY", 2)
    held = EvaluationSet(task, LABELLED, TOKENIZER)
    found = held.score(v1_0())
    assert (type(held.references), type(found.per_example)) == (ValueFile, ValueFile)
    assert found == wanted
    assert np.array([found.per_example]).tolist() == [wanted.per_example]


def test_the_matthews_correlation_of_one_example_is_whether_it_is_right() -> None:
    """Of one example there is none: 0 for each would make all methods the same."""
    held = EvaluationSet(
        Task("free", "{text}", "{answer}", metrics=("matthews",)), [{"text": "a", "answer": "b"}], TOKENIZER
    )
    assert [held.score_examples([answer]) for answer in ("b", "c")] == [[1.0], [0.0]]


@pytest.mark.parametrize("metric", ["bleu", "gleu"])
def test_a_short_example_has_the_score_of_a_sentence(metric: str) -> None:
    task = Task("short", "{text}", "{answer}", metrics=(metric,))
    held = EvaluationSet(task, [{"text": "I is here", "answer": "I am here"}], TOKENIZER)
    highest = pytest.approx(METRICS[metric].highest)
    assert [held.score_examples([answer]) for answer in ("I am here", "no")] == [[highest], [0.0]]
    assert held.score(v1_0()).example_metric == f"sentence_{metric}"


def test_exact_match_compares_labels_as_they_are() -> None:
    task = Task("sentiment", "{text}", "{label}", {"-1": "negative", "1": "positive"})
    records = [{"text": text, "label": sign} for text in SOURCES if text for sign in (-1, 1)]
    assert evaluate_task(v1_0(), TOKENIZER, task, records)["exact_match"] == 0.5


def test_a_task_with_free_targets_is_scored_by_generation() -> None:
    model = wide()
    texts = [text for text in SOURCES if text]
    answers = [generated_alone(model, f"echo: {text}", 7, 2) for text in texts]
    records = [
        {"text": text, "answer": "something", "answers": ["something", answer] if i % 2 else ["something"]}
        for i, (text, (answer, _)) in enumerate(zip(texts, answers, strict=True))
    ]
    task = Task(
        "echo", "echo: {text}", "{answer}", metrics=("exact_match", "gleu", "bleu"),
        max_target_length=7, num_beams=2, references="answers",
    )  # fmt: skip
    found = evaluate_task(model, TOKENIZER, task, records)
    assert found["exact_match"] == pytest.approx(sum(i % 2 for i in range(len(texts))) / len(texts))
    assert found["truncated_fraction"] == pytest.approx(sum(cut for _, cut in answers) / len(answers))
    assert 0 < found["bleu"] < 100
    assert "gleu" in found
    with pytest.raises(ValueError, match=r"Got metrics \['rouje'\] of the task 'echo'; expected some of accuracy"):
        evaluate_task(model, TOKENIZER, Task("echo", "{text}", "{answer}", metrics=("rouje",)), records)


def test_a_column_of_references_that_no_record_has_is_told() -> None:
    task = Task("echo", "{text}", "{answer}", references="refs")
    with pytest.raises(
        ValueError, match=r"'refs', which is in none of the 1 records; the columns are: 'text', 'answer'"
    ):
        evaluate_task(v1_0(), TOKENIZER, task, [{"text": "a", "answer": "b"}])


@pytest.mark.parametrize("make", [v1_0, wrapped("lora"), wrapped("prompt")])
def test_the_loss_is_a_mean_over_target_tokens_whatever_the_batches(make: MakeModel) -> None:
    model = make()
    features = [{"input_ids": ids_of(source), "labels": ids_of(WORDS[i])} for i, source in enumerate(SOURCES)]
    total = -sum(teacher_forced(model, source, WORDS[i]) for i, source in enumerate(SOURCES))
    expected = total / sum(len(feature["labels"]) for feature in features)
    for tokens_per_batch in (1, 70, 8192):
        found = loss_and_perplexity(model, features, tokens_per_batch=tokens_per_batch)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert unwrap_t5(model).training == model.training


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_size() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.42, 0.58], [0.35, 0.65], [0.5, 0.5]])
    # Bins of a tenth: (0.9, 1] holds two, of which one is right; (0.5, 0.6] one, right; (0.6, 0.7] one, wrong; (0.4, 0.5] one.
    labels = [0, 1, 1, 0, 0]
    expected = (abs(1 - 0.95 - 0.91) + abs(1 - 0.58) + abs(0 - 0.65) + abs(1 - 0.5)) / 5
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [0, 1]) == 0.0
    with pytest.raises(ValueError, match=r"Got the labels \[2\]; expected columns 0 to 1"):
        expected_calibration_error(probabilities, [0, 1, 1, 0, 2])


def test_the_fitted_temperature_undoes_one_that_was_put_in_and_has_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 4, generator=generator).mul(2).log_softmax(-1)
    labels = torch.multinomial(honest.exp(), 1, generator=generator).squeeze(1)
    overconfident = Ranking.of(honest * 3)
    temperature = fit_temperature(overconfident.log_probabilities, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    softened = overconfident.at_temperature(temperature)
    assert softened.best == overconfident.best
    error = expected_calibration_error(softened.probabilities, labels)
    assert error < 0.03 < expected_calibration_error(overconfident.probabilities, labels)

    def loss(at: float) -> float:
        return float(nn.functional.nll_loss((overconfident.log_probabilities.double() / at).log_softmax(-1), labels))

    assert loss(temperature) < min(loss(0.99 * temperature), loss(1.01 * temperature))
    with_missing = torch.cat([overconfident.log_probabilities, torch.full((4000, 1), -torch.inf)], dim=1)
    assert fit_temperature(with_missing, labels) == pytest.approx(temperature)
    with pytest.raises(ValueError, match="Got temperature=0; expected a number above 0"):
        softened.at_temperature(0)
