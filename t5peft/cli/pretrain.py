"""``t5peft pretrain``: span corruption or prefix language modelling on text files, from new weights or any T5."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration

from t5peft.models.backbone import load_backbone
from t5peft.pretraining.embeddings import pmi_embeddings
from t5peft.pretraining.init import Shape, matmul_flops_per_second, new_model, step_flops
from t5peft.pretraining.matching_head import set_matching_head
from t5peft.pretraining.optimizers import LEARNING_RATES
from t5peft.pretraining.pretrainer import STATE_FILE, PretrainConfig, Pretrainer
from t5peft.pretraining.text import read_documents
from t5peft.pretraining.tokenizer import save_tokenizer, train_tokenizer
from t5peft.pretraining.tokens import TokenStore, shuffled_documents, store_of_files, write_store

EPILOG = """
A new model:           t5peft pretrain --text *.txt.xz --output runs/mini --optimizer muon --task-rows 48 --steps 20000
On your own domain:    t5peft pretrain --text notes.txt --output runs/notes --backbone google/flan-t5-small
LM adaptation:         t5peft pretrain --text *.txt --output runs/lm --backbone mini --objective prefix
Called again with the same --output, a run resumes where it stopped. The result lies in OUTPUT/model.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default = PretrainConfig()
    add = parser.add_argument
    add("--text", nargs="+", required=True, help="UTF-8 files, plain, .xz, .gz or .bz2; blank lines between documents")
    add("--output", type=Path, required=True, help="folder for vocabulary, tokens, state, log and model")
    add("--backbone", help="continue from mini, a hub name or a folder; default: new weights and a new vocabulary")
    add("--held-out", type=Path, help="text file for the held-out loss")
    add(
        "--vocabulary",
        type=int,
        default=_NEW["vocabulary"],
        help="pieces of a new vocabulary, bytes and sentinels included",
    )
    add(
        "--vocabulary-share",
        type=float,
        default=_NEW["vocabulary_share"],
        help="share of the text to train it on",
    )
    add("--embeddings", choices=["pmi", "random"], default=_NEW["embeddings"], help="start of a new model's table")
    add("--matching-head", action="store_true", help="let one head start by looking for the same piece elsewhere")
    for name, value in vars(Shape()).items():
        add(f"--{name.replace('_', '-')}", type=int, default=value, help="of a new model")
    for name in _CONFIG_NUMBERS:
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    add(
        "--valences", help="file of words and valences (word<TAB>number), say VADER's, for the task of praise and blame"
    )
    add("--objective", choices=["spans", "prefix"], default=default.objective)
    add("--optimizer", choices=list(LEARNING_RATES), default=default.optimizer)
    add("--learning-rate", type=float, help=f"default: {LEARNING_RATES}")
    add("--precision", choices=["fp32", "bf16"], default=default.precision, help="of matrix products")
    add("--seconds", type=float, help="stop and save after so long")
    add("--save-dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights in OUTPUT/model")


# Options of a new model, and their defaults.
_NEW = {"vocabulary": 8192, "vocabulary_share": 0.08, "embeddings": "pmi", **vars(Shape())}
_CONFIG_NUMBERS = (
    "source_tokens",
    "rows",
    "micro_batches",
    "task_rows",
    "warmup",
    "decay_start_step",
    "steps",
    "cooldown",
    "seed",
    "log_every",
    "eval_every",
    "save_every",
)


def run(args: argparse.Namespace) -> int:
    """Trains, and writes OUTPUT/model."""
    _check_new(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = _tokenizer(args)
    store = store_of_files(args.text, tokenizer, args.output / "tokens", seed=args.seed)
    model = _model(args, tokenizer, store).to(device)
    if args.matching_head:  # resuming loads other weights over it
        set_matching_head(model)
    print(f"{model.num_parameters():,} parameters, {len(store.tokens):,} tokens of text, on {device}")
    config = PretrainConfig(
        **{name: getattr(args, name) for name in _CONFIG_NUMBERS},
        valences=args.valences,
        objective=args.objective,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        precision=args.precision,
    )
    pretrainer = Pretrainer(
        model, tokenizer, store, config, args.output, held_out=_held_out(args, tokenizer), report=_Report(model, config)
    )
    if pretrainer.resume():
        print(f"resumed at step {pretrainer.step}")
    pretrainer.train(seconds=args.seconds)
    model.to(getattr(torch, args.save_dtype)).save_pretrained(args.output / "model")
    save_tokenizer(tokenizer, args.output / "model")
    print(f"step {pretrainer.step}, {pretrainer.tokens_seen:,} tokens seen; model in {args.output / 'model'}")
    return 0


def _check_new(args: argparse.Namespace) -> None:
    """Raise ValueError for options of a new model beside a backbone, which has its own."""
    changed = {name: value for name, value in _NEW.items() if getattr(args, name) != value}
    if args.backbone is not None and changed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(
            f"Got {options}, of a new model, and --backbone {args.backbone}, which has its own; leave out one."
        )


class _Report:
    """Prints what the loop logs, and the share of the machine's matmul speed that training reaches."""

    def __init__(self, model: T5ForConditionalGeneration, config: PretrainConfig) -> None:
        self.limit = matmul_flops_per_second(next(model.parameters()).device, config.precision)
        # Of 100 tokens that span corruption shows, 19 are targets.
        self.flops_per_token = step_flops(model.config, source_tokens=81, target_tokens=19) / 100

    def __call__(self, entry: dict[str, Any]) -> None:
        line = f"step {entry['step']}  {entry['tokens_seen']:,} tokens"
        if "loss" in entry:
            rate = entry["tokens_per_second"]
            share = rate * self.flops_per_token / self.limit
            line += f"  loss {entry['loss']:.3f}  {rate:,.0f} tokens/s  {share:.0%} of matmul speed"
        if "held_out_loss" in entry:
            line += f"  held-out loss {entry['held_out_loss']:.4f}"
        print(line, flush=True)


def _tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """The backbone's tokenizer, the one in OUTPUT, or a new one trained on the text."""
    if args.backbone is not None:
        return load_backbone(args.backbone)[1]
    folder = args.output / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        documents = shuffled_documents(args.text, seed=args.seed)
        tokenizer = train_tokenizer(
            documents, vocabulary=args.vocabulary, share=args.vocabulary_share, threads=torch.get_num_threads()
        )
        save_tokenizer(tokenizer, folder)
    return AutoTokenizer.from_pretrained(str(folder))


def _model(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, store: TokenStore
) -> T5ForConditionalGeneration:
    if args.backbone is not None:
        return load_backbone(args.backbone)[0]
    shape = Shape(args.d_model, args.d_ff, args.layers, args.heads, args.d_kv)
    table = None
    if args.embeddings == "pmi" and not (args.output / STATE_FILE).is_file():
        table = pmi_embeddings(store.tokens, len(tokenizer), shape.d_model, seed=args.seed)
    return new_model(tokenizer, shape, embeddings=table, seed=args.seed)


def _held_out(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> TokenStore | None:
    if args.held_out is None:
        return None
    return write_store(list(read_documents([args.held_out])), tokenizer, args.output / "held_out")
