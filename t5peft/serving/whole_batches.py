"""Requests that are answered by one call for a whole batch: beams, ranks, classes, and adapters that are computed separately.

Letters: B rows, T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor

from t5peft.data.collate import pad_rows
from t5peft.serving.mixed import MixedModel
from t5peft.serving.requests import Generated, GenerateRequest, RankRequest, Scores
from t5peft.serving.routing import in_parts
from t5peft.serving.sampling import tokens_of
from t5peft.serving.scheduler import Job
from t5peft.serving.weights import AdapterWeights

_MAX_LOGITS = 2**24  # 64 MiB in float32


def answer(
    model: MixedModel, jobs: Sequence[Job], end_ids: set[int], between: Callable[[], None]
) -> tuple[Sequence[Generated | Scores], int]:
    """Answer requests that may share a call.

    Args:
        model: The model.
        jobs: Requests of one kind; beams of the same number and length.
        end_ids: The tokens that end an answer.
        between: Called between two steps of beams.

    Returns:
        One answer for each request, and the passes of the decoder that they took.
    """
    sources, adapters = [job.source_ids for job in jobs], [job.adapter for job in jobs]
    if jobs[0].kind == "beams":
        generated = model.generate(
            sources, adapters, max_new_tokens=jobs[0].target_size, num_beams=jobs[0].copies, between=between
        ).tolist()
        ids = [_until_end(row[1:], end_ids) for row in generated]
        return _with_log_probabilities(model, jobs, ids, end_ids), len(generated[0])
    if jobs[0].kind == "rank":
        candidates = [cast(RankRequest, job.request).candidate_ids for job in jobs]
        return [Scores(row) for row in model.rank(sources, candidates, adapters)], 1
    return [Scores(row) for row in model.classify(sources, cast(list[AdapterWeights], adapters))], 1


def _until_end(ids: list[int], end_ids: set[int]) -> list[int]:
    """Return the tokens up to the first one that ends the answer."""
    return ids[: next((i for i, token in enumerate(ids, 1) if token in end_ids), len(ids))]


def _with_log_probabilities(
    model: MixedModel, jobs: Sequence[Job], ids: Sequence[list[int]], end_ids: set[int]
) -> list[Generated]:
    """Score generated ids by teacher forcing, as beam search does not tell the log-probabilities of tokens."""
    longest = max(map(len, ids))
    at_once = max(1, _MAX_LOGITS // (longest * model.t5.config.vocab_size))
    answers = []
    for start in range(0, len(jobs), at_once):
        part = slice(start, start + at_once)
        for job, row, logits in zip(jobs[part], ids[part], _teacher_forced(model, jobs[part], ids[part]), strict=True):
            count = cast(GenerateRequest, job.request).top_log_probabilities
            tokens = tokens_of(logits[: len(row)], torch.tensor(row, device=logits.device), [count] * len(row))
            answers.append(Generated(tokens, "stop" if row[-1] in end_ids else "length"))
    return answers


def _teacher_forced(model: MixedModel, jobs: Sequence[Job], ids: Sequence[list[int]]) -> Tensor:
    """Return the logits [B, T, V] of given answers."""
    read = pad_rows([[job.next_id, *row[:-1]] for job, row in zip(jobs, ids, strict=True)], 0)

    def logits(separate: PeftModel | None, rows: list[int]) -> Tensor:
        sources, own = [jobs[i].source_ids for i in rows], [jobs[i].adapter for i in rows]
        with model.encoded(separate, sources, own) as (t5, states, mask):
            output: Any = t5(
                encoder_outputs=states,
                attention_mask=mask,
                decoder_input_ids=read[rows].to(mask.device),
                use_cache=False,
            )
        return cast(Tensor, output.logits)

    return torch.stack(in_parts([job.adapter for job in jobs], logits))
