"""Report on the result of ``auto``: scores with intervals beside simple baselines, trials, reasons, a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from t5peft.benchmark.statistics import Difference, paired_bootstrap
from t5peft.cli.auto_search import Halving
from t5peft.cli.auto_task import Rows
from t5peft.cli.auto_trials import Trial
from t5peft.data import Task
from t5peft.evaluation.baselines import constant_answer, copied_answers
from t5peft.evaluation.scores import EvaluationResult, EvaluationSet, rank_targets
from t5peft.planning.units import seconds_text

TFIDF = "tf-idf + logistic regression"


@dataclass(frozen=True)
class Baseline:
    """A simple answer to the test records.

    Attributes:
        name: What answers.
        score: Its mean over the records, with the 95 % interval.
        difference: The model's score less this one, with the 95 % interval over the same records.
    """

    name: str
    score: Difference
    difference: Difference


def interval_of(scores: Sequence[float]) -> Difference:
    """Return the mean of the scores of examples with its 95 % interval.

    Args:
        scores: One for each record.

    Returns:
        The mean and the interval.
    """
    return paired_bootstrap((np.array([scores]), np.zeros((1, len(scores)))))


def baselines_of(task: Task, train: Rows, test: EvaluationSet, ours: Sequence[float]) -> list[Baseline]:
    """Return simple answers to the test records, scored as the model's are.

    Args:
        task: The task.
        train: The training records.
        test: The test records.
        ours: The scores of the model on them.

    Returns:
        The most frequent answer; for labels also tf-idf with logistic regression where scikit-learn is installed; for free
        answers a copy of the source.
    """
    common = constant_answer(task, train, test.tokenizer)
    found = {"the most frequent answer": [common] * len(test.texts)}
    if task.verbalizer is None:
        found["a copy of the source"] = copied_answers(test)
    else:
        named = task.with_names(train)
        answers = [task.answers(record)[0] for record in named]
        if (predicted := _tfidf([task.content(record) for record in named], answers, test.texts)) is not None:
            found[TFIDF] = predicted
    scored = {name: test.score_examples(predictions) for name, predictions in found.items()}
    return [
        Baseline(name, interval_of(scores), paired_bootstrap((np.array([ours]), np.array([scores]))))
        for name, scores in scored.items()
    ]


def _tfidf(texts: Sequence[str], labels: Sequence[str], test: Sequence[str]) -> list[str] | None:
    """Return the labels that tf-idf and logistic regression predict; None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform(texts), labels)
    return [str(label) for label in model.predict(vectors.transform(test))]


def correlation_of_numbers(model: nn.Module, test: EvaluationSet) -> dict[str, float]:
    """Return Pearson's correlation of the expected and the true number, for a task whose labels are numbers.

    Args:
        model: The tuned model.
        test: The test records.

    Returns:
        ``pearson``, or nothing where labels are not numbers, fewer than three, or all answers the same.
    """
    try:
        values = np.array([float(label) for label in test.task.labels])
    except ValueError:
        return {}
    if len(values) < 3:
        return {}
    sources = [feature["input_ids"] for feature in test.features]
    ranking = rank_targets(model, test.tokenizer, test.task, sources)
    expected = ranking.probabilities.double().cpu().numpy() @ values
    truth = np.array([float(answers[0]) for answers in test.references])
    if expected.std() == 0 or truth.std() == 0:
        return {}
    return {"pearson": float(np.corrcoef(expected, truth)[0, 1])}


def advice_of(baselines: Sequence[Baseline]) -> list[str]:
    """Return what the comparison with the baselines means for the user.

    Args:
        baselines: Those of the test records.

    Returns:
        One sentence for each baseline that is not clearly worse, or one for all.
    """
    lines = []
    for one in baselines:
        if one.difference.high < 0:
            lines.append(f"**{one.name} is better than the tuned model. Use it, or tune a larger backbone.**")
        elif not one.difference.clear:
            lines.append(
                f"The test records cannot separate the tuned model from {one.name}. Give more records, or more time."
            )
    return lines or ["The tuned model is clearly better than every baseline."]


def write_report(
    path: Path,
    search: Halving,
    best: Trial,
    result: EvaluationResult,
    baselines: Sequence[Baseline],
    reasons: Sequence[str],
    commands: Sequence[str],
) -> None:
    """Write the report.

    Args:
        path: The Markdown file.
        search: The search, with all trials.
        best: The trial whose model was kept.
        result: The scores on the test records.
        baselines: Simple answers to them.
        reasons: Sentences on the data, the task and the methods.
        commands: What to do next.
    """
    ours, lead = interval_of(result.per_example), search.lead
    lines = [
        f"# {search.task.name}: {best.arm}",
        "",
        *(f"- {reason}" for reason in reasons),
        f"- Chosen: {best.arm}, with loss {best.loss:.4f} and {lead} {best.score:.4f} on validation. Of several finalists "
        f"(rung 3), the one with the best {lead} is chosen.",
        "",
        f"## Test, {len(result.per_example)} records",
        "",
        ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items()),
        "",
        f"| answers | {result.example_metric} [95 % interval] | tuned model less this |",
        "| --- | ---: | ---: |",
        f"| tuned model, {best.arm.method} | {_text(ours)} | |",
        *(f"| {one.name} | {_text(one.score)} | {_text(one.difference, sign='+')} |" for one in baselines),
        "",
        *advice_of(baselines),
        "",
        "Intervals come from a paired bootstrap over the test records. There is one seed, so they do not cover the variation "
        "of training.",
        "",
        "## Trials",
        "",
        f"| rung | method | learning rate | trained weights | steps | time | validation loss | {lead} |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(_row, sorted(search.log.trials.values(), key=lambda one: (-one.rung, one.loss is None, one.loss or 0.0))),
        "",
        "Rung 0 measures the time of a step. In rung 1, the better half of the methods tries more learning rates. Rung 2 trains "
        "the best third for more steps, if there is time. Rung 3 trains the best one for the rest of the time.",
        "",
        "## Next",
        "",
        "```console",
        *(f"$ {command}" for command in commands),
        "```",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(trial: Trial) -> str:
    loss = trial.error or f"{trial.loss:.4f}"
    cells = [str(trial.rung), trial.arm.method, f"{trial.arm.learning_rate:g}", f"{trial.trained:,}", str(trial.steps)]
    cells += [seconds_text(trial.seconds), loss.replace("|", "/"), "" if trial.score is None else f"{trial.score:.4f}"]
    return f"| {' | '.join(cells)} |"


def _text(value: Difference, sign: str = "") -> str:
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
