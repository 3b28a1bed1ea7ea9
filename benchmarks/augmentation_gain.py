"""Measure the gain of augmentation with 100 training examples: accuracy with and without, over five seeds.

    python benchmarks/augmentation_gain.py        # about seven minutes; writes benchmarks/records/augmentation.json

Each seed draws its own 100 examples. All runs of a seed take the same steps from the same start, so what differs is the reworded
copies only. The test split is whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import set_seed

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, load_backbone, lora_wrap
from t5peft.benchmark.data import backbone_fingerprint
from t5peft.benchmark.environment import environment
from t5peft.benchmark.statistics import mean_std
from t5peft.benchmark.tables import fill_markers, markdown_table
from t5peft.data import Synonyms, WordDropout, WordSwap, augment, load_task
from t5peft.evaluation import evaluate_task

RECORD = Path(__file__).parent / "records" / "augmentation.json"
EXAMPLES, COPIES, STEPS, BATCH, LEARNING_RATE = 100, 2, 120, 16, 3e-3
KINDS: dict[str, Any] = {"synonyms": Synonyms, "word dropout": WordDropout, "word swap": WordSwap}


def accuracy(task: Any, records: Any, test: Any, seed: int) -> float:
    """LoRA at every linear map, tuned on ``records``."""
    set_seed(seed)
    backbone, tokenizer = load_backbone("mini")
    model = lora_wrap(backbone, target_modules="all-linear")
    with tempfile.TemporaryDirectory() as folder:
        arguments = T5PeftTrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        train = task.tokenize(records, tokenizer)
        T5PeftTrainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()
    return float(evaluate_task(model, tokenizer, task, test)["accuracy"])


def main() -> int:
    """Run every seed of every task and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["finance", "support_intent"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--readme", type=Path, help="Markdown file whose table `augmentation` is filled")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    results: dict[str, Any] = {}
    for name in args.tasks:
        task, data = load_task(name)
        scores: dict[str, list[float]] = {"plain": [], **{kind: [] for kind in KINDS}}
        changed: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for seed in args.seeds:
            few = Random(seed).sample(list(data["train"]), EXAMPLES)
            scores["plain"].append(accuracy(task, few, data["test"], seed))
            for kind, make in KINDS.items():
                augmented = augment(few, task, make(), copies=COPIES, seed=seed)
                changed[kind].append(dict(augmented.report.changed_words))
                scores[kind].append(accuracy(task, augmented.dataset, data["test"], seed))
            print(name, f"seed {seed}", {kind: round(values[-1], 3) for kind, values in scores.items()}, flush=True)
        results[name] = {"scores": scores, "share_of_words_changed": changed, "test_records": len(data["test"])}
        for kind in KINDS:
            gains = [more - plain for more, plain in zip(scores[kind], scores["plain"], strict=True)]
            results[name].setdefault("gains", {})[kind] = {
                "mean": round(statistics.fmean(gains), 4),
                "deviation": round(statistics.stdev(gains), 4) if len(gains) > 1 else None,
                "n": len(gains),
            }
            print(name, kind, results[name]["gains"][kind], flush=True)
    record = {
        "what": f"accuracy after tuning on {EXAMPLES} examples, plain and with {COPIES} reworded copies of each",
        "started": started,
        "backbone": "mini",
        "backbone_fingerprint": backbone_fingerprint("mini"),
        "method": "lora-all",
        "learning_rate": LEARNING_RATE,
        "steps": STEPS,
        "examples_per_step": BATCH,
        **environment("cpu"),
        "results": results,
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    if args.readme:
        fill_markers(args.readme, {"augmentation": table(record)})
    return 0


def table(record: dict[str, Any]) -> str:
    """Accuracy plain and augmented, mean and deviation over the seeds, with the gain of each seed's pair."""
    rows = []
    for task, result in record["results"].items():
        for kind, scores in result["scores"].items():
            gain = result["gains"].get(kind)
            change = "" if gain is None else f"{100 * gain['mean']:+.1f} ± {100 * (gain['deviation'] or 0):.1f}"
            rows.append([task, kind, mean_std(scores).text(1, 100.0), change])
    return markdown_table(["task", "training data", "accuracy", "gain"], rows, words=2)


if __name__ == "__main__":
    sys.exit(main())
