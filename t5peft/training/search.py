"""Search for hyper-parameters with Optuna: ranges per method, pruning, resumable, with a plot and the best run's command.

Every trial is one training run of the same steps. Its value is the task's leading metric on validation. A trial stops early
where its validation loss is above the median of the others at the same step, or not finite. The study is one SQLite file, so
an interrupted search goes on and a finished one is only read.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from t5peft.compat.lock import hold_folder
from t5peft.data import Task
from t5peft.data.splits import fingerprint_of_data
from t5peft.deprecated import current_options, renamed_arguments
from t5peft.evaluation import METRICS
from t5peft.methods import METHODS
from t5peft.models.folders import ensure_output
from t5peft.training.train import Splits, TrainConfig, check_splits, train_and_evaluate

if TYPE_CHECKING:
    import optuna

_NAMED = ("method", "backbone", "learning_rate", "options", "training_options")  # fields with words of their own
_CONFIG = "recipe"  # the attribute of a study that holds the config; named so since version 0.1


@dataclass(frozen=True)
class SearchResult:
    """The best trial of a search.

    Attributes:
        config: The config of the best trial.
        value: The task's leading metric on validation.
        trials: Number of finished and pruned trials in the study.
        pruned: Trials that were stopped early.
        picture: The plot; None without matplotlib.
    """

    config: TrainConfig
    value: float
    trials: int
    pruned: int
    picture: Path | None

    @property
    def recipe(self) -> TrainConfig:
        """Return ``config`` under its name of version 0.1."""
        warnings.warn(
            "SearchResult.recipe is deprecated and goes in t5peft 0.3; use config.", DeprecationWarning, stacklevel=2
        )
        return self.config

    def command(self, task: str, output: str, data: Sequence[str] = ()) -> str:
        """Return the command that trains again with the best config.

        Args:
            task: The value of ``--task``.
            output: The value of ``--output``.
            data: Further words of the command, for files and columns.

        Returns:
            A line for a shell.
        """
        config, default = self.config, TrainConfig()
        words = ["t5peft", "train", "--task", task, *data, "--method", config.method]
        words += ["--backbone", str(config.backbone), "--learning-rate", f"{config.learning_rate:.3g}"]
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name in _NAMED or value is None or value is False or value == getattr(default, field.name):
                continue
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [format(value)])]
        for option, values in (("--option", config.options), ("--training-option", config.training_options)):
            for name, value in values.items():
                words += [option, f"{name}={json.dumps(value, default=str)}"]
        return shlex.join([*words, "--output", output])


@renamed_arguments(recipe="config")
def search(
    task: Task,
    splits: Splits,
    config: TrainConfig,
    output: str | Path,
    *,
    trials: int = 20,
    executor: Executor | None = None,
    workers: int = 1,
) -> SearchResult:
    """Search around ``config``; continue a study in ``output`` up to ``trials`` trials.

    Args:
        task: The task.
        splits: Train and validation records; test is not used.
        config: Method, backbone and budget of every trial, and the starting point of the search.
        output: Folder of the study (``study.db``), the checkpoints, and the plot (``search.png``).
        trials: Total number of trials, including those of earlier calls.
        executor: Trains the trials in other processes; None trains them here, one by one.
        workers: Number of parallel trials. They do not see each other's results, so their number changes which trials are tried.

    Returns:
        The best trial.

    Raises:
        ImportError: Optuna is not installed (``pip install t5peft[search]``).
        FolderInUseError: Another search is using ``output``.
        ValueError: ``trials`` is below 1, there are no training or validation records, the study was started with another config
            or on other data, or no trial finished.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Got no Optuna, which the search needs; run `pip install t5peft[search]`.") from error

    if trials < 1:
        raise ValueError(f"Got trials={trials}; expected at least 1.")
    check_splits(task, splits)
    folder = Path(output)
    tried = {"train": splits["train"], "validation": splits["validation"]}
    with hold_folder(folder):
        ensure_output(folder, "a search of `t5peft search`")
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are traces of errors that are raised
        study = _open_study(folder, task, tried, config)
        lead = METRICS[task.metrics[0]].lead

        run = partial(run_trial, task, tried, config, folder.resolve())
        while (count := len(ended := _ended(study))) < trials:
            known = ended[: count // workers * workers]
            jobs = [(number, known) for number in range(count, min(len(known) + workers, trials))]
            found = map(run, jobs) if executor is None else executor.map(run, jobs)
            for trial in found:
                study.add_trial(trial)
        return _best(study, folder, config, lead)


def run_trial(
    task: Task, splits: Splits, config: TrainConfig, folder: Path, job: tuple[int, list[optuna.trial.FrozenTrial]]
) -> optuna.trial.FrozenTrial:
    """Draw a config, train with it, and return the trial.

    A draw depends on the seed, the number of the trial and the trials that it knows. So a search that goes on draws what it would
    have drawn, and one of several workers does not depend on which trial ends first.

    Args:
        task: The task.
        splits: Train and validation records.
        config: Where the search starts.
        folder: The folder of the study.
        job: The number of the trial, and the trials that it knows.
    """
    import optuna

    number, known = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lead = METRICS[task.metrics[0]]
    study = optuna.create_study(
        direction="maximize" if lead.greater_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=config.seed + number),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    study.add_trials(known)

    def objective(trial: optuna.Trial) -> float:
        run = folder / f"trial-{number}"
        try:
            result = train_and_evaluate(task, splits, suggest(trial, config), run, callbacks=[_Pruning(trial)])
        except FloatingPointError as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            shutil.rmtree(run, ignore_errors=True)
        return result.scores["validation"][lead.lead]

    study.optimize(objective, n_trials=1)
    return study.trials[-1]


def _open_study(folder: Path, task: Task, splits: Splits, config: TrainConfig) -> optuna.Study:
    """Return the study in ``folder``, a new one or one with the same config and data."""
    import optuna

    _check_database(folder / "study.db")
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name=f"{task.name}-{config.method}",
            direction="maximize" if METRICS[task.metrics[0]].greater_is_better else "minimize",
            load_if_exists=True,
        )
        study.get_trials(deepcopy=False)
    except OSError:
        raise
    except Exception as error:  # Optuna hands on what SQLAlchemy and Alembic make of a wrong database
        raise _damaged(folder / "study.db", f"{type(error).__name__}: {error}") from error
    given = json.loads(json.dumps(asdict(config), default=str))  # as the study stores it
    given["data"] = fingerprint_of_data(task, splits)
    stored = dict(study.user_attrs.get(_CONFIG, given) if _ended(study) else given)
    stored["options"] = current_options(stored["options"])
    if changed := {
        name: (stored.get(name), value) for name, value in given.items() if stored.get(name, value) != value
    }:
        raise ValueError(
            f"Got a study in {folder} that was started with another config or on other data; expected the same ones, because "
            f"trials could not be compared. Stored and given values: {changed}. Give the same ones, or another folder."
        )
    study.set_user_attr(_CONFIG, given)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):  # of a killed search
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        shutil.rmtree(folder / f"trial-{trial.number}", ignore_errors=True)
    return study


def _check_database(path: Path) -> None:
    """Refuse a damaged database before Optuna writes to it, and take back what a killed search was writing."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise _damaged(path, str(found))


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"Got a damaged study {path}: {' '.join(reason.split())[:300]}; expected a study from a search. Restore the file, or "
        "search in another folder."
    )


def _best(study: optuna.Study, folder: Path, config: TrainConfig, metric: str) -> SearchResult:
    from optuna.trial import TrialState

    ended = _ended(study)
    pruned = sum(trial.state == TrialState.PRUNED for trial in ended)
    if pruned == len(ended):
        raise ValueError(
            f"Got {pruned} trials in {folder}, none of which had a finite loss; expected at least one. Lower the learning rate "
            "at which the search starts, and search in another folder."
        )
    return SearchResult(
        config=_with_drawn(config, study.best_params),
        value=study.best_value,
        trials=len(ended),
        pruned=pruned,
        picture=_plot(study, folder / "search.png", metric),
    )


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that finished or were pruned, without those that an error or a user broke off."""
    from optuna.trial import TrialState

    return [trial for trial in study.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def suggest(trial: optuna.trial.BaseTrial, config: TrainConfig) -> TrainConfig:
    """Draw a config: the learning rate within a factor of ten of its own, and the choices that ``config`` does not give.

    Args:
        trial: The trial that draws.
        config: Where the search starts.

    Returns:
        The config of the trial.
    """
    rate = config.learning_rate or METHODS[config.method].learning_rate
    drawn: dict[str, Any] = {"learning_rate": trial.suggest_float("learning_rate", rate / 10, rate * 10, log=True)}
    choices: dict[str, Sequence[Any]] = {"weight_decay": (0.0, 0.01, 0.1), "label_smoothing": (0.0, 0.1)}
    choices |= METHODS[config.method].search
    given = {**vars(config), **config.options}
    drawn |= {
        name: trial.suggest_categorical(name, values) for name, values in choices.items() if given.get(name) is None
    }
    return _with_drawn(config, drawn)


def _with_drawn(config: TrainConfig, drawn: Mapping[str, Any]) -> TrainConfig:
    fields = {name: drawn[name] for name in ("learning_rate", "weight_decay", "label_smoothing") if name in drawn}
    options = {name: value for name, value in drawn.items() if name not in fields}
    return replace(config, **fields, options={**config.options, **options})


class _Pruning(TrainerCallback):
    """Reports the validation loss to the trial, and ends the trial where the pruner says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        import optuna

        # Where the study maximizes, the loss is reported with its sign turned.
        sign = -1 if self.trial.study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        self.trial.report(sign * (metrics or {})["eval_loss"], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _plot(study: optuna.Study, path: Path, metric: str) -> Path | None:
    """Plot value against learning rate, one point per finished trial; return None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    done = [trial for trial in _ended(study) if trial.state.name == "COMPLETE"]  # a pruned trial's value is its loss
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
