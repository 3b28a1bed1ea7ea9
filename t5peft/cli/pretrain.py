"""Pretrain with span corruption or prefix language modeling on text files, from new weights or from any T5."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from t5peft.cli import names
from t5peft.cli.options import OPTIONS, add_hidden, add_option, option_of
from t5peft.cli.train_config import add_field
from t5peft.compat.lock import hold_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

    from t5peft.pretraining.pretrainer import PretrainConfig
    from t5peft.pretraining.tokens import TokenStore

EPILOG = """
A new model:           t5peft pretrain --text *.txt.xz --output runs/mini --optimizer muon --task-rows 48 --steps 20000
On your own domain:    t5peft pretrain --text notes.txt --output runs/notes --backbone google/flan-t5-small
LM adaptation:         t5peft pretrain --text *.txt --output runs/lm --backbone mini --objective prefix
Run the same command again to resume. The result is saved in OUTPUT/model.
"""


# Options of a new model, and their defaults.
_NEW = {"vocabulary": 8192, "vocabulary_share": 0.08, "embeddings": "pmi", **names.PRETRAIN_SHAPE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft pretrain``."""
    add = parser.add_argument_group("data").add_argument
    add("--text", nargs="+", required=True, help="UTF-8 files, plain, .xz, .gz or .bz2; blank lines separate documents")
    add("--held-out", type=Path, help="a text file for the held-out loss")
    add("--objective", choices=["spans", "prefix"], default="spans", help="span corruption or prefix language modeling")
    add(
        "--valences",
        help="a file of words and valences (word<TAB>number), such as VADER's, for the self-supervised sentiment task",
    )
    group = parser.add_argument_group("model")
    add_option(group, "--backbone", default=None, help=f"{OPTIONS['--backbone']['help']}; default: a new model")
    add = group.add_argument
    add("--vocabulary", type=int, default=8192, help="size of a new vocabulary, including bytes and sentinels")
    add("--vocabulary-share", type=float, default=0.08, help="fraction of the text to train the vocabulary on")
    add("--embeddings", choices=["pmi", "random"], default="pmi", help="initialization of a new model's embeddings")
    add("--matching-head", action="store_true", help="initialize one head to attend to the same piece elsewhere")
    for name, size in names.PRETRAIN_SHAPE.items():
        add(option_of(name), type=int, default=size, help=f"{name} of a new model")
    group = parser.add_argument_group("training")
    add = group.add_argument
    for name, (number, text) in names.PRETRAIN_CONFIG.items():
        add(option_of(name), type=int, default=number, help=text)
    rates = names.PRETRAIN_LEARNING_RATES
    add("--optimizer", choices=list(rates), default="adafactor", help="the optimizer of the weights")
    add(
        "--learning-rate",
        type=float,
        help="the peak learning rate; default: " + ", ".join(f"{rate:g} for {name}" for name, rate in rates.items()),
    )
    add_field(group, "bf16")
    add("--seconds", type=float, help="stop and save after this many seconds; default: run all steps")
    group = parser.add_argument_group("output")
    add_option(group, "--output", type=Path)
    group.add_argument(
        "--save-dtype", choices=["float32", "bfloat16"], default="float32", help="type of the weights in OUTPUT/model"
    )
    add_hidden(parser, "--flat", "decay_start_step", type=int)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Train, and write OUTPUT/model."""
    _check_new(args)
    with hold_folder(args.output):
        _check_output(args.output)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    import torch

    from t5peft.adapters import save_model
    from t5peft.pretraining.matching_head import set_matching_head
    from t5peft.pretraining.pretrainer import PretrainConfig, Pretrainer
    from t5peft.pretraining.tokens import store_of_files

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = _tokenizer(args)
    store = store_of_files(args.text, tokenizer, args.output / "tokens", seed=args.seed)
    model = _model(args, tokenizer, store)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps Module.to without its types
    if args.matching_head:  # resuming loads other weights over it
        set_matching_head(model)
    print(f"{model.num_parameters():,} parameters, {len(store.tokens):,} tokens of text, on {device}")
    config = PretrainConfig(
        **{name: getattr(args, name) for name in names.PRETRAIN_CONFIG},
        valences=args.valences,
        objective=args.objective,
        optimizer=args.optimizer,
        learning_rate=args.learning_rate,
        precision="bf16" if args.bf16 else args.precision,
    )
    pretrainer = Pretrainer(
        model, tokenizer, store, config, args.output, held_out=_held_out(args, tokenizer), report=_Report(model, config)
    )
    if pretrainer.resume():
        print(f"resumed at step {pretrainer.step}")
    pretrainer.train(seconds=args.seconds)
    save_model(model.to(getattr(torch, args.save_dtype)), args.output / "model", tokenizer=tokenizer)
    print(f"step {pretrainer.step}, {pretrainer.tokens_seen:,} tokens seen; model in {args.output / 'model'}")
    return 0


def _check_new(args: argparse.Namespace) -> None:
    """Raise a ``ValueError`` for options of a new model beside a backbone, which has its own."""
    changed = {name: value for name, value in _NEW.items() if getattr(args, name) != value}
    if args.backbone is not None and changed:
        options = ", ".join(option_of(name) for name in changed)
        raise ValueError(
            f"Got {options}, of a new model, with --backbone {args.backbone}; expected only one of them, because a backbone "
            "has its own."
        )


def _check_output(output: Path) -> None:
    """Raise a ``ValueError`` where a model would be replaced by that of a run that does not resume."""
    from t5peft.models.folders import ensure_output
    from t5peft.pretraining.pretrainer import STATE_FILE

    ensure_output(output, "a pretraining")
    if (output / "model").exists() and not (output / STATE_FILE).is_file():
        raise ValueError(
            f"Got the output {output}, which holds a model but no {STATE_FILE} to resume from; expected the folder of a run, or "
            "one without a model. Give another folder."
        )


class _Report:
    """Prints what the loop logs, and the share of the machine's matmul speed that training reaches."""

    def __init__(self, model: T5ForConditionalGeneration, config: PretrainConfig) -> None:
        from t5peft.pretraining.init import matmul_flops_per_second, step_flops

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
    """Return the backbone's tokenizer, the one in OUTPUT, or a new one trained on the text."""
    import torch
    from transformers import AutoTokenizer

    from t5peft.models.backbone import load_backbone
    from t5peft.pretraining.tokenizer import save_tokenizer, train_tokenizer
    from t5peft.pretraining.tokens import shuffled_documents

    if args.backbone is not None:
        return cast("PreTrainedTokenizerFast", load_backbone(args.backbone)[1])  # or any with sentinels
    folder = args.output / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        documents = shuffled_documents(args.text, seed=args.seed)
        tokenizer = train_tokenizer(
            documents, vocabulary=args.vocabulary, share=args.vocabulary_share, threads=torch.get_num_threads()
        )
        unfinished = folder.with_name(".tokenizer")
        save_tokenizer(tokenizer, unfinished)
        shutil.rmtree(folder, ignore_errors=True)  # what 0.1 left of an interrupted save
        unfinished.replace(folder)
    return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(str(folder)))  # of ``train_tokenizer``


def _model(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, store: TokenStore
) -> T5ForConditionalGeneration:
    from t5peft.models.backbone import load_backbone
    from t5peft.pretraining.embeddings import pmi_embeddings
    from t5peft.pretraining.init import Shape, new_model
    from t5peft.pretraining.pretrainer import STATE_FILE

    if args.backbone is not None:
        return cast("T5ForConditionalGeneration", load_backbone(args.backbone)[0])  # or a variant of its family
    shape = Shape(args.d_model, args.d_ff, args.layers, args.heads, args.d_kv)
    table = None
    if args.embeddings == "pmi" and not (args.output / STATE_FILE).is_file():
        table = pmi_embeddings(store.tokens, len(tokenizer), shape.d_model, seed=args.seed)
    return new_model(tokenizer, shape, embeddings=table, seed=args.seed)


def _held_out(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> TokenStore | None:
    from t5peft.pretraining.text import read_documents
    from t5peft.pretraining.tokens import write_store

    if args.held_out is None:
        return None
    return write_store(list(read_documents([args.held_out])), tokenizer, args.output / "held_out")
