"""From the body of a request to the token ids of its sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from t5peft.data.template import SURROGATE
from t5peft.data.truncation import encode
from t5peft.evaluation.inference import source_ids
from t5peft.serving.errors import ApiError
from t5peft.serving.schemas import Record, SourceBody
from t5peft.serving.served import Served


def sources_of(body: SourceBody, served: Served, max_sources: int) -> list[list[int]]:
    """Return the token ids of every source of a request, ending in ``</s>``.

    Args:
        body: The request.
        served: The model that it names.
        max_sources: Most sources.

    Returns:
        Token ids of each source.

    Raises:
        ApiError: There are too many sources or none, a record does not fit the task, or the model has no task.
    """
    if (body.prompt is None) == (body.task is None):
        given = "neither" if body.prompt is None else "both"
        raise ApiError(f"Got {given} of prompt and task; expected one of them. Give the source or a record.")
    if body.task is not None:
        records = body.task if isinstance(body.task, list) else [body.task]
        _check_count(len(records), max_sources, "task")
        return _of_records(records, served)
    prompts = _as_list(body.prompt)
    _check_count(len(prompts), max_sources, "prompt")
    return _of_prompts(prompts, served)


def encode_candidates(texts: Sequence[str], served: Served, max_candidates: int) -> list[list[int]]:
    """Return the token ids of candidates, each ending in ``</s>``.

    Args:
        texts: The candidates.
        served: The model that is asked.
        max_candidates: Most candidates.

    Returns:
        Token ids of each.

    Raises:
        ApiError: There are too many, or two are the same tokens.
    """
    _check_count(len(texts), max_candidates, "candidates")
    _check_text(texts, "candidates")
    ids = encode(texts, served.tokenizer)
    first: dict[tuple[int, ...], int] = {}
    for place, one in enumerate(ids):
        if (other := first.setdefault(tuple(one), place)) != place:
            raise ApiError(
                f"Got candidates {other} and {place}, which have the same tokens; expected different ones. Remove one.",
                param="candidates",
            )
    return ids


def _as_list(prompt: object) -> list[str] | list[list[int]]:
    """Return a prompt as a list of texts or of lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    assert isinstance(prompt, list)
    return [cast(list[int], prompt)] if isinstance(prompt[0], int) else prompt


def _of_records(records: Sequence[Record], served: Served) -> list[list[int]]:
    if served.task is None:
        raise ApiError(
            f"Got a record for {served.name!r}, which has no task; expected prompt, its source text. To send records, save "
            "a task.yaml with the adapter, as `t5peft train` does.",
            param="task",
        )
    try:
        return source_ids(served.task.sources(records, served.tokenizer), served.tokenizer)
    except ValueError as error:
        raise ApiError(str(error), param="task") from error


def _of_prompts(prompts: list[str] | list[list[int]], served: Served) -> list[list[int]]:
    if isinstance(prompts[0], str):
        texts = prompts
        _check_text(texts, "prompt")
        return source_ids(texts, served.tokenizer)
    rows, end, size = prompts, served.tokenizer.eos_token_id, len(served.tokenizer)
    if wrong := [token for row in rows for token in row if token >= size]:
        raise ApiError(
            f"Got the token id {wrong[0]}; expected ids below {size}, the size of the vocabulary. Correct the prompt.",
            param="prompt",
        )
    return [row if row[-1] == end else [*row, end] for row in rows]


def _check_text(texts: Sequence[str], param: str) -> None:
    """Refuse texts that are blank or that no tokenizer reads."""
    for place, text in enumerate(texts):
        if not text.strip():
            raise ApiError(f"Got a blank text as number {place} of {param}; expected words. Remove it.", param=param)
        if SURROGATE.search(text):
            raise ApiError(
                f"Got half of a character (a lone surrogate) in number {place} of {param}; expected whole characters. Cut texts "
                "between characters.",
                param=param,
            )


def _check_count(count: int, most: int, param: str) -> None:
    if count > most:
        raise ApiError(f"Got {count} entries of {param}; expected at most {most}. Send several requests.", param=param)
