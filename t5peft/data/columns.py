"""Columns of a file: nested ones become columns of their own, and each has one name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Features


class ColumnsError(ValueError):
    """The columns of a file that is whole."""


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose columns of columns are columns of their own, ``"translation.de"``.

    Raises:
        ColumnsError: Such a name is that of another column too.
    """
    columns: dict[str, Any] = {}
    cells = len(record)
    for column, cell in record.items():
        if isinstance(cell, dict) and cell:
            inner = {f"{column}.{name}": value for name, value in flat(cell).items()}
            cells += len(inner) - 1
            columns |= inner
        else:
            columns[column] = cell
    if len(columns) < cells:
        raise ColumnsError(
            f"Got a record with nested columns that have the name of another one, of {', '.join(map(repr, columns))}; expected "
            "each name once. Rename them."
        )
    return columns


def features_of(path: Path, schema: pyarrow.Schema) -> Features:
    """Return the features of ``datasets`` for a file, with columns of columns as columns of their own.

    Raises:
        ColumnsError: ``datasets`` has none for a column.
    """
    try:
        return Features.from_arrow_schema(schema).flatten()
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ColumnsError(
            f"Got {path} with columns that datasets does not read ({error}); expected others. Convert them, or leave them out."
        ) from None
