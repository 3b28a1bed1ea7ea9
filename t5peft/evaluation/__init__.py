"""Evaluation: metrics that work offline, prediction, ranking of candidates, calibration, and the scores of a task."""

from t5peft.evaluation.calibration import expected_calibration_error as expected_calibration_error
from t5peft.evaluation.calibration import fit_temperature as fit_temperature
from t5peft.evaluation.classification import ClassificationReport as ClassificationReport
from t5peft.evaluation.classification import classification_report as classification_report
from t5peft.evaluation.classification import confusion_matrix as confusion_matrix
from t5peft.evaluation.classification import confusion_picture as confusion_picture
from t5peft.evaluation.encoders import embed as embed
from t5peft.evaluation.encoders import head_scores as head_scores
from t5peft.evaluation.encoders import tag as tag
from t5peft.evaluation.inference import evaluating as evaluating
from t5peft.evaluation.inference import merged as merged
from t5peft.evaluation.metrics import METRICS as METRICS
from t5peft.evaluation.metrics import Metric as Metric
from t5peft.evaluation.metrics import compute as compute
from t5peft.evaluation.prediction import Predictions as Predictions
from t5peft.evaluation.prediction import predict as predict
from t5peft.evaluation.ranking import Ranking as Ranking
from t5peft.evaluation.ranking import classify as classify
from t5peft.evaluation.ranking import rank as rank
from t5peft.evaluation.scores import EvaluationResult as EvaluationResult
from t5peft.evaluation.scores import EvaluationSet as EvaluationSet
from t5peft.evaluation.scores import evaluate_task as evaluate_task
from t5peft.evaluation.scores import loss_and_perplexity as loss_and_perplexity
