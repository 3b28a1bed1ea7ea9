"""The base of the engines that run an exported folder, and the description of such a folder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t5peft.data import Task
from t5peft.data.decoding import decode
from t5peft.evaluation.inference import Sources, check_generation, length_batches, source_ids
from t5peft.evaluation.prediction import Predictions
from t5peft.evaluation.ranking import Feature, Ranking, rank_by_scores
from t5peft.models.manifest import read_json
from t5peft.serving.requests import Ids

Target = Literal["transformers", "ct2", "onnx"]
Quantize = Literal["int8"]
Model = PreTrainedModel | PeftModel
Records = Sequence[Mapping[str, Any]]
Candidates = Iterable[str] | Iterable[Iterable[str]]
"""One list of texts for all sources, or one list for each source."""
Kind = Literal["language model", "classifier", "encoder"]

DETAILS = "export.json"
PARITY = "parity.json"
TARGETS: tuple[Target, ...] = ("transformers", "ct2", "onnx")


@dataclass(frozen=True)
class Details:
    """The content of ``export.json``; the fields are those of the file."""

    target: Target
    kind: Kind
    method: str
    backbone: str
    quantize: Quantize | None = None
    prompt_length: int = 0
    """Tokens of a baked prompt, which the saved tokenizer writes before every text."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Settings of the search that the engine does not read from another file."""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Details:
        """Read the description of an exported folder.

        Args:
            folder: The folder.

        Returns:
            The description.

        Raises:
            FileNotFoundError: The folder holds no export.
            ValueError: The file is damaged.
        """
        if not (folder / DETAILS).is_file():
            raise FileNotFoundError(
                f"Got {folder}, which is not an export; expected a folder from `t5peft export`. Export the adapter."
            )
        content = read_json(folder / DETAILS)
        names = {one.name for one in fields(cls)}
        if content.get("target") not in TARGETS or content.keys() != names:
            raise ValueError(
                f"Got {folder / DETAILS} with the target {content.get('target')!r} and the fields {', '.join(content)}; expected "
                f"one of {', '.join(TARGETS)}, and {', '.join(sorted(names))}. Restore the folder, or export again."
            )
        return cls(**content)

    def write(self, folder: Path) -> None:
        """Write the description into ``folder``."""
        (folder / DETAILS).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def is_exported(folder: str | Path) -> bool:
    """Return whether ``folder`` holds an export."""
    return (Path(folder) / DETAILS).is_file()


def kind_of_model(t5: PreTrainedModel) -> Kind:
    """Return what a T5 is for.

    Raises:
        ValueError: It has a head that is not exported.
    """
    name = type(t5).__name__
    if t5.can_generate():
        return "language model"
    if name.endswith("ForSequenceClassification"):
        return "classifier"
    if name.endswith("EncoderModel"):
        return "encoder"
    raise ValueError(
        f"Got a {name}, which is not exported; expected a T5 with a language model or classification head, or a plain encoder. "
        "Run it with load_adapter, or merge it and save it with t5peft.adapters.save_model."
    )


class Exported(ABC):
    """A model that answers as the adapter did that it was exported from.

    Attributes:
        tokenizer: The tokenizer without a baked prompt, which the model adds by itself.
        details: What the folder holds.
    """

    tokenizer: PreTrainedTokenizerBase
    details: Details
    _prompt_ids: Sequence[int] = ()

    def predict(
        self,
        sources: Sources,
        *,
        max_new_tokens: int,
        num_beams: int = 1,
        tokens_per_batch: int = 8192,
        max_source_length: int | None = None,
        progress: bool = False,
        keep: Collection[str] = (),
    ) -> Predictions:
        """Generate an answer for each source, as ``t5peft.predict`` does.

        Args:
            sources: Texts, or token IDs from ``Task.tokenize``.
            max_new_tokens: Maximum tokens of an answer, including ``</s>``.
            num_beams: 1 is greedy search.
            tokens_per_batch: Maximum of rows x beams x (longest source + max_new_tokens) per batch.
            max_source_length: Truncate sources to this many tokens, including ``</s>``.
            progress: Show a bar.
            keep: Special tokens that stay in the texts.

        Returns:
            The texts in the order of the sources, and the share that was cut.

        Raises:
            ValueError: The model has no language model head, or a number is below 1.
        """
        self._ensure("language model", "predict", "Use classify or encode.")
        check_generation(max_new_tokens, num_beams)
        ids = source_ids(sources, self.tokenizer, max_source_length)
        answers = self.answer_ids(
            ids,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            tokens_per_batch=tokens_per_batch,
            progress=progress,
        )
        cut = sum(self.tokenizer.eos_token_id not in answer for answer in answers)
        texts = decode(answers, self.tokenizer, keep=keep)
        return Predictions(texts, cut / len(ids) if ids else 0.0)

    def answer_ids(
        self,
        sources: Ids,
        *,
        max_new_tokens: int,
        num_beams: int = 1,
        tokens_per_batch: int = 8192,
        progress: bool = False,
    ) -> list[list[int]]:
        """Generate the token ids of an answer for each source.

        Args:
            sources: Token ids of each source.
            max_new_tokens: As in ``predict``.
            num_beams: As in ``predict``.
            tokens_per_batch: As in ``predict``.
            progress: Show a bar.

        Returns:
            The ids of each answer, up to ``</s>``, without the start token.
        """
        ids = self._with_prompt(sources)
        batches = length_batches(
            ids, tokens_per_batch, more_per_row=max_new_tokens, passes=1 + max_new_tokens, copies=num_beams
        )
        answers: list[list[int]] = [[] for _ in ids]
        for batch in tqdm(batches, desc="predict", unit="batch", disable=not progress):
            found = self._generate([ids[i] for i in batch], max_new_tokens, num_beams)
            for i, answer in zip(batch, found, strict=True):
                answers[i] = answer
        return answers

    @abstractmethod
    def _generate(self, rows: list[list[int]], max_new_tokens: int, num_beams: int) -> Iterable[list[int]]:
        """Return the ids of an answer for each row of ids, which has the prompt in it."""

    def rank(
        self,
        sources: Sources,
        candidates: Candidates,
        *,
        normalize_by_length: bool = False,
        tokens_per_batch: int = 8192,
        max_source_length: int | None = None,
    ) -> Ranking:
        """Score every candidate target for every source, as ``t5peft.rank`` does.

        Args:
            sources: Texts, or token IDs from ``Task.tokenize``.
            candidates: One list of texts for all sources, or one list for each source.
            normalize_by_length: Whether to divide each log-probability by its number of tokens.
            tokens_per_batch: Maximum tokens per batch.
            max_source_length: Truncate sources to this many tokens, including ``</s>``.

        Returns:
            The scores [N, C].

        Raises:
            ValueError: The model has no language model head, or the candidates are wrong.
        """
        self._ensure("language model", "rank", "Use classify or encode.")
        return rank_by_scores(
            lambda features: self.target_scores(features, tokens_per_batch=tokens_per_batch),
            self.tokenizer,
            sources,
            candidates,
            normalize_by_length=normalize_by_length,
            max_source_length=max_source_length,
        )

    @abstractmethod
    def log_probabilities(self, sources: Ids, targets: Ids, *, tokens_per_batch: int = 8192) -> list[Tensor]:
        """Score the tokens of given targets by teacher forcing.

        Args:
            sources: Token ids of each source.
            targets: Token ids of each target, ending in ``</s>``.
            tokens_per_batch: Maximum tokens per batch.

        Returns:
            Natural logarithms [T] for each target.
        """

    def rank_targets(self, task: Task, sources: Sources) -> Ranking:
        """Rank the labels of a task by their words, or by the model's own head.

        Args:
            task: A task with a verbalizer.
            sources: Texts, or token ids.

        Returns:
            The ranking [N, C] of N sources and C labels.

        Raises:
            ValueError: The head has another number of classes than the task has labels.
        """
        if self.details.kind != "classifier":
            return self.rank(sources, task.candidates)
        ranking = self.classify(sources)
        if (classes := ranking.log_probabilities.shape[-1]) != len(task.labels):
            raise ValueError(
                f"Got an export whose head has {classes} classes; expected {len(task.labels)}, the target words of the task "
                f"{task.name!r}. Pass the task that it was tuned on."
            )
        return ranking

    def target_scores(self, features: Sequence[Feature], *, tokens_per_batch: int) -> Tensor:
        """Return the log-probability [N] of the target of each feature."""
        sources, targets = ([feature[name] for feature in features] for name in ("input_ids", "labels"))
        found = self.log_probabilities(sources, targets, tokens_per_batch=tokens_per_batch)
        return torch.stack([row.sum() for row in found]) if found else torch.empty(0)

    def classify(
        self, sources: Sources, *, tokens_per_batch: int = 8192, max_source_length: int | None = None
    ) -> Ranking:
        """Score the classes of a trained head, as ``t5peft.evaluation.classify`` does.

        Args:
            sources: Texts, or token IDs from ``Task.tokenize``.
            tokens_per_batch: Maximum of rows x longest source per batch.
            max_source_length: Truncate sources to this many tokens, including ``</s>``.

        Returns:
            The scores [N, C]; columns are label ids.

        Raises:
            ValueError: The model has no classification head.
        """
        self._ensure("classifier", "classify", "Use rank with target words.")
        raise NotImplementedError

    def encode(self, sources: Sources, *, max_source_length: int | None = None) -> list[Tensor]:
        """Return the states of an encoder.

        Args:
            sources: Texts, or token ids.
            max_source_length: Truncate sources to this many tokens, including ``</s>``.

        Returns:
            States [S, H] for each source.

        Raises:
            ValueError: The model is not an encoder.
        """
        self._ensure("encoder", "encode", "Use predict, rank or classify.")
        raise NotImplementedError

    def _with_prompt(self, sources: Ids) -> list[list[int]]:
        return [[*self._prompt_ids, *source] for source in sources]

    def _ensure(self, kind: Kind, verb: str, remedy: str) -> None:
        if self.details.kind != kind:
            raise ValueError(f"Got {verb} of an exported {self.details.kind}; expected a {kind}. {remedy}")
