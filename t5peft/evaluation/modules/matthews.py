"""`matthews` of t5peft as an `evaluate` module; the score itself is `t5peft.evaluation.classification.matthews`."""

import evaluate

from t5peft.evaluation import offline_modules as carried


class Matthews(evaluate.Metric):
    """Loaded by `evaluate.load(path)`."""

    def _info(self) -> evaluate.MetricInfo:
        return carried.info("matthews")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return carried.scores("matthews", predictions, references)
