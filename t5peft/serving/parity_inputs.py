"""The inputs on which an export is compared with its adapter: records of the task, or built-in texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.data.truncation import encode
from t5peft.serving.parity import ParityInputs

RECORDS = 16
_TOKENS = 32  # of an answer
TEXTS = (
    "The film is a slow start with a wonderful end.",
    "question: Who wrote the letter? context: Anna wrote a letter to her brother, who never answered it.",
    "Tom: Are you coming tonight?\nMia: I have to work until nine, but I can come later.",
    "translate English to German: The house at the corner is for sale.",
    "Prices rose by 3.5 % in 2019, more than in any year before!",
    "She go to school every days and like it.",
    "name: Blue Spice, food: Italian, area: riverside",
    "ok",
)
_WORDS = ("yes", "no", "a good one", "it is not clear")


def parity_inputs(
    tokenizer: PreTrainedTokenizerBase, task: Task | None, records: Sequence[Mapping[str, Any]] | None
) -> ParityInputs:
    """Return the inputs for a task's records; without them built-in texts, in the task's template where there is one.

    Args:
        tokenizer: The tokenizer of the model, which writes no baked prompt.
        task: The task of the model, where it is known.
        records: Its records, with the columns of source and target.

    Returns:
        The inputs; the targets are of the built-in words where the task has no verbalizer and there are no records.

    Raises:
        ValueError: The records lack columns of the task, or there are none.
    """
    if task is None:
        return _of_texts(encode(TEXTS, tokenizer), tokenizer, _WORDS, _TOKENS, "built-in texts")
    limit = min(task.max_target_length, _TOKENS)
    if records is None:
        texts = task.sources([dict.fromkeys(task.columns, text) for text in TEXTS], tokenizer)
        words = task.candidates or _WORDS
        return _of_texts(
            encode(texts, tokenizer), tokenizer, words, limit, f"built-in texts in the template of {task.name}"
        )
    some = list(records)[:RECORDS]
    rows = task.tokenize(some, tokenizer)
    sources, targets = (rows[name] for name in ("input_ids", "labels"))
    candidates = task.candidates or tuple(dict.fromkeys(tokenizer.batch_decode(targets, skip_special_tokens=True)))[:4]
    return ParityInputs(
        [list(ids) for ids in sources],
        [list(ids) for ids in targets],
        list(candidates),
        limit,
        f"{len(some)} records of {task.name}",
    )


def _of_texts(
    sources: list[list[int]], tokenizer: PreTrainedTokenizerBase, words: Sequence[str], limit: int, origin: str
) -> ParityInputs:
    targets = encode([words[i % len(words)] for i in range(len(sources))], tokenizer)
    return ParityInputs(sources, targets, list(words), limit, origin)
