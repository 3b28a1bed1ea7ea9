"""Search for hyper-parameters: small runs on a tiny backbone."""

from __future__ import annotations

import contextlib
import json
import shlex
import sqlite3
import sys
from argparse import ArgumentParser
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from films import TASK, config, records

from t5peft.cli import main
from t5peft.cli.train import add_arguments
from t5peft.cli.train_config import read_config
from t5peft.training.train import train_and_evaluate


def test_a_search_goes_on_where_it_was_and_names_the_best_runs_command(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(12), "validation": records(6, 100)}
    first = search(TASK, splits, config(backbone), tmp_path / "study", trials=2)
    again = search(TASK, splits, config(backbone), tmp_path / "study", trials=3)
    assert (first.trials, again.trials) == (2, 3)
    assert again.value >= first.value
    done = search(TASK, splits, config(backbone), tmp_path / "study", trials=3)
    assert (done.trials, done.config) == (3, again.config)
    assert done.picture is None or done.picture.stat().st_size > 1000
    command = done.command("film.yaml", "out")
    assert f"--learning-rate {done.config.learning_rate:.3g}" in command
    assert f"--option rank={done.config.options['rank']}" in command
    assert not list((tmp_path / "study").glob("trial-*"))


def test_a_study_is_not_continued_with_another_config(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    search(TASK, splits, config(backbone), tmp_path / "study", trials=1)
    with pytest.raises(ValueError, match=r"started with another config.*'steps': \(2, 3\)"):
        search(TASK, splits, replace_fields(config(backbone), steps=3), tmp_path / "study", trials=2)
    with pytest.raises(ValueError, match=r"started with another config or on other data.*'data'"):
        search(TASK, {**splits, "train": records(5)}, config(backbone), tmp_path / "study", trials=2)
    of_arrow = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    assert search(TASK, of_arrow, config(backbone), tmp_path / "study", trials=2).trials == 2
    with pytest.raises(ValueError, match=r"started with another config or on other data.*'data'"):
        search(
            TASK,
            {**of_arrow, "train": Dataset.from_list(records(4, 50))},
            config(backbone),
            tmp_path / "study",
            trials=3,
        )


@pytest.mark.parametrize("damage", ["no database", "cut", "a page of zeros", "another database"])
def test_a_damaged_study_is_told_in_words(damage: str, backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    search(TASK, splits, config(backbone), tmp_path / "study", trials=1)
    path = tmp_path / "study" / "study.db"
    content = path.read_bytes()
    if damage == "another database":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE version_info (x)")
            database.commit()
    else:
        half = len(content) // 2 // 4096 * 4096
        zeros = content[:half] + bytes(4096) + content[half + 4096 :]
        path.write_bytes({"no database": b"never" * 999, "cut": content[:half], "a page of zeros": zeros}[damage])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"Got a damaged study .*study\.db: .*; expected a study from a search"):
        search(TASK, splits, config(backbone), tmp_path / "study", trials=2)
    assert path.read_bytes() == before or damage == "another database"


def test_trials_of_a_search_that_goes_on_are_new_ones(backbone: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    for trials in (1, 2, 3):
        search(TASK, splits, config(backbone), tmp_path / "study", trials=trials)
    study = optuna.load_study(study_name="film-lora", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 3


def test_a_search_goes_on_with_a_config_of_a_path_and_a_tuple(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    # A path where the annotation says text: it is taken, and written to the study as text.
    path: Any = Path(backbone)
    given = replace_fields(config(backbone), backbone=path, options={"target_modules": ("q", "k", "v")}, steps=1)
    for trials in (1, 2):
        found = search(TASK, splits, given, tmp_path / "study", trials=trials)
    assert found.trials == 2
    assert f"--backbone {backbone}" in found.command("film.yaml", "out")
    parser = ArgumentParser()
    add_arguments(parser)
    only_wraps = {"dropout": 1e-05, "dora": True, "rank_stabilized": False}
    for options in (
        {"target_modules": ["q", "k", "v"], "rank": 8},
        {"target_modules": "all-linear", **only_wraps},
        {"initialise": "random"},
    ):
        best = replace_fields(found.config, options=options)
        command = shlex.split(replace_fields(found, config=best).command("film.yaml", "out"))
        assert read_config(parser.parse_args(command[2:])).options == options


def test_what_the_config_gives_is_not_searched(backbone: str) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import suggest

    given = replace_fields(config(backbone), options={"rank": 2}, weight_decay=0.3)
    trial = optuna.trial.FixedTrial({"learning_rate": 2e-3, "label_smoothing": 0.1})
    assert suggest(trial, given) == replace_fields(given, learning_rate=2e-3, label_smoothing=0.1)
    given = replace_fields(given, weight_decay=0.0, label_smoothing=0.0)
    assert suggest(trial, given) == replace_fields(given, learning_rate=2e-3)


def test_a_study_whose_first_trial_failed_may_be_begun_anew(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    with pytest.raises(ValueError, match="does not take"):
        search(TASK, splits, replace_fields(config(backbone), options={"length": 4}), tmp_path / "study", trials=1)
    assert search(TASK, splits, config(backbone), tmp_path / "study", trials=2).trials == 2


def test_trials_that_diverge_are_pruned_and_a_study_of_such_alone_is_told(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    import t5peft.training.search as module

    def diverge_once(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(module, "train_and_evaluate", train_and_evaluate)
        raise FloatingPointError("the loss is nan")

    splits = {"train": records(4), "validation": records(4, 100)}
    monkeypatch.setattr(module, "train_and_evaluate", diverge_once)
    with pytest.raises(
        ValueError, match=r"Got 1 trials in .*, none of which had a finite loss; .* Lower the learning rate"
    ):
        module.search(TASK, splits, config(backbone), tmp_path / "study", trials=1)
    found = module.search(TASK, splits, config(backbone), tmp_path / "study", trials=2)
    assert (found.trials, found.pruned) == (2, 1)


def test_the_picture_shows_values_and_not_the_losses_of_pruned_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    from t5peft.training.search import _plot

    study = optuna.create_study(direction="maximize")
    distributions = {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)}
    for state, value in ((optuna.trial.TrialState.COMPLETE, 0.5), (optuna.trial.TrialState.PRUNED, -7.0)):
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=value, params={"learning_rate": 1e-3}, distributions=distributions
            )
        )
    drawn: list[list[float]] = []
    scatter = Axes.scatter

    def recorded(axes: Axes, x: Any, y: Any, **more: Any) -> Any:
        drawn.append(list(y))
        return scatter(axes, x, y, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "scatter", recorded)
        _plot(study, tmp_path / "search.png", "accuracy")
    assert drawn == [[0.5], [0.5]]


def test_a_search_needs_training_records(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    with pytest.raises(ValueError, match="Got no train records"):
        search(TASK, {"validation": records(4)}, config(backbone), tmp_path / "study", trials=1)


def test_a_search_without_optuna_says_what_to_install(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    assert main(["search", *data, "--output", str(tmp_path / "study")]) == 2
    assert "pip install t5peft[search]" in capsys.readouterr().err


def test_a_search_of_no_trials_is_refused(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    with pytest.raises(ValueError, match="Got trials=0; expected at least 1"):
        search(TASK, {"train": records(4), "validation": records(4)}, config(backbone), tmp_path, trials=0)


def test_the_commands_search_and_continue_run(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    table = tmp_path / "films.csv"
    table.write_text("text,label\n" + "\n".join(f"{row['text']},{row['label']}" for row in records(24)))
    common = ["--steps", "1", "--batch-size", "4", "--evaluations", "1"]
    data = ["--task", "classification", "--train", str(table), "--column", "text=text", "--backbone", backbone]
    assert main(["search", *data, *common, "--seed", "5", "--trials", "1", "--output", str(tmp_path / "study")]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    again = ["search", *data, *common, "--seed", "5", "--trials", "1", "--output", str(tmp_path / "study"), "--json"]
    assert main(again) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["trials"], shlex.split(told["command"])) == (1, command)
    assert told["metric"] == "accuracy"
    assert command[:4] == ["t5peft", "train", "--task", "classification"]
    assert command[command.index("--seed") + 1] == "5"
    assert main(command[1:]) == 0
    assert main(["train", *data, *common, "--output", str(tmp_path / "run")]) == 0
    files = [f"--{name}={table}" for name in ("train", "test", "old-train", "old-test")]
    assert main(["continue", str(tmp_path / "run" / "adapter"), *files, *common, "--output", str(tmp_path / "v2")]) == 0
    assert "accuracy: old records" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["continue", str(tmp_path / "run" / "adapter"), *files, "--rank", "4", "--output", str(tmp_path / "v3")])
    assert "Unrecognized arguments: --rank 4" in capsys.readouterr().err


def test_a_search_that_was_killed_in_a_trial_gives_what_it_would_have_given(backbone: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(12), "validation": records(6, 100)}
    whole = search(TASK, splits, config(backbone), tmp_path / "whole", trials=3)
    search(TASK, splits, config(backbone), tmp_path / "killed", trials=1)
    name = "film-lora"
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / 'killed' / 'study.db'}")
    killed = study.ask()
    (tmp_path / "killed" / f"trial-{killed.number}").mkdir()
    again = search(TASK, splits, config(backbone), tmp_path / "killed", trials=3)
    assert (again.config, again.value, again.trials) == (whole.config, whole.value, 3)
    drawn = [
        [
            trial.params
            for trial in optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}").trials
        ]
        for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert drawn[0] == [params for params in drawn[1] if params]
    assert len({params["learning_rate"] for params in drawn[0]}) == 3
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / 'killed' / 'study.db'}")
    assert study.trials[killed.number].state.name == "FAIL"
    assert not list((tmp_path / "killed").glob("trial-*"))


def test_what_a_killed_search_was_writing_is_taken_back(tmp_path: Path) -> None:
    from t5peft.training.search import _check_database

    written, killed = tmp_path / "written.db", tmp_path / "study.db"
    with contextlib.closing(sqlite3.connect(written, isolation_level=None)) as database:
        database.execute("CREATE TABLE a (b TEXT)")
        database.execute("INSERT INTO a VALUES ('before')")
        database.execute("PRAGMA cache_size = 1")  # so that the file changes before the commit
        database.execute("BEGIN")
        database.executemany("INSERT INTO a VALUES (?)", [("x" * 1000,)] * 100)
        for name in ("", "-journal"):
            killed.with_name(f"study.db{name}").write_bytes(written.with_name(f"written.db{name}").read_bytes())
    _check_database(killed)
    with contextlib.closing(sqlite3.connect(killed)) as database:
        assert database.execute("SELECT b FROM a").fetchall() == [("before",)]
