"""The six data sets of the throughput runs, with the real T5 vocabulary: real lengths, no checkpoint needed."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

MAX_SOURCE_TOKENS = 512
MAX_TARGET_TOKENS = 128

Pair = tuple[str, str]


def data_folder() -> Path:
    """Return the folder of real data: T5PEFT_DATA, else ``../shared/data`` beside the repository.

    Raises:
        FileNotFoundError: there is none.
    """
    named = os.environ.get("T5PEFT_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "t5_vocab").is_dir():
        raise FileNotFoundError(
            f"No real data at {folder}: set the environment variable T5PEFT_DATA to the folder that holds t5_vocab, sst2_glue,"
            " trec and the other data sets."
        )
    return folder


def _sst2(folder: Path) -> Iterator[Pair]:
    with (folder / "sst2_glue" / "train.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield f"sst2 sentence: {row['sentence']}", ("negative", "positive")[int(row["label"])]


def _trec(folder: Path) -> Iterator[Pair]:
    words = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location"}
    for line in (folder / "trec" / "TREC.train").read_text(encoding="latin-1").splitlines():
        label, question = line.split(" ", 1)
        yield f"trec question: {question}", words.get(label.split(":")[0], "number")


def _rte(folder: Path) -> Iterator[Pair]:
    with (folder / "rte_glue" / "train.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield f"rte sentence1: {row['sentence1']} sentence2: {row['sentence2']}", row["label"]


def _e2e(folder: Path) -> Iterator[Pair]:
    with (folder / "e2e" / "devset.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield f"translate data to text: {row['mr']}", row["ref"]


def _aeslc(folder: Path) -> Iterator[Pair]:
    with (folder / "aeslc" / "train.jsonl").open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            yield f"summarize: {record['body']}", record["subject"]


def _dialogsum(folder: Path) -> Iterator[Pair]:
    with (folder / "dialogsum" / "dialogsum.dev.jsonl").open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            yield f"summarize: {record['dialogue']}", record["summary"]


DATA_SETS: dict[str, Callable[[Path], Iterator[Pair]]] = {
    "sst2": _sst2,
    "trec": _trec,
    "rte": _rte,
    "e2e": _e2e,
    "aeslc": _aeslc,
    "dialogsum": _dialogsum,
}


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Return the T5 v1 tokenizer of the data folder."""
    return AutoTokenizer.from_pretrained(data_folder() / "t5_vocab")


def load_features(
    name: str, tokenizer: PreTrainedTokenizerBase, examples: int, *, seed: int = 0
) -> list[dict[str, list[int]]]:
    """``examples`` training examples of a data set, drawn with ``seed``, tokenized and truncated, without padding."""
    pairs = [(source, target) for source, target in DATA_SETS[name](data_folder()) if source.strip() and target.strip()]
    chosen = random.Random(seed).sample(pairs, min(examples, len(pairs)))
    sources = tokenizer([source for source, _ in chosen], truncation=True, max_length=MAX_SOURCE_TOKENS)["input_ids"]
    targets = tokenizer([target for _, target in chosen], truncation=True, max_length=MAX_TARGET_TOKENS)["input_ids"]
    return [{"input_ids": source, "labels": target} for source, target in zip(sources, targets, strict=True)]
