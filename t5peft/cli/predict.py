"""Run a tuned model on the records of a file, and write its answers as they are computed."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5peft.cli.answer_file import AnswerFile, Answers, AnswerStream, Record, fingerprint, kind_of
from t5peft.cli.data import add_format_arguments, read_file
from t5peft.cli.evaluate import add_model_arguments, load_tuned, read_task
from t5peft.cli.options import OPTIONS, add_option
from t5peft.cli.output import add_output_options
from t5peft.compat.lock import hold_file

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from t5peft.compat.workers import Workers
    from t5peft.data import Task
    from t5peft.serving.exported import Exported

# Tokens, sources and answers, of the records that are answered before any is written: several batches, so that these can be of
# records of like lengths.
TOKENS_AT_ONCE = 1 << 15

EPILOG = """
Example: t5peft predict runs/reviews/adapter --data new.csv --output answers.csv
Run the same command again to complete a file of answers after an interruption.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``t5peft predict``."""
    add_model_arguments(parser)
    group = parser.add_argument_group("data")
    without_default = OPTIONS["--data"]["help"].partition("; default")[0]
    add_option(group, "--data", help=without_default)
    group.add_argument(
        "--text", action="append", default=[], help="a text instead of a file, for a template with one column"
    )
    add_format_arguments(group)
    parser.add_argument_group("model").add_argument(
        "--engine",
        choices=("torch", "ct2", "onnx"),
        help="the engine to run; ct2 and onnx need a folder from `t5peft export`; default: the engine of the folder",
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="a JSON Lines, CSV or Parquet file (.jsonl, .csv, .parquet); default: JSON Lines on standard output (-)",
    )
    add_option(group, "--overwrite")
    add_option(parser, "--workers")
    add_output_options(parser, results=False)


def run(args: argparse.Namespace) -> int:
    """Answer every record, and write the answers in the order of the records as they come."""
    if args.data and args.text:
        raise ValueError("Got both --data and --text; expected one of them.")
    path = None if args.output in (None, "-") else Path(args.output)
    if path is not None:
        kind_of(path)
    from t5peft.adapters import local_adapter
    from t5peft.compat.ray import open_workers

    args.model = str(local_adapter(args.model))
    task = read_task(args)
    records = read_file(args, args.data, "test") if args.data else _records_of(task, args.text)
    _check_columns(task, records)
    with (
        hold_file(path) if path is not None else contextlib.nullcontext(),
        contextlib.closing(_open_output(args, path, task, records)) as output,
    ):
        if output.done:
            print(f"{path} holds {output.done} answers of {len(records)}; resuming from there", file=sys.stderr)
        if args.workers:
            with open_workers(args.workers) as executor:
                _write_answers(_answers_of_workers(executor, args, task, records, output.done), len(records), output)
        else:
            model, tokenizer = _load(args.model, args.engine)
            with _merged_once(model):
                _write_answers(answer(model, tokenizer, task, records, start=output.done), len(records), output)
        output.finish()
    if path is not None and not args.quiet:
        print(f"{len(records)} answers in {path}")
    return 0


def _load(folder: str, engine: str | None) -> tuple[PreTrainedModel | PeftModel | Exported, PreTrainedTokenizerBase]:
    """Load what is in ``folder``, if ``engine`` runs it."""
    from t5peft.serving.export import load_exported
    from t5peft.serving.exported import Details, is_exported

    if not is_exported(folder):
        if engine in ("ct2", "onnx"):
            raise ValueError(
                f"Got --engine {engine} for {folder}, which is not exported to it; expected a folder from `t5peft export`. Run "
                f"`t5peft export {folder} --to {engine} --output DIR`, and use DIR."
            )
        return load_tuned(folder)
    target = Details.read(Path(folder)).target
    if engine is not None and target != {"torch": "transformers"}.get(engine, engine):
        raise ValueError(
            f"Got --engine {engine} for {folder}, an export to {target}; expected that engine, or none. Omit --engine."
        )
    exported = load_exported(folder)
    return exported, exported.tokenizer


def _open_output(args: argparse.Namespace, path: Path | None, task: Task, records: Sequence[Record]) -> Answers:
    if path is None:
        return AnswerStream()
    identity = {
        "records": fingerprint(records) if isinstance(records, list) else _hash_of(records),
        "model": _model_identity(args.model),
        "task": fingerprint(asdict(task)),
    }
    return AnswerFile(path, records, _answer_columns(task), identity, overwrite=args.overwrite)


def _hash_of(records: Sequence[Record]) -> str:
    """Return a hash of records that stay on the disk."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(fingerprint(record).encode())
    return digest.hexdigest()


def _write_answers(batches: Iterator[list[tuple[Record, Record]]], count: int, output: Answers) -> None:
    from tqdm import tqdm

    # Answers on the screen show the progress themselves.
    hidden = (isinstance(output, AnswerStream) and sys.stdout.isatty()) or not sys.stderr.isatty()
    with tqdm(total=count, initial=output.done, desc="predict", unit="record", disable=hidden) as bar:
        for answers in batches:
            output.write(answers)
            bar.update(len(answers))


def _merged_once(model: nn.Module | Exported) -> contextlib.AbstractContextManager[object]:
    """Merge the adapter for all batches, and not for every one."""
    from t5peft.evaluation import evaluating
    from t5peft.serving.exported import Exported

    return contextlib.nullcontext() if isinstance(model, Exported) else evaluating(model)


def _answers_of_workers(
    executor: Workers, args: argparse.Namespace, task: Task, records: Sequence[Record], start: int
) -> Iterator[list[tuple[Record, Record]]]:
    """Answer records by several workers, in the batches of a single process."""
    _, tokenizer = _load(args.model, args.engine)
    parts = (records[first:last] for first, last in _spans(_sources(task, records, tokenizer), task, start))
    return executor.in_order(partial(_answer_part, args.model, args.engine, task), parts)


def _answer_part(folder: str, engine: str | None, task: Task, records: list[Record]) -> list[tuple[Record, Record]]:
    """Answer records in a worker, which keeps the model for the next ones."""
    model, tokenizer = _opened(folder, engine)
    return [pair for answers in answer(model, tokenizer, task, records) for pair in answers]


@lru_cache(maxsize=1)
def _opened(folder: str, engine: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
    model, tokenizer = _load(folder, engine)
    _merged_once(model).__enter__()  # for as long as the process lives
    return model, tokenizer


def answer(
    model: PreTrainedModel | PeftModel | Exported,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    records: Sequence[Record],
    *,
    start: int = 0,
) -> Iterator[list[tuple[Record, Record]]]:
    """Answer records in their order, some at a time.

    Args:
        model: The tuned model, or an export of one.
        tokenizer: Its tokenizer.
        task: The task of the records.
        records: With the columns of the task's source.
        start: How many of the first records to leave out.

    Yields:
        The next records, each with the columns of its answer: ``answer`` (``prediction`` for a task with a column ``answer`` in
        its target) and, for a task with a verbalizer, the ``probability`` of each label.

    Raises:
        ValueError: The records have columns of these names, which would be lost, or lack those of the source.
    """
    from t5peft.evaluation import predict
    from t5peft.evaluation.scores import rank_targets
    from t5peft.serving.exported import Exported

    generate = model.predict if isinstance(model, Exported) else partial(predict, model, tokenizer)
    _check_columns(task, records)
    sources = _sources(task, records, tokenizer)
    name = _answer_name(task)
    for first, last in _spans(sources, task, start):
        chunk = sources[first:last]
        if task.verbalizer is None:
            texts = generate(
                chunk,
                max_new_tokens=task.max_target_length,
                num_beams=task.num_beams,
                keep=task.special_tokens(tokenizer),
            )
            answers: list[Record] = [{name: task.read(text, tokenizer)} for text in texts]
        else:
            if isinstance(model, Exported):
                ranking = model.rank_targets(task, chunk)
            else:
                ranking = rank_targets(model, tokenizer, task, chunk)
            shares = [[round(share, 4) for share in row] for row in ranking.probabilities.tolist()]
            answers = [
                {name: task.labels[best], "probability": dict(zip(task.labels, row, strict=True))}
                for best, row in zip(ranking.best, shares, strict=True)
            ]
        yield list(zip(records[first:last], answers, strict=True))


def _sources(task: Task, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    from t5peft.evaluation.inference import source_ids

    return source_ids(task.sources(records, tokenizer), tokenizer)


def _spans(sources: Sequence[Sequence[int]], task: Task, start: int) -> Iterator[tuple[int, int]]:
    """Yield first and last index of runs of records from ``start`` on, with at most ``TOKENS_AT_ONCE`` tokens each."""
    first, total = start, 0
    for i in range(start, len(sources)):
        tokens = len(sources[i]) + task.max_target_length
        if i > first and total + tokens > TOKENS_AT_ONCE:
            yield first, i
            first, total = i, 0
        total += tokens
    if first < len(sources):
        yield first, len(sources)


def _answer_name(task: Task) -> str:
    from t5peft.data.template import Template

    return "prediction" if "answer" in Template.parse(task.target).columns else "answer"


def _answer_columns(task: Task) -> list[str]:
    labels = task.labels if task.verbalizer is not None else ()
    return [_answer_name(task), *(f"probability.{label}" for label in labels)]


def _check_columns(task: Task, records: Sequence[Record]) -> None:
    added = {_answer_name(task), *(["probability"] if task.verbalizer else [])}
    if taken := added & {name for record in records for name in record}:
        raise ValueError(
            f"Got records with columns that predict adds ({', '.join(sorted(taken))}); expected none of these. Rename them."
        )


def _records_of(task: Task, texts: Sequence[str]) -> list[Record]:
    columns = task.columns
    if not texts or len(columns) != 1:
        raise ValueError(
            f"Got {'--text' if texts else 'no records'}; expected --data FILE with the columns {list(columns)}, or --text for a "
            "template with one column."
        )
    return [{columns[0]: text} for text in texts]


def _model_identity(model: str) -> str:
    """Return a hash that tells one saved model from another: of its manifest, or of the sizes and times of its files."""
    from t5peft.models.manifest import MANIFEST

    folder = Path(model)
    if (folder / MANIFEST).is_file():
        return fingerprint((folder / MANIFEST).read_text(encoding="utf-8"))
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".json", ".bin", ".model"))
    return fingerprint(
        [model] if not files else [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    )
