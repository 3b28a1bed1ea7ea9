"""The fields of a task: from the text of a YAML file, and checked for their types and for what contradicts what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5peft.data.template import SURROGATE, Template, as_text

WHOLE_NUMBERS = ("max_source_length", "max_target_length", "num_beams")
OPTIONAL = ("references", "verbalizer", "list_separator")


def fields_of_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task as its class takes them: numbers from text, and none for an empty or null option.

    What cannot be converted stays as it is, for ``problems_of``. ``target_words`` is what 0.1 called the verbalizer.
    """
    fields = {("verbalizer" if key == "target_words" else key): value for key, value in values.items()}
    for key in OPTIONAL:
        if fields.get(key) in ("~", "null") or (fields.get(key) == "" and key != "list_separator"):
            fields[key] = None
    for key in WHOLE_NUMBERS:
        try:
            fields[key] = int(fields[key])
        except (KeyError, TypeError, ValueError):
            continue
    return fields


def problems_of(fields: Mapping[str, Any]) -> list[str]:
    """Return problems with the types of a task's fields, and contradictions among those of the right types."""
    types = _wrong_types(fields)
    right = {key: value for key, value in fields.items() if key not in types}
    return [*types.values(), *_contradictions(right), *_contradictions_of_labels(right)]


def _wrong_types(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return a problem for each field of a wrong type."""
    wrong = {
        key: "text was expected"
        for key in ("name", "template", "target")
        if key in fields and not isinstance(fields[key], str)
    }
    wrong |= {
        key: "text was expected; otherwise remove it"
        for key in ("references", "list_separator")
        if not isinstance(fields.get(key), str | None)
    }
    wrong |= {
        key: "a whole number was expected"
        for key in WHOLE_NUMBERS
        if key in fields and (not isinstance(fields[key], int) or isinstance(fields[key], bool))
    }
    metrics = fields.get("metrics", ())
    if not isinstance(metrics, list | tuple) or not all(isinstance(metric, str) for metric in metrics):
        wrong["metrics"] = "a list of names was expected, such as [accuracy, f1]"
    words = fields.get("verbalizer")
    if not isinstance(words, Mapping | None):
        wrong["verbalizer"] = "a mapping from label to word was expected"
    problems = {key: f"{key} is {fields[key]!r:.60}; {expected}." for key, expected in wrong.items()}
    pairs = words.items() if isinstance(words, Mapping) else ()
    if lists := [label for label, word in pairs if isinstance(word, list | tuple | Mapping)]:
        problems["verbalizer"] = (
            f"The verbalizer's labels {', '.join(map(repr, lists))} have no text as their word; one text each was expected."
        )
    return problems


def _contradictions(fields: Mapping[str, Any]) -> list[str]:
    problems = [] if fields.get("name", "x").strip() else ["Its name is empty; tables need a name."]
    for role in ("template", "target"):
        try:
            if role in fields and not Template.parse(fields[role]).columns:
                problems.append(f"Its {role} {fields[role]!r} names no column; write {{column}}.")
        except ValueError as error:
            problems.append(str(error))
    if "metrics" in fields and not fields["metrics"]:
        problems.append("It has no metric; name at least one under metrics. The first one comes first in tables.")
    for limit in ("max_source_length", "max_target_length"):
        if fields.get(limit, 2) < 2:
            problems.append(f"{limit} is {fields[limit]}; at least 2 is needed, for one token and </s>.")
    if fields.get("num_beams", 1) < 1:
        problems.append(
            f"num_beams is {fields['num_beams']}; 1 means greedy search, and larger numbers mean beam search."
        )
    return problems


def _contradictions_of_labels(fields: Mapping[str, Any]) -> list[str]:
    words = fields.get("verbalizer")
    if words is None:
        return []
    problems = []
    if len(words) < 2:
        problems.append(
            f"Its verbalizer has a word for {', '.join(map(repr, words)) or 'no label'} only; give two or more labels a word."
        )
    if fields.get("list_separator") is not None:
        problems.append(
            "It has a verbalizer, which selects one label, and a list_separator, which is for several labels; remove one of them."
        )
    problems += _target_of_labels(fields.get("target"))
    by_word: dict[str, list[str]] = {}
    for label, value in words.items():
        word = as_text(value)
        if word is None or not word.strip():
            problems.append(
                f"Label {str(label)!r} has {'an empty' if word is not None else 'no'} word in the verbalizer."
            )
        elif SURROGATE.search(word):
            problems.append(
                f"The word {word!r} of label {str(label)!r} contains half of a character (a lone surrogate)."
            )
        else:
            by_word.setdefault(word.strip(), []).append(str(label))
    for word, labels in by_word.items():
        if len(labels) > 1:
            problems.append(
                f"Labels {', '.join(map(repr, labels))} share the word {word!r}; use a different word for each."
            )
    return problems


def _target_of_labels(target: str | None) -> list[str]:
    """Return a problem where the target of a task with a verbalizer does not name one column."""
    try:
        columns = Template.parse(target).columns if target is not None else ("label",)
    except ValueError:  # a problem of its own
        return []
    if len(columns) == 1:
        return []
    return [
        f"It has a verbalizer, so its target must name the one column of labels, but {target!r} names "
        f"{', '.join(columns) or 'none'}."
    ]


def kind_of(value: object) -> str:
    """Return the kind of a value as a user of YAML or JSON calls it."""
    if value is None:
        return "nothing"
    return {"str": "a text", "list": "a list", "dict": "a mapping"}.get(type(value).__name__, type(value).__name__)
