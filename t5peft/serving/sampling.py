"""The choice of the next token of each row, whatever else is in the batch.

A row that samples has its own random numbers and looks only at its own logits.

Letters: B rows, V vocabulary, K tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from t5peft.serving.requests import GenerateRequest, Token

_FIRST_TOKENS = 256
"""So many of the most probable tokens are looked at before all are sorted."""


class Sampler:
    """How a request chooses its tokens.

    Args:
        request: The request.
        start_id: The first token that the decoder reads.
        processors: What the generation config of the model does to logits.
    """

    def __init__(
        self, request: GenerateRequest, start_id: int = 0, processors: LogitsProcessorList | None = None
    ) -> None:
        self.request = request
        self.samples = request.temperature > 0
        self._generator = torch.Generator().manual_seed(request.seed) if self.samples else None
        self._processors = processors
        self._ids = [start_id]

    @property
    def is_plain(self) -> bool:
        """Return whether it takes the token of the highest logit."""
        return not self.samples and not self._processors

    def choose(self, logits: Tensor) -> int:
        """Choose the next token by its own logits [V]."""
        if self._processors:
            ids = torch.tensor([self._ids], device=logits.device)
            logits = self._processors(ids, logits[None].clone())[0]  # type: ignore[arg-type]
        token = self.draw(logits) if self.samples else int(logits.argmax())
        self._ids.append(token)
        return token

    def draw(self, logits: Tensor) -> int:
        """Draw a token from its own logits [V]."""
        probabilities = (logits.double() / self.request.temperature).softmax(dim=-1)
        threshold = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        if self.request.top_p >= 1:
            return _first_above(probabilities.cumsum(dim=-1), threshold)
        sums, order = _nucleus(probabilities, self.request.top_p)
        return int(order[_first_above(sums, threshold * float(sums[-1]))])


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the cumulative probabilities [K] and the ids [K] of the most probable tokens that reach ``top_p``."""
    found, order = probabilities.topk(min(_FIRST_TOKENS, len(probabilities)))
    sums = found.cumsum(dim=-1)
    if sums[-1] < top_p:
        found, order = probabilities.sort(descending=True)
        sums = found.cumsum(dim=-1)
    count = _first_above(sums, top_p, inclusive=True) + 1
    return sums[:count], order[:count]


def _first_above(sums: Tensor, threshold: float, *, inclusive: bool = False) -> int:
    """Return the first index at which ``sums`` is above ``threshold``, or also equal to it; the last one where none is."""
    return min(int(torch.searchsorted(sums, threshold, right=not inclusive)), len(sums) - 1)


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Token]:
    """Choose the next token of each row.

    Args:
        logits: Of the next tokens.
        samplers: One for each row.

    Returns:
        The tokens, with log-probabilities, and with alternatives where the request wants them.

    Shapes:
        logits: [B, V].
    """
    # ``generate`` compares in float32 too, so ties are broken alike.
    scores = logits.float()
    ids = scores.argmax(dim=-1)
    for i, sampler in enumerate(samplers):
        if not sampler.is_plain:
            ids[i] = sampler.choose(scores[i])
    return tokens_of(logits, ids, [sampler.request.top_log_probabilities for sampler in samplers])


def tokens_of(logits: Tensor, ids: Tensor, alternatives: Sequence[int]) -> list[Token]:
    """Return chosen tokens with their log-probabilities.

    Args:
        logits: Of every token.
        ids: The chosen tokens.
        alternatives: How many of the most probable tokens to name for each row.

    Returns:
        One token for each row.

    Shapes:
        logits: [B, V].
        ids: [B].
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    totals = logits.logsumexp(dim=-1)
    found = (logits.gather(1, ids[:, None]).squeeze(1) - totals).tolist()
    others: list[dict[int, float]] = [{} for _ in alternatives]
    most = max(alternatives, default=0)
    if most:
        rows = [i for i, count in enumerate(alternatives) if count]
        values, tokens = logits[rows].topk(min(most, logits.shape[-1]))
        for i, row_values, row_ids in zip(rows, (values - totals[rows, None]).tolist(), tokens.tolist(), strict=True):
            others[i] = dict(zip(row_ids[: alternatives[i]], row_values, strict=False))
    return [Token(*token) for token in zip(ids.tolist(), found, others, strict=True)]
