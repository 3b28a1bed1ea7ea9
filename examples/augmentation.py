"""Augmentation: what reworded copies bring where there are only 100 training examples.

    python examples/augmentation.py

Words are replaced by synonyms of a thesaurus, and some are left out; the target and the template stay. Both runs take
the same number of steps, so the gain is not that of longer training. Two seeds say little: `benchmarks/` has five.

Time: about 45 s on 2 cores.
Last line: accuracy X, augmented X, gain X, most frequent sentiment 0.302
Promise: gain > -0.2; augmented > 0.3

For T5 base and a data set of the hub change two lines:

    task, data = load_task("glue_sst2")
    BACKBONE = "google-t5/t5-base"
"""

from __future__ import annotations

from collections import Counter
from random import Random

from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.evaluation import evaluate_task
from t5peft.tasks import Synonyms, WordDropout, augment, load_task

task, data = load_task("finance")
BACKBONE = "mini"
SEEDS = (0, 1)

accuracies = {"plain": [], "augmented": []}
for seed in SEEDS:
    few = Random(seed).sample(data["train"], 100)
    synonyms = augment(few, task, Synonyms(), copies=2, seed=seed)
    dropout = augment(few, task, WordDropout(), copies=2, seed=seed)
    print(synonyms.report, dropout.report, sep="\n")
    copies = [record for more in (synonyms, dropout) for record in more.dataset if record["copy"]]
    for name, records in (("plain", few), ("augmented", [*few, *copies])):
        set_seed(seed)
        model, tokenizer = load_backbone(BACKBONE)
        model = lora_wrap(model, targets="all-linear")
        arguments = T5PeftTrainingArguments(
            f"runs/augmentation/{name}-{seed}",
            max_steps=40,
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

plain, augmented = (sum(values) / len(SEEDS) for values in accuracies.values())
labels = [task.target_text(record) for record in data["test"]]
frequent = Counter(task.target_text(record) for record in data["train"]).most_common(1)[0][0]
baseline = labels.count(frequent) / len(labels)
print(
    f"accuracy {plain:.3f}, augmented {augmented:.3f}, gain {augmented - plain:.3f}, most frequent sentiment {baseline:.3f}"
)
