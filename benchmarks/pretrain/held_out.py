r"""Records on held-out text: losses of a pretraining run, of the same shape untrained and of a unigram model; answers to its tasks.

    python benchmarks/pretrain/held_out.py --run RUN [RUN ...] --held-out wikitext2_eval/valid.txt \
        --tokens RUN/tokens --backbone mini --output benchmarks/records/pretrain

Losses are nats a target token of span corruption (or divided by ln 2, bits) over the same corrupted rows as the run's own
log. The unigram model knows how often each token stands in targets of the training text (add-one smoothing); what it
knows of the rows is nothing else. The tasks are those that pretraining mixes in, where the answer is a word.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from t5peft.benchmark.environment import environment
from t5peft.models.backbone import load_backbone
from t5peft.pretraining import (
    PretrainConfig,
    Pretrainer,
    SelfSupervised,
    Shape,
    TokenStore,
    new_model,
    open_store,
    write_store,
)
from t5peft.pretraining.selfsupervised import TASKS
from t5peft.pretraining.text import read_documents

HELD_OUT_ROWS = 256
UNIGRAM_BATCHES = 400
TASK_PAIRS = 300
TASKS_OF_A_WORD = (
    "choose", "kind", "find", "strange", "follows", "order", "same", "rte sentence1", "cola sentence",
    "sst2 sentence", "trec question",
)  # fmt: skip


def main() -> None:
    """Write held_out.json and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folders with a log.jsonl, in their order")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="token store of the training text")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--source-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/records/pretrain"))
    args = parser.parse_args()

    model, tokenizer = load_backbone(args.backbone)
    store = open_store(args.tokens, tokenizer)
    scratch = tempfile.TemporaryDirectory()
    held_out = write_store(list(read_documents([args.held_out])), tokenizer, Path(scratch.name))
    config = PretrainConfig(source_tokens=args.source_tokens, rows=32)
    untrained = new_model(tokenizer, Shape())

    def loss(t5: Any) -> float:
        return Pretrainer(t5, tokenizer, store, config, args.output, held_out=held_out).held_out_loss(
            rows=HELD_OUT_ROWS
        )

    losses = {
        "backbone": loss(model),
        "untrained": loss(untrained),
        "unigram": unigram_loss(Pretrainer(untrained, tokenizer, store, config, args.output), held_out),
    }
    record = {
        "what": "held-out loss of span corruption, nats a target token",
        "held_out": f"{args.held_out.parent.name}/{args.held_out.name}",
        "source_tokens": args.source_tokens,
        "rows": HELD_OUT_ROWS,
        "losses": {name: round(value, 4) for name, value in losses.items()},
        "gain_bits_per_token": {
            name: round((losses[name] - losses["backbone"]) / math.log(2), 3) for name in ("untrained", "unigram")
        },
        "share_of_right_answers": right_answers(model, SelfSupervised(held_out, tokenizer)),
        "pairs_of_each_task": TASK_PAIRS,
        "curve": curve(args.run),
        **environment("cpu"),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "held_out.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps({key: record[key] for key in ("losses", "gain_bits_per_token", "share_of_right_answers")}, indent=1)
    )


@torch.no_grad()
def right_answers(model: PreTrainedModel, tasks: SelfSupervised) -> dict[str, float]:
    """For each task the share of answers whose every token is the likeliest after those before it."""
    model.eval()
    shares = {}
    for name in TASKS_OF_A_WORD:
        right = 0
        for number in range(TASK_PAIRS):
            source, target = TASKS[name][0](tasks, np.random.default_rng(number))
            source, target = [*tasks.heading[name], *source, tasks.eos], [*target, tasks.eos]
            logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
            right += logits.argmax(-1).tolist() == target
        shares[name] = round(right / TASK_PAIRS, 3)
    return shares


def curve(runs: list[Path]) -> list[dict[str, float | str]]:
    """Points of held-out loss over all tokens seen so far, from the logs of runs that began where the one before ended."""
    points, before = [], 0
    for run in runs:
        entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        points += [
            {"tokens_seen": before + entry["tokens_seen"], "held_out_loss": entry["held_out_loss"], "run": run.name}
            for entry in entries
            if "held_out_loss" in entry
        ]
        before += entries[-1]["tokens_seen"]
    return points


def unigram_loss(pretrainer: Pretrainer, held_out: TokenStore) -> float:
    """Cross-entropy of held-out targets under the token frequencies of training targets."""
    size = len(pretrainer.tokenizer)
    counts = np.ones(size)
    for step in range(UNIGRAM_BATCHES):
        counts += np.bincount(_targets(pretrainer, pretrainer.store, step), minlength=size)
    log_probability = np.log(counts / counts.sum())
    rows = range(HELD_OUT_ROWS // pretrainer.config.rows)
    return float(np.mean([-log_probability[_targets(pretrainer, held_out, step)].mean() for step in rows]))


def _targets(pretrainer: Pretrainer, store: TokenStore, step: int) -> np.ndarray:
    pretrainer.store = store
    labels: torch.Tensor = pretrainer.groups(step)[0][0]["labels"]
    return labels[labels >= 0].numpy()


if __name__ == "__main__":
    main()
