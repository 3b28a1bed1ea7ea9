"""How ``auto`` divides its time over methods, rates and finalists, with trials that are not run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5peft import Task
from t5peft.cli.auto_search import Halving
from t5peft.cli.auto_trials import Arm, Trial, TrialLog
from t5peft.training.config import TrainConfig


def rows(count: int = 60, **columns: Any) -> list[dict[str, Any]]:
    return [{name: make(i) for name, make in columns.items()} for i in range(count)]


def text(word: str) -> Any:
    return lambda i: f"{word} number {i} of many"


def trial(
    rung: int, arm: Arm, loss: float | None, score: float | None = None, steps: int = 20, step_seconds: float = 0.01
) -> Trial:
    return Trial(rung, arm, steps, loss, score, 0.8 + steps * step_seconds, step_seconds, 0.1, 10)


def searching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...], step_seconds: float = 0.01
) -> tuple[Halving, list[Any]]:
    """A search whose trials are not run: the loss is the learning rate's distance from 0.003."""
    done: list[Any] = []
    halving = Halving(
        Task("film", "{text}", "{label}", {"0": "a", "1": "b"}, ("accuracy",)),
        {"train": rows(text=text("a")), "validation": rows(text=text("b"))},
        TrainConfig(),
        {name: {} for name in methods},
        tmp_path / "trials",
        TrialLog(tmp_path / "trials.jsonl", {"data": "a"}),
        lambda line: None,
    )

    def run(rung: int, arm: Arm, config: TrainConfig, *_: Any, **__: Any) -> Trial:
        done.append((rung, arm, config.steps))
        loss = abs(arm.learning_rate - 0.003) + (arm.method == "ia3")
        assert config.steps is not None
        return trial(rung, arm, loss, 1.0 - loss, config.steps, step_seconds)

    monkeypatch.setattr(halving, "_run", run)
    return halving, done


def test_rates_are_tried_beside_the_best_one_and_the_better_third_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("lora", "full", "ia3", "norm")
    halving, done = searching(tmp_path, monkeypatch, methods)
    best = halving.run(45.0)
    rungs = {rung: [arm for number, arm, _ in done if number == rung] for rung in range(5)}
    assert [str(arm) for arm in rungs[1][:4]] == ["lora at 0.003", "full at 0.001", "ia3 at 0.03", "norm at 0.009"]
    # The better half goes on: one step up and one down where these are worse, and up as long as it is better.
    assert rungs[1][4:] == [Arm("lora", 0.01), Arm("lora", 0.001), Arm("full", 0.003)]
    assert rungs[2] == [Arm("lora", 0.003), Arm("full", 0.003), Arm("full", 0.001)]
    # The finalists end earlier than the time, so all of the better third are trained as long.
    assert rungs[3] == [Arm("lora", 0.003), Arm("full", 0.003), Arm("full", 0.001)]
    assert best.arm == Arm("lora", 0.003)
    steps = {rung: {number for r, _, number in done if r == rung} for rung in (1, 2, 3)}
    assert 20 <= max(steps[1]) < max(steps[2]) <= max(steps[3])
    again, repeated = searching(tmp_path, monkeypatch, methods)
    assert again.run(45.0) == best
    assert repeated == []
    with pytest.raises(ValueError, match="holds a search with another data; expected the same"):
        TrialLog(tmp_path / "trials.jsonl", {"data": "b"})


@pytest.mark.parametrize(("epochs", "first"), [(1000, "lora at 0.003"), (1, "lora at 0.03")])
def test_a_higher_rate_wins_only_trials_that_are_long_enough(
    epochs: int, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halving, done = searching(tmp_path, monkeypatch, ("lora",), step_seconds=0.25)
    monkeypatch.setattr("t5peft.cli.auto_search.MOST_EPOCHS", epochs)
    run = halving._run
    monkeypatch.setattr(  # as a few steps are: the farther they go, the better
        halving, "_run", lambda rung, arm, *more, **kw: replace(run(rung, arm, *more, **kw), loss=1 - arm.learning_rate)
    )
    halving.run(240.0)
    assert str(next(arm for rung, arm, _ in done if rung == 3)) == first


def test_scores_take_their_share_of_the_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halving, _ = searching(tmp_path, monkeypatch, ("lora",))
    halving.log.add(replace(trial(0, Arm("lora", 1e-3), 1.0), score_seconds=0.08))  # 8 records
    assert halving._affordable_evaluations(100.0) == (4, 60)  # all of them, in a fraction of the time
    assert halving._affordable_evaluations(8.0) == (4, 40)
    assert halving._affordable_evaluations(4.0) == (2, 33)
    assert halving._affordable_evaluations(1.0) == (1, 30)  # with fewer, scores could not tell checkpoints apart


def test_one_method_is_a_search_of_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halving, done = searching(tmp_path, monkeypatch, ("lora",))
    assert halving.run(45.0).arm == Arm("lora", 0.003)
    # All records thirty times are few steps: the first trials take as many as the finalists, which are all three.
    assert [rung for rung, _, _ in done] == [0, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("step_seconds", [0.25, 0.5, 1.0])
def test_the_best_one_takes_most_of_the_time(
    step_seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halving, done = searching(tmp_path, monkeypatch, ("lora", "full", "ia3", "norm"), step_seconds)
    monkeypatch.setattr("t5peft.cli.auto_search.MOST_EPOCHS", 1000)
    best = halving.run(240.0)
    assert [arm for rung, arm, _ in done if rung == 3] == [best.arm] == [Arm("lora", 0.003)]
    assert best.seconds > 0.55 * 240
    assert 0.9 * 240 < sum(trial.seconds for trial in halving.log.trials.values()) < 1.1 * 240


def test_short_time_gives_up_arms_and_not_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halving, done = searching(tmp_path, monkeypatch, ("lora", "full", "ia3", "norm"))
    halving.run(12.0)
    assert len([arm for rung, arm, _ in done if rung == 1]) < 4
    assert min(steps for rung, _, steps in done if rung) >= 20


def test_the_finalist_with_the_best_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halving, _ = searching(tmp_path, monkeypatch, ("lora",))
    low, high = trial(3, Arm("lora", 1e-3), 0.1, 0.5), trial(3, Arm("lora", 1e-3), 0.2, 0.6)
    assert halving._quality(high) > halving._quality(low)
    assert halving._quality(replace(low, score=0.6)) > halving._quality(high)
    halving.task = replace(halving.task, metrics=("perplexity",))
    assert halving._quality(low) > halving._quality(high)
