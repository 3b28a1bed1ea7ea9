"""Evaluation: metrics that need no download, prediction, ranking of candidates, calibration, a whole task at once."""

from t5peft.evaluation.calibration import expected_calibration_error, fit_temperature
from t5peft.evaluation.classification import (
    ClassificationReport,
    classification_report,
    confusion_matrix,
    confusion_picture,
)
from t5peft.evaluation.metrics import METRICS, Metric, compute
