"""One epoch of the ``adapters`` library's LoRA, timed; run by ``throughput.py`` with the Python of an environment that has it.

    python -m venv adapters && adapters/bin/pip install torch adapters datasets accelerate
    python benchmarks/throughput.py --systems t5peft peft adapters --adapters-python adapters/bin/python

The library needs an older transformers than t5peft, so nothing of t5peft is imported here.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import adapters
import torch
from adapters import LoRAConfig, Seq2SeqAdapterTrainer
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)


class Span(TrainerCallback):
    """Wall and processor seconds from the first step's begin to the last one's end."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wall, processor = self.start
        self.found = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    folder = Path(job["vocabulary_folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config.from_dict(json.loads((folder / "t5-small.config.json").read_text())))
    adapters.init(model)
    model.add_adapter("lora", config=LoRAConfig(r=16, alpha=32, attn_matrices=["q", "v"]))
    model.train_adapter("lora")
    trainer = Seq2SeqAdapterTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=job["output"],
            per_device_train_batch_size=min(job["batch"], job["examples"]),
            gradient_accumulation_steps=max(1, job["examples"] // job["batch"]),
            num_train_epochs=1,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(job["features"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    trainer.model_accepts_loss_kwargs = False  # its model takes any, T5 within it does not: training would raise
    span = Span()
    trainer.add_callback(span)
    trainer.train()
    print(json.dumps(span.found))


if __name__ == "__main__":
    main()
