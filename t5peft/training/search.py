"""Search for hyper-parameters with Optuna: ranges per method, pruning, resumable, with a picture and the best run's command.

Every trial is one tuning run of the same steps; its value is the task's leading metric on validation. A trial whose
validation loss is above the median of the others at the same step, or no number, is stopped. The study lies in one SQLite file, so
a search that was interrupted goes on, and one that is done is read.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from t5peft.data import Task
from t5peft.data.splits import fingerprint_of_data
from t5peft.evaluation import METRICS
from t5peft.methods import METHODS
from t5peft.training.train import Splits, TrainConfig, check_splits, train_and_evaluate


@dataclass(frozen=True)
class Found:
    """The best trial of a search."""

    recipe: TrainConfig
    value: float
    """The task's leading metric on validation."""
    trials: int
    """Trials in the study, finished ones and pruned ones."""
    pruned: int
    picture: Path | None

    def command(self, task: str, output: str, data: Sequence[str] = ()) -> str:
        """The command that tunes once more by the best recipe, on the files and columns that ``data``, more of its words, say."""
        recipe = self.recipe
        words = ["t5peft", "train", "--task", task, *data, "--method", recipe.method]
        words += ["--backbone", str(recipe.backbone)]
        words += ["--learning-rate", f"{recipe.learning_rate:.3g}", "--weight-decay", f"{recipe.weight_decay or 0:g}"]
        words += ["--label-smoothing", f"{recipe.label_smoothing or 0:g}", "--batch-size", str(recipe.batch_size)]
        words += ["--steps", str(recipe.steps)] if recipe.steps else ["--epochs", f"{recipe.epochs:g}"]
        words += ["--evaluations", str(recipe.evaluations), "--seed", str(recipe.seed)]
        words += ["--patience", str(recipe.patience)] if recipe.patience else []
        words += ["--bf16"] if recipe.bf16 else []
        for name, value in recipe.options.items():
            words += ["--option", f"{name}={json.dumps(value, default=str)}"]
        return shlex.join([*words, "--output", output])


def search(task: Task, splits: Splits, recipe: TrainConfig, output: str | Path, *, trials: int = 20) -> Found:
    """Search around ``recipe``; a study in ``output`` is continued up to ``trials`` trials.

    Args:
        task: the task.
        splits: train and validation records; test is not looked at.
        recipe: method, backbone and budget of every trial; where the search starts.
        output: folder of the study (``study.db``), the checkpoints, and the picture (``search.png``).
        trials: in all, those of earlier calls counted.

    Raises:
        ImportError: Optuna is not installed (``pip install t5peft[search]``).
        ValueError: fewer than one trial, no training or validation records, a study that was begun by another recipe or on other
            data, or one whose trials all came to nothing.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Searching needs Optuna, which is not installed; pip install t5peft[search].") from error

    if trials < 1:
        raise ValueError(f"Got trials={trials}; expected at least 1.")
    check_splits(task, splits)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are the traces of errors that are raised
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name=f"{task.name}-{recipe.method}",
        direction="maximize" if METRICS[task.metrics[0]].greater_is_better else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        load_if_exists=True,
    )
    # What is drawn depends on the seed alone: a search that goes on would draw its first trials once more.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials))
    metric = METRICS[task.metrics[0]]
    tried = {"train": splits["train"], "validation": splits["validation"]}
    given = json.loads(json.dumps(asdict(recipe), default=str))  # as the study keeps it
    given["data"] = fingerprint_of_data(task, tried)
    begun = study.user_attrs.get("recipe", given) if _ended(study) else given
    if changed := {name: (begun.get(name), value) for name, value in given.items() if begun.get(name, value) != value}:
        raise ValueError(
            f"The study in {folder} was begun by another recipe or on other data (its own and the given: {changed}); its trials "
            "would not compare. Give the same ones, or another folder."
        )
    study.set_user_attr("recipe", given)

    def objective(trial: optuna.Trial) -> float:
        at = folder / f"trial-{trial.number}"
        try:
            tuned = train_and_evaluate(task, tried, suggest(trial, recipe), at, callbacks=[_Pruning(trial)])
        except FloatingPointError as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            shutil.rmtree(at, ignore_errors=True)
        return tuned.scores["validation"][metric.lead]

    study.optimize(objective, n_trials=max(0, trials - len(_ended(study))))
    ended = _ended(study)
    pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in ended)
    if pruned == len(ended):
        raise ValueError(
            f"None of the {pruned} trials in {folder} came to its end: their losses were no numbers. Lower the learning rate that "
            "the search starts from, and search in another folder."
        )
    return Found(
        recipe=_recipe(study.best_params, recipe),
        value=study.best_value,
        trials=len(ended),
        pruned=pruned,
        picture=_draw(study, folder / "search.png", metric.lead),
    )


def _ended(study: Any) -> list[Any]:
    """The trials that came to their end or were stopped for their loss; not those that an error or a user broke off."""
    from optuna.trial import TrialState

    return [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def suggest(trial: Any, recipe: TrainConfig) -> TrainConfig:
    """A recipe around ``recipe``: the learning rate within a factor of ten, and the choices that it does not give."""
    rate = recipe.learning_rate or METHODS[recipe.method].learning_rate
    drawn: dict[str, Any] = {"learning_rate": trial.suggest_float("learning_rate", rate / 10, rate * 10, log=True)}
    choices = {"weight_decay": (0.0, 0.01, 0.1), "label_smoothing": (0.0, 0.1), **METHODS[recipe.method].search}
    given = {**vars(recipe), **recipe.options}
    drawn |= {name: trial.suggest_categorical(name, of) for name, of in choices.items() if given.get(name) is None}
    return _recipe(drawn, recipe)


def _recipe(drawn: Mapping[str, Any], recipe: TrainConfig) -> TrainConfig:
    own = {name: drawn[name] for name in ("learning_rate", "weight_decay", "label_smoothing") if name in drawn}
    return replace(recipe, **own, options={**recipe.options, **{k: v for k, v in drawn.items() if k not in own}})


class _Pruning(TrainerCallback):
    """Reports the validation loss, and ends the trial where the pruner says so."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        import optuna

        # Where the study maximises, what is reported is the loss with its sign turned.
        sign = -1 if self.trial.study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        self.trial.report(sign * metrics["eval_loss"], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _draw(study: Any, path: Path, metric: str) -> Path | None:
    """Value against learning rate, a point a finished trial; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    done = [trial for trial in _ended(study) if trial.state.name == "COMPLETE"]  # the value of a pruned one is its loss
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter([trial.params["learning_rate"] for trial in done], [trial.value for trial in done], color="tab:blue")
    best = study.best_trial
    axes.scatter([best.params["learning_rate"]], [best.value], marker="*", s=200, color="tab:red", label="best")
    axes.set(
        xscale="log",
        xlabel="learning rate",
        ylabel=f"{metric} on validation",
        title=f"{study.study_name}: {len(done)} trials",
    )
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
