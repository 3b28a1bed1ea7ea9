"""Log-probabilities of given candidates after one pass of the encoder over each source.

This is rank classification (Brown et al. 2020; T-Few calls it so): the candidate that the model finds most probable is the
answer. Unlike a generated text it comes with a probability. The log-probability of a candidate is the sum over all its tokens,
with ``</s>``, exactly that of teacher forcing; only the arithmetic is shared (``candidates.py``).

Letters: N sources, C candidates, B rows of a batch, S source tokens, T positions of a candidate tree, E edges, H d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from t5peft.data.collate import with_room
from t5peft.data.sources import read_candidates
from t5peft.data.truncation import as_targets, encode
from t5peft.deprecated import renamed_arguments
from t5peft.evaluation.candidates import CandidateTree, can_share, decoder_places, trees
from t5peft.evaluation.inference import (
    Sources,
    check_ids,
    ensure_language_model,
    evaluating,
    length_batches,
    padded,
    source_ids,
)
from t5peft.evaluation.peft_prompts import target_log_probabilities
from t5peft.methods.base import has_peft_prompt
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import CHUNK_ELEMENTS, MIN_CHUNK_TOKENS, logits_of_states, with_hidden_states


@dataclass(frozen=True)
class Ranking:
    """Scores of candidates or classes; on the CPU, in float32.

    Attributes:
        log_probabilities: Natural logarithms [N, C]; -inf where a source has fewer candidates.
        probabilities: The same [N, C], normalized over the candidates of each source.
    """

    log_probabilities: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, log_probabilities: Tensor) -> Ranking:
        """Make the ranking of log-probabilities.

        Args:
            log_probabilities: Natural logarithms [N, C].

        Returns:
            The ranking, with normalized probabilities.
        """
        return cls(log_probabilities, log_probabilities.softmax(dim=-1))

    @property
    def best(self) -> list[int]:
        """Return the column of the most probable candidate of each source [N]."""
        return self.log_probabilities.argmax(dim=-1).tolist() if self.log_probabilities.numel() else []

    def at_temperature(self, temperature: float) -> Ranking:
        """Return the same order with softer (above 1) or sharper probabilities; see ``fit_temperature``.

        Args:
            temperature: The divisor of the log-probabilities.

        Returns:
            The new ranking.

        Raises:
            ValueError: The temperature is not above 0.
        """
        if not temperature > 0:
            raise ValueError(f"Got temperature={temperature}; expected a number above 0, where 1 changes nothing.")
        return Ranking.of(self.log_probabilities / temperature)


@renamed_arguments(normalise_by_length="normalize_by_length")
def rank(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    candidates: Iterable[str] | Iterable[Iterable[str]],
    *,
    normalize_by_length: bool = False,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
) -> Ranking:
    """Score every candidate target for every source.

    Args:
        model: A T5 with a language model head, plain or wrapped.
        tokenizer: Its tokenizer.
        sources: Texts, or token IDs from ``Task.tokenize``.
        candidates: One list of texts for all sources, or one list for each source.
        normalize_by_length: Whether to divide each log-probability by its number of tokens, for candidates of different lengths.
        tokens_per_batch: Maximum of rows x (longest source + positions of the candidates) per batch.
        max_source_length: Truncate sources to this many tokens, including ``</s>``.

    Returns:
        The scores [N, C].

    Raises:
        ValueError: The model has no language model head, a source has no candidates, two candidates have the same tokens, or the
            numbers of sources and candidate lists differ.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    tokens = candidate_ids(candidates, len(ids), tokenizer)
    ensure_language_model(unwrap_t5(model), "to score texts. Use classify.")
    if has_peft_prompt(model):
        scores = _rank_by_scores(partial(target_log_probabilities, model), ids, tokens)
    else:
        scores = _rank(model, ids, tokens, tokens_per_batch)
    if normalize_by_length:
        scores /= _token_counts(tokens, *scores.shape)
    return Ranking.of(scores)


Feature = Mapping[str, list[int]]
"""``input_ids`` and ``labels``, without padding."""


def rank_by_scores(
    score: Callable[[Sequence[Feature]], Tensor],
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    candidates: Iterable[str] | Iterable[Iterable[str]],
    *,
    normalize_by_length: bool = False,
    max_source_length: int | None = None,
) -> Ranking:
    """Rank as ``rank`` does, by any function that scores pairs of a source and a target.

    Args:
        score: A function from features to the log-probability of each target [N].
        tokenizer: The tokenizer of the model.
        sources: As for ``rank``.
        candidates: As for ``rank``.
        normalize_by_length: As for ``rank``.
        max_source_length: As for ``rank``.

    Returns:
        The scores [N, C].

    Raises:
        ValueError: As for ``rank``.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    tokens = candidate_ids(candidates, len(ids), tokenizer)
    scores = _rank_by_scores(score, ids, tokens)
    if normalize_by_length:
        scores /= _token_counts(tokens, *scores.shape)
    return Ranking.of(scores)


def _rank(model: nn.Module, ids: list[list[int]], tokens: dict[int, list[list[int]]], tokens_per_batch: int) -> Tensor:
    """Return the log-probabilities [N, C], by one pass of the encoder over each source."""
    scores = _empty_scores(tokens, len(ids))
    with evaluating(model) as t5:
        check_ids([*ids, *(row for rows in tokens.values() for row in rows)], t5)
        start, shared = t5.config.decoder_start_token_id, can_share(t5)
        made = {key: trees(several, start, shared) for key, several in tokens.items()}
        trees_of = [made[i if i in made else -1] for i in range(len(ids))]
        widest = max((len(tree.tokens) for several in made.values() for tree in several), default=0)
        for batch in length_batches(ids, tokens_per_batch, more_per_row=widest, passes=2):
            input_ids, attention_mask = padded([ids[i] for i in batch], t5.config.pad_token_id, t5.device)
            states = t5.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
            _score_states(t5, states, attention_mask, [trees_of[i] for i in batch], scores, batch)
    return scores


def _rank_by_scores(
    score: Callable[[Sequence[Feature]], Tensor], ids: list[list[int]], tokens: dict[int, list[list[int]]]
) -> Tensor:
    """Return the log-probabilities [N, C], each source and candidate by itself."""
    scores = _empty_scores(tokens, len(ids))
    places = [(i, column) for i in range(len(ids)) for column in range(len(tokens.get(i, tokens.get(-1, []))))]
    features = [{"input_ids": ids[i], "labels": tokens.get(i, tokens.get(-1, []))[column]} for i, column in places]
    for place, found in zip(places, score(features), strict=True):
        scores[place] = found
    return scores


def _empty_scores(tokens: dict[int, list[list[int]]], sources: int) -> Tensor:
    return torch.full((sources, max(map(len, tokens.values()), default=0)), -torch.inf)


def candidate_ids(
    candidates: Iterable[str] | Iterable[Iterable[str]], sources: int, tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[list[int]]]:
    """Return the token ids of candidates.

    Args:
        candidates: One list of texts for all sources, or one list for each source.
        sources: The number of sources.
        tokenizer: Of the model.

    Returns:
        The token ids of the candidates by source, those for all sources under -1.

    Raises:
        ValueError: A list is empty, has two candidates of the same tokens, or there are not as many lists as sources.
    """
    several = read_candidates(candidates)
    shared = [candidate for candidate in several if isinstance(candidate, str)]
    lists = dict(enumerate(texts for texts in several if not isinstance(texts, str))) or {-1: shared}
    problems = []
    if -1 not in lists and len(lists) != sources:
        problems.append(f"Got {len(lists)} lists of candidates for {sources} sources; expected one list per source.")
    encoded = {}
    for key, texts in lists.items():
        where = "" if key == -1 else f" of source {key}"
        if not texts:
            problems.append(f"Got an empty list of candidates{where}; expected at least one.")
        encoded[key] = as_targets(encode(texts, tokenizer), tokenizer)
        columns: dict[tuple[int, ...], int] = {}
        for column, ids in enumerate(encoded[key]):
            if (other := columns.setdefault(tuple(ids), column)) != column:
                problems.append(
                    f"Got the candidates {texts[other]!r} and {texts[column]!r}{where}, the same tokens; expected different ones."
                )
    if problems:
        raise ValueError(" ".join(problems[:10]))
    return encoded


def _token_counts(tokens: dict[int, list[list[int]]], sources: int, columns: int) -> Tensor:
    """Return the number of tokens of each candidate [N, C], 1 where there is none."""
    counts = torch.ones(sources, columns)
    for key, several in tokens.items():
        rows = slice(None) if key == -1 else key
        counts[rows, : len(several)] = torch.tensor([float(len(ids)) for ids in several])
    return counts


def score_candidates(
    t5: PreTrainedModel,
    states: BaseModelOutput,
    attention_mask: Tensor,
    candidates: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Score the candidates of sources that are encoded already.

    Args:
        t5: A T5 in evaluation mode.
        states: What its encoder returned, [B, S, H].
        attention_mask: [B, S].
        candidates: Token ids of the candidates of each row.

    Returns:
        The log-probabilities of the candidates of each row.
    """
    start, shared = t5.config.decoder_start_token_id, can_share(t5)
    keys = [tuple(map(tuple, several)) for several in candidates]
    made = {key: trees(key, start, shared) for key in keys}
    scores = torch.full((len(keys), max(map(len, keys))), -torch.inf)
    _score_states(t5, states, attention_mask, [made[key] for key in keys], scores, list(range(len(keys))))
    return [row[: len(key)] for row, key in zip(scores.tolist(), keys, strict=True)]


def _score_states(
    t5: PreTrainedModel,
    states: BaseModelOutput,
    attention_mask: Tensor,
    trees_of: list[list[CandidateTree]],
    scores: Tensor,
    batch: list[int],
) -> None:
    """Write the log-probabilities of the trees over encoder states [B, S, H] into the rows ``batch`` of ``scores`` [N, C]."""
    nothing = CandidateTree(t5.config.decoder_start_token_id, trees_of[0][0].shared)
    for group in zip_longest(*trees_of, fillvalue=nothing):
        hidden = _decode(t5, group, states, attention_mask)
        for tree in {id(tree): tree for tree in group}.values():
            if tree.paths:
                members = [i for i, one in enumerate(group) if one is tree]
                found = _tree_log_probabilities(t5, hidden[members], tree).cpu()
                scores[torch.tensor(batch)[members][:, None], list(tree.paths)] = found


def _decode(
    t5: PreTrainedModel, group: Sequence[CandidateTree], states: BaseModelOutput, attention_mask: Tensor
) -> Tensor:
    """Return decoder states [B, T, H] as the head gets them, for one tree per row over encoder states [B, S, H]."""
    positions = max(len(tree.tokens) for tree in group)
    pad = t5.config.pad_token_id
    tokens = [[*tree.tokens, *[pad] * (positions - len(tree.tokens))] for tree in group]
    with with_hidden_states(t5):
        return t5(
            encoder_outputs=states,
            attention_mask=attention_mask,
            decoder_input_ids=torch.tensor(tokens, device=t5.device),
            **decoder_places(group, positions, t5),
            use_cache=False,
        ).logits


def _tree_log_probabilities(t5: PreTrainedModel, hidden: Tensor, tree: CandidateTree) -> Tensor:
    """Return the log-probabilities [B, C] of the tree's candidates in fp32, from decoder states [B, T or more, H].

    As in ``t5peft.nn.loss``, logits exist for one chunk of positions at a time.
    """
    rows, positions = len(hidden), len(tree.tokens)
    hidden = hidden[:, :positions].flatten(0, 1)
    position, token = torch.tensor(sorted(tree.edges), device=hidden.device).T
    position = (torch.arange(rows, device=hidden.device)[:, None] * positions + position).flatten()
    token = token.repeat(rows)
    found = torch.empty(len(token), device=hidden.device)
    chunk = max(
        MIN_CHUNK_TOKENS, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"]) // t5.config.vocab_size
    )
    for start in range(0, len(hidden), chunk):
        logits = logits_of_states(t5, hidden[start : start + chunk]).float()
        first, last = torch.searchsorted(position, torch.tensor([start, start + chunk], device=hidden.device)).tolist()
        here = position[first:last] - start
        found[first:last] = logits[here, token[first:last]] - logits.logsumexp(dim=-1)[here]
    order = {edge: i for i, edge in enumerate(sorted(tree.edges))}
    # One more column, of zeros, to which shorter paths point.
    edges = torch.cat([found.view(rows, -1), found.new_zeros(rows, 1)], dim=1)
    longest = max(len(path) for path in tree.paths.values())
    paths = [[*(order[edge] for edge in path), *[len(order)] * (longest - len(path))] for path in tree.paths.values()]
    return edges[:, torch.tensor(paths, device=hidden.device)].sum(dim=-1)


def classify(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    *,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
) -> Ranking:
    """Score the classes of a T5, or of its encoder, with a trained sequence classification head.

    Args:
        model: A T5 with a classification head, plain or wrapped.
        tokenizer: Its tokenizer.
        sources: Texts, or token IDs from ``Task.tokenize``.
        tokens_per_batch: Maximum of rows x longest source per batch.
        max_source_length: Truncate sources to this many tokens, including ``</s>``.

    Returns:
        The scores [N, C]; columns are label ids.

    Raises:
        ValueError: The model has no head for sequences.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    with evaluating(model) as t5:
        others = ("ForTokenClassification", "EncoderForEmbedding", "EncoderModel")
        if t5.can_generate() or type(t5).__name__.endswith(others):
            kind = "a language model head" if t5.can_generate() else "no classification head"
            raise ValueError(
                f"Got a {type(t5).__name__}, which has {kind}; expected a classification head. Use rank with target words, or tag "
                "or embed of t5peft.evaluation for the other heads of an encoder."
            )
        check_ids(ids, t5)
        scores = torch.empty(len(ids), int(t5.config.num_labels or 0))
        for batch in length_batches(ids, tokens_per_batch, more_per_row=1, passes=2):
            input_ids, attention_mask = padded([ids[i] for i in batch], t5.config.pad_token_id, t5.device)
            sources_batch = with_room({"input_ids": input_ids, "attention_mask": attention_mask}, t5.config)
            logits = t5(**sources_batch).logits
            scores[batch] = logits.float().log_softmax(dim=-1).cpu()
    return Ranking.of(scores)
