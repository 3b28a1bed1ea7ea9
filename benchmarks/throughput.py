"""Training speed of t5peft against peft with Seq2SeqTrainer, alternating in one run, on real text lengths.

    python benchmarks/throughput.py                            # LoRA, 16 examples a step, six data sets
    python benchmarks/throughput.py --method prefix --data e2e sst2 --repeats 1
    python benchmarks/throughput.py --memory                   # peak memory of a step, one process a system
    python benchmarks/throughput.py --prediction               # rank and predict beside generate by Seq2SeqTrainer
    python benchmarks/throughput.py --losses                   # losses of 50 steps at dropout 0 beside the plain way's

A t5-small shape with random weights and the real T5 vocabulary: a step costs what it costs with a checkpoint. Systems:

* t5peft: `T5PeftTrainer` as it comes;
* peft: peft and `Seq2SeqTrainer` with `DataCollatorForSeq2Seq`, 16 examples a batch;
* peft-grouped: the same with `train_sampling_strategy="group_by_length"`.

Speed is counted in real tokens, source and target, without padding. Each repeat runs every system once over the same
examples; figures are medians, ratios are medians of the ratios within a repeat. Records go to benchmarks/records/speed/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from throughput_data import DATA_SETS, data_folder, load_features, load_tokenizer
from torch import nn
from transformers import Seq2SeqTrainer, T5Config, T5ForConditionalGeneration, TrainerCallback, logging

from t5peft import T5PeftTrainer, T5PeftTrainingArguments
from t5peft.backbone import t5_of
from t5peft.benchmark.machine import commit, machine, versions
from t5peft.benchmark.memory import MemoryMeter, return_freed_memory
from t5peft.benchmark.peers import PEERS, plain_trainer
from t5peft.evaluation import predict, rank
from t5peft.kernels.linear import product
from t5peft.methods import METHODS

SYSTEMS = ("t5peft", "peft", "peft-grouped")
RECORDS = Path(__file__).parent / "records" / "speed"
PEER_BATCH = 16
# Examples of a run: enough tokens that a step's length is the data's, few enough that a repeat takes minutes.
EXAMPLES = {"sst2": 256, "trec": 256, "rte": 64, "e2e": 64, "aeslc": 64, "dialogsum": 64}
Features = list[dict[str, list[int]]]


def new_model(method: str, system: str, vocabulary: int | None, dropout: float | None) -> nn.Module:
    """A t5-small with random weights, wrapped for `method` by the system's own wrap."""
    settings = json.loads((data_folder() / "t5_vocab" / "t5-small.config.json").read_text())
    settings |= {} if vocabulary is None else {"vocab_size": vocabulary}
    settings |= {} if dropout is None else {"dropout_rate": dropout}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config.from_dict(settings))
    if method == "full":
        return model
    torch.manual_seed(1)
    return METHODS[method].wrap(model) if system == "t5peft" else PEERS[f"peft-{method}"](model)


def new_trainer(
    system: str, model: nn.Module, features: Features, tokenizer: Any, args: argparse.Namespace, **more: Any
) -> Seq2SeqTrainer:
    """The system's trainer for one epoch over `features`."""
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
        "use_cpu": True,
        **more,
    }
    dataset = Dataset.from_list(features)
    if system == "t5peft":
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
        wall, processor = self.start
        self.seconds, self.processor_seconds = time.perf_counter() - wall, time.process_time() - processor


def matmul_flops_per_second() -> float:
    """Best speed of a matrix product of the model's own size, over torch's and oneDNN's."""
    x, weight = torch.randn(1024, 512), torch.randn(2048, 512)
    times = []
    for _ in range(12):
        for multiply in (torch.nn.functional.linear, product):
            start = time.perf_counter()
            multiply(x, weight)
            times.append(time.perf_counter() - start)
    return 2 * x.shape[0] * weight.numel() / min(times)


def lora_flops(config: T5Config, features: Features, rank: int = 16) -> float:
    """Arithmetic that a LoRA step on query and value must do: products of forward and backward pass, nothing padded.

    Input gradients stop at the embeddings; frozen weights have none. Multiplications and additions are counted apart.
    """
    h, inner, gated = config.d_model, config.num_heads * config.d_kv, config.is_gated_act
    square, forward_layers = 2 * h * inner, config.num_layers
    feed_forward = (3 if gated else 2) * 2 * h * config.d_ff
    adapters = (
        6 * rank * (h + inner)
    )  # of query and value together: forward, input gradient and both factors' gradients
    total = 0.0
    for feature in features:
        s, t = len(feature["input_ids"]), len(feature["labels"])
        both = 2 * (4 * square + feed_forward) + 2 * adapters
        encoder = forward_layers * (both * s + 12 * inner * s * s) - 3 * square * s
        self_attention = config.num_decoder_layers * (both * t + 12 * inner * t * t) - 3 * square * t
        per_target, per_source = 4 * square + adapters, 4 * square + adapters
        cross = config.num_decoder_layers * (per_target * t + per_source * s + 12 * inner * s * t)
        total += encoder + self_attention + cross + 4 * h * config.vocab_size * t
    return total


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Repeats of every system on every data set, alternating."""
    tokenizer = load_tokenizer()
    results = {}
    for name in args.data:
        features = load_features(name, tokenizer, min(EXAMPLES[name], args.limit or EXAMPLES[name]))
        tokens = sum(len(feature["input_ids"]) + len(feature["labels"]) for feature in features)
        runs = []
        for repeat in range(-1, args.repeats):
            used = features if repeat >= 0 else features[: args.examples]  # the first round only warms up
            run: dict[str, Any] = {"matmul_flops_per_second": matmul_flops_per_second()}
            for system in args.systems:
                span = Span()
                trainer = new_trainer(system, new_model(args.method, system, None, None), used, tokenizer, args)
                trainer.add_callback(span)
                trainer.train()
                run[system] = {"seconds": span.seconds, "processor_seconds": span.processor_seconds}
            run["matmul_flops_per_second"] = max(run["matmul_flops_per_second"], matmul_flops_per_second())
            if repeat >= 0:
                runs.append(run)
                print(
                    name, " ".join(f"{s} {tokens / run[s]['seconds']:.0f} tokens/s" for s in args.systems), flush=True
                )
        config = t5_of(trainer.model).config
        results[name] = {
            "examples": len(features),
            "tokens": tokens,
            "flops": lora_flops(config, features),
            "runs": runs,
        }
    return results


def median_ratio(result: dict[str, Any], peer: str, field: str) -> float:
    return statistics.median(run[peer][field] / run["t5peft"][field] for run in result["runs"])


def summarise(results: dict[str, Any], args: argparse.Namespace) -> str:
    """The table of a training run, one line a data set."""
    peers = [system for system in args.systems if system != "t5peft"]
    head = ["data set", *(f"{s} tokens/s" for s in args.systems), *(f"against {p}" for p in peers), "share of matmul"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, result in results.items():
        rates = [
            result["tokens"] / statistics.median(run[s]["seconds"] for run in result["runs"]) for s in args.systems
        ]
        ratios = [median_ratio(result, peer, "seconds") for peer in peers]
        share = statistics.median(
            result["flops"] / run["t5peft"]["seconds"] / run["matmul_flops_per_second"] for run in result["runs"]
        )
        cells = [name, *(f"{rate:.0f}" for rate in rates), *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} | {f'{share:.2f}' if args.method == 'lora' else ''} |")
    for field in ("seconds", "processor_seconds"):
        means = [
            statistics.geometric_mean([median_ratio(result, peer, field) for result in results.values()])
            for peer in peers
        ]
        cells = [f"geometric mean, {field}", *[""] * len(args.systems), *(f"{mean:.2f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} | |")
    return "\n".join(lines)


def memory_of(system: str, args: argparse.Namespace) -> None:
    """Print the peak resident bytes of three steps above those of the loaded model; for a process of its own."""
    return_freed_memory()
    tokenizer = load_tokenizer()
    features = load_features(args.data[0], tokenizer, 3 * args.examples)
    model = new_model(args.method, system, args.vocabulary, None)
    trainer = new_trainer(system, model, features, tokenizer, args)
    before = psutil.Process().memory_info().rss
    with MemoryMeter("cpu") as meter:
        trainer.train()
    print(json.dumps({"model_bytes": before, "peak_bytes": meter.peak_bytes, "above_bytes": meter.peak_bytes - before}))


def run_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory by system, data set and size of the vocabulary, each in a process of its own."""
    results: dict[str, Any] = {}
    for name in args.data:
        for vocabulary in (32_128, 250_112):
            cell = results.setdefault(name, {}).setdefault(str(vocabulary), {})
            for system in args.systems:
                command = [sys.executable, __file__, "--one-memory", system, "--data", name]
                command += ["--vocabulary", str(vocabulary), "--method", args.method, "--examples", str(args.examples)]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cell[system] = json.loads(done.stdout.splitlines()[-1])
            ratios = {p: cell["t5peft"]["above_bytes"] / cell[p]["above_bytes"] for p in args.systems if p != "t5peft"}
            print(
                name, vocabulary, {s: f"{c['above_bytes'] / 1e6:.0f} MB" for s, c in cell.items()}, ratios, flush=True
            )
    return results


def run_losses(args: argparse.Namespace) -> dict[str, Any]:
    """Losses of 50 steps at dropout 0: t5peft's beside those of the plain way, 16 examples a step, without accumulation."""
    tokenizer = load_tokenizer()
    results = {}
    args.examples = PEER_BATCH
    for name in args.data:
        features = load_features(name, tokenizer, 50 * PEER_BATCH)
        losses = {}
        for system in ("t5peft", "peft"):
            # Both are wrapped by ours: peft's own prefix is another method.
            model = new_model(args.method, "t5peft", None, 0.0)
            more = {"logging_strategy": "steps", "logging_steps": 1, "seed": 7}
            trainer = new_trainer(system, model, features, tokenizer, args, **more)
            trainer.train()
            losses[system] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        worst = max(abs(ours - plain) / plain for ours, plain in zip(losses["t5peft"], losses["peft"], strict=True))
        results[name] = {"losses": losses, "largest_relative_difference": worst}
        print(f"{name}: {len(losses['peft'])} steps, largest relative difference {worst:.1e}", flush=True)
    return results


def peer_predict(model: nn.Module, features: Features, tokenizer: Any, max_new_tokens: int) -> None:
    """Generation as users of `Seq2SeqTrainer` call it."""
    arguments = {
        "output_dir": tempfile.mkdtemp(),
        "predict_with_generate": True,
        "generation_max_length": max_new_tokens + 1,  # with the start token
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    plain_trainer(model, arguments, None, tokenizer).predict(Dataset.from_list(features))


def run_prediction(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of classifying SST-2 by `rank` and of summarising DialogSum by `predict`, beside the peer's generate.

    Weights are random and generation never ends by itself: a class is given the two tokens it has, a summary 48.
    """
    tokenizer = load_tokenizer()
    results = {}
    for name, examples, max_new_tokens in (("sst2", 128, 2), ("dialogsum", 32, 48)):
        features = load_features(name, tokenizer, examples, seed=1)
        sources = [feature["input_ids"] for feature in features]
        ours, peer = (new_model("lora", system, None, None).eval() for system in ("t5peft", "peft"))

        def predict_ours(
            name: str = name, sources: list[list[int]] = sources, model: nn.Module = ours, tokens: int = max_new_tokens
        ) -> None:
            if name == "sst2":
                rank(model, tokenizer, sources, ["negative", "positive"])
            else:
                predict(model, tokenizer, sources, max_new_tokens=tokens)

        runs = []
        for repeat in range(-1, args.repeats):
            run = {}
            for system in ("t5peft", "peft"):
                start = time.perf_counter(), time.process_time()
                if system == "t5peft":
                    predict_ours()
                else:
                    peer_predict(peer, features, tokenizer, max_new_tokens)
                run[system] = {
                    "seconds": time.perf_counter() - start[0],
                    "processor_seconds": time.process_time() - start[1],
                }
            if repeat >= 0:
                runs.append(run)
        results[name] = {"examples": examples, "max_new_tokens": max_new_tokens, "runs": runs}
        ratios = {
            field: f"{median_ratio(results[name], 'peft', field):.2f}" for field in ("seconds", "processor_seconds")
        }
        print(name, "peft over t5peft", ratios, flush=True)
    return results


RUNS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": run_training,
    "memory": run_memory,
    "losses": run_losses,
    "prediction": run_prediction,
}


def write(kind: str, args: argparse.Namespace, results: dict[str, Any]) -> Path:
    """The record of a run."""
    now = datetime.now(timezone.utc)
    record = {
        "kind": kind,
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/throughput.py", *sys.argv[1:]]),
        "method": args.method,
        "examples_per_step": args.examples,
        "commit": commit(),
        "versions": versions(),
        "machine": machine("cpu"),
        "load_average": psutil.getloadavg(),
        "results": results,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{kind}-{args.method}-{args.examples}-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora", choices=["lora", "prefix", "prompt", "full"])
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS), choices=list(DATA_SETS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--examples", type=int, default=16, help="examples of an optimizer step")
    parser.add_argument("--limit", type=int, default=None, help="most examples of a data set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=None, help="pieces; by default the tokenizer's")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--prediction", action="store_true")
    parser.add_argument("--one-memory", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.one_memory:
        memory_of(args.one_memory, args)
        return
    kind = next((kind for kind in RUNS if getattr(args, kind, False)), "training")
    results = RUNS[kind](args)
    print(write(kind, args, results))
    if kind == "training":
        print(summarise(results, args))


if __name__ == "__main__":
    main()
