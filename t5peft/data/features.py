"""Features as users have them, to features without padding, and to batches for a model with a head.

A feature has ``input_ids`` and ``labels``: lists, arrays or tensors; padded or not; ``labels`` a list of token ids for
text-to-text models and one class for a classification head.

Letters: B batch, S source tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from torch.utils.data import IterableDataset

from t5peft.nn.loss import IGNORED_LABEL

COLUMNS = ("input_ids", "attention_mask", "labels")


def check_dataset(dataset: Any, name: str) -> None:
    """Raise ValueError for a data set, or one in a mapping of them, without records or with misspelt columns."""
    if isinstance(dataset, Mapping):
        for key, part in dataset.items():
            check_dataset(part, f"{name}[{key!r}]")
        return
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{name} is empty; expected at least one record with `input_ids` and `labels`.")
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if indexed and isinstance(dataset[0], Mapping):
        check_columns(dataset[0].keys(), name)


def check_columns(columns: Collection[str], dataset: str) -> None:
    """Raise ValueError for columns of ``dataset`` that look like misspelt ones of ``COLUMNS``, which T5 would ignore."""
    missing = [name for name in COLUMNS if name not in columns]
    for column in columns:
        meant = get_close_matches(column, missing, n=1, cutoff=0.8)
        if meant:
            raise ValueError(
                f"{dataset} has a column {column!r} and none called {meant[0]!r}; expected columns are {', '.join(COLUMNS)}. "
                f"Rename it to {meant[0]!r}, or remove it if it is something else."
            )


def unpadded(feature: Mapping[str, Any]) -> dict[str, Any]:
    """``feature`` with lists for tensors and arrays, and without the padding that some tokenising code adds."""
    plain = {name: _plain(value) for name, value in feature.items()}
    mask = plain.pop("attention_mask", None)
    if mask is not None:
        plain["input_ids"] = [token for token, kept in zip(plain["input_ids"], mask, strict=True) if kept]
    labels = plain.get("labels")
    if isinstance(labels, list):
        end = len(labels)
        while end and labels[end - 1] == IGNORED_LABEL:
            end -= 1
        plain["labels"] = labels[:end]
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def check_features(features: Sequence[Mapping[str, Any]], vocabulary: int, classes: int | None) -> None:
    """Raise one ValueError for all of ``features`` that a model of so many token ids, and classes (None: of text), cannot take."""
    problems = []
    if any("input_ids" not in feature or "labels" not in feature for feature in features):
        columns = sorted({name for feature in features for name in feature})
        problems.append(
            f"the columns are {columns}; expected `input_ids` and `labels` (Task.tokenize makes them from records)"
        )
    else:
        problems += _of_column(features, "input_ids", vocabulary, text=True)
        problems += _of_column(features, "labels", classes or vocabulary, text=classes is None)
    if problems:
        raise ValueError(f"Got examples that the model cannot take: {'; '.join(problems)}.")


def _of_column(features: Sequence[Mapping[str, Any]], name: str, limit: int, *, text: bool) -> list[str]:
    values = [feature[name] for feature in features]
    rows = values if text else [[value] for value in values]
    wrong = [value for value, row in zip(values, rows, strict=True) if not _whole_numbers(row)]
    if wrong:
        expected = "a list of token ids" if text else "one class, a whole number"
        return [f"{len(wrong)} of {len(values)} examples have `{name}` such as {wrong[0]!r:.60}; expected {expected}"]
    problems = []
    if empty := sum(not row for row in rows):
        what = "targets that are all padding" if name == "labels" else "sources of no tokens"
        problems.append(f"{empty} of {len(values)} examples have {what}; leave them out of the data")
    ids = set().union(*rows) - ({IGNORED_LABEL} if name == "labels" else set())
    if ids and not 0 <= min(ids) <= max(ids) < limit:
        ignored = f", or {IGNORED_LABEL} where it does not count" if name == "labels" else ""
        asked = "do tokenizer and model belong together?" if text else "the model's config has num_labels"
        problems.append(f"`{name}` reach from {min(ids)} to {max(ids)}; expected 0 to {limit - 1}{ignored} ({asked})")
    return problems


def _whole_numbers(row: Any) -> bool:
    return isinstance(row, list) and all(issubclass(kind, Integral) for kind in set(map(type, row)))
