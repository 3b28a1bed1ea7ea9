"""Plain text files as documents: blank lines end a document, each line is a paragraph; `.xz`, `.gz` and `.bz2` are unpacked.

Typographic quotes and spaces are written plainly, because the text that people tune on is mostly typed on a keyboard and a
small model should not learn two apostrophes. Repeated paragraphs (licences, templates, navigation) are dropped after
their first appearance.
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
    """The paragraph with typewriter quotes, single spaces and no invisible characters."""
    return _SPACES.sub(" ", paragraph.translate(_PLAIN)).strip()


def open_text(path: str | Path) -> TextIO:
    """Open a UTF-8 text file, decompressed where its suffix is `.xz`, `.gz` or `.bz2`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected UTF-8 text, plain, .xz, .gz or .bz2.")
    opener = OPENERS.get(path.suffix.lower(), open)
    return io.TextIOWrapper(opener(path, "rb"), encoding="utf-8", errors="replace")


def read_documents(paths: Iterable[str | Path]) -> Iterator[list[str]]:
    """Documents of all files in their order, each a list of plain paragraphs; warns of lines that are not UTF-8.

    Raises:
        ValueError: a file cannot be unpacked.
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
            raise ValueError(f"{path} cannot be unpacked ({error}); is it whole, and is its ending right?") from error
        if broken:
            logger.warning(
                "%s: %d lines hold U+FFFD, as which bytes are read that are not UTF-8; is it such text?", path, broken
            )
        if paragraphs:
            yield paragraphs


def deduplicated(documents: Iterable[Sequence[str]], *, min_characters: int = 20) -> Iterator[list[str]]:
    """The documents without paragraphs already seen (case and digits aside) or shorter than `min_characters`.

    Digits are ignored in the comparison because templates differ by a year or a count.
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
    """Documents cut between paragraphs to about `max_characters`, so that shuffling mixes books as well as articles."""
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
