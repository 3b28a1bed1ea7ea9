"""The choice between two matrix products is measured once, kept, and the same for a run and the one that resumes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t5peft.nn.kernels import choice, linear
from t5peft.nn.kernels.choice import FALLBACK, ONEDNN, PLAIN, choices_file, faster, shape_class, takes_onednn
from t5peft.nn.kernels.linear import product

SHAPE = torch.ones(60, 256), torch.ones(512, 256)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Made-up timings instead of measurements; the way that is the fastest next is the last of the list."""
    winners = [ONEDNN]

    def measure(x: torch.Tensor, weight: torch.Tensor) -> dict[str, float]:
        winner = winners.pop()
        return {name: 1.0 if name == winner else 2.0 for name in (ONEDNN, PLAIN)}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(choice.VARIABLE, choice.MEASURE)
    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setattr(choice, "_choices", {})
    monkeypatch.setattr(linear, "MULTIPLICATIONS", 0)
    return winners


def forget() -> None:
    """As a new process does."""
    choice._choices.clear()


@pytest.mark.parametrize(
    ("plain", "onednn", "winner"),
    [(1.0, 0.5, ONEDNN), (1.0, 1.0, ONEDNN), (0.96, 1.0, ONEDNN), (0.94, 1.0, PLAIN), (1.0, 1.9, PLAIN)],
)
def test_mkl_must_gain_something(plain: float, onednn: float, winner: str) -> None:
    assert faster({PLAIN: plain, ONEDNN: onednn}) == winner


@pytest.mark.parametrize("winner", [ONEDNN, PLAIN])
def test_a_choice_is_measured_once_and_kept_for_later_processes(winner: str, measured: list[str]) -> None:
    measured[:] = [PLAIN if winner == ONEDNN else ONEDNN, winner]
    for _ in range(3):
        assert takes_onednn(*SHAPE) == (winner == ONEDNN)
        forget()
    assert len(measured) == 1
    assert len(choices_file().read_text().splitlines()) == 1


def test_each_class_of_shapes_has_its_own_choice(measured: list[str]) -> None:
    measured[:] = [PLAIN, ONEDNN, PLAIN, ONEDNN]
    x, weight = SHAPE
    assert takes_onednn(x, weight)
    assert takes_onednn(x[:40], weight), "of the same class"
    assert not takes_onednn(x[:20], weight)
    assert takes_onednn(x, torch.ones(256, 512).t())
    assert not takes_onednn(x, torch.ones(4096, 256))


def test_the_first_process_decides(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start at once take the same way, so that each resumes as it began."""
    made_up = choice.measure

    def measure_while_another_writes(x: torch.Tensor, weight: torch.Tensor) -> dict[str, float]:
        choices_file().write_text(json.dumps({"shape": shape_class(x, weight), "choice": PLAIN}) + "\n")
        return made_up(x, weight)

    monkeypatch.setattr(choice, "measure", measure_while_another_writes)
    assert not takes_onednn(*SHAPE)


@pytest.mark.parametrize("damage", ["", "{", "[]\n", '{"shape": [1], "choice": "plain"}\n', '{"shape": 3}\nnull\n'])
def test_a_damaged_file_is_measured_again(damage: str, measured: list[str]) -> None:
    choices_file().parent.mkdir(parents=True)
    choices_file().write_text(damage + "\n")
    assert takes_onednn(*SHAPE)
    assert not measured


def test_where_nothing_can_be_kept_nothing_is_measured(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    measured[:] = [PLAIN]
    assert takes_onednn(*SHAPE) == (FALLBACK == ONEDNN)
    assert measured == [PLAIN]


def test_threads_and_versions_have_files_of_their_own(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = {choices_file().name}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    names.add(choices_file().name)
    monkeypatch.setattr(torch, "__version__", "9.9")
    names.add(choices_file().name)
    assert len(names) == 3


@pytest.mark.parametrize("mode", [PLAIN, ONEDNN])
def test_the_environment_pins_the_choice(mode: str, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, mode)
    assert takes_onednn(*SHAPE) == (mode == ONEDNN)
    assert measured
    assert not choices_file().exists()


def test_another_value_is_refused(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"Got T5PEFT_KERNELS='fast'; expected measure, plain or onednn\."):
        takes_onednn(*SHAPE)


@pytest.mark.parametrize("winner", [ONEDNN, PLAIN])
def test_both_ways_give_the_same_product(winner: str, measured: list[str]) -> None:
    measured[:] = [winner]
    x, weight = torch.randn(3, 11, 256), torch.randn(512, 256)
    exact = x.double() @ weight.double().t()
    rounding = torch.finfo(torch.float32).eps * (x.double().abs() @ weight.double().abs().t())
    assert ((product(x, weight) - exact).abs() <= 4 * rounding).all()
    assert not measured


def test_the_real_measurement_is_short_and_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    seconds = choice.measure(torch.ones(2048, 512), torch.ones(512, 32128).t())
    assert set(seconds) == {PLAIN, ONEDNN}
    assert all(0 < value < 5 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("capability", "mode"), [("AVX512", ONEDNN), ("AVX2", choice.MEASURE), ("DEFAULT", choice.MEASURE)]
)
def test_processors_with_avx_512_take_onednn_without_a_measurement(
    capability: str, mode: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(choice.VARIABLE)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    measured[:] = [PLAIN]
    assert takes_onednn(*SHAPE) == (mode == ONEDNN)
    assert len(measured) == (mode == ONEDNN)
