"""Augmentation: measure the gain of reworded copies with only 100 training examples.

    python examples/augmentation.py

Synonyms of a thesaurus replace words; the target and the template stay. Both runs take the same number of steps, so they
differ only in the copies. A small thesaurus changes a tenth of the words. Over several seeds no kind of rewording gains
(benchmarks/RESULTS.md). Measure with several seeds before you decide.

Time: about 50 s on 2 cores.
Last line: accuracy 0.658, augmented 0.691, gain 0.034, most frequent sentiment 0.302
Promise: augmented > 0.45; gain > -0.15; gain < 0.15

For T5 base and a data set of the hub change two lines:

    task, data = load_task("glue_sst2")
    BACKBONE = "google-t5/t5-base"
"""

from __future__ import annotations

from collections import Counter
from random import Random

from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.data import Synonyms, augment, load_task
from t5peft.evaluation import evaluate_task

task, data = load_task("finance")
BACKBONE = "mini"
SEEDS = (0, 1)

accuracies: dict[str, list[float]] = {"plain": [], "augmented": []}
for seed in SEEDS:
    few = Random(seed).sample(data["train"], 100)
    augmented = augment(few, task, Synonyms(), copies=2, seed=seed)
    print(augmented.report)
    for name, records in (("plain", few), ("augmented", augmented.dataset)):
        set_seed(seed)
        backbone, tokenizer = load_backbone(BACKBONE)
        model = lora_wrap(backbone, target_modules="all-linear")
        arguments = T5PeftTrainingArguments(
            f"runs/augmentation/{name}-{seed}",
            max_steps=80,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=20,
            save_strategy="no",
            disable_tqdm=True,
        )
        train = task.tokenize(records, tokenizer)
        T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()
        accuracies[name].append(evaluate_task(model, tokenizer, task, data["test"])["accuracy"])
        print(f"seed {seed}, {len(train)} examples: accuracy {accuracies[name][-1]:.3f}")

plain, more = (sum(values) / len(SEEDS) for values in accuracies.values())
labels = [task.target_text(record) for record in data["test"]]
frequent = Counter(task.target_text(record) for record in data["train"]).most_common(1)[0][0]
baseline = labels.count(frequent) / len(labels)
print(f"accuracy {plain:.3f}, augmented {more:.3f}, gain {more - plain:.3f}, most frequent sentiment {baseline:.3f}")
