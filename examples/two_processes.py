"""Two processes share each optimizer step, with the loss and the evaluation of one process.

    torchrun --nproc-per-node 2 examples/two_processes.py
    accelerate launch --multi_gpu --num_processes 2 examples/two_processes.py        # the same, with or without GPUs
    python examples/two_processes.py                                                 # one process

``accelerate launch --cpu --num_processes 2`` silently starts one process.

Each step has the same 16 examples, however many processes share them. The loss is a sum over target tokens, divided by their
number over all processes. Steps are equal up to rounding, which grows over fifty steps of Adam: one process ended at a loss of
0.339393 and an accuracy of 0.705.

Time: about 20 s on 2 cores.
Last line: processes 2, evaluation loss 0.339422, accuracy 0.718, most frequent sentiment 0.302
Promise: processes >= 1; accuracy > 0.45; accuracy > most frequent sentiment

For T5 base and a data set of the hub change two lines:

    task, data = load_task("glue_sst2")
    backbone, tokenizer = load_backbone("google-t5/t5-base")
"""

from __future__ import annotations

import os
from collections import Counter

import torch
from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap, save_adapter
from t5peft.data import load_task
from t5peft.evaluation import evaluate_task

processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate launch
set_seed(0)
task, data = load_task("finance")
backbone, tokenizer = load_backbone("mini")
model = lora_wrap(backbone, target_modules="all-linear")

arguments = T5PeftTrainingArguments(
    "runs/two_processes",
    max_steps=50,
    per_device_train_batch_size=16 // processes,
    learning_rate=3e-3,
    use_cpu=not torch.cuda.is_available(),  # without it two processes on CPUs train without exchanging gradients
    logging_steps=20,
    save_strategy="no",
    disable_tqdm=True,
)
trainer = T5PeftTrainer(
    model,
    arguments,
    train_dataset=task.tokenize(data["train"], tokenizer),
    eval_dataset=task.tokenize(data["validation"], tokenizer),
    processing_class=tokenizer,
)
trainer.train()
loss = trainer.evaluate()["eval_loss"]

if trainer.is_world_process_zero():
    save_adapter(model, "runs/two_processes/adapter")
    accuracy = evaluate_task(model, tokenizer, task, data["test"])["accuracy"]
    labels = [task.target_text(record) for record in data["test"]]
    frequent = Counter(task.target_text(record) for record in data["train"]).most_common(1)[0][0]
    baseline = labels.count(frequent) / len(labels)
    print(
        f"processes {processes}, evaluation loss {loss:.6f}, accuracy {accuracy:.3f}, most frequent sentiment {baseline:.3f}"
    )
if processes > 1:
    torch.distributed.destroy_process_group()
