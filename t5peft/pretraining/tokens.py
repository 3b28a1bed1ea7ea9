"""Token stores: the text as memory-mapped tokens, from which batches are drawn by a counter.

A token store is a folder with ``tokens.u16`` (or ``.u32`` for a vocabulary above 65,536), ``offsets.npy`` (the start of each
document, and the end) and ``store.json``. Documents are shuffled once, when they are written.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from t5peft.compat.filesystem import write_whole
from t5peft.models.manifest import read_json
from t5peft.pretraining.text import deduplicated, pieces_of_documents, read_documents

_DOCUMENTS_AT_ONCE = 1000


@dataclass(frozen=True)
class TokenStore:
    """Tokens [n] of all documents, one after another. Document i is ``tokens[offsets[i]:offsets[i + 1]]``."""

    tokens: np.ndarray
    offsets: np.ndarray

    def rows(self, first: int, count: int, length: int, seed: int) -> np.ndarray:
        """Return rows [count, length]: numbers ``first`` to ``first + count`` of an endless sequence.

        The tokens are cut into rows of ``length``. Each pass takes the rows in a new random order and from a new random offset.
        The result depends only on the arguments, so a run can resume anywhere.

        Raises:
            ValueError: There are fewer tokens than two rows.
        """
        per_pass = len(self.tokens) // length - 1
        if per_pass < 1:
            raise ValueError(
                f"Got {len(self.tokens)} tokens; expected at least {2 * length}, for rows of {length}. Give more text, or "
                "shorter rows (source_tokens)."
            )
        found = np.empty((count, length), dtype=self.tokens.dtype)
        for index in range(count):
            epoch, place = divmod(first + index, per_pass)
            offset, multiplier = self._pass(per_pass, length, seed, epoch)
            start = offset + (place * multiplier) % per_pass * length
            found[index] = self.tokens[start : start + length]
        return found

    @staticmethod
    def _pass(rows: int, length: int, seed: int, epoch: int) -> tuple[int, int]:
        """Draw the offset of the first row, and a step coprime to ``rows`` that visits every row once."""
        generator = random.Random(f"{seed}/{epoch}")
        multiplier = generator.randrange(1, rows + 1)
        while math.gcd(multiplier, rows) != 1:
            multiplier = generator.randrange(1, rows + 1)
        return generator.randrange(length), multiplier


def encode_documents(documents: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each document, without ``</s>``.

    Paragraphs are separated by the token of a newline if the tokenizer has one. A special token that is written out in the text
    becomes that token, as ``<unk>`` does in WikiText.
    """
    separator = tokenizer.get_vocab().get("\n")
    paragraphs = [paragraph for document in documents for paragraph in document]
    encoded = iter(tokenizer(paragraphs, add_special_tokens=False, verbose=False).input_ids)
    found = []
    for document in documents:
        ids = list(next(encoded))
        for _ in document[1:]:
            if separator is not None:
                ids.append(separator)
            ids.extend(next(encoded))
        found.append(ids)
    return found


def write_store(
    documents: Iterable[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    origin: list[list[Any]] | None = None,
) -> TokenStore:
    """Tokenize ``documents`` into a new store and open it.

    Args:
        documents: Documents, each a list of paragraphs.
        tokenizer: The tokenizer.
        directory: Folder of the store.
        origin: Names and sizes of the files, which are kept to recognize the same text later.

    Raises:
        ValueError: The documents have no text.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype, name = _dtype_of(len(tokenizer))
    offsets, left = [0], iter(documents)
    with (directory / name).open("wb") as file:
        while some := list(islice(left, _DOCUMENTS_AT_ONCE)):
            for ids in encode_documents(some, tokenizer):
                np.asarray(ids, dtype=dtype).tofile(file)
                offsets.append(offsets[-1] + len(ids))
    if offsets[-1] == 0:
        raise ValueError(f"Got no text to write to {directory}; expected documents of one paragraph or more.")
    np.save(directory / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    card = {"tokens": offsets[-1], "file": name, "vocabulary": fingerprint(tokenizer), "origin": origin}
    write_whole(directory / "store.json", json.dumps(card))
    return open_store(directory, tokenizer)


def open_store(directory: Path, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    """Open the store in ``directory``, memory-mapped.

    Raises:
        FileNotFoundError: There is none, or it was not finished.
        ValueError: It was written with another vocabulary, or is damaged.
    """
    card_path = directory / "store.json"
    if not card_path.is_file():
        raise FileNotFoundError(
            f"Got {directory} without store.json; expected a finished token store. Write it from the text."
        )
    card = _read_card(card_path)
    if card["vocabulary"] != fingerprint(tokenizer):
        raise ValueError(
            f"Got {directory}, written with another vocabulary; expected the vocabulary of this tokenizer. Remove the folder or "
            "use another."
        )
    dtype, name = _dtype_of(len(tokenizer))
    try:
        tokens = np.memmap(directory / name, dtype=dtype, mode="r")
        offsets = np.load(directory / "offsets.npy")
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(directory, str(error)) from error
    if len(tokens) != card["tokens"] or offsets.ndim != 1 or not len(offsets) or offsets[-1] != card["tokens"]:
        raise _damaged(directory, f"it holds {len(tokens)} tokens, and store.json says {card['tokens']}")
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise _damaged(directory, "its offsets are out of order")
    return TokenStore(tokens, offsets)


def _read_card(path: Path) -> dict[str, Any]:
    card = read_json(path)
    problems = [name for name, kind in (("vocabulary", str), ("tokens", int)) if type(card.get(name)) is not kind]
    if problems:
        raise _damaged(path.parent, f"store.json lacks {', '.join(problems)}, or has values of a wrong type there")
    return card


def _damaged(directory: Path, reason: str) -> ValueError:
    return ValueError(
        f"Got a damaged token store {directory}: {reason}; expected one as it was written. Remove the folder, and write it again "
        "from the text."
    )


def store_of_files(
    paths: Sequence[str | Path], tokenizer: PreTrainedTokenizerBase, directory: Path, *, seed: int = 0
) -> TokenStore:
    """Open the store in ``directory``, or write it from the text files, deduplicated and shuffled.

    Raises:
        ValueError: The store was written from other files, the files have no text, or ``open_store`` raises one.
    """
    card = directory / "store.json"
    if not card.is_file():
        return write_store(shuffled_documents(paths, seed=seed), tokenizer, directory, origin=_origin(paths))
    written, given = _read_card(card).get("origin"), _origin(paths)
    if None not in (written, given) and written != given:
        raise ValueError(
            f"Got the files {given} (with sizes in bytes) for {directory}; expected {written}, from which it was written. Give the "
            "same files, or another folder."
        )
    return open_store(directory, tokenizer)


def _origin(paths: Sequence[str | Path]) -> list[list[Any]] | None:
    """Return the name and size of each file; None if one is missing, which a finished store does not need."""
    files = [Path(path) for path in paths]
    return sorted([path.name, path.stat().st_size] for path in files) if all(map(Path.is_file, files)) else None


def shuffled_documents(paths: Sequence[str | Path], *, seed: int = 0) -> list[list[str]]:
    """Return the deduplicated documents of all files in random order, with books cut to the length of chapters.

    Raises:
        ValueError: The files have no text.
    """
    documents = list(pieces_of_documents(deduplicated(read_documents(paths))))
    if not documents:
        raise ValueError(
            f"Got no text in {', '.join(map(str, paths))}; expected documents with blank lines between them, and paragraphs of 20 "
            "characters or more, each on a line of its own."
        )
    random.Random(seed).shuffle(documents)
    return documents


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the vocabulary and its ids."""
    pieces = json.dumps(sorted(tokenizer.get_vocab().items()))
    return blake2b(pieces.encode(), digest_size=8).hexdigest()


def _dtype_of(vocabulary: int) -> tuple[type[np.unsignedinteger], str]:
    return (np.uint16, "tokens.u16") if vocabulary <= 1 << 16 else (np.uint32, "tokens.u32")
