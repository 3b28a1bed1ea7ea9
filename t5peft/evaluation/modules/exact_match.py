"""`exact_match` of t5peft as an `evaluate` module; the score itself is `t5peft.evaluation.squad.exact_match`."""

import evaluate

from t5peft.evaluation import offline_modules as carried


class ExactMatch(evaluate.Metric):
    """Loaded by `evaluate.load(path)`."""

    def _info(self) -> evaluate.MetricInfo:
        return carried.info("exact_match")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return carried.scores("exact_match", predictions, references)
