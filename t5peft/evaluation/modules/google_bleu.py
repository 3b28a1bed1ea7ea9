"""`google_bleu` of t5peft as an `evaluate` module; the score itself is `t5peft.evaluation.gleu.google_bleu`."""

import evaluate

from t5peft.evaluation import offline_modules as carried


class GoogleBleu(evaluate.Metric):
    """Loaded by `evaluate.load(path)`."""

    def _info(self) -> evaluate.MetricInfo:
        return carried.info("google_bleu")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return carried.scores("google_bleu", predictions, references)
