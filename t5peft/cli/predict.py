"""Write a tuned model's answers to the records of a file, a JSON line a record."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.cli.data import add_format_arguments, read_file
from t5peft.cli.evaluate import add_model_arguments, load_tuned, read_task
from t5peft.data import Task
from t5peft.data.template import Template
from t5peft.evaluation import predict
from t5peft.evaluation.scores import rank_targets

Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``t5peft predict``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="records with the columns of the task's template, the test split of a folder or hub name; - is standard input",
    )
    parser.add_argument(
        "--text", action="append", default=[], help="a text instead of a file, for a template of one column"
    )
    add_format_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="a JSON Lines file; the screen by default")


def run(args: argparse.Namespace) -> int:
    """Answer every record; the file is made before any is answered, and written when all are."""
    if args.data and args.text:
        raise ValueError("Got both --data and --text; expected one of them.")
    task = read_task(args)
    records = read_file(args, args.data, "test") if args.data else _records(task, args.text)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).open("a").close()
    model, tokenizer = load_tuned(args.model)
    lines = [_json(record) for record in answered(model, tokenizer, task, records)]
    text = "".join(f"{line}\n" for line in lines)
    if args.output:
        # what UTF-8 does not write, half of a character, is \ud83d in JSON too
        Path(args.output).write_text(text, encoding="utf-8", errors="backslashreplace")
        print(f"{len(lines)} answers in {args.output}")
    else:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, records: list[Record]
) -> Iterator[Record]:
    """``records`` with an ``answer``; a task with target words adds the ``probability`` of each label.

    A task whose targets are in a column of the name ``answer`` gets them as ``prediction``.

    Raises:
        ValueError: the records have columns of these names, which would be lost, or what ``Task.sources`` says.
    """
    answer = "prediction" if "answer" in Template.parse(task.target).columns else "answer"
    taken = {answer, *(["probability"] if task.verbalizer else [])} & {name for record in records for name in record}
    if taken:
        raise ValueError(f"The records have columns that predict adds ({', '.join(sorted(taken))}); rename them.")
    sources = task.sources(records, tokenizer)
    if task.verbalizer is None:
        texts = predict(
            model,
            tokenizer,
            sources,
            max_new_tokens=task.max_target_length,
            num_beams=task.num_beams,
            keep=task.special_tokens(tokenizer),
        )
        for record, text in zip(records, texts, strict=True):
            yield {**record, answer: task.read(text, tokenizer)}
        return
    ranking = rank_targets(model, tokenizer, task, sources)
    for record, best, row in zip(records, ranking.best, ranking.probabilities, strict=True):
        shares = {label: round(float(share), 4) for label, share in zip(task.labels, row, strict=True)}
        yield {**record, answer: task.labels[best], "probability": shares}


def _json(record: Record) -> str:
    """One line; dates of a Parquet file are text, and numbers that JSON does not have, such as NaN, are null."""
    plain = json.loads(json.dumps(record, default=str), parse_constant=lambda constant: None)
    return json.dumps(plain, ensure_ascii=False)


def _records(task: Task, texts: list[str]) -> list[Record]:
    columns = task.columns
    if not texts or len(columns) != 1:
        raise ValueError(
            f"Expected --data FILE with the columns {list(columns)}, or --text for a template of one column."
        )
    return [{columns[0]: text} for text in texts]
