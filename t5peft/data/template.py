"""Templates over the columns of a record: ``"question: {question} context: {passage}"``.

A template is plain ``str.format`` text whose fields are only column names: no attributes, no indices, no conversions. Braces
of the text itself are doubled. A template knows which part of the rendered text came from a column, so that a text that is
too long is truncated there and never in the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from functools import cached_property
from numbers import Real
from string import Formatter

import numpy as np

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which no tokenizer reads."""


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Args:
        text: The template as it was written.
        parts: Literal text and the column that follows it, in order; the last column may be ``None``.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template.

        Raises:
            ValueError: The braces do not pair, a field has no name, or a field asks for more than a column.
        """
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"Got the template {text!r}, which cannot be read ({error}); expected a column as {{column}} and a literal "
                "brace twice: {{ or }}."
            ) from None
        for _, column, specification, conversion in parsed:
            if column is not None and (not column or specification or conversion):
                raise ValueError(
                    f"Got the template {text!r} with a field that is not the plain name of a column; expected {{column}} without "
                    "':' or '!'. Write a literal brace twice, or rename a column that has them in its name."
                )
        return cls(text, tuple((literal, column) for literal, column, _, _ in parsed))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names, each once, in order."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def render(self, values: Mapping[str, str], longest: int | None = None) -> str:
        """Return the text with each column's value in its place.

        Args:
            values: Column to text.
            longest: Characters that each value is truncated to; ``None`` keeps all.
        """
        return "".join(
            literal if column is None else literal + values[column][:longest] for literal, column in self.parts
        )

    def empty(self) -> str:
        """Return the text with nothing in its columns."""
        return "".join(literal for literal, _ in self.parts)


def as_text(value: object, separator: str | None = None) -> str | None:
    """Return a cell as text: a text, number, truth value or date; ``None`` for a missing cell, such as NaN, and any other.

    Args:
        value: The cell.
        separator: Put between the texts of a cell that holds a list; without it a list is not text.
    """
    if isinstance(value, str):
        return value
    if separator is not None and isinstance(value, list | tuple | np.ndarray):
        texts = [as_text(item) for item in value]
        return separator.join(text for text in texts if text is not None) if None not in texts else None
    known = isinstance(value, Real | Decimal | np.bool_ | date | datetime | time)
    return str(value) if known and value == value else None  # NaN and NaT are not equal to themselves


def texts_of(cell: object) -> list[str]:
    """Return the texts of a cell that holds several, or one; missing ones among them, such as ``None``, are left out."""
    values = cell if isinstance(cell, Iterable) and not isinstance(cell, str) else [cell]
    return [text for value in values if (text := as_text(value)) is not None]


def one_line(text: str) -> str:
    """Return the text with every run of white space made one space, as T5's tokenizer makes it."""
    return " ".join(text.split())


def some_rows(rows: list[int]) -> str:
    """Return row numbers for an error: the first five, and how many more there are."""
    shown = ", ".join(str(row) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
