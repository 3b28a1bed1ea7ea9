"""Tasks for a user's own file: a family gives the template, the columns of the file are found or named.

    preset_task("classification", records, columns={"text": "review", "label": "stars"})

Where T5 was pretrained on a prefix for the family, the template has it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t5peft.data import checks
from t5peft.data.task import Task
from t5peft.data.template import Template, as_text, some_rows

logger = logging.getLogger("t5peft")

MOST_LABELS = 200
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "ro": "Romanian", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "fi": "Finnish", "pl": "Polish", "cs": "Czech",
    "hu": "Hungarian", "el": "Greek", "tr": "Turkish", "ru": "Russian", "uk": "Ukrainian", "ar": "Arabic", "he": "Hebrew",
    "hi": "Hindi", "id": "Indonesian", "vi": "Vietnamese", "zh": "Chinese", "ja": "Japanese", "ko": "Korean",
}  # fmt: skip


@dataclass(frozen=True)
class TaskPreset:
    """What the tasks of a kind share.

    Args:
        source: the template, over roles instead of columns.
        roles: names that columns commonly have, for each role; the last role is the target's.
        metrics: names in METRICS.
        max_source_length: tokens.
        max_target_length: tokens.
        has_labels: whether the target is one of few words.
        num_beams: beams when answers are generated.
    """

    source: str
    roles: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    max_source_length: int = 512
    max_target_length: int = 128
    has_labels: bool = False
    num_beams: int = 1


TEXT = ("text", "sentence", "message", "headline", "question", "review", "comment", "content", "body", "title")
LABEL = ("label", "intent", "sentiment", "class", "category", "target")
DOCUMENT = ("document", "article", "dialogue", "dialog", "body", "text", "passage")
PRESETS: dict[str, TaskPreset] = {
    "classification": TaskPreset(
        "classify: {text}", {"text": TEXT, "label": LABEL}, ("accuracy", "f1"), 256, 16, has_labels=True
    ),
    "sentence_pairs": TaskPreset(
        "sentence1: {first} sentence2: {second}",
        {
            "first": ("sentence1", "premise", "question1", "text1", "first"),
            "second": ("sentence2", "hypothesis", "question2", "text2", "second"),
            "label": LABEL,
        },
        ("accuracy", "f1"),
        max_target_length=16,
        has_labels=True,
    ),
    "summarisation": TaskPreset(
        "summarize: {document}",
        {"document": DOCUMENT, "summary": ("summary", "highlights", "subject", "title", "target")},
        ("rouge",),
        num_beams=4,
    ),
    "question_answering": TaskPreset(
        "question: {question} context: {context}",
        {
            "question": ("question", "query"),
            "context": ("context", "passage", "paragraph", "document"),
            "answer": ("answer", "target"),
        },
        ("exact_match", "token_f1"),
        max_target_length=32,
    ),
    "translation": TaskPreset(
        "translate {from} to {to}: {source}",
        {"source": ("source", "english", "en"), "target": ("target", "german", "de", "french", "fr")},
        ("bleu", "chrf"),
        256,
        256,
        num_beams=4,
    ),
    "dialogue": TaskPreset(
        "reply: {message}",
        {"message": ("message", "dialogue", "dialog", "history", "prompt", "text"), "reply": ("reply", "response")},
        ("rouge", "bleu"),
    ),
    "data_to_text": TaskPreset(
        "describe: {data}",
        {"data": ("data", "mr", "table", "triples", "input"), "text": ("text", "ref", "reference", "target")},
        ("bleu", "rouge", "chrf"),
        256,
        num_beams=4,
    ),
    "correction": TaskPreset(
        "correct: {text}",
        {"text": ("text", "source", "input", "original"), "corrected": ("corrected", "correction", "target")},
        ("gleu", "accuracy"),
        256,
        256,
    ),
    "generation": TaskPreset(
        "{prompt}",
        {
            "prompt": ("prompt", "instruction", "input", "source", "text"),
            "completion": ("completion", "output", "response", "target"),
        },
        ("rouge", "exact_match"),
    ),
    "recommendation": TaskPreset(
        "recommend next: {history}",
        {"history": ("history", "items", "query", "text"), "item": ("item", "next", "choice", "target")},
        ("accuracy",),
        max_target_length=48,
        has_labels=True,
    ),
}
"""By the name that the command line uses. Recommendation and retrieval score every item of the catalogue as a label."""


def preset_task(
    family: str,
    records: Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    verbalizer: Mapping[str, str] | None = None,
    template: str | None = None,
    scored: Sequence[Mapping[str, Any]] = (),
) -> Task:
    """A task of a family for records of the user's.

    Args:
        family: a key of ``PRESETS``.
        records: the training records; labels are read from them.
        name: of the task; the family's if not given.
        columns: role to column, such as ``{"text": "review"}``; the others are found by their common names.
        verbalizer: label to word, where the family has labels; each label is its own word if not given.
        template: over the columns, instead of the family's.
        scored: validation and test records; a column ``references`` that holds a list, here or in ``records``, is the task's.

    Raises:
        ValueError: no such family or role, a role whose column is neither named nor found, or too many labels: all at
            once; columns of a translation that name no language, without a template.
    """
    if family not in PRESETS:
        raise ValueError(f"no family {family!r}; there are {', '.join(PRESETS)}")
    kind = PRESETS[family]
    records = list(records)
    checks.raise_all(name or family, checks.no_records([*records, *scored]))
    found = _find_columns(family, kind, records, dict(columns or {}))
    target_column = list(found.values())[-1]
    if template is None:
        template = _template(family, kind, found)
        _tell_left_out(family, kind, records[0], found, columns or {}, template)
    words = dict(verbalizer) if verbalizer else None
    if kind.has_labels and words is None:
        words = {label: label for label in _labels(records, target_column)}
    return Task(
        name=name or family,
        template=template,
        target=f"{{{target_column}}}",
        verbalizer=words,
        metrics=kind.metrics,
        max_source_length=kind.max_source_length,
        max_target_length=kind.max_target_length,
        num_beams=kind.num_beams,
        references="references" if not words and any(map(has_references, (*records, *scored))) else None,
    )


def _find_columns(
    family: str, kind: TaskPreset, records: Sequence[Mapping[str, Any]], named: dict[str, str]
) -> dict[str, str]:
    if not records:
        raise ValueError(f"family {family!r}: there are no records to read columns from; the file is empty")
    there = list(records[0])
    problems = [
        f"it has no role {role!r}; its roles are {', '.join(kind.roles)}" for role in set(named) - {*kind.roles}
    ]
    problems += [f"no column {column!r} for the role {role!r}" for role, column in named.items() if column not in there]
    found: dict[str, str] = {}
    for role, common in kind.roles.items():
        free = [column for column in common if column in there and column not in (*named.values(), *found.values())]
        if role in named:
            found[role] = named[role]
        elif free:
            found[role] = free[0]
        else:
            problems.append(
                f"no column for the role {role!r}; say which, by columns={{{role!r}: ...}}, or --column {role}=NAME, in "
                "bench by --source-column and --label-column"
            )
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"family {family!r}:\n{listed}\nThe columns there are: {', '.join(map(repr, there))}.")
    return found


def _tell_left_out(
    family: str,
    kind: TaskPreset,
    record: Mapping[str, Any],
    found: Mapping[str, str],
    named: Mapping[str, str],
    template: str,
) -> None:
    """Warn of columns that could be part of the source, beside one that was found by its name, not given."""
    for role in list(kind.roles)[:-1]:
        left_out = [name for name in kind.roles[role] if name in record and name not in found.values()]
        if left_out and role not in named:
            own = f"{{{found[role]}}}"
            both = template.replace(own, " ".join([own, *(f"{{{name}}}" for name in left_out)]))
            logger.warning(
                "family %r: the source has the column %r, not %s; give a template over all, such as '%s', or say which is the "
                "role %r",
                family, found[role], ", ".join(map(repr, left_out)), both, role,
            )  # fmt: skip


def _template(family: str, kind: TaskPreset, found: Mapping[str, str]) -> str:
    fields = {role: f"{{{column}}}" for role, column in found.items()}
    if family == "translation":
        fields["from"], fields["to"] = _languages(list(found.values()))
    return Template.parse(kind.source).render(fields)


def _languages(columns: Sequence[str]) -> list[str]:
    """The language of each column by the last part of its name: ``translation.de`` and ``German`` are German."""
    by_name = LANGUAGES | {language.lower(): language for language in LANGUAGES.values()}
    found = [by_name.get(column.rsplit(".", 1)[-1].lower()) for column in columns]
    if unknown := [column for column, language in zip(columns, found, strict=True) if language is None]:
        raise ValueError(
            f"family 'translation': the columns {', '.join(map(repr, unknown))} name no language ({', '.join(LANGUAGES)}, or in "
            f"full); give a template that does, such as 'translate English to German: {{{columns[0]}}}', or rename them"
        )
    return [language for language in found if language is not None]


def has_references(record: Mapping[str, Any]) -> bool:
    """Whether a record has a list of references under that name."""
    cell = record.get("references")
    return isinstance(cell, Collection) and not isinstance(cell, (str, bytes, Mapping))


def _labels(records: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    cells = [record.get(column) for record in records]
    if twice := {cell for cell in cells if type(cell) is int} & {cell for cell in cells if isinstance(cell, float)}:
        number = int(min(twice))
        raise ValueError(
            f"the column {column!r} holds {number} and {number}.0 as numbers, which would be two labels; write them alike"
        )
    if blank := [i for i, cell in enumerate(cells) if isinstance(cell, str) and not cell.strip()]:
        raise ValueError(
            f"the column {column!r} of labels is empty in {some_rows(blank)} of the training records; fill it, or leave them out"
        )
    labels = sorted({label for cell in cells if (label := as_text(cell)) is not None})
    if len(labels) > MOST_LABELS:
        raise ValueError(
            f"the column {column!r} has {len(labels)} different values, more than {MOST_LABELS}: is it a label? If so, "
            "give verbalizer; else choose the column of labels"
        )
    return labels
