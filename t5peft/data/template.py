"""Templates over the columns of a record: ``"question: {question} context: {passage}"``.

A template is plain ``str.format`` text whose fields are column names and nothing more: no attributes, no indices, no
conversions. Braces of the text itself are doubled. It knows which part of the rendered text came from a column, so that
a text that is too long can be cut there and never in the instruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from string import Formatter

import numpy as np


@dataclass(frozen=True)
class Template:
    """A parsed template: literal text and the column that follows it, in order; the last column may be ``None``."""

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template.

        Raises:
            ValueError: the braces do not pair, a field has no name, or a field asks for more than a column.
        """
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(
                f"template {text!r} cannot be read ({error}); write a column as {{column}} and a brace of the text "
                "itself twice: {{ or }}"
            ) from None
        for _, column, specification, conversion in parsed:
            if column is not None and (not column or specification or conversion):
                raise ValueError(
                    f"template {text!r} has a field that is not the plain name of a column; write {{column}} without "
                    "':' or '!', and a brace of the text itself twice; rename a column that has them in its name"
                )
        return cls(text, tuple((literal, column) for literal, column, _, _ in parsed))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names, each once, in order."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def render(self, values: Mapping[str, str], longest: int | None = None) -> str:
        """The text with each column's value in its place, every value cut to ``longest`` characters if given."""
        return "".join(
            literal if column is None else literal + values[column][:longest] for literal, column in self.parts
        )

    def empty(self) -> str:
        """The text with nothing in its columns: what the template says by itself."""
        return "".join(literal for literal, _ in self.parts)


def as_text(value: object) -> str | None:
    """A cell as text, or ``None`` where it is neither text nor a number nor a truth value; NaN, a missing cell, is none."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, Real | Decimal | np.bool_) and value == value  # NaN is not equal to itself
    return str(value) if is_number else None


def texts_of(cell: object) -> list[str]:
    """The texts of a cell that holds several, or one; what is missing among them, such as None, is left out."""
    values = cell if isinstance(cell, Iterable) and not isinstance(cell, str) else [cell]
    return [text for value in values if (text := as_text(value)) is not None]


def one_line(text: str) -> str:
    """The text with every run of white space made one space, as T5's tokenizer makes it."""
    return " ".join(text.split())


def some_rows(rows: list[int]) -> str:
    """Row numbers for an error: the first five, and how many more there are."""
    shown = ", ".join(str(row) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
