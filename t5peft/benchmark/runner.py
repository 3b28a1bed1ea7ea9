"""One run: load, wrap, train, score. It always returns a record.

The scored weights are those of the last step, for every method alike. Evaluations on the way are for the learning curve
only, and their time and memory are left out of the measurements.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    set_seed,
)

from t5peft.benchmark.baselines import is_baseline
from t5peft.benchmark.data import load_data
from t5peft.benchmark.environment import environment
from t5peft.benchmark.memory import MemoryMeter, Stopwatch, return_freed_memory, trim_heap
from t5peft.benchmark.peers import PEERS, plain_trainer
from t5peft.benchmark.process import OnProgress
from t5peft.benchmark.records import RunConfig, RunRecord
from t5peft.evaluation import EvaluationSet, merged
from t5peft.evaluation.baselines import constant_answer, copied_answers
from t5peft.methods import METHODS
from t5peft.methods.base import has_peft_prompt
from t5peft.models.backbone import load_backbone
from t5peft.models.embedded import resolve_backbone
from t5peft.models.unwrap import unwrap_t5
from t5peft.training import T5PeftTrainer, T5PeftTrainingArguments
from t5peft.training.micro_batches import ran_out_of_memory

BACKBONE_OPTIONS = ("quantize", "quantize_wo")  # of a suite's ``options``, those of ``load_backbone``
TRAINING_OPTIONS = ("activation_cache_bytes", "lora_plus_ratio")  # and those of the trainer's arguments
LATENCY_SOURCES = 3
LATENCY_TOKENS = 16


def run(config: RunConfig, on_progress: OnProgress) -> RunRecord:
    """Return the record of one run; out of memory, divergence and failure are outcomes with their reason.

    Args:
        config: The run.
        on_progress: Called after each step.
    """
    started = time.perf_counter()
    return_freed_memory()
    record: RunRecord = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **environment(config.device)}
    try:
        record |= _baseline(config) if is_baseline(config.method) else _Run(config, on_progress).result()
        record["outcome"] = "finished"
    except FloatingPointError as error:
        record |= {"outcome": "diverged", "reason": _first_line(error)}
    except Exception as error:  # a fault in one run must not end the suite: it becomes a row that says so
        traceback.print_exc()
        if ran_out_of_memory(error):
            record |= {"outcome": "out_of_memory", "reason": _first_line(error)}
        else:
            record |= {"outcome": "failed", "reason": f"{type(error).__name__}: {_first_line(error)}"}
    record.setdefault("seconds", {})["total"] = round(time.perf_counter() - started, 2)
    return record


def _baseline(config: RunConfig) -> RunRecord:
    """Return the scores of a baseline on the test split."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(config.backbone))
    task, splits = load_data(config.data, config.limits)
    test = EvaluationSet(task, splits["test"], tokenizer, _new_tokens(config))
    if config.method == "untuned":
        backbone: nn.Module = load_backbone(config.backbone)[0]
        scored = test.score(backbone.to(config.device))
    elif config.method == "copy":
        scored = test.score_answers(copied_answers(test))
    else:
        scored = test.score_answers([constant_answer(task, splits["train"], tokenizer)] * len(test.features))
    return {
        "metric": test.lead,
        "scores": {"test": scored.scores},
        "test_score_by_example": list(scored.per_example),
        "example_metric": scored.example_metric,
    }


def _new_tokens(config: RunConfig) -> int | None:
    """Return the most tokens of an answer; ``generation_max_length`` counts the start token too, as in transformers."""
    length = config.training_options.get("generation_max_length")
    return None if length is None else length - 1


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class _Counted(Dataset[dict[str, Any]]):
    """Features that count the tokens of the examples they return, without padding."""

    def __init__(self, features: list[dict[str, Any]]) -> None:
        self.features = features
        self.examples = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        feature = self.features[index]
        self.examples += 1
        self.tokens += len(feature["input_ids"]) + len(feature["labels"])
        return feature


class _Watch(TrainerCallback):
    """Times the steps, and scores validation at the points of the learning curve while clock and meter are paused."""

    def __init__(
        self, config: RunConfig, validation: EvaluationSet, meter: MemoryMeter, on_progress: OnProgress
    ) -> None:
        self.config, self.validation, self.meter, self.on_progress = config, validation, meter, on_progress
        points = max(1, config.evaluations)
        self.points = {round(config.steps * k / points) for k in range(1, points + 1)}
        self.clock = Stopwatch()
        self.step_seconds: list[float] = []
        self.curve: list[dict[str, float]] = []
        self.losses: list[dict[str, float]] = []
        self._step_start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.clock = Stopwatch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start a step."""
        self._step_start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """End a step, and score validation at a point of the curve."""
        self.step_seconds.append(time.perf_counter() - self._step_start)
        self.clock.pause()
        trim_heap()
        self.clock.resume()
        self.on_progress(state.global_step, self.config.steps)
        if state.global_step in self.points:
            self.clock.pause()
            self.meter.pause()
            self.score(model, state.global_step)
            trim_heap()
            self.meter.resume()
            self.clock.resume()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the training loss."""
        if logs and "loss" in logs:
            self.losses.append({"step": state.global_step, "loss": round(float(logs["loss"]), 5)})

    def score(self, model: nn.Module, step: int) -> None:
        """Add a point to the learning curve.

        Raises:
            FloatingPointError: The loss on validation is not finite.
        """
        loss = self.validation.loss(model)
        if not math.isfinite(loss):
            raise FloatingPointError(f"The loss on validation is {loss} after step {step}. Lower the learning rate.")
        scores = self.validation.score(model).scores
        point = {"step": step, "seconds": round(self.clock.seconds(), 3), "loss": round(loss, 5)}
        self.curve.append(point | {name: round(value, 5) for name, value in scores.items()})


class _Run:
    """One run in this process, with its memory meter."""

    def __init__(self, config: RunConfig, on_progress: OnProgress) -> None:
        self.config, self.on_progress = config, on_progress
        self.meter = MemoryMeter(config.device)
        self.libraries_bytes = self.meter.now_bytes()
        self.base_bytes = self.libraries_bytes

    def result(self) -> RunRecord:
        """Train and score, and return the measurements of the finished run."""
        config = self.config
        set_seed(config.seed)
        tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(config.backbone))
        train, validation, test = self._data(tokenizer)
        gc.collect()
        trim_heap()
        self.base_bytes = self.meter.now_bytes()
        set_seed(config.seed)
        model = self._model(train)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        watch = _Watch(config, validation, self.meter, self.on_progress)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(model, train, tokenizer, folder, watch)
            with self.meter:
                trainer.train()
            stored_bytes = _stored_bytes(model, Path(folder))
        scored_start = time.perf_counter()
        scored = test.score(model)
        test_seconds = time.perf_counter() - scored_start
        return {
            "metric": validation.lead,
            "scores": {"validation": _without_position(watch.curve[-1]), "test": scored.scores},
            "validation_loss": watch.curve[-1]["loss"],
            "test_score_by_example": list(scored.per_example),
            "example_metric": scored.example_metric,
            "curve": watch.curve,
            "train_losses": watch.losses,
            "examples": {"train": len(train), "validation": len(validation.features), "test": len(test.features)},
            "parameters": {
                "trainable": sum(parameter.numel() for parameter in trained),
                "trainable_bytes": sum(parameter.nbytes for parameter in trained),
                "stored_bytes": stored_bytes,
            },
            "memory": self._memory(),
            "seconds": _seconds(watch, validation.lead) | {"test_scoring": round(test_seconds, 3)},
            "tokens_per_second": round(_trained_tokens(train, config) / sum(watch.step_seconds), 1),
            "latency": _latency(model, test),
        }

    def _memory(self) -> dict[str, int]:
        return {
            "peak_bytes": self.meter.peak_bytes,
            "mean_bytes": self.meter.mean_bytes,
            "left_by_evaluation_bytes": self.meter.left_bytes,
            "libraries_bytes": self.libraries_bytes,
            "libraries_and_data_bytes": self.base_bytes,
            "peak_above_libraries_and_data_bytes": self.meter.peak_bytes - self.base_bytes,
            "mean_above_libraries_and_data_bytes": self.meter.mean_bytes - self.base_bytes,
        }

    def _data(self, tokenizer: PreTrainedTokenizerBase) -> tuple[_Counted, EvaluationSet, EvaluationSet]:
        """Tokenize the splits; of a long training split, as many examples as the steps use, the same for every method."""
        config = self.config
        task, splits = load_data(config.data, config.limits)
        records, needed = splits["train"], config.steps * config.examples_per_step
        if len(records) > needed:
            records = random.Random(config.seed).sample(records, needed)
        train = _Counted(task.tokenize(records, tokenizer).to_list())
        new_tokens = _new_tokens(config)
        validation, test = (EvaluationSet(task, splits[name], tokenizer, new_tokens) for name in ("validation", "test"))
        return train, validation, test

    def _model(self, train: _Counted) -> nn.Module:
        config = self.config
        method = METHODS.get(config.method)
        options = {name: value for name, value in config.method_options.items() if name not in TRAINING_OPTIONS}
        loading: dict[str, Any] = {"quantize": method.quantize if method else None}
        loading |= {name: options.pop(name) for name in BACKBONE_OPTIONS if name in options}
        model, _ = load_backbone(config.backbone, **loading)
        if method is None:
            return PEERS[config.method](model, **options).to(config.device)
        wrapped: nn.Module = method.wrap_for(model, train.features, options)
        return wrapped.to(config.device)

    def _trainer(
        self, model: nn.Module, train: _Counted, tokenizer: PreTrainedTokenizerBase, folder: str, watch: _Watch
    ) -> Seq2SeqTrainer:
        config = self.config
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": config.steps,
            "per_device_train_batch_size": config.examples_per_step,
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": max(1, config.steps // 20),
            "logging_steps": max(1, config.steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": config.seed,
            "dataloader_drop_last": len(train) >= config.examples_per_step,
            "dataloader_pin_memory": config.device == "cuda",
            "use_cpu": config.device == "cpu",
        } | dict(config.training_options)
        arguments |= {name: config.method_options[name] for name in TRAINING_OPTIONS if name in config.method_options}
        if config.method in PEERS:
            assert isinstance(model, PeftModel)  # as each baseline returns
            return plain_trainer(model, arguments, train, tokenizer, callbacks=[watch])
        return T5PeftTrainer(
            model=model,
            args=T5PeftTrainingArguments(**arguments),
            train_dataset=train,
            processing_class=tokenizer,
            callbacks=[watch],
        )


def _without_position(point: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in point.items() if name not in ("step", "seconds", "loss")}


def _seconds(watch: _Watch, lead: str) -> dict[str, float]:
    best = max(watch.curve, key=lambda point: (point[lead], -point["step"]))
    return {
        "step_median": round(statistics.median(watch.step_seconds), 5),
        "step_mean": round(statistics.fmean(watch.step_seconds), 5),
        "to_best": best["seconds"],
    }


def _trained_tokens(train: _Counted, config: RunConfig) -> float:
    """Count the tokens of all steps from the mean of the examples used, because the loader reads one batch ahead."""
    return train.tokens / max(1, train.examples) * config.steps * min(len(train), config.examples_per_step)


def _stored_bytes(model: nn.Module, folder: Path) -> int:
    target = folder / "stored"
    model.save_pretrained(target)  # type: ignore[operator]
    return sum(path.stat().st_size for path in target.rglob("*.safetensors"))


def _latency(model: nn.Module, test: EvaluationSet) -> dict[str, Any]:
    """Measure the median seconds for one example of exactly LATENCY_TOKENS new tokens, unmerged and merged."""
    sources = [feature["input_ids"] for feature in test.features[:LATENCY_SOURCES]]
    found: dict[str, Any] = {"new_tokens": LATENCY_TOKENS, "seconds": _generate_seconds(model, sources)}
    with torch.no_grad(), merged(model) as any_merged:
        found["merged_seconds"] = _generate_seconds(model, sources) if any_merged else None
    if not any_merged:
        found["merged_reason"] = "this adapter cannot be merged into these weights"
    return found


def _generate_seconds(model: nn.Module, sources: list[list[int]]) -> float:
    t5 = unwrap_t5(model)
    own = has_peft_prompt(model)
    model.eval()
    seconds = []
    with torch.no_grad():
        for source in [sources[0], *sources]:  # the first warms up
            inputs = torch.tensor([source], device=t5.device)
            start = time.perf_counter()
            (model if own else t5).generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=LATENCY_TOKENS,
                min_new_tokens=LATENCY_TOKENS,
                num_beams=1,
                do_sample=False,
            )
            seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 5)
