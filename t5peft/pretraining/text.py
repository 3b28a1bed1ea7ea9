"""Read plain text files as documents. Blank lines end a document, and each line is a paragraph.

Files may be compressed (``.xz``, ``.gz``, ``.bz2``). Typographic quotes and spaces become plain ones: most text that people tune
on is typed on a keyboard, and a small model should not learn two apostrophes. Repeated paragraphs (licenses, templates,
navigation) are kept only once.
"""

from __future__ import annotations

import io
import logging
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

from t5peft.data.files import OPENERS

logger = logging.getLogger("t5peft")

_PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "‚": "'",
        "“": '"',
        "”": '"',
        "„": '"',
        "…": "...",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
    }
    | dict.fromkeys("\u00ad\u200b\u200e\u200f\ufeff\u2060")
)
_SPACES = re.compile(r"\s+")


def plain(paragraph: str) -> str:
    """Return the paragraph with plain quotes, single spaces and no invisible characters."""
    return _SPACES.sub(" ", paragraph.translate(_PLAIN)).strip()


def open_text(path: str | Path) -> TextIO:
    """Open a UTF-8 text file, decompressed where its suffix is ``.xz``, ``.gz`` or ``.bz2``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Got {path}, which is not a file; expected UTF-8 text, plain, .xz, .gz or .bz2.")
    opener = OPENERS.get(path.suffix.lower(), open)
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8", errors="replace")


def read_documents(paths: Iterable[str | Path]) -> Iterator[list[str]]:
    """Yield the documents of all files in order, each a list of plain paragraphs.

    Lines that are not UTF-8 are counted in a warning.

    Raises:
        ValueError: A file cannot be unpacked.
    """
    for path in paths:
        paragraphs: list[str] = []
        broken = 0
        try:
            with open_text(path) as lines:
                for line in lines:
                    broken += "\ufffd" in line
                    paragraph = plain(line)
                    if paragraph:
                        paragraphs.append(paragraph)
                    elif paragraphs:
                        yield paragraphs
                        paragraphs = []
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"Got {path}, which cannot be unpacked ({error}); expected a complete file of the kind that its ending names."
            ) from error
        if broken:
            logger.warning(
                "%d lines of %s are not UTF-8: their bytes are read as U+FFFD. Check the encoding of the file.",
                broken,
                path,
            )
        if paragraphs:
            yield paragraphs


def deduplicated(documents: Iterable[Sequence[str]], *, min_characters: int = 20) -> Iterator[list[str]]:
    """Yield the documents without repeated paragraphs and without those shorter than ``min_characters``.

    The comparison ignores case and digits, because templates differ by a year or a count.
    """
    seen: set[bytes] = set()
    for document in documents:
        kept = []
        for paragraph in document:
            if len(paragraph) < min_characters:
                continue
            key = blake2b(re.sub(r"\d+", "0", paragraph.lower()).encode(), digest_size=8).digest()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            yield kept


def pieces_of_documents(documents: Iterable[Sequence[str]], *, max_characters: int = 8000) -> Iterator[list[str]]:
    """Cut documents between paragraphs to about ``max_characters``, so that shuffling mixes books as well as articles."""
    for document in documents:
        piece: list[str] = []
        size = 0
        for paragraph in document:
            if piece and size + len(paragraph) > max_characters:
                yield piece
                piece, size = [], 0
            piece.append(paragraph)
            size += len(paragraph)
        yield piece
