"""A task: what turns a record into a source and a target for T5, and an answer of T5 back into what is measured.

    Task("sst2", "sst2 sentence: {sentence}", "{label}", {"0": "negative", "1": "positive"}, metrics=("accuracy",))

In the spirit of seqio's Task, in plain Python: no registry of functions, no preprocessors that depend on TensorFlow;
records are dictionaries, from ``load_records``, a ``datasets.Dataset`` or a list in memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from t5peft.data import checks
from t5peft.data.decoding import as_written
from t5peft.data.definition import read_definition
from t5peft.data.template import Template, as_text, one_line, texts_of
from t5peft.data.truncation import Fitted, encode, fit, special_ids

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Tokenised records, and which rows were changed on the way: cut to the limits, or freed of special tokens."""

    sources: Fitted
    targets: Fitted

    def dataset(self) -> Dataset:
        """Columns ``input_ids`` [S] and ``labels`` [T], both ending in ``</s>``, without padding."""
        return Dataset.from_dict({"input_ids": self.sources.ids, "labels": self.targets.ids})


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: how tables and mixtures call it.
        template: the source, an instruction over the record's columns.
        target: the target over the record's columns.
        verbalizer: for classification: each label, as text, and the words that T5 says for it. ``target`` then names
            one column, which holds labels.
        metrics: names in ``t5peft.evaluation.METRICS``; the first leads tables. ``exact_match`` of a free target is SQuAD's,
            without punctuation, case and articles; ``accuracy`` compares texts as they are.
        max_source_length: tokens, with ``</s>``.
        max_target_length: tokens, with ``</s>``.
        num_beams: beams when answers are generated.
        references: a column with a list of references, where answers have several.

    Raises:
        ValueError: everything in this list that contradicts itself, at once.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if self.verbalizer is not None:
            words = {str(label): as_text(word) for label, word in self.verbalizer.items()}
            object.__setattr__(self, "verbalizer", words)
        checks.raise_all(self.name, self._contradictions())

    def _contradictions(self) -> list[str]:
        problems = [] if self.name.strip() else ["its name is empty; give one, tables need it"]
        for role in ("template", "target"):
            try:
                if not Template.parse(getattr(self, role)).columns:
                    problems.append(f"its {role} {getattr(self, role)!r} names no column; write {{column}}")
            except ValueError as error:
                problems.append(str(error))
        if not self.metrics:
            problems.append("it has no metric; name at least one, the first leads tables")
        for limit in ("max_source_length", "max_target_length"):
            if getattr(self, limit) < 2:
                problems.append(f"{limit} is {getattr(self, limit)}; at least 2 are needed, a token and </s>")
        if self.num_beams < 1:
            problems.append(f"num_beams is {self.num_beams}; 1 is greedy search, more are beams")
        return problems or self._contradictions_of_labels()

    def _contradictions_of_labels(self) -> list[str]:
        if self.verbalizer is None:
            return []
        problems = []
        if len(self.verbalizer) < 2:
            problems.append(f"it has {len(self.verbalizer)} target words; a choice needs two or more")
        if len(self._target.columns) != 1:
            problems.append(
                f"it has target words, so its target must name the one column of labels, but {self.target!r} names "
                f"{', '.join(self._target.columns)}"
            )
        by_word: dict[str, list[str]] = {}
        for label, word in self.verbalizer.items():
            if word is None or not word.strip():
                problems.append(f"label {label!r} has {'an empty' if word is not None else 'no'} target word")
            elif checks.SURROGATE.search(word):
                problems.append(
                    f"the target word {word!r} of label {label!r} holds half of a character, a lone surrogate"
                )
            else:
                by_word.setdefault(word.strip(), []).append(label)
        for word, labels in by_word.items():
            if len(labels) > 1:
                problems.append(
                    f"labels {', '.join(map(repr, labels))} share the target word {word!r}; give each its own"
                )
        return problems

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Task:
        """A task from the fields of a YAML file; numbers may be text, and ``references: null`` is none.

        Raises:
            ValueError: a field that a task does not have, or one that is missing, or of the wrong kind.
        """
        nothing = [key for key in ("references", "verbalizer") if values.get(key) in ("", "~", "null")]
        values = {key: value for key, value in values.items() if key not in nothing}
        known = {field.name for field in fields(cls)}
        problems = [
            f"it has no field {key!r}; the fields are {', '.join(sorted(known))}" for key in set(values) - known
        ]
        problems += [f"{key!r} is missing" for key in ("name", "template") if key not in values]
        words = values.get("verbalizer")
        if words is not None and not isinstance(words, Mapping):
            problems.append("verbalizer must be a mapping from label to word")
        converted = dict(values)
        if isinstance(converted.get("metrics"), str):
            converted["metrics"] = converted["metrics"].replace(",", " ").split()
        for key in ("max_source_length", "max_target_length", "num_beams"):
            if key in converted:
                try:
                    converted[key] = int(converted[key])
                except (TypeError, ValueError):
                    problems.append(f"{key} is {converted[key]!r}; a whole number was expected")
        checks.raise_all(str(values.get("name", "without a name")), problems)
        return cls(**converted)

    @classmethod
    def from_yaml(cls, path_or_name: str | Path) -> Task:
        """The task of a YAML file, or one of the package's own by name (``"sst2"``).

        The file holds the fields of a task and may hold ``data``, where its records come from (``load_task``).

        Raises:
            FileNotFoundError: neither a file nor a name of the package.
            ValueError: what ``from_mapping`` says.
        """
        return cls.from_mapping({key: value for key, value in read_definition(path_or_name).items() if key != "data"})

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
        """The columns of a record that the source is made of."""
        return self._template.columns

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of ``verbalizer``; none where the target is free."""
        return tuple(self.verbalizer or ())

    @property
    def candidates(self) -> tuple[str, ...]:
        """The whole target of every label, in the order of ``labels``: what ``rank`` compares."""
        column = self._target.columns[0]
        return tuple(self._target.render({column: word}) for word in (self.verbalizer or {}).values())

    def source(self, record: Record) -> str:
        """The source of one record as the template renders it; neither cut nor looked through for special tokens."""
        self.check_sources([record])
        return self._template.render(_values(record, self._template))

    def check_sources(self, records: Sequence[Record]) -> None:
        """Raise one ValueError for all rows whose source cannot be rendered."""
        checks.raise_all(self.name, checks.missing_columns(records, self._template))

    def content(self, record: Record) -> str:
        """What the record brings to its source, without the template's words: what GLEU compares an answer with."""
        self.check_sources([record])
        return " ".join(_values(record, self._template).values())

    def target_text(self, record: Record) -> str:
        """The target of one record: the label's words, or the target template over the columns.

        Raises:
            ValueError: a column is missing or holds no text, or a label has no target word.
        """
        checks.raise_all(self.name, checks.missing_columns([record], self._target) + self._unknown([record]))
        return self._target.render(self._target_values(record))

    def read(self, text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """Return the label whose target an answer is, else the answer itself with all its white space.

        Args:
            text: An answer of T5, as ``predict`` returns it.
            tokenizer: Where the target template has special tokens, such as sentinels: the tokenizer of the model. The
                answer then has the template's spaces around them, which T5's tokenizer does not keep.
        """
        found = self._labels_by_answer.get(text) or self._labels_by_answer.get(one_line(text))
        return found or self._with_spaces_of_template(text, tokenizer)

    def answers(self, record: Record, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
        """Return what ``read`` should give for a record: its references if it has several, else its one target.

        Args:
            record: With the columns of the target, or of ``references``.
            tokenizer: The tokenizer of the model that is scored. References then have the white space that it can write:
                T5's own has no line break, and an answer with a space in its place is right.

        Raises:
            ValueError: References that hold columns of their own, or see ``target_text``.
        """
        checks.raise_all(self.name, checks.mapped_references([record], self.references))
        texts = texts_of(record.get(self.references)) if self.references is not None else []
        texts = texts or [self.target_text(record)]
        if tokenizer is not None and self.verbalizer is None:
            texts = [as_written(text, tokenizer, keep=self.special_tokens(tokenizer)) for text in texts]
        return [self.read(text, tokenizer) for text in texts]

    def special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the special tokens that the target template writes, such as ``<extra_id_0>``; answers keep them."""
        if not self._target.empty().strip():
            return ()
        written = encode([self._target.empty()], tokenizer)[0][:-1]
        special = special_ids(tokenizer) - {tokenizer.eos_token_id, tokenizer.pad_token_id}
        return tuple(tokenizer.convert_ids_to_tokens([token for token in dict.fromkeys(written) if token in special]))

    def _with_spaces_of_template(self, text: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
        literals = "".join(f"{literal}\0" for literal, _ in self._target.parts)
        for token in self.special_tokens(tokenizer) if tokenizer is not None else ():
            if found := re.search(rf"\s*{re.escape(token)}\s*", literals):
                text = re.sub(rf"\s*{re.escape(token)}\s*", lambda _, spaced=found[0]: spaced, text)
        return text

    def sources(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Sources as ``tokenize`` makes and tells of them, as text: cut in the columns, special tokens broken up. Needs no target.

        Raises:
            ValueError: all problems with the records, at once.
        """
        records = list(records)
        self.check_sources(records)
        fitted = self._fit_sources(records, tokenizer)
        checks.raise_all(self.name, checks.unusable(fitted, self._template, "source", self.max_source_length))
        self._tell("sources", fitted, self.max_source_length)
        return fitted.texts

    def check(self, records: Sequence[Record], more: Sequence[str] = ()) -> None:
        """Raise one ValueError for all rows without a source or a target, and for the problems in ``more``."""
        checks.raise_all(self.name, checks.no_records(records))
        problems = checks.missing_columns(records, self._template) + checks.missing_columns(records, self._target)
        problems += checks.mapped_references(records, self.references)
        checks.raise_all(self.name, [*problems, *self._unknown(list(records)), *more])

    def encode(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokenise records and say which were changed.

        Raises:
            ValueError: all problems with the records and the tokenizer, at once: missing columns, labels outside the
                target words, target words that are the same tokens, empty sources or targets, a template that
                leaves no room for its columns.
        """
        records = list(records)
        self.check(records, self.collisions(tokenizer))
        sources = self._fit_sources(records, tokenizer)
        targets = self._fit_targets(records, tokenizer)
        checks.raise_all(
            self.name,
            checks.unusable(sources, self._template, "source", self.max_source_length)
            + checks.unusable(targets, self._target, "target", self.max_target_length),
        )
        return Encoded(sources, targets)

    def tokenize(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """``encode`` as a data set with ``input_ids`` and ``labels``; one log line for each kind of change.

        Raises:
            ValueError: what ``encode`` says.
        """
        encoded = self.encode(records, tokenizer)
        self._tell("sources", encoded.sources, self.max_source_length)
        self._tell("targets", encoded.targets, self.max_target_length)
        return encoded.dataset()

    def tokenize_for_head(self, records: Iterable[Record], tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Columns ``input_ids`` [S] and ``labels``, the label's place in ``labels``: for a trained classification head.

        Raises:
            ValueError: the task has no target words, or what ``encode`` says.
        """
        if self.verbalizer is None:
            checks.raise_all(self.name, ["it has no target words; a classification head needs labels to choose from"])
        records = list(records)
        places = {label: place for place, label in enumerate(self.labels)}
        column = self._target.columns[0]
        dataset = self.tokenize(records, tokenizer).remove_columns("labels")
        return dataset.add_column("labels", [places[as_text(record[column]) or ""] for record in records])

    def collisions(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Problems with target words that a model could not tell apart or could not say within the limit."""
        if self.verbalizer is None:
            return []
        problems: list[str] = []
        by_tokens: dict[tuple[int, ...], list[str]] = {}
        for label, tokens in zip(self.labels, encode(self.candidates, tokenizer), strict=True):
            by_tokens.setdefault(tuple(tokens), []).append(label)
            if len(tokens) > self.max_target_length:
                problems.append(
                    f"the target of label {label!r} takes {len(tokens)} tokens, max_target_length is "
                    f"{self.max_target_length}; raise it or choose a shorter word"
                )
        for ids, labels in by_tokens.items():
            if len(labels) > 1:
                pieces = " ".join(tokenizer.convert_ids_to_tokens(list(ids)))
                problems.append(
                    f"the target words of labels {', '.join(map(repr, labels))} are the same tokens ({pieces}); choose "
                    "words that this tokenizer knows"
                )
        return problems

    def _target_values(self, record: Record) -> dict[str, str]:
        values = _values(record, self._target)
        if self.verbalizer is None:
            return values
        return {column: self.verbalizer[label] for column, label in values.items()}

    def _unknown(self, records: list[Record]) -> list[str]:
        if self.verbalizer is None:
            return []
        return checks.unknown_labels(records, self._target.columns[0], self.labels)

    def _tell(self, side: str, fitted: Fitted, limit: int) -> None:
        if fitted.cut:
            logger.warning(
                "task %s: %d of %d %s were longer than %d tokens; their columns were cut, not the template",
                self.name, len(fitted.cut), len(fitted.texts), side, limit,
            )  # fmt: skip
        if fitted.escaped:
            logger.warning(
                "task %s: special tokens spelled out in %d of %d %s were broken up (</s> became < /s>)",
                self.name, len(fitted.escaped), len(fitted.texts), side,
            )  # fmt: skip

    def _fit_targets(self, records: list[Record], tokenizer: PreTrainedTokenizerBase) -> Fitted:
        rows = [self._target_values(record) for record in records]
        if self.verbalizer is None:
            return fit(self._target, rows, tokenizer, self.max_target_length)
        # Target words are the task's own, no user's text: they are what is ranked, special tokens among them too.
        texts = [self._target.render(row) for row in rows]
        ids = dict(zip(self.candidates, encode(self.candidates, tokenizer), strict=True))
        return Fitted(texts, [list(ids[text]) for text in texts], cut=[], escaped=[], empty=[], crowded_out=[])

    def _fit_sources(self, records: list[Record], tokenizer: PreTrainedTokenizerBase) -> Fitted:
        rows = [_values(record, self._template) for record in records]
        return fit(self._template, rows, tokenizer, self.max_source_length)


def _values(record: Record, template: Template) -> dict[str, str]:
    return {column: as_text(record[column]) or "" for column in template.columns}
