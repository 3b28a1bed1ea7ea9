"""Training speed of t5peft against peft with Seq2SeqTrainer, alternating in one run, on real text lengths.

    python benchmarks/throughput.py                            # LoRA, 16 examples a step, six data sets
    python benchmarks/throughput.py --method prefix --data e2e sst2 --repeats 1
    python benchmarks/throughput.py --memory                   # peak memory of a step, one process a system
    python benchmarks/throughput.py --prediction               # rank and predict beside generate by Seq2SeqTrainer
    python benchmarks/throughput.py --losses                   # losses of 50 steps at dropout 0 beside the plain way's
    python benchmarks/throughput.py --systems t5peft t5peft-int8    # 8 bits against fp32
    python benchmarks/throughput.py --shapes t5-base t5-3b --device cuda --record benchmarks/records/gpu.json    # as make gpu

A t5-small shape with random weights and the real T5 vocabulary: a step costs what it costs with a checkpoint. The systems stand in
``throughput_systems.py``.

Speed is counted in real tokens, source and target, without padding. Each repeat runs every system once over the same
examples; figures are medians, ratios are medians of the ratios within a repeat. Records go to records/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from throughput_checks import memory_of, run_losses, run_memory, run_prediction, run_shapes
from throughput_data import DATA_SETS, load_features, load_tokenizer
from throughput_systems import SYSTEMS, Features, time_training
from throughput_tables import RECORDS, TABLES
from transformers import T5Config, logging

from t5peft.benchmark.environment import environment
from t5peft.benchmark.json_lines import JsonLines
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.kernels.linear import product

# Examples of a run: enough tokens that a step's length is the data's, few enough that a repeat takes minutes.
EXAMPLES = {"sst2": 256, "trec": 256, "rte": 64, "e2e": 64, "aeslc": 32, "dialogsum": 32}


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
    decoder_layers = config.num_decoder_layers or config.num_layers
    total = 0.0
    for feature in features:
        s, t = len(feature["input_ids"]), len(feature["labels"])
        both = 2 * (4 * square + feed_forward) + 2 * adapters
        encoder = forward_layers * (both * s + 12 * inner * s * s) - 3 * square * s
        self_attention = decoder_layers * (both * t + 12 * inner * t * t) - 3 * square * t
        per_target, per_source = 4 * square + adapters, 4 * square + adapters
        cross = decoder_layers * (per_target * t + per_source * s + 12 * inner * s * t)
        total += encoder + self_attention + cross + 4 * h * config.vocab_size * t
    return total


def run_training(args: argparse.Namespace) -> dict[str, Any]:
    """Repeats of every system on every data set, alternating."""
    tokenizer = load_tokenizer()
    results: dict[str, Any] = {}
    config: Any = None
    for name in args.data:
        features = load_features(name, tokenizer, max(args.examples, min(EXAMPLES[name], args.limit or EXAMPLES[name])))
        tokens = sum(len(feature["input_ids"]) + len(feature["labels"]) for feature in features)
        runs = []
        for repeat in range(-1, args.repeats):
            used = features if repeat >= 0 else features[: args.examples]  # the first round only warms up
            run: dict[str, Any] = {"matmul_flops_per_second": matmul_flops_per_second()}
            for system in args.systems:
                run[system], model = time_training(system, used, tokenizer, args)
                config = config if model is None else unwrap_t5(model).config
            run["matmul_flops_per_second"] = max(run["matmul_flops_per_second"], matmul_flops_per_second())
            if repeat >= 0:
                runs.append(run)
                print(
                    name, " ".join(f"{s} {tokens / run[s]['seconds']:.0f} tokens/s" for s in args.systems), flush=True
                )
        assert config is not None  # t5peft is always among the systems
        results[name] = {
            "examples": len(features),
            "tokens": tokens,
            "flops": lora_flops(config, features),
            "runs": runs,
        }
    return results


RUNS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "training": run_training,
    "memory": run_memory,
    "losses": run_losses,
    "prediction": run_prediction,
    "shapes": run_shapes,
}


def write(kind: str, args: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """Append the record of a run, and return it."""
    now = datetime.now(UTC)
    record = {
        "kind": kind,
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/throughput.py", *sys.argv[1:]]),
        "method": args.method,
        "examples_per_step": args.examples,
        **environment(args.device),
        "load_average": psutil.getloadavg(),
        "results": results,
    }
    if args.record is None:
        JsonLines(RECORDS).append(json.dumps(record))
    else:
        args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora", choices=["lora", "prefix", "prompt", "full"])
    parser.add_argument("--data", nargs="+", default=list(DATA_SETS), choices=list(DATA_SETS))
    parser.add_argument("--systems", nargs="+", default=["t5peft", "peft", "peft-grouped"], choices=SYSTEMS)
    parser.add_argument("--adapters-python", help="interpreter of an environment that has the adapters library")
    parser.add_argument("--examples", type=int, default=16, help="examples of an optimizer step")
    parser.add_argument("--limit", type=int, default=None, help="most examples of a data set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=None, help="pieces; by default the tokenizer's")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--losses", action="store_true")
    parser.add_argument("--prediction", action="store_true")
    parser.add_argument(
        "--shapes", nargs="+", metavar="NAME", help="made-up examples at the shapes of these checkpoints, or mini"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="with --shapes: bf16 on cuda")
    parser.add_argument("--record", type=Path, help="a file of this record only, in place of records/speed.jsonl")
    parser.set_defaults(shape=None)
    parser.add_argument("--one-memory", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if "t5peft" not in args.systems and not args.one_memory:
        parser.error("--systems must hold t5peft, which the others are compared with")
    if args.device == "cuda" and not args.shapes:
        parser.error("--device cuda needs --shapes")
    if "adapters" in args.systems and not args.adapters_python:
        parser.error("the system adapters needs --adapters-python")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    if args.one_memory:
        memory_of(args.one_memory, args)
        return
    kind = next((kind for kind in RUNS if getattr(args, kind, False)), "training")
    record = write(kind, args, RUNS[kind](args))
    print(f"{TABLES[kind](record)}\n\nrecord: {args.record or RECORDS}")


if __name__ == "__main__":
    main()
