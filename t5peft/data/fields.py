"""The fields of a task: from the text of a YAML file, and checked for their types and for what contradicts what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5peft.data.template import SURROGATE, Template

WHOLE_NUMBERS = ("max_source_length", "max_target_length", "num_beams")
OPTIONAL = ("references", "verbalizer", "list_separator")


def fields_of_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task as its class takes them: numbers from text, and none for an empty or null option.

    What cannot be converted stays as it is, for ``field_problems``. ``target_words`` is what 0.1 called the verbalizer.
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


def field_problems(fields: Mapping[str, Any]) -> list[str]:
    """Return problems with the types of a task's fields."""
    problems = [
        f"{key} is {fields[key]!r:.60}; text was expected."
        for key in ("name", "template", "target")
        if key in fields and not isinstance(fields[key], str)
    ]
    problems += [
        f"{key} is {fields[key]!r:.60}; text was expected, or leave it out."
        for key in ("references", "list_separator")
        if not isinstance(fields.get(key), str | None)
    ]
    problems += [
        f"{key} is {fields[key]!r:.60}; a whole number was expected."
        for key in WHOLE_NUMBERS
        if key in fields and (not isinstance(fields[key], int) or isinstance(fields[key], bool))
    ]
    metrics = fields.get("metrics", ())
    if not isinstance(metrics, list | tuple) or not all(isinstance(metric, str) for metric in metrics):
        problems.append(f"metrics is {metrics!r:.60}; a list of names was expected, such as [accuracy, f1].")
    words = fields.get("verbalizer")
    if not isinstance(words, Mapping | None):
        problems.append(f"verbalizer is {words!r:.60}; a mapping from label to word was expected.")
    elif wrong := [label for label, word in (words or {}).items() if isinstance(word, list | tuple | Mapping)]:
        problems.append(
            f"The verbalizer's labels {', '.join(map(repr, wrong))} have {kind_of(words[wrong[0]])} as their word; one text each "
            "was expected."
        )
    return problems


def contradictions(fields: Mapping[str, Any]) -> list[str]:
    """Return problems with fields of the right types that make no task."""
    problems = [] if fields["name"].strip() else ["Its name is empty; give one, tables need it."]
    for role in ("template", "target"):
        try:
            if not Template.parse(fields[role]).columns:
                problems.append(f"Its {role} {fields[role]!r} names no column; write {{column}}.")
        except ValueError as error:
            problems.append(str(error))
    if not fields["metrics"]:
        problems.append("It has no metric; name at least one, the first leads tables.")
    for limit in ("max_source_length", "max_target_length"):
        if fields[limit] < 2:
            problems.append(f"{limit} is {fields[limit]}; at least 2 are needed, a token and </s>.")
    if fields["num_beams"] < 1:
        problems.append(f"num_beams is {fields['num_beams']}; 1 is greedy search, more are beams.")
    return problems or _contradictions_of_labels(fields)


def _contradictions_of_labels(fields: Mapping[str, Any]) -> list[str]:
    words = fields["verbalizer"]
    if words is None:
        return []
    problems = []
    if len(words) < 2:
        problems.append(f"Its verbalizer has {len(words)} labels; a choice needs two or more.")
    if fields["list_separator"] is not None:
        problems.append(
            "It has a verbalizer, which chooses one label, and a list_separator, for several; leave out one."
        )
    columns = Template.parse(fields["target"]).columns
    if len(columns) != 1:
        problems.append(
            f"It has a verbalizer, so its target must name the one column of labels, but {fields['target']!r} names "
            f"{', '.join(columns)}."
        )
    by_word: dict[str, list[str]] = {}
    for label, word in words.items():
        if word is None or not word.strip():
            problems.append(f"Label {label!r} has {'an empty' if word is not None else 'no'} word in the verbalizer.")
        elif SURROGATE.search(word):
            problems.append(f"The word {word!r} of label {label!r} holds half of a character, a lone surrogate.")
        else:
            by_word.setdefault(word.strip(), []).append(label)
    for word, labels in by_word.items():
        if len(labels) > 1:
            problems.append(f"Labels {', '.join(map(repr, labels))} share the word {word!r}; give each its own.")
    return problems


def kind_of(value: object) -> str:
    """Return the kind of a value as a user of YAML or JSON calls it."""
    if value is None:
        return "nothing"
    return {"str": "a text", "list": "a list", "dict": "a mapping"}.get(type(value).__name__, type(value).__name__)
