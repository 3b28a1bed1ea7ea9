"""Tasks for a user's own file: a preset gives the template, and the columns of the file are found or named.

    preset_task("classification", records, columns={"text": "review", "label": "stars"})

Where T5 was pretrained on a prefix for such tasks, the template has it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t5peft.compat.suggestions import did_you_mean
from t5peft.data import checks
from t5peft.data.sources import RecordList, origin_of, read_records
from t5peft.data.task import Task
from t5peft.data.template import Template, as_text, some_rows
from t5peft.deprecated import current_preset, renamed_arguments

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
    """The fields that tasks of one kind share.

    Args:
        source: The template, over roles instead of columns.
        roles: For each role, the names that columns commonly have; the last role is the target's.
        metrics: Names in ``METRICS``.
        max_source_length: Tokens.
        max_target_length: Tokens.
        has_labels: Whether the target is one of few words.
        num_beams: Beams when answers are generated.
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
    "summarization": TaskPreset(
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
"""By the name that the command line uses. Recommendation and retrieval score every item of the catalog as a label."""


@renamed_arguments(target_words="verbalizer")
def preset_task(
    family: str,
    records: Iterable[Mapping[str, Any]],
    *,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    verbalizer: Mapping[str, str] | None = None,
    template: str | None = None,
    references: str | None = None,
    scored: Iterable[Mapping[str, Any]] = (),
) -> Task:
    """Return a task of a preset for your own records.

    If the label column contains lists, the target consists of all labels of a record, and the task has no verbalizer.

    Args:
        family: A key of ``PRESETS``.
        records: The training records. Labels are read from them, and label names if a ``Dataset`` or file has them.
        name: The name of the task; by default the preset's.
        columns: The column of each role, such as ``{"text": "review"}``; other columns are found by common names.
        verbalizer: A mapping from labels, or their names, to words, if the preset has labels; by default each label is its word.
        template: A template to use instead of the preset's.
        references: A column with a list of references for each record.
        scored: Validation and test records. A column ``references`` with lists, here or in ``records``, becomes the task's.

    Raises:
        ValueError: The preset or a role is unknown, the column of a role is neither named nor found, or there are too many
            labels. One error reports all problems. Also, if the columns of a translation do not name a language and there is no
            template.
    """
    family = current_preset(family)
    if family not in PRESETS:
        raise ValueError(
            f"Got no preset {family!r}; expected one of {', '.join(PRESETS)}.{did_you_mean(family, PRESETS)}"
        )
    preset = PRESETS[family]
    records, scored = read_records(records), read_records(scored)
    checks.raise_all(name or family, checks.no_records([*records, *scored]), records)
    found = _find_columns(family, preset, records, dict(columns or {}))
    target_column = list(found.values())[-1]
    if template is None:
        template = _template(family, preset, found)
        _warn_of_left_out(family, preset, records[0], found, columns or {}, template)
    words = dict(verbalizer) if verbalizer else None
    several = preset.has_labels and any(isinstance(record.get(target_column), list) for record in records)
    if several and words:
        raise ValueError(
            f"Got lists of labels in the column {target_column!r} and a verbalizer; expected one of them. Leave out the verbalizer "
            "(--target-word): the words of several labels are the labels themselves."
        )
    if preset.has_labels and not several:
        words = _words(records, target_column, words)
    if references is None and not words and any(map(has_references, (*records, *scored))):
        references = "references"
    return Task(
        name=name or family,
        template=template,
        target=f"{{{target_column}}}",
        verbalizer=words,
        metrics=("accuracy", "token_f1") if several else preset.metrics,
        max_source_length=preset.max_source_length,
        max_target_length=PRESETS["generation"].max_target_length if several else preset.max_target_length,
        num_beams=preset.num_beams,
        references=references,
        list_separator=", " if several else None,
    )


def _words(records: Sequence[Mapping[str, Any]], column: str, words: Mapping[str, str] | None) -> dict[str, str]:
    """Return label to word: as given, by label or by its name, else the names, else the labels themselves."""
    names = records.label_names.get(column) if isinstance(records, RecordList) else None
    if names is None:
        return dict(words) if words else {label: label for label in _labels(records, column)}
    if len(names) > MOST_LABELS and not words:
        raise _too_many(column, len(names))
    numbers = {name: str(number) for number, name in enumerate(names)}
    if words is None:
        return {number: name for name, number in numbers.items()}
    return {label if label in numbers.values() else numbers.get(label, label): word for label, word in words.items()}


def _find_columns(
    family: str, preset: TaskPreset, records: Sequence[Mapping[str, Any]], named: dict[str, str]
) -> dict[str, str]:
    if not records:
        raise ValueError(
            f"Got no records for the preset {family!r}; expected some to read columns from. The file is empty."
        )
    there = list(records[0])
    problems = [
        f"it has no role {role!r}; its roles are {', '.join(preset.roles)}" for role in set(named) - {*preset.roles}
    ]
    problems += [f"no column {column!r} for the role {role!r}" for role, column in named.items() if column not in there]
    found: dict[str, str] = {}
    for role, common in preset.roles.items():
        free = [column for column in common if column in there and column not in (*named.values(), *found.values())]
        if role in named:
            found[role] = named[role]
        elif free:
            found[role] = free[0]
        else:
            problems.append(
                f"no column for the role {role!r}; name it with columns={{{role!r}: ...}}, or --column {role}=NAME"
            )
    if problems:
        origin = origin_of(records)
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(
            f"Got columns{' in ' + origin if origin else ''} that the preset {family!r} cannot use; expected none of:\n{listed}\n"
            f"The columns are: {', '.join(map(repr, there))}."
        )
    return found


def _warn_of_left_out(
    family: str,
    preset: TaskPreset,
    record: Mapping[str, Any],
    found: Mapping[str, str],
    named: Mapping[str, str],
    template: str,
) -> None:
    """Warn of columns that could be part of the source, beside one that was found by its name, not given."""
    for role in list(preset.roles)[:-1]:
        left_out = [name for name in preset.roles[role] if name in record and name not in found.values()]
        if left_out and role not in named:
            own = f"{{{found[role]}}}"
            both = template.replace(own, " ".join([own, *(f"{{{name}}}" for name in left_out)]))
            logger.warning(
                "Family %r: the source has the column %r, not %s; give a template with all of them, such as '%s' (--template), "
                "or name the column for the role %r (--column).",
                family, found[role], ", ".join(map(repr, left_out)), both, role,
            )  # fmt: skip


def _template(family: str, preset: TaskPreset, found: Mapping[str, str]) -> str:
    fields = {role: f"{{{column}}}" for role, column in found.items()}
    if family == "translation":
        fields["from"], fields["to"] = _languages(list(found.values()))
    return Template.parse(preset.source).render(fields)


def _languages(columns: Sequence[str]) -> list[str]:
    """Return the language of each column by the last part of its name: ``translation.de`` and ``German`` are German."""
    by_name = LANGUAGES | {language.lower(): language for language in LANGUAGES.values()}
    found = [by_name.get(column.rsplit(".", 1)[-1].lower()) for column in columns]
    if unknown := [column for column, language in zip(columns, found, strict=True) if language is None]:
        raise ValueError(
            f"Got a translation whose columns {', '.join(map(repr, unknown))} do not name a language; expected a name or a "
            "code, such as "
            f"{', '.join(LANGUAGES)}. Rename them, or give a template that does (--template), such as 'translate English to "
            f"German: {{{columns[0]}}}'."
        )
    return [language for language in found if language is not None]


def has_references(record: Mapping[str, Any]) -> bool:
    """Return whether a record has a list of references under that name."""
    cell = record.get("references")
    return isinstance(cell, Collection) and not isinstance(cell, (str, bytes, Mapping))


def _labels(records: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    cells = [record.get(column) for record in records]
    where = f" of {origin}" if (origin := origin_of(records)) else ""
    if twice := {cell for cell in cells if type(cell) is int} & {cell for cell in cells if isinstance(cell, float)}:
        number = int(min(twice))
        raise ValueError(
            f"Got {number} and {number}.0 as numbers in the column {column!r}{where}, which would be two labels; expected one of "
            "them. Write them in the same way."
        )
    if blank := [i for i, cell in enumerate(cells) if isinstance(cell, str) and not cell.strip()]:
        raise ValueError(
            f"Got a column {column!r} of labels{where} that is empty in {some_rows(blank)} of the training records; expected a "
            "label in each. Fill it, or remove those records."
        )
    labels = sorted({label for cell in cells if (label := as_text(cell)) is not None})
    if len(labels) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label"
        raise ValueError(
            f"Got {found} in the column {column!r}{where}; expected two or more in the training records. Choose the label column "
            "(--column label=NAME), or give a verbalizer (--target-word)."
        )
    if len(labels) > MOST_LABELS:
        raise _too_many(column, len(labels))
    return labels


def _too_many(column: str, count: int) -> ValueError:
    return ValueError(
        f"Got {count} different values in the column {column!r}; expected at most {MOST_LABELS}. If it is a label, give a "
        "verbalizer (--target-word). Otherwise choose the label column (--column label=NAME)."
    )
