"""Loss and gradient of one optimizer step do not depend on how its examples are split, for every method.

Splits into accumulation steps, batch sizes, micro-batches by length and processes are all compared with the mean
over target tokens, computed from the logits of the model, without any trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case, base_of, stir, trained, wrap
from distributed_split import EPOCH, EVALUATED, RECORDS, precise_model
from fresh import run_ranks
from grids import sampled
from peft import PeftModel
from stacks import OURS, GradientRecorder, Records, one_step, plain_fault, relative_difference
from tiny import Geometry, tiny_records
from torch import Tensor, nn

from t5peft import METHODS
from t5peft.methods.adalora import AdaLoraTuner

TOLERANCE = 1e-6
SPLITS = [(1, 8), (2, 4), (8, 1)]  # accumulation x batch size

METHODS_ONCE = [case for case in CASES if not case.variant]
all_methods = pytest.mark.parametrize("case", METHODS_ONCE, ids=str)


@dataclass(frozen=True)
class Step:
    """The results of one optimizer step."""

    loss: float
    gradients: dict[str, Tensor]


@pytest.fixture
def model(case: Case, folders: dict[Geometry, Path]) -> PeftModel:
    if METHODS[case.method].quantize is not None and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return precise_model(case, folders["v1.1"])


def exact_loss(model: nn.Module, records: Records) -> Tensor:
    """The mean over all target tokens of ``records``, each in a run of its own, without padding."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for record in records:
        labels = torch.tensor([record["labels"]])
        scores = model(input_ids=torch.tensor([record["input_ids"]]), labels=labels).logits.double()
        total = total + nn.functional.cross_entropy(scores[0], labels[0], reduction="sum")
        count += labels.numel()
    return total / count


def exact_step(model: nn.Module, records: Records) -> Step:
    model.train()
    loss = exact_loss(model, records)
    if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraTuner):
        loss = loss + model.base_model.orthogonality()  # once a step, as in the mean that the model itself returns
    parameters = trained(model)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return Step(loss.item(), dict(zip(parameters, gradients, strict=True)))


def assert_exact(case: Case, loss: float, gradients: dict[str, Tensor], expected: Step) -> None:
    """In double precision gradients agree to the last digits; in single, as quantized weights are, to their rounding."""
    assert loss == pytest.approx(expected.loss, rel=TOLERANCE)
    quantized = METHODS[case.method].quantize is not None
    assert relative_difference(gradients, expected.gradients) < (1e-5 if quantized else 1e-12)


@pytest.mark.parametrize(("case", "split"), sampled(METHODS_ONCE, SPLITS, every=3))
def test_a_step_is_the_same_for_every_split_into_batches(
    case: Case, model: PeftModel, split: tuple[int, int], tmp_path: Path
) -> None:
    records = tiny_records(RECORDS)
    expected = exact_step(model, records)
    trainer = OURS.trainer(
        model,
        tmp_path,
        records,
        gradient_accumulation_steps=split[0],
        per_device_train_batch_size=split[1],
        max_steps=1,
    )
    assert_exact(case, *one_step(trainer), expected)


@pytest.mark.parametrize("case", sampled(METHODS_ONCE, every=3))
def test_splits_in_single_precision_agree_with_each_other(
    case: Case, folders: dict[Geometry, Path], tmp_path: Path
) -> None:
    steps = []
    for accumulation, batch_size in SPLITS:
        trainer = OURS.trainer(
            stir(wrap(case, base_of(case, "v1.1", folders["v1.1"]))),
            tmp_path,
            tiny_records(RECORDS),
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=batch_size,
            max_steps=1,
        )
        steps.append(Step(*one_step(trainer)))
    for step in steps[1:]:
        assert step.loss == pytest.approx(steps[0].loss, rel=TOLERANCE)
        assert relative_difference(step.gradients, steps[0].gradients) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "cutting"), sampled(METHODS_ONCE, [{"bucket_by_length": False}, {"tokens_per_micro_batch": 50}], every=2)
)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(
    case: Case, model: PeftModel, cutting: dict[str, Any], tmp_path: Path
) -> None:
    records = tiny_records(RECORDS)
    expected = exact_step(model, records)
    trainer = OURS.trainer(model, tmp_path, records, per_device_train_batch_size=RECORDS, max_steps=1, **cutting)
    assert_exact(case, *one_step(trainer), expected)


@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("case", [Case("lora", {"rank": 4})], ids=str)
def test_a_last_step_of_fewer_examples_is_a_mean_over_its_own_tokens(
    case: Case, model: PeftModel, accumulation: int, batch_size: int, tmp_path: Path
) -> None:
    records = tiny_records(6)
    expected = [exact_step(model, records[:4]), exact_step(model, records[4:])]
    trainer = OURS.trainer(
        model,
        tmp_path,
        records,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=0.0,
    )
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    for loss, gradients, step in zip(losses, recorder.steps, expected, strict=True):
        assert_exact(case, loss, gradients, step)


@pytest.mark.parametrize(("case", "batch_size"), sampled(METHODS_ONCE, [1, 3], every=2))
def test_the_evaluation_loss_is_the_same_for_every_batch_size(
    case: Case, model: PeftModel, batch_size: int, tmp_path: Path
) -> None:
    records = tiny_records(EVALUATED, seed=1)
    with torch.no_grad():
        expected = exact_loss(model.eval(), records).item()
    trainer = OURS.trainer(model, tmp_path, records, per_device_eval_batch_size=batch_size)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=TOLERANCE)


# Two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, folders: dict[Geometry, Path]) -> Path:
    """Results of ``distributed_split.py`` on two gloo processes: a folder for each stack, and in it a file for each case."""
    output = tmp_path_factory.mktemp("two")
    cases = [case for case in METHODS_ONCE if METHODS[case.method].quantize is None or find_spec("bitsandbytes")]
    script = Path(__file__).parent / "distributed_split.py"
    run_ranks(script, output, folders["v1.1"], "plain:full", *(f"ours:{case}" for case in cases))
    return output


@all_methods
@pytest.mark.processes
def test_two_processes_make_the_same_step_as_one(case: Case, model: PeftModel, two_processes: Path) -> None:
    got = torch.load(two_processes / "ours" / f"{case}.pt")
    assert_exact(case, got["loss"], got["gradients"], exact_step(model, tiny_records(RECORDS)))


@all_methods
@pytest.mark.processes
def test_the_last_step_of_an_epoch_repeats_no_example(case: Case, model: PeftModel, two_processes: Path) -> None:
    """Accelerate fills it up with examples of the first step."""
    if case.method == "adalora":
        pytest.skip("the ranks are reallocated after the first step, at a rate of zero too")
    got = torch.load(two_processes / "ours" / f"{case}.pt")
    assert_exact(case, got["last_loss"], got["last_gradients"], exact_step(model, tiny_records(EPOCH)[4:]))


@all_methods
@pytest.mark.processes
def test_two_processes_evaluate_as_one_where_the_data_cannot_be_halved(
    case: Case, model: PeftModel, two_processes: Path
) -> None:
    with torch.no_grad():
        expected = exact_loss(model.eval(), tiny_records(EVALUATED, seed=1)).item()
    assert torch.load(two_processes / "ours" / f"{case}.pt")["eval_loss"] == pytest.approx(expected, rel=TOLERANCE)


@plain_fault()
@pytest.mark.parametrize("case", [Case("full")], ids=str)
@pytest.mark.parametrize("what", ["loss", "gradient", "evaluation", "last step"])
@pytest.mark.processes
def test_d1_two_processes_are_as_one_plain(case: Case, model: PeftModel, what: str, two_processes: Path) -> None:
    got = torch.load(two_processes / "plain" / f"{case}.pt")
    expected = exact_step(model, tiny_records(RECORDS))
    if what == "loss":
        assert got["loss"] == pytest.approx(expected.loss, rel=1e-2)
    elif what == "last step":
        last = exact_step(model, tiny_records(EPOCH)[4:])
        assert relative_difference(got["last_gradients"], last.gradients) < 1e-2
    elif what == "gradient":
        assert relative_difference(got["gradients"], expected.gradients) < 1e-2
    else:
        with torch.no_grad():
            evaluation = exact_loss(model.eval(), tiny_records(EVALUATED, seed=1)).item()
        assert got["eval_loss"] == pytest.approx(evaluation, rel=1e-2)
