"""Parity of an export with the adapter that it was made from, on real inputs.

Greedy answers hide a wrong scale of the head; log-probabilities do not. Of a language model three things are compared. These are
the log-probabilities of targets, and of the adapter's answers, under teacher forcing; the answers of a search with four beams; and
the log-probabilities by which candidates are ranked. Of a classifier it is the log-probabilities of the classes, of an encoder its
states.

Differences of log-probabilities a (export) and b (adapter) are ``|a - b| / max(1, |b|)``; those of states are relative to the
largest number. Answers may differ where two are about as likely. What counts is by how much the adapter's own is likelier per
token, on average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.data.truncation import encode
from t5peft.serving.exported import PARITY, Details, Exported, Records
from t5peft.serving.requests import Ids

NUM_BEAMS = 4
TOLERANCES: dict[str | None, float] = {None: 1e-3, "int8": 0.25}
"""The largest difference, by how weights are stored. In 8 bits single tokens of low probability move far; see docs/export.md."""

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


class ParityError(FloatingPointError):
    """An export does not answer as the adapter does.

    Attributes:
        parity: The comparison; None where the tokenizer differs.
    """

    def __init__(self, message: str, parity: Parity | None = None) -> None:
        super().__init__(message)
        self.parity = parity


@dataclass(frozen=True)
class ParityInputs:
    """The inputs of a comparison: token ids of sources and of targets, and candidates for every source."""

    sources: list[list[int]]
    targets: list[list[int]]
    candidates: list[str]
    max_new_tokens: int
    origin: str
    """Where they come from."""


def parity_inputs(tokenizer: PreTrainedTokenizerBase, task: Task | None, records: Records | None) -> ParityInputs:
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


@dataclass(frozen=True)
class Answers:
    """The answers of one model to the inputs; the fields of other kinds of models are empty."""

    log_probabilities: list[Tensor] = field(default_factory=list)
    beams: list[list[int]] = field(default_factory=list)
    ranking: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Attributes:
        name: What is compared.
        count: How many of them.
        difference: The largest difference.
        same: The share of equal answers, or of equal first candidates; None where there is none.
    """

    name: str
    count: int
    difference: float
    same: float | None = None


@dataclass(frozen=True)
class Parity:
    """The comparison of an export with its adapter."""

    checks: list[Check]
    tolerance: float
    inputs: str

    @property
    def passes(self) -> bool:
        """Whether every difference is a number within the tolerance."""
        return all(check.difference <= self.tolerance for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'parity':<20} {'n':>5} {'difference':>11} {'same':>6}"]
        for check in self.checks:
            same = "" if check.same is None else f"{check.same:.3f}"
            lines.append(f"{check.name:<20} {check.count:>5} {check.difference:>11.1e} {same:>6}")
        return "\n".join([*lines, f"tolerance {self.tolerance:g}, on {self.inputs}"])

    def write(self, folder: Path, details: Details) -> None:
        """Write the comparison into ``folder``."""
        content: Mapping[str, Any] = {
            **asdict(self),
            "passes": self.passes,
            "target": details.target,
            "quantize": details.quantize,
            "num_beams": NUM_BEAMS,
        }
        (folder / PARITY).write_text(json.dumps(content, indent=1), encoding="utf-8")


def answers_of(model: Exported, inputs: ParityInputs, spoken: Ids | None = None) -> Answers:
    """Answer the inputs.

    Args:
        model: An export, or the adapter.
        inputs: The inputs.
        spoken: Answers of the adapter, which are scored beside the targets; None for its own.

    Returns:
        The answers.
    """
    if model.details.kind == "classifier":
        return Answers(ranking=model.classify(inputs.sources).log_probabilities)
    if model.details.kind == "encoder":
        return Answers(states=model.encode(inputs.sources))
    beams = model.answer_ids(inputs.sources, max_new_tokens=inputs.max_new_tokens, num_beams=NUM_BEAMS)
    targets = [*inputs.targets, *(_ended(answer, model) for answer in (beams if spoken is None else spoken))]
    return Answers(
        model.log_probabilities([*inputs.sources, *inputs.sources], targets),
        beams,
        model.rank(inputs.sources, inputs.candidates).log_probabilities,
    )


def compare(own: Answers, export: Exported, inputs: ParityInputs) -> Parity:
    """Compare the answers of an export with those of the adapter.

    Args:
        own: The answers of the adapter.
        export: The export, read back.
        inputs: What was asked.

    Returns:
        The comparison.
    """
    found = answers_of(export, inputs, own.beams)
    checks = []
    if own.log_probabilities:
        worst = max(
            _difference(theirs, ours)
            for theirs, ours in zip(found.log_probabilities, own.log_probabilities, strict=True)
        )
        checks.append(Check("log-probabilities", sum(map(len, own.log_probabilities)), worst))
    if own.beams:
        checks.append(_compare_beams(own.beams, found.beams, export, inputs.sources))
    if own.ranking is not None and found.ranking is not None:
        same = (own.ranking.argmax(-1) == found.ranking.argmax(-1)).float().mean()
        name = "rankings" if own.log_probabilities else "classes"
        checks.append(Check(name, own.ranking.numel(), _difference(found.ranking, own.ranking), float(same)))
    if own.states:
        worst = max(
            float((theirs - ours).abs().max() / ours.abs().max())
            for theirs, ours in zip(found.states, own.states, strict=True)
        )
        checks.append(Check("states", len(own.states), worst))
    return Parity(checks, TOLERANCES[export.details.quantize], inputs.origin)


def _difference(found: Tensor, own: Tensor) -> float:
    return float(((found - own).abs() / own.abs().clamp(min=1)).max())


def _compare_beams(own: Ids, found: Ids, export: Exported, sources: Ids) -> Check:
    """Compare answers; where they differ, by the log-probability per token that the export gives to both."""
    different = [i for i, pair in enumerate(zip(own, found, strict=True)) if list(pair[0]) != list(pair[1])]
    loss = 0.0
    if different:
        ours, theirs = (
            export.log_probabilities([sources[i] for i in different], [_ended(answers[i], export) for i in different])
            for answers in (own, found)
        )
        means = [torch.stack([row.mean() for row in rows]) for rows in (ours, theirs)]
        losses = ((means[0] - means[1]) / means[0].abs().clamp(min=1)).clamp(min=0)
        loss = float(losses.sum()) / len(own)
    return Check("beams", len(own), loss, 1 - len(different) / len(own))


def _ended(answer: Sequence[int], export: Exported) -> list[int]:
    """Return an answer with ``</s>``, which one that was cut lacks."""
    end = export.tokenizer.eos_token_id
    return [*answer] if end in answer else [*answer, end]
