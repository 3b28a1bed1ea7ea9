"""`token_f1` of t5peft as an `evaluate` module; the score itself is `t5peft.evaluation.squad.token_f1`."""

import evaluate

from t5peft.evaluation import offline_modules as carried


class TokenF1(evaluate.Metric):
    """Loaded by `evaluate.load(path)`."""

    def _info(self) -> evaluate.MetricInfo:
        return carried.info("token_f1")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return carried.scores("token_f1", predictions, references)
