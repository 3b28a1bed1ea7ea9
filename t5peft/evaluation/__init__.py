"""Evaluation: metrics that work offline, prediction, ranking of candidates, calibration, and the scores of a task."""

from t5peft.evaluation.calibration import expected_calibration_error, fit_temperature
from t5peft.evaluation.classification import (
    ClassificationReport,
    classification_report,
    confusion_matrix,
    confusion_picture,
)
from t5peft.evaluation.encoders import embed, head_scores, tag
from t5peft.evaluation.inference import evaluating, merged
from t5peft.evaluation.metrics import METRICS, Metric, compute
from t5peft.evaluation.prediction import Predictions, predict
from t5peft.evaluation.ranking import Ranking, classify, rank
from t5peft.evaluation.scores import EvaluationResult, EvaluationSet, evaluate_task, loss_and_perplexity

__all__ = [
    "METRICS",
    "ClassificationReport",
    "EvaluationResult",
    "EvaluationSet",
    "Metric",
    "Predictions",
    "Ranking",
    "classification_report",
    "classify",
    "compute",
    "confusion_matrix",
    "confusion_picture",
    "embed",
    "evaluate_task",
    "evaluating",
    "expected_calibration_error",
    "fit_temperature",
    "head_scores",
    "loss_and_perplexity",
    "merged",
    "predict",
    "rank",
    "tag",
]
