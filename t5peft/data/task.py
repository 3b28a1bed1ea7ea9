"""Tasks: a record becomes a source and a target for T5, and an answer of T5 becomes a text or label to score.

    Task("sst2", "sst2 sentence: {sentence}", "{label}", {"0": "negative", "1": "positive"}, metrics=("accuracy",))

In the spirit of seqio's Task, in plain Python: there is neither a registry of functions nor a preprocessor that needs
TensorFlow. Records are dictionaries, from ``load_records``, a ``datasets.Dataset`` or a list in memory.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from t5peft.compat.filesystem import write_whole
from t5peft.data import checks, tokenized
from t5peft.data.decoding import as_written
from t5peft.data.definition import read_definition
from t5peft.data.fields import fields_of_file, problems_of
from t5peft.data.sources import batches_of, read_records, with_label_names
from t5peft.data.template import Template, as_text, one_line, texts_of
from t5peft.data.tokenized import Encoded
from t5peft.data.truncation import encode, special_ids
from t5peft.deprecated import renamed_arguments

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task: how records become sources and targets, and how answers are read and scored.

    Args:
        name: The name in tables and mixtures.
        template: The source text, with column names in braces.
        target: The target text, with column names in braces.
        verbalizer: For classification: a mapping from labels, as text, to the words that T5 writes for them. ``target`` then
            names the label column.
        metrics: Names in ``t5peft.evaluation.METRICS``; the first comes first in tables. ``exact_match`` of generated answers is
            that of SQuAD, without punctuation, case and articles; ``accuracy`` compares the exact texts.
        max_source_length: Maximum tokens of a source, including ``</s>``.
        max_target_length: Maximum tokens of a target, including ``</s>``.
        num_beams: Number of beams in generation.
        references: A column with a list of references, if a record has several correct answers.
        list_separator: The text between the items of a cell with a list, such as several labels; None makes a list an error.

    Raises:
        ValueError: Fields have wrong types or contradict each other. One error reports all problems.
    """

    name: str
    template: str
    target: str = "{target}"
    verbalizer: Mapping[str, str] | None = None
    metrics: tuple[str, ...] = ("exact_match",)
    max_source_length: int = 512
    max_target_length: int = 128
    num_beams: int = 1
    references: str | None = None
    list_separator: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            object.__setattr__(self, "metrics", tuple(self.metrics.replace(",", " ").split()))
        elif isinstance(self.metrics, list):
            object.__setattr__(self, "metrics", tuple(self.metrics))
        checks.raise_all(self.name, problems_of(vars(self)))
        if self.verbalizer is not None:
            words = {str(label): as_text(word) for label, word in self.verbalizer.items()}
            object.__setattr__(self, "verbalizer", words)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Task:
        """Return a task from the fields of a YAML file; numbers may be text, and ``references: null`` means none.

        Raises:
            ValueError: Fields are unknown, missing or of a wrong type. One error reports all problems.
        """
        converted = fields_of_file(values)
        known = {field.name for field in fields(cls)}
        problems = [
            f"It has no field {key!r}; the fields are {', '.join(sorted(known))}."
            for key in converted
            if key not in known
        ]
        problems += [f"{key!r} is missing." for key in ("name", "template") if key not in converted]
        if problems:
            if isinstance(converted.get("metrics"), str):
                converted["metrics"] = (converted["metrics"],)
            checks.raise_all(converted.get("name", "without a name"), [*problems, *problems_of(converted)])
        return cls(**converted)

    @classmethod
    def from_yaml(cls, path_or_name: str | Path) -> Task:
        """Return the task of a YAML file, or a built-in task by name (``"sst2"``).

        The file contains the fields of a task, and optionally ``data``, the source of its records (``load_task``).

        Raises:
            FileNotFoundError: It is neither a file nor the name of a built-in task.
            ValueError: See ``from_mapping``.
        """
        return cls.from_mapping({key: value for key, value in read_definition(path_or_name).items() if key != "data"})

    def to_yaml(self, path: str | Path) -> None:
        """Write the task to a YAML file, which ``from_yaml`` reads.

        Args:
            path: The file. Every command finds ``task.yaml`` in the folder of an adapter.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in values.items() if value is not None} | {"metrics": list(self.metrics)}
        # Escaped, not allow_unicode: that writes U+0085 as it is, which is read as a line break.
        write_whole(Path(path), yaml.safe_dump(given, sort_keys=False))

    @property
    def target_words(self) -> Mapping[str, str] | None:
        """The verbalizer, under its name in version 0.1."""
        message = "Task.target_words is deprecated and goes in t5peft 0.3; use Task.verbalizer."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.verbalizer

    @cached_property
    def _template(self) -> Template:
        return Template.parse(self.template)

    @cached_property
    def _target(self) -> Template:
        return Template.parse(self.target)

    @cached_property
    def _labels_by_answer(self) -> dict[str, str]:
        """Labels by what T5 may answer: the whole target, or only the word where decoding drops the rest."""
        if self.verbalizer is None:
            return {}
        targets = zip(self.labels, self.candidates, strict=True)
        exact = {word: label for label, word in self.verbalizer.items()} | {text: label for label, text in targets}
        loose: dict[str, set[str]] = {}
        for text, label in exact.items():
            loose.setdefault(one_line(text), set()).add(label)
        return {text: labels.pop() for text, labels in loose.items() if len(labels) == 1} | exact

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a record that the source uses."""
        return self._template.columns

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of ``verbalizer``; empty if there is no verbalizer."""
        return tuple(self.verbalizer or ())

    @property
    def candidates(self) -> tuple[str, ...]:
        """The whole target of every label, in the order of ``labels``, for ``rank`` to compare."""
        column = self._target.columns[0]
        return tuple(self._target.render({column: word}) for word in (self.verbalizer or {}).values())

    def source(self, record: Record) -> str:
        """Return the rendered source of one record, without truncation and without a check for special tokens."""
        self.check_sources([record])
        return self._template.render(self.source_row(record))

    def check_sources(self, records: Sequence[Record]) -> None:
        """Raise one ValueError for all rows whose source cannot be rendered."""
        checks.raise_all(self.name, checks.missing_columns(records, self._template, self.list_separator), records)

    def with_names(self, records: Iterable[Record]) -> Sequence[Any]:
        """Return records as a list, with label names instead of label numbers if the file or data set has names.

        The labels of a verbalizer stay numbers, because its keys are numbers.
        """
        verbalized = set(self._target.columns if self.verbalizer is not None else ())
        return with_label_names(read_records(records), {*self._template.columns, *self._target.columns} - verbalized)

    def content(self, record: Record) -> str:
        """Return the texts of a record's source columns, without the words of the template. GLEU compares answers with them."""
        self.check_sources([record])
        return " ".join(self.source_row(record).values())

    def target_text(self, record: Record) -> str:
        """Return the target of one record: the label's word, or the columns, in the target template.

        Raises:
            ValueError: A column is missing or has no text, or the verbalizer lacks a label.
        """
        problems = checks.missing_columns([record], self._target, self.list_separator)
        checks.raise_all(self.name, [*problems, *self._unknown([record])])
        return self._target.render(self.target_row(record))

    def read(self, text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """Return the label that an answer stands for, or else the answer itself with its white space unchanged.

        Args:
            text: An answer of T5, as returned by ``predict``.
            tokenizer: The tokenizer of the model, if the target template has special tokens, such as sentinels. It restores the
                template's spaces around them, which T5's tokenizer drops.
        """
        found = self._labels_by_answer.get(text) or self._labels_by_answer.get(one_line(text))
        return found or self._with_spaces_of_template(text, tokenizer)

    def answers(self, record: Record, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
        """Return the correct results of ``read`` for a record: its references if it has several, else its only target.

        Args:
            record: A record with the columns of the target, or of ``references``.
            tokenizer: The tokenizer of the scored model. References then have only white space that it can write. T5's own
                tokenizer cannot write a line break, so an answer with a space instead is correct.

        Raises:
            ValueError: References contain columns, or as for ``target_text``.
        """
        checks.raise_all(self.name, checks.mapped_references([record], self.references))
        texts = texts_of(record.get(self.references)) if self.references is not None else []
        texts = texts or [self.target_text(record)]
        if tokenizer is not None and self.verbalizer is None:
            texts = [as_written(text, tokenizer, keep=self.special_tokens(tokenizer)) for text in texts]
        return [self.read(text, tokenizer) for text in texts]

    def special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the special tokens in the target template, such as ``<extra_id_0>``. Answers keep them."""
        if not self._target.empty().strip():
            return ()
        written = encode([self._target.empty()], tokenizer)[0][:-1]
        special = special_ids(tokenizer) - {tokenizer.eos_token_id, tokenizer.pad_token_id}
        return tuple(tokenizer.convert_ids_to_tokens([token for token in dict.fromkeys(written) if token in special]))

    def _with_spaces_of_template(self, text: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
        literals = "".join(f"{literal}\0" for literal, _ in self._target.parts)
        for token in self.special_tokens(tokenizer) if tokenizer is not None else ():
            if found := re.search(rf"\s*{re.escape(token)}\s*", literals):
                spaced = found[0].replace("\\", r"\\")
                text = re.sub(rf"\s*{re.escape(token)}\s*", spaced, text)
        return text

    def sources(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the sources as text, with columns truncated and special tokens broken up as in ``tokenize``.

        The records do not need a target. Each kind of change is logged in one line.

        Raises:
            ValueError: All problems with the records, at once.
        """
        records = self.with_names(records)
        self.check_sources(records)
        truncated = tokenized.truncate_sources(self, [self.source_row(record) for record in records], tokenizer)
        checks.raise_all(self.name, tokenized.unusable(self, "source", truncated), records)
        changed = len(truncated.cut), len(truncated.escaped)
        self._log_changes("sources", *changed, len(truncated.texts), self.max_source_length)
        return truncated.texts

    def check(self, records: Sequence[Record], more: Sequence[str] = ()) -> None:
        """Raise one ValueError for all rows without a source or target, and for the problems in ``more``."""
        checks.raise_all(self.name, checks.no_records(records), records)
        problems = [problem for found in self.problems_of(records) for problem in found]
        checks.raise_all(self.name, [*problems, *more], records)

    def problems_of(self, records: Sequence[Record]) -> list[checks.Problems]:
        """Return the problems that each check finds in rows without a source or target."""
        return [
            checks.missing_columns(records, self._template, self.list_separator),
            checks.missing_columns(records, self._target, self.list_separator),
            checks.mapped_references(records, self.references),
            self._unknown(records),
        ]

    def encode(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokenize records, and return them with the rows that were changed.

        Raises:
            ValueError: All problems with the records and the tokenizer, at once: missing columns, labels outside the
                verbalizer, words with the same tokens, empty sources or targets, or a template that leaves no room for its
                columns.
        """
        records = self.with_names(records)
        self.check(records, self.collisions(tokenizer))
        sources = tokenized.truncate_sources(self, [self.source_row(record) for record in records], tokenizer)
        targets = tokenized.truncate_targets(self, [self.target_row(record) for record in records], tokenizer)
        problems = tokenized.unusable(self, "source", sources) + tokenized.unusable(self, "target", targets)
        checks.raise_all(self.name, problems, records)
        return Encoded(sources, targets)

    def tokenize(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Tokenize records like ``encode``, return a data set, and log each kind of change in one line.

        Records, including those of a ``datasets.Dataset`` or a stream, are tokenized batch by batch. With 10,000 records or more,
        the tokens are stored in the cache folder of ``datasets``, so memory does not grow. Later calls with the same records
        reuse them.

        Returns:
            Columns ``input_ids`` [S] and ``labels`` [T].

        Raises:
            ValueError: See ``encode``.
        """
        dataset, changes = tokenized.tokenize(self, records, tokenizer)
        for side, limit in (("sources", self.max_source_length), ("targets", self.max_target_length)):
            self._log_changes(side, changes.cut[side], changes.escaped[side], changes.rows, limit)
        return dataset

    def tokenize_for_head(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Return a data set for a trained classification head.

        Returns:
            Columns ``input_ids`` [S] and ``labels``, the index of the label in ``Task.labels``.

        Raises:
            ValueError: The task has no verbalizer, or see ``encode``.
        """
        if self.verbalizer is None:
            checks.raise_all(self.name, ["It has no verbalizer; a classification head needs labels to choose from."])
        if isinstance(records, Iterator):  # it is read twice
            records = list(records)
        places = {label: place for place, label in enumerate(self.labels)}
        column = self._target.columns[0]
        dataset = self.tokenize(records, tokenizer).remove_columns("labels")
        labels = (as_text(record[column]) or "" for batch in batches_of(records) for record in self.with_names(batch))
        return dataset.add_column("labels", [places[label] for label in labels])

    def collisions(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return problems with words that have the same tokens or do not fit into the limit."""
        if self.verbalizer is None:
            return []
        problems: list[str] = []
        by_tokens: dict[tuple[int, ...], list[str]] = {}
        for label, tokens in zip(self.labels, encode(self.candidates, tokenizer), strict=True):
            by_tokens.setdefault(tuple(tokens), []).append(label)
            if len(tokens) > self.max_target_length:
                problems.append(
                    f"The target of label {label!r} takes {len(tokens)} tokens, max_target_length is "
                    f"{self.max_target_length}; raise it or choose a shorter word."
                )
        for ids, labels in by_tokens.items():
            if len(labels) > 1:
                pieces = " ".join(tokenizer.convert_ids_to_tokens(list(ids)))
                problems.append(
                    f"The words of labels {', '.join(map(repr, labels))} have the same tokens ({pieces}); choose words that this "
                    "tokenizer knows (--target-word)."
                )
        return problems

    def side(self, name: str) -> tuple[Template, int]:
        """Return the template and the token limit of ``"source"`` or ``"target"``."""
        source = (self._template, self.max_source_length)
        return source if name == "source" else (self._target, self.max_target_length)

    def source_row(self, record: Record) -> dict[str, str]:
        """Return the texts of the source columns in a checked record."""
        return self._values(record, self._template)

    def target_row(self, record: Record) -> dict[str, str]:
        """Return the texts of the target columns in a checked record, with words instead of labels."""
        values = self._values(record, self._target)
        if self.verbalizer is None:
            return values
        return {column: self.verbalizer[label] for column, label in values.items()}

    def _unknown(self, records: Sequence[Record]) -> list[checks.RowProblem]:
        if self.verbalizer is None:
            return []
        return checks.unknown_labels(records, self._target.columns[0], self.labels)

    def _log_changes(self, side: str, cut: int, escaped: int, rows: int, limit: int) -> None:
        if cut:
            logger.warning(
                "Task %s: %d of %d %s were longer than %d tokens; their columns were truncated, not the template.",
                self.name, cut, rows, side, limit,
            )  # fmt: skip
        if escaped:
            logger.warning(
                "Task %s: special tokens spelled out in %d of %d %s were broken up (</s> became < /s>).",
                self.name, escaped, rows, side,
            )  # fmt: skip

    def _values(self, record: Record, template: Template) -> dict[str, str]:
        return {column: as_text(record[column], self.list_separator) or "" for column in template.columns}


# a dataclass has no place for a second name of an argument
Task.__init__ = renamed_arguments(target_words="verbalizer")(Task.__init__)  # type: ignore[method-assign]
