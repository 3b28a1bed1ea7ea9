"""Public data sets as their authors publish them, from a folder with one subfolder each; nothing is downloaded.

The environment variable ``T5PEFT_DATA`` names the folder. Where a set comes without a labeled test split its development
split is the test, and validation is held out from train.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from t5peft.compat.suggestions import did_you_mean
from t5peft.data.files import load_aligned, load_records
from t5peft.data.sources import Records
from t5peft.data.splits import Splits, group_references, hold_out

logger = logging.getLogger(__name__)


def data_folder() -> Path:
    """Return the folder of the public data sets, which the environment variable ``T5PEFT_DATA`` names.

    Raises:
        FileNotFoundError: The variable is not set, or there is no such folder.
    """
    named = os.environ.get("T5PEFT_DATA")
    folder = Path(named or "")
    if not named or not folder.is_dir():
        raise FileNotFoundError(
            f"Got {'no such folder as ' + str(folder) if named else 'no folder'} for the public data sets; expected the one that "
            "holds sst2_glue, trec and the others. Set the environment variable T5PEFT_DATA to it."
        )
    return folder


def _sst2(folder: Path) -> Splits:
    return _dev_as_test(load_records(folder / "train.tsv"), load_records(folder / "dev.tsv"), "sentence")


def _trec(folder: Path) -> Splits:
    def read(name: str) -> Records:
        parts = [line.split(" ", 1) for line in _latin_lines(folder / name)]
        return [{"question": question, "label": kind.split(":")[0], "fine": kind} for kind, question in parts]

    return _dev_as_test(read("TREC.train"), read("TREC.test"), "question")


def _rte(folder: Path) -> Splits:
    return _dev_as_test(load_records(folder / "train.tsv"), load_records(folder / "dev.tsv"), "sentence1", "sentence2")


def _cola(folder: Path) -> Splits:
    def read(name: str) -> Records:
        return load_records(folder / f"{name}.tsv", header=["source", "label", "mark", "sentence"])

    # GLUE's development set of 1,043 sentences is both of these
    dev = [*read("in_domain_dev"), *read("out_of_domain_dev")]
    return _dev_as_test(read("in_domain_train"), dev, "sentence")


def _boolq(folder: Path) -> Splits:
    # the training passages are not in the folder: the labeled development set is split three ways, by passage
    records = load_records(folder / "validation_clean.jsonl")
    rest, test = hold_out(records, lambda record: record["passage"], share=0.25)
    return _dev_as_test(rest, test, "passage")


def _phrasebank(folder: Path) -> Splits:
    path = folder / "Sentences_AllAgree.txt"
    records: dict[str, dict[str, str]] = {}
    broken = []
    for number, line in enumerate(_latin_lines(path), start=1):
        sentence, _, label = line.rpartition("@")
        if label in ("negative", "neutral", "positive"):
            records.setdefault(sentence.strip(), {"sentence": sentence.strip(), "label": label})
        else:
            broken.append(number)
    if broken:
        logger.info("%s: lines %s have no label and were skipped.", path, ", ".join(map(str, broken)))
    rest, test = hold_out(list(records.values()), lambda record: record["sentence"], share=0.2)
    return _dev_as_test(rest, test, "sentence")


def _e2e(folder: Path) -> Splits:
    # the training file is not in the folder: the development file, which shares no attributes with the test, is train
    def read(name: str) -> Records:
        return [{"mr": row["mr"], "text": row["ref"]} for row in load_records(folder / name, required=["mr", "ref"])]

    return _with_references(read("devset.csv"), read("testset_w_refs.csv"), "mr", "text")


def _aeslc(folder: Path) -> Splits:
    def read(name: str) -> Records:
        records = load_records(folder / f"{name}.jsonl")
        annotated = [f"ann{i}" for i in range(3)]
        return [
            {key: row[key] for key in ("id", "body", "subject")}
            | {"references": [row["subject"], *(row[column] for column in annotated if row.get(column))]}
            for row in records
        ]

    return {"train": read("train"), "validation": read("dev"), "test": read("test")}


def _dialogsum(folder: Path) -> Splits:
    # the training file is not in the folder: train is the development file
    dev = [
        {"id": row["fname"], "dialogue": row["dialogue"], "summary": row["summary"], "references": [row["summary"]]}
        for row in load_records(folder / "dialogsum.dev.jsonl")
    ]
    test = [
        {"id": row["fname"], "dialogue": row["dialogue"], "summary": row["summary1"]}
        | {"references": [row[f"summary{i}"] for i in (1, 2, 3)]}
        for row in load_records(folder / "dialogsum.test.jsonl")
    ]
    return _dev_as_test(dev, test, "dialogue")


def _multi30k(folder: Path) -> Splits:
    def read(name: str) -> Records:
        records = load_aligned({"english": folder / f"{name}.en.gz", "german": folder / f"{name}.de.gz"})
        return [{column: text.strip() for column, text in record.items()} for record in records]

    return {"train": read("train"), "validation": read("val"), "test": read("test_2016_flickr")}


def _jfleg(folder: Path) -> Splits:
    def read(name: str) -> Records:
        numbers = range(4)
        files = {"text": folder / f"{name}.src"} | {f"ref{i}": folder / f"{name}.ref{i}" for i in numbers}
        return [
            {"text": row["text"].strip(), "corrected": row[f"ref{i}"].strip()}
            for row in load_aligned(files)
            for i in numbers
        ]

    return _with_references(read("dev"), read("test"), "text", "corrected")


def _latin_lines(path: Path) -> list[str]:
    return path.read_text(encoding="latin-1").rstrip("\n").split("\n")


def _dev_as_test(train: Records, test: Records, *source: str) -> Splits:
    rest, validation = hold_out(train, lambda record: "\t".join(record[column] for column in source))
    return {"train": rest, "validation": validation, "test": test}


def _with_references(train: Records, test: Records, source: str, target: str) -> Splits:
    """Return train with a record for each reference; validation and test with a record for each source."""
    key = itemgetter(source)
    rest, validation = hold_out(train, key)
    return {
        "train": rest,
        "validation": group_references(validation, key, target),
        "test": group_references(test, key, target),
    }


BENCHMARKS: dict[str, tuple[str, Callable[[Path], Splits]]] = {
    "sst2": ("sst2_glue", _sst2),
    "trec": ("trec", _trec),
    "rte": ("rte_glue", _rte),
    "cola": ("cola", _cola),
    "boolq": ("boolq", _boolq),
    "phrasebank": ("financial_phrasebank", _phrasebank),
    "e2e": ("e2e", _e2e),
    "aeslc": ("aeslc", _aeslc),
    "dialogsum": ("dialogsum", _dialogsum),
    "multi30k": ("multi30k", _multi30k),
    "jfleg": ("jfleg", _jfleg),
}
"""By name: the subfolder and the function that reads it."""


def load_benchmark(name: str, folder: str | Path | None = None) -> Splits:
    """Return the train, validation and test records of a public data set.

    Args:
        name: A key of ``BENCHMARKS``.
        folder: Holds the data sets, with one subfolder each; that of ``T5PEFT_DATA`` by default.

    Raises:
        ValueError: There is no such data set.
        FileNotFoundError: Its files are missing.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"Got no public data set {name!r}; expected one of {', '.join(BENCHMARKS)}.{did_you_mean(name, BENCHMARKS)}"
        )
    subfolder, read = BENCHMARKS[name]
    found = (Path(folder) if folder else data_folder()) / subfolder
    if not found.is_dir():
        raise FileNotFoundError(
            f"Got no folder {found}; put the data set {name} there, in the format in which its authors publish it."
        )
    return read(found)
