"""Search for hyper-parameters, and tuning again: small runs on a tiny backbone."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from tiny import tiny_t5, tiny_tokenizer
from transformers import TrainerCallback

from t5peft import METHODS, T5PeftTrainingArguments, load_adapter, load_backbone, lora_wrap, save_adapter
from t5peft.cli import main
from t5peft.cli.recipe import read_recipe
from t5peft.cli.train import add_arguments
from t5peft.data import Task
from t5peft.training.continue_training import ContinuedTraining, continue_training, replace
from t5peft.training.train import TrainConfig, _arguments, train, train_and_evaluate

TASK = Task("film", "film: {text}", "{label}", {"0": "bad", "1": "good"}, metrics=("accuracy",))


def records(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"{'yes' if i % 2 else 'no'} {start + i}", "label": str(i % 2)} for i in range(count)]


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    tiny_t5().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def recipe(backbone: str) -> TrainConfig:
    return TrainConfig(backbone=backbone, steps=2, batch_size=4, evaluations=2, learning_rate=1e-2)


def test_a_search_goes_on_where_it_was_and_names_the_best_runs_command(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(12), "validation": records(6, 100)}
    first = search(TASK, splits, recipe(backbone), tmp_path / "study", trials=2)
    again = search(TASK, splits, recipe(backbone), tmp_path / "study", trials=3)
    assert (first.trials, again.trials) == (2, 3)
    assert again.value >= first.value
    done = search(TASK, splits, recipe(backbone), tmp_path / "study", trials=3)
    assert (done.trials, done.recipe) == (3, again.recipe)
    assert done.picture is None or done.picture.stat().st_size > 1000
    command = done.command("film.yaml", "out")
    assert f"--learning-rate {done.recipe.learning_rate:.3g}" in command
    assert f"--option rank={done.recipe.options['rank']}" in command
    assert not list((tmp_path / "study").glob("trial-*"))


def test_a_study_is_not_continued_by_another_recipe(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    search(TASK, splits, recipe(backbone), tmp_path / "study", trials=1)
    with pytest.raises(ValueError, match=r"begun by another recipe .*'steps': \(2, 3\)"):
        search(TASK, splits, replace_fields(recipe(backbone), steps=3), tmp_path / "study", trials=2)
    with pytest.raises(ValueError, match=r"begun by another recipe or on other data .*'data'"):
        search(TASK, {**splits, "train": records(5)}, recipe(backbone), tmp_path / "study", trials=2)
    of_arrow = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    assert search(TASK, of_arrow, recipe(backbone), tmp_path / "study", trials=2).trials == 2
    with pytest.raises(ValueError, match=r"begun by another recipe or on other data .*'data'"):
        search(
            TASK,
            {**of_arrow, "train": Dataset.from_list(records(4, 50))},
            recipe(backbone),
            tmp_path / "study",
            trials=3,
        )


def test_trials_of_a_search_that_goes_on_are_new_ones(backbone: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    for trials in (1, 2, 3):
        search(TASK, splits, recipe(backbone), tmp_path / "study", trials=trials)
    study = optuna.load_study(study_name="film-lora", storage=f"sqlite:///{tmp_path / 'study' / 'study.db'}")
    assert len({trial.params["learning_rate"] for trial in study.trials}) == 3


def test_a_search_goes_on_by_a_recipe_with_a_path_and_a_tuple(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    given = replace_fields(
        recipe(backbone), backbone=Path(backbone), options={"target_modules": ("q", "k", "v")}, steps=1
    )
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
        best = replace_fields(found.recipe, options=options)
        command = shlex.split(replace_fields(found, recipe=best).command("film.yaml", "out"))
        assert read_recipe(parser.parse_args(command[2:])).options == options


def test_any_option_of_a_wrap_can_be_given(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["train", "--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    given = ["--option", "dropout=0.25", "--option", "dora=true", "--option", "target_modules=[q, k]"]
    assert main([*data, *given, "--steps", "1", "--output", str(tmp_path / "run")]) == 0
    config = load_adapter(tmp_path / "run" / "adapter")[0].active_peft_config
    assert (config.lora_dropout, config.use_dora, config.target_modules) == (0.25, True, {"q", "k"})
    wrong = {
        ("--option", "dropout"): "'dropout' came; expected NAME=VALUE",
        ("--option", "dropout=0", "--option", "dropout=1"): "each name once",
        ("--rank", "2", "--option", "rank=3"): "rank came twice",
        ("--option", "target_modules=[q"): "no value in YAML",
        ("--option", "droput=0.1"): "it takes rank, alpha, dropout",
    }
    for words, message in wrong.items():
        capsys.readouterr()
        assert main([*data, *words, "--output", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


def test_what_the_recipe_gives_is_not_searched(backbone: str) -> None:
    optuna = pytest.importorskip("optuna")
    from t5peft.training.search import suggest

    given = replace_fields(recipe(backbone), options={"rank": 2}, weight_decay=0.3)
    trial = optuna.trial.FixedTrial({"learning_rate": 2e-3, "label_smoothing": 0.1})
    assert suggest(trial, given) == replace_fields(given, learning_rate=2e-3, label_smoothing=0.1)
    given = replace_fields(given, weight_decay=0.0, label_smoothing=0.0)
    assert suggest(trial, given) == replace_fields(given, learning_rate=2e-3)


def test_a_study_whose_first_trial_failed_may_be_begun_anew(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    splits = {"train": records(4), "validation": records(4, 100)}
    with pytest.raises(ValueError, match="takes no such option"):
        search(TASK, splits, replace_fields(recipe(backbone), options={"length": 4}), tmp_path / "study", trials=1)
    assert search(TASK, splits, recipe(backbone), tmp_path / "study", trials=2).trials == 2


def test_trials_that_diverge_are_pruned_and_a_study_of_such_alone_is_told(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    import t5peft.training.search as module

    def diverge_once(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(module, "tune", train_and_evaluate)
        raise FloatingPointError("the loss is nan")

    splits = {"train": records(4), "validation": records(4, 100)}
    monkeypatch.setattr(module, "tune", diverge_once)
    with pytest.raises(ValueError, match=r"None of the 1 trials in .* Lower the learning rate"):
        module.search(TASK, splits, recipe(backbone), tmp_path / "study", trials=1)
    found = module.search(TASK, splits, recipe(backbone), tmp_path / "study", trials=2)
    assert (found.trials, found.pruned) == (2, 1)


def test_the_picture_shows_values_and_not_the_losses_of_pruned_trials(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    from t5peft.training.search import _draw

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
        _draw(study, tmp_path / "search.png", "accuracy")
    assert drawn == [[0.5], [0.5]]


def test_a_search_needs_training_records(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    with pytest.raises(ValueError, match="has no train records"):
        search(TASK, {"validation": records(4)}, recipe(backbone), tmp_path / "study", trials=1)


def test_a_search_without_optuna_says_what_to_install(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    assert main(["search", *data, "--output", str(tmp_path / "study")]) == 2
    assert "pip install t5peft[search]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"epochs": -1.0}, {"steps": -5}, {"evaluations": -1}, {"learning_rate": 0.0}, {"patience": 0}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_recipe_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"Recipe: {name}={value} came; expected .* above 0"):
        TrainConfig(**wrong)


def test_weight_decay_and_label_smoothing_have_their_limits() -> None:
    with pytest.raises(
        ValueError, match=r"weight_decay=-0\.1 came; .*; label_smoothing=1 came; expected .* less than 1"
    ):
        TrainConfig(weight_decay=-0.1, label_smoothing=1)


@pytest.mark.parametrize(("steps", "evaluations"), [(9, 5), (11, 5), (10, 5), (3, 5)])
def test_validation_is_scored_as_often_as_asked_at_most(steps: int, evaluations: int, tmp_path: Path) -> None:
    args = _arguments(TrainConfig(steps=steps, evaluations=evaluations), 100, tmp_path)
    assert 3 <= -(-steps // args.eval_steps) <= evaluations


def test_the_last_step_is_scored_too(backbone: str, tmp_path: Path) -> None:
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    splits = {"train": records(12), "validation": records(6, 100)}
    train(TASK, splits, replace_fields(recipe(backbone), steps=7, evaluations=3), tmp_path, callbacks=[Watch()])
    assert seen == [3, 6, 7]


def test_an_epoch_of_two_processes_has_half_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5peft.training.train.T5PeftTrainingArguments", lambda **given: given["max_steps"])
    steps = [_arguments(TrainConfig(batch_size=4, epochs=2.0), 20, tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [*steps, _arguments(TrainConfig(batch_size=4, epochs=2.0), 20, tmp_path)] == [10, 6]


def test_a_search_of_no_trials_is_refused(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from t5peft.training.search import search

    with pytest.raises(ValueError, match="Got trials=0; expected at least 1"):
        search(TASK, {"train": records(4), "validation": records(4)}, recipe(backbone), tmp_path, trials=0)


def test_tuning_needs_training_and_validation_records(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no train and no validation records"):
        train_and_evaluate(TASK, {"test": records(4)}, recipe(backbone), tmp_path)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_data_frame_in_place_of_records_is_told(split: str, backbone: str, tmp_path: Path) -> None:
    splits = {"train": records(4), "validation": records(4), "test": records(4)}
    with pytest.raises(ValueError, match=r"Record 0 is 'text'.*of a pandas DataFrame give df\.to_dict"):
        train_and_evaluate(TASK, splits | {split: pd.DataFrame(records(4))}, recipe(backbone), tmp_path)


def test_references_that_only_the_test_split_has_are_used_there_and_nowhere_else(backbone: str, tmp_path: Path) -> None:
    task = Task("echo", "{text}", "{label}", metrics=("exact_match",), max_target_length=4, references="references")
    test = [record | {"references": ["a", "b"]} for record in records(4)]
    splits = {"train": records(8), "validation": records(4), "test": test}
    assert set(train_and_evaluate(task, splits, recipe(backbone), tmp_path).scores) == {"validation", "test"}
    with pytest.raises(ValueError, match="'references', which is in none of the 8 records"):
        train_and_evaluate(task, splits | {"test": records(4)}, recipe(backbone), tmp_path)


def test_tuning_again_saves_a_new_version_with_both_scores_and_leaves_the_old_one(
    backbone: str, tmp_path: Path
) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    before = (old / "adapter_model.safetensors").read_bytes()
    report = continue_training(
        old, TASK, records(12, 200), records(12), new_test=records(6, 300), old_test=records(6, 400),
        recipe=recipe(backbone), output=tmp_path / "v2",
    )  # fmt: skip
    assert (old / "adapter_model.safetensors").read_bytes() == before
    load_adapter(tmp_path / "v2")
    assert (tmp_path / "v2" / "retuning.json").is_file()
    assert all(0 <= score <= 1 for score in (report.old_before, report.old_after, report.new_before, report.new_after))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "v1", "v2"]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if name != "full" and not method.quantize])
def test_an_adapter_is_tuned_again_at_its_own_methods_learning_rate(
    method: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(args: T5PeftTrainingArguments, **_: Any) -> None:
        raise Stop(args.learning_rate)

    monkeypatch.setattr("t5peft.training.train.T5PeftTrainer", stop)
    old = save_adapter(METHODS[method].wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    given = {"new_test": records(2), "old_test": records(2), "recipe": TrainConfig(steps=1), "output": tmp_path / "v2"}
    with pytest.raises(Stop) as rate:
        continue_training(old, TASK, records(8, 20), records(4), **given)
    assert rate.value.args == (METHODS[method].learning_rate,)


def test_a_worse_version_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    worse = ContinuedTraining(
        "accuracy", old_before=0.9, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / "v2")
    )
    with pytest.raises(
        ValueError, match=r"is not replaced by .*accuracy on the old records went from 0\.9000 to 0\.8000"
    ):
        replace(tmp_path / "v1", worse)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert worse.worse(tolerance=0.15) == []
    assert worse.forgotten == pytest.approx(0.1)


def test_a_better_version_takes_the_place_and_the_old_one_is_kept(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    better = ContinuedTraining(
        "accuracy", old_before=0.8, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / "v2")
    )
    replace(tmp_path / "v1", better)
    assert (tmp_path / "v1" / "which").read_text() == "v2"
    assert (tmp_path / "v1.old" / "which").read_text() == "v1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1", "v1.old", "v2"]


@pytest.mark.parametrize("folder", ["v1.old", "absent"])
def test_a_new_version_is_not_lost_where_it_takes_the_old_ones_place(folder: str, tmp_path: Path) -> None:
    for name in ("v1", "v1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    better = ContinuedTraining(
        "accuracy", old_before=0.8, old_after=0.8, new_before=0.5, new_after=0.7, folder=str(tmp_path / folder)
    )
    if folder == "absent":
        with pytest.raises(FileNotFoundError):
            replace(tmp_path / "v1", better)
    else:
        replace(tmp_path / "v1", better)
    kept = {"v1": "v1", "v1.old": "v1.old"}
    if folder != "absent":
        kept = {"v1": "v1.old", "v1.old": "v1.old", "v1.old-2": "v1"}
    assert {path.name: (path / "which").read_text() for path in tmp_path.iterdir()} == kept


def test_a_new_record_without_text_is_named_by_its_row(backbone: str, tmp_path: Path) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    new = records(4, 20)
    column = TASK.columns[0]
    new[2] = {**new[2], column: None}
    given = {"new_test": records(2), "old_test": records(2), "recipe": recipe(backbone), "output": tmp_path / "v2"}
    with pytest.raises(ValueError, match=rf"The column '{column}' holds NoneType in row 2;"):
        continue_training(old, TASK, new, records(4), **given)


def test_an_output_that_cannot_be_saved_to_is_told_before_the_training(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    for folder in (tmp_path / "v2", tmp_path / "run" / "adapter"):
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("of the user")
    monkeypatch.setattr("t5peft.training.train.T5PeftTrainer", None)
    given = {"new_test": records(2), "old_test": records(2), "recipe": recipe(backbone), "output": tmp_path / "v2"}
    with pytest.raises(ValueError, match=r"not saved to .*v2, which holds .*\['notes.txt'\]"):
        continue_training(old, TASK, records(4, 20), records(4), **given)
    (tmp_path / "films.csv").write_text("text,label\n" + "\n".join(f"film {i},{i % 2}" for i in range(24)))
    data = ["--task", "classification", "--train", str(tmp_path / "films.csv"), "--backbone", backbone]
    assert main(["train", *data, "--output", str(tmp_path / "run")]) == 2
    assert "which holds what is no earlier adapter's" in capsys.readouterr().err


def test_checkpoints_of_tuning_again_stay_until_the_new_version_is_saved(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    old = save_adapter(lora_wrap(load_backbone(backbone)[0]), tmp_path / "v1")
    monkeypatch.setattr("t5peft.training.continue_training.save_adapter", broken)
    given = {"new_test": records(2), "old_test": records(2), "recipe": recipe(backbone), "output": tmp_path / "v2"}
    with pytest.raises(OSError, match="disk full"):
        continue_training(old, TASK, records(8, 20), records(4), **given)
    assert list((tmp_path / ".v2-work").glob("checkpoint-*"))


def test_the_output_of_tuning_again_may_not_be_the_adapter_itself(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is the adapter itself"):
        continue_training(tmp_path, TASK, [], [], new_test=[], old_test=[], recipe=recipe(backbone), output=tmp_path)


def test_the_commands_search_and_retune_run(backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    table = tmp_path / "films.csv"
    table.write_text("text,label\n" + "\n".join(f"{row['text']},{row['label']}" for row in records(24)))
    common = ["--steps", "1", "--batch-size", "4", "--evaluations", "1"]
    data = ["--task", "classification", "--train", str(table), "--column", "text=text", "--backbone", backbone]
    assert main(["search", *data, *common, "--seed", "5", "--trials", "1", "--output", str(tmp_path / "study")]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[:4] == ["t5peft", "train", "--task", "classification"]
    assert command[command.index("--seed") + 1] == "5"
    assert main(command[1:]) == 0
    assert main(["train", *data, *common, "--output", str(tmp_path / "run")]) == 0
    files = [f"--{name}={table}" for name in ("train", "test", "old-train", "old-test")]
    assert main(["retune", str(tmp_path / "run" / "adapter"), *files, *common, "--output", str(tmp_path / "v2")]) == 0
    assert "accuracy: old records" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["retune", str(tmp_path / "run" / "adapter"), *files, "--rank", "4", "--output", str(tmp_path / "v3")])
    assert "unrecognized arguments: --rank 4" in capsys.readouterr().err
