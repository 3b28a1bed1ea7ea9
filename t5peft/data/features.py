"""Read the features that users give, without their padding, and check that a model can take them.

A feature has ``input_ids`` and labels: lists, arrays or tensors, padded or not. What labels look like depends on the head of
the model, see ``t5peft.training.heads``.

Letters: B batch, S source tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal

from torch.utils.data import IterableDataset

from t5peft.nn.loss import IGNORED_LABEL

COLUMNS = ("input_ids", "attention_mask", "labels")
# Names of the labels that the data collators of transformers take too.
LABEL_ALIASES = ("label", "label_ids")

Feature = Mapping[str, Any]
LabelLayout = Literal["target", "aligned", "whole"]


def check_dataset(dataset: Any, name: str) -> None:
    """Check that a data set, or each one in a mapping, has records and no misspelled columns.

    Args:
        dataset: A data set, a stream, or a mapping of them.
        name: What errors call it.

    Raises:
        ValueError: It is empty, was not read, is an iterator or one of tables, or a column looks like a misspelled one of
            ``COLUMNS``.
    """
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            check_dataset(part, f"{name}[{key!r}]")
        return
    if isinstance(dataset, str | bytes) or type(dataset).__name__ == "DataFrame":
        advice = "Dataset.from_pandas(frame)" if type(dataset).__name__ == "DataFrame" else "load_records(path)"
        raise ValueError(
            f"Got a {type(dataset).__name__} as {name}; expected records with `input_ids`. Read it by {advice}, and call "
            "Task.tokenize on texts."
        )
    if isinstance(dataset, Iterator) and name != "test_dataset":
        raise ValueError(
            f"Got a {type(dataset).__name__} as {name}, which can be read once; expected records that every epoch and evaluation "
            "can read. Give a list, or IterableDataset.from_generator(function)."
        )
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"Got an empty {name}; expected at least one record with `input_ids` and `labels`.")
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    first = dataset[0] if indexed else None
    if hasattr(first, "column_names"):
        raise ValueError(
            f"Got {name} in the format of Arrow, whose examples are tables; expected mappings. Call dataset.with_format(None)."
        )
    if isinstance(first, Mapping):
        check_columns(first.keys(), name)


def check_columns(columns: Collection[str], dataset: str) -> None:
    """Check that no column looks like a misspelled one of ``COLUMNS``, which T5 would ignore.

    Raises:
        ValueError: One does.
    """
    missing = [name for name in COLUMNS if name not in columns]
    for column in columns:
        meant = get_close_matches(column, missing, n=1, cutoff=0.8)
        if meant and column not in LABEL_ALIASES:
            raise ValueError(
                f"Got records with wrong columns: {dataset} has a column {column!r} and none called {meant[0]!r}; expected "
                f"columns are {', '.join(COLUMNS)}. Rename it to {meant[0]!r}, or remove it if it is something else."
            )


def unpadded(feature: Feature, pad_token_id: int, labels: LabelLayout = "target") -> dict[str, Any]:
    """Return a feature with lists for tensors and arrays, without padding, and with its label called ``labels``.

    The attention mask says which source tokens are padding. Without one, padding tokens at both ends are.

    Args:
        feature: One record of a data set.
        pad_token_id: Id of the padding token.
        labels: "target": token ids, of which -100 and padding tokens at the end and padding tokens at the start are padding.
            "aligned": one a source token, which stays or goes with its token. "whole": of the example, without padding.
    """
    plain = {name: _plain(value) for name, value in feature.items()}
    for alias in LABEL_ALIASES:
        if alias in plain and "labels" not in plain:
            plain["labels"] = plain.pop(alias)
    source, mask = plain.get("input_ids"), plain.pop("attention_mask", None)
    if isinstance(source, list):
        kept = _between(source, pad_token_id) if mask is None else [i for i, keep in enumerate(mask) if keep]
        plain["input_ids"] = [source[i] for i in kept]
        given = plain.get("labels")
        if labels == "aligned" and isinstance(given, list) and len(given) == len(source):
            plain["labels"] = [given[i] for i in kept]
        for name in ("start_positions", "end_positions"):
            if kept and isinstance(plain.get(name), int):
                plain[name] -= kept[0]
    if labels == "target" and isinstance(plain.get("labels"), list):
        target = plain["labels"]
        while target and target[-1] == IGNORED_LABEL:
            target = target[:-1]
        plain["labels"] = [target[i] for i in _between(target, pad_token_id, IGNORED_LABEL)]
    return plain


def _between(tokens: list[Any], pad_token_id: int, other: int | None = None) -> range:
    """Positions between the padding at both ends; at the right end, ``other`` is padding too."""
    start, end = 0, len(tokens)
    while end and tokens[end - 1] in (pad_token_id, other):
        end -= 1
    while start < end and tokens[start] == pad_token_id:
        start += 1
    return range(start, end)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def token_problems(features: Sequence[Feature], name: str, vocabulary: int) -> list[str]:
    """Return why a model with so many token ids cannot take the ``input_ids`` or the ``labels``; empty if it can."""
    rows = [feature[name] for feature in features]
    if wrong := kind_problems(rows, name, _is_token_ids, "a list of token ids"):
        return wrong
    problems = []
    if empty := sum(not row for row in rows):
        contents = "targets that are all padding" if name == "labels" else "sources of no tokens"
        problems.append(f"{empty} of {len(rows)} examples have {contents}; remove them from the data")
    return problems + range_problems(
        set().union(*rows), name, vocabulary, "do the tokenizer and the model belong together?"
    )


def kind_problems(values: Sequence[Any], name: str, is_right: Callable[[Any], bool], expected: str) -> list[str]:
    """Return the problem that some values of a column are not what is expected; empty if all are."""
    wrong = [value for value in values if not is_right(value)]
    if not wrong:
        return []
    return [f"{len(wrong)} of {len(values)} examples have `{name}` such as {wrong[0]!r:.60}; expected {expected}"]


def range_problems(ids: set[int], name: str, limit: int, hint: str) -> list[str]:
    """Return the problem that some ids are not from 0 to below ``limit``; labels may be -100 too."""
    ids = ids - ({IGNORED_LABEL} if name == "labels" else set())
    if not ids or 0 <= min(ids) <= max(ids) < limit:
        return []
    ignored = f", or {IGNORED_LABEL} to ignore it" if name == "labels" else ""
    return [f"`{name}` reach from {min(ids)} to {max(ids)}; expected 0 to {limit - 1}{ignored} ({hint})"]


def is_whole_number(value: Any) -> bool:
    """Return whether a value is a whole number or a bool."""
    return isinstance(value, Integral)


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a number or a bool, and neither NaN nor infinite."""
    return isinstance(value, Real) and math.isfinite(value)


def _is_token_ids(row: Any) -> bool:
    return isinstance(row, list) and all(issubclass(kind, Integral) for kind in set(map(type, row)))


def is_one_number(label: Any) -> bool:
    """Return whether a label is a finite number, or a list with one."""
    return is_finite_number(label[0] if isinstance(label, list) and len(label) == 1 else label)


def are_numbers(row: Any, count: int, least: float = -math.inf, most: float = math.inf) -> bool:
    """Return whether a label is a list of ``count`` finite numbers within bounds."""
    return (
        isinstance(row, list)
        and len(row) == count
        and all(is_finite_number(value) and least <= value <= most for value in row)
    )


def is_aligned(pair: tuple[Any, int]) -> bool:
    """Return whether labels are whole numbers, as many as there are tokens."""
    labels, tokens = pair
    return isinstance(labels, list) and len(labels) == tokens and all(map(is_whole_number, labels))
