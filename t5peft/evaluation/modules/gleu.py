"""`gleu` of t5peft as an `evaluate` module; the score itself is `t5peft.evaluation.gleu.gleu`."""

import evaluate

from t5peft.evaluation import offline_modules as carried


class Gleu(evaluate.Metric):
    """Loaded by `evaluate.load(path)`."""

    def _info(self) -> evaluate.MetricInfo:
        return carried.info("gleu")

    def _compute(self, predictions: list, references: list, sources: list) -> dict[str, float]:
        return carried.scores("gleu", predictions, references, sources)
