"""Put NaN, infinity and overflow into every place of a training, and look at how it stops.

    python tests/torture/non_finite.py --minutes 10 --record benchmarks/records/torture/non_finite.json

A case is a value, a place, a method and a step. The outcomes:

    stopped    within the step, by an error that names the tensors or the examples; the last checkpoint is whole and finite
    refused    before the first step, by an error that says what was received and expected
    finite     the value did no harm: all weights and losses are finite
    late       a later step was taken or saved
    unclear    the error does not name what it could
    damaged    the last checkpoint is missing, or holds NaN or infinity
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from campaign import Line, go_on, parse, report
from safetensors.torch import load_file
from tiny import tiny_classifier, tiny_records, tiny_t5
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments
from t5peft.adapters.checkpoints import newest_complete

VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "overflow": 3e38}
STEPS = (1, 2, 4)
RARE = 301  # a token of one example only
METHOD_NAMES = ("full", "lora", "ia3", "prefix", "prompt", "houlsby", "ladder", "norm")
NAMED = ("trained weight", "frozen weight", "embedding", "gradient", "update", "optimizer state")


class _Inject(TrainerCallback):
    """Puts a value somewhere at a step."""

    def __init__(self, place: str, value: float, step: int) -> None:
        self.place, self.value, self.step = place, value, step
        self.name = ""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step + 1 != self.step:
            return
        if self.place == "trained weight":
            self._set(next((n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel() > 1))
        elif self.place == "frozen weight":
            self._set(
                next((n, p) for n, p in model.named_parameters() if n.endswith(".v.weight") or ".v.base_layer." in n)
            )
        elif self.place == "embedding":
            name, table = next((n, p) for n, p in model.named_parameters() if "shared" in n and p.shape[0] > RARE)
            self.name = name
            table.data[RARE] = self.value
        elif self.place == "gradient":
            self.name, parameter = next((n, p) for n, p in model.named_parameters() if p.requires_grad)
            parameter.register_hook(self._broken)
        elif self.place == "activation":
            layer = next(m for m in model.modules() if type(m).__name__ == "T5LayerFF")
            layer.register_forward_hook(lambda module, inputs, output: output * self.value)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step + 1 != self.step:
            return
        if self.place == "update":
            for group in optimizer.param_groups:
                group["lr"] = self.value
        elif self.place == "optimizer state":
            for found in optimizer.state.values():
                found["exp_avg"].fill_(self.value)

    def _set(self, found: tuple[str, nn.Parameter]) -> None:
        self.name, parameter = found
        parameter.data.view(-1)[0] = self.value

    def _broken(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = self.value
        return gradient


def records() -> list[dict[str, list[int]]]:
    """Return records of which one has the rare token."""
    made = tiny_records(9, longest=6)
    for number, one in enumerate(made):
        one["input_ids"] = [
            RARE if number == 5 else 17 if token == RARE else token for token in one["input_ids"][:-1]
        ] + [1]
        one["labels"] = [17 if token == RARE else token for token in one["labels"]]
    return made


def of_training() -> list[dict[str, Any]]:
    """Return the cases of values that come up in training."""
    places = ("trained weight", "frozen weight", "embedding", "gradient", "activation", "update", "optimizer state")
    return [
        {"place": place, "value": value, "method": method, "step": step}
        for place, value, method, step in itertools.product(places, VALUES, METHOD_NAMES, STEPS)
        if not (place == "optimizer state" and step == 1)  # which there is none of yet
    ]


def of_data() -> list[dict[str, Any]]:
    """Return the cases of values that are given."""
    ids = {"too high": 10_000, "negative": -7, "huge": 2**40, "nan": math.nan, "inf": math.inf, "fraction": 3.5}
    cases = [
        {"place": place, "value": name, "given": one} for place in ("label id", "input id") for name, one in ids.items()
    ]
    cases += [{"place": "class", "value": name, "given": one} for name, one in ids.items()]
    cases += [{"place": "number", "value": name, "given": one} for name, one in VALUES.items()]
    rates = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "negative": -1.0, "overflow": 3e38}
    names = ("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor")
    return cases + [{"place": name, "value": value, "given": one} for name in names for value, one in rates.items()]


CASES = of_training() + of_data()


def one(case: dict[str, Any]) -> Line:
    """Train with the value of a case; return how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        set_seed(0)
        inject = _Inject(case["place"], VALUES.get(case["value"], 0.0), case.get("step", 0))
        trainer: T5PeftTrainer | None = None
        try:
            trainer = _trainer(case, Path(folder), inject)
            trainer.train()
        except FloatingPointError as error:
            assert trainer is not None
            return {"error": str(error)[:400], **_judge(case, Path(folder), trainer, inject, str(error))}
        except ValueError as error:
            clear = "Got " in str(error) and "expected" in str(error)
            return {"outcome": "refused" if clear else "unclear", "error": str(error)[:400]}
        except Exception as error:
            return {"outcome": "unclear", "error": f"{type(error).__name__}: {error}"[:400]}
        finite = all(bool(torch.isfinite(p).all()) for p in trainer.wrapped_model.parameters() if p.requires_grad)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return {"outcome": "finite" if finite and all(map(math.isfinite, losses)) else "late"}


def _trainer(case: dict[str, Any], folder: Path, inject: TrainerCallback) -> T5PeftTrainer:
    place, given = case["place"], case.get("given")
    rows: list[dict[str, Any]] = list(records())
    model: Any = METHODS[case.get("method", "lora")].wrap(tiny_t5())
    if place in ("class", "number"):
        options: dict[str, Any] = {"problem_type": "regression"} if place == "number" else {}
        model = tiny_classifier(num_labels=1 if place == "number" else 3, **options)
        rows = [{**row, "labels": 0.5 if place == "number" else 1} for row in rows]
        rows[4]["labels"] = given
    elif place == "label id":
        rows[4] = {**rows[4], "labels": [5, given, 1]}
    elif place == "input id":
        rows[4] = {**rows[4], "input_ids": [5, given, 1]}
    settings: dict[str, Any] = {"learning_rate": 1e-3} | ({place: given} if place in _SETTINGS else {})
    arguments = T5PeftTrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=3, save_steps=1, report_to="none", disable_tqdm=True,
        use_cpu=True, logging_steps=1, seed=1, fast_kernels=place != "activation", **settings,
    )  # fmt: skip
    return T5PeftTrainer(model, arguments, train_dataset=rows, callbacks=[inject])


_SETTINGS = ("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor")


def _judge(case: dict[str, Any], folder: Path, trainer: T5PeftTrainer, inject: _Inject, error: str) -> Line:
    step = case.get("step", 1)
    newest = newest_complete(folder)
    if case["place"] not in _SETTINGS:
        if trainer.state.global_step > step + (case["value"] == "overflow"):
            return {"outcome": "late", "reached": trainer.state.global_step}
        if step > 1 and (newest is None or int(newest.name.split("-")[-1]) < step - 1):
            return {"outcome": "damaged", "newest": str(newest)}
    if newest is not None:
        tensors = [tensor for path in newest.glob("*.safetensors") for tensor in load_file(path).values()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            return {"outcome": "damaged", "newest": newest.name}
    if case["place"] in NAMED and case["value"] != "overflow" and inject.name and _short(inject.name) not in error:
        return {"outcome": "unclear", "missing": inject.name}
    if case["place"] in ("gradient", "activation") and "by their indices in train_dataset: " not in error:
        return {"outcome": "unclear", "missing": "examples"}
    return {"outcome": "stopped"}


def _short(name: str) -> str:
    return name.rsplit(".", 1)[0].split("base_layer")[0].rstrip(".")


def campaign(cases: list[dict[str, Any]], minutes: float, outcomes: Path) -> Line:
    """Make the cases that have no outcome yet; return the counts."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    def make(number: int) -> Line:
        case = {key: value for key, value in cases[number].items() if key != "given"}
        return {"number": number, **case, **one(cases[number])}

    lines = go_on(outcomes, range(len(cases)), minutes, make)
    by_place: dict[str, Counter[str]] = {}
    for line in lines:
        by_place.setdefault(line["place"], Counter())[line["outcome"]] += 1
    return {
        "campaign": "non_finite",
        "cases": len(lines),
        "of": len(cases),
        "outcomes": dict(sorted(Counter(line["outcome"] for line in lines).items())),
        "by_place": {name: dict(sorted(counts.items())) for name, counts in sorted(by_place.items())},
        "faults": [line for line in lines if line["outcome"] in ("late", "unclear", "damaged")],
    }


def main() -> None:
    """Run the cases, print the counts, and write the record."""
    args = parse(__doc__ or "", "non_finite", len(CASES))
    report(campaign(CASES[: args.count], args.minutes, args.outcomes), args.record)


if __name__ == "__main__":
    main()
