"""The systems that the throughput runs compare: a t5-small shape with random weights, wrapped and trained by each.

* t5peft: ``T5PeftTrainer`` as it comes; t5peft-int8: the same on an 8-bit backbone, only LoRA;
* peft: peft and ``Seq2SeqTrainer`` with ``DataCollatorForSeq2Seq``, 16 examples a batch;
* peft-grouped: the same with ``train_sampling_strategy="group_by_length"``;
* adapters: the ``adapters`` library, only LoRA, in a Python of its own (``--adapters-python``), see ``throughput_adapters.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from throughput_data import data_folder, load_tokenizer
from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer, T5Config, T5ForConditionalGeneration, TrainerCallback

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, qlora_wrap
from t5peft.benchmark.peers import PEERS, plain_trainer
from t5peft.methods import METHODS
from t5peft.planning.geometry import config_of

SYSTEMS = ("t5peft", "t5peft-int8", "peft", "peft-grouped", "adapters")
PEER_BATCH = 16
Features = list[dict[str, list[int]]]


def new_model(
    method: str,
    system: str,
    vocabulary: int | None = None,
    dropout: float | None = None,
    *,
    shape: str | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a T5 with random weights, wrapped for ``method`` by the system's own wrap; a t5-small where no shape is named."""
    if shape is None:
        settings = json.loads((data_folder() / "t5_vocab" / "t5-small.config.json").read_text())
    else:
        settings = config_of(shape).to_dict()
    settings |= {} if vocabulary is None else {"vocab_size": vocabulary}
    settings |= {} if dropout is None else {"dropout_rate": dropout}
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = T5ForConditionalGeneration(T5Config.from_dict(settings))
    if system == "t5peft-int8":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            load_tokenizer().save_pretrained(folder)
            model = load_backbone(folder, quantize="int8", dtype=torch.float32)[0]
    torch.manual_seed(1)
    if system == "t5peft-int8":
        return qlora_wrap(model, target_modules=("q", "v"))  # the maps of ``lora_wrap``
    if system.startswith("t5peft"):
        return METHODS[method].wrap(model)
    return model if method == "full" else PEERS[f"peft-{method}"](model)


def new_trainer(
    system: str, model: nn.Module, features: Features, tokenizer: Any, args: argparse.Namespace, **more: Any
) -> Seq2SeqTrainer:
    """Return the system's trainer for one epoch over ``features``."""
    arguments: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": min(PEER_BATCH, args.examples),
        "gradient_accumulation_steps": max(1, args.examples // PEER_BATCH),
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": args.device == "cpu",
        "bf16": args.device == "cuda",
        **more,
    }
    dataset = Dataset.from_list(features)
    if system.startswith("t5peft"):
        return T5PeftTrainer(
            model=model, args=T5PeftTrainingArguments(**arguments), train_dataset=dataset, processing_class=tokenizer
        )
    if system == "peft-grouped":
        arguments["train_sampling_strategy"] = "group_by_length"
    return plain_trainer(model, arguments, dataset, tokenizer)


class Span(TrainerCallback):
    """Wall and processor seconds from the first step's begin to the last one's end."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():  # what a step asked for is computed later
            torch.cuda.synchronize()
        wall, processor = self.start
        self.seconds, self.processor_seconds = time.perf_counter() - wall, time.process_time() - processor


def time_training(
    system: str, features: Features, tokenizer: Any, args: argparse.Namespace
) -> tuple[dict[str, float], nn.Module | None]:
    """Seconds of an epoch over ``features``, from the first step's begin to the last one's end, and the trained model."""
    if system == "adapters":
        return _time_adapters(features, args), None
    span = Span()
    model = new_model(args.method, system, shape=args.shape, device=args.device)
    trainer = new_trainer(system, model, features, tokenizer, args)
    trainer.add_callback(span)
    trainer.train()
    return {"seconds": span.seconds, "processor_seconds": span.processor_seconds}, trainer.model


def _time_adapters(features: Features, args: argparse.Namespace) -> dict[str, float]:
    """Return the same of the ``adapters`` library, in its own environment."""
    script = Path(__file__).with_name("throughput_adapters.py")
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(
            json.dumps(
                {"features": features, "examples": args.examples, "batch": PEER_BATCH, "threads": args.threads,
                 "vocabulary_folder": str(data_folder() / "t5_vocab"), "output": folder}
            )
        )  # fmt: skip
        done = subprocess.run([args.adapters_python, script, job], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
