"""Scores of given candidates: log-probabilities of whole targets after one pass of the encoder over each source.

This is rank classification (Brown et al. 2020; T-Few calls it so): the candidate that the model finds most probable is
the answer, and unlike a generated text it comes with a probability. The log-probability of a candidate is the sum over
all its tokens, `</s>` included, exactly that of teacher forcing; only the arithmetic is shared (`candidates.py`).

Letters: N sources, C candidates, B rows of a batch, S source tokens, T positions of a candidate tree, E edges, H d_model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from t5peft.data.sources import read_candidates
from t5peft.data.truncation import encode
from t5peft.evaluation.candidates import CandidateTree, can_share, decoder_mask, trees
from t5peft.evaluation.inference import Sources, evaluating, length_batches, padded, source_ids
from t5peft.methods.base import has_peft_prompt
from t5peft.nn.loss import CHUNK_ELEMENTS, MIN_CHUNK_TOKENS, with_hidden_states


@dataclass(frozen=True)
class Ranking:
    """What `rank` and `classify` return; on the CPU, in float32.

    Attributes:
        log_probabilities: [N, C] natural logarithms; -inf where a source has fewer candidates.
        probabilities: [N, C], log_probabilities normalised over the candidates of each source.
    """

    log_probabilities: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, log_probabilities: Tensor) -> Ranking:
        """The ranking of log-probabilities [N, C]."""
        return cls(log_probabilities, log_probabilities.softmax(dim=-1))

    @property
    def best(self) -> list[int]:
        """The column of the most probable candidate of each source [N]."""
        return self.log_probabilities.argmax(dim=-1).tolist() if self.log_probabilities.numel() else []

    def at_temperature(self, temperature: float) -> Ranking:
        """The same order with probabilities softened (above 1) or sharpened, see `fit_temperature`."""
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; a positive number is expected, 1 changes nothing")
        return Ranking.of(self.log_probabilities / temperature)


def rank(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    candidates: Iterable[str] | Iterable[Iterable[str]],
    *,
    normalise_by_length: bool = False,
    tokens_per_batch: int = 8192,
    max_source_length: int | None = None,
) -> Ranking:
    """Score every candidate target for every source.

    Args:
        model: a T5 with a language model head, plain or wrapped.
        sources: texts, or token ids as `Task.tokenize` makes them.
        candidates: one list of texts for all sources, or one list for each source.
        normalise_by_length: divide each log-probability by its number of tokens, for candidates of unlike lengths.
        tokens_per_batch: rows x (longest source + positions of the candidates) of one batch.
        max_source_length: cut sources to so many tokens, with `</s>`.

    Raises:
        ValueError: a model without a language model head, a source without candidates, candidates that are the same
            tokens, unequal numbers of sources and candidate lists, an adapter of peft's own prompt learning.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    tokens = _candidate_ids(candidates, len(ids), tokenizer)
    with evaluating(model) as t5:
        _check_ranks(model, t5)
        start, shared = t5.config.decoder_start_token_id, can_share(t5)
        made = {key: trees(candidate_ids, start, shared) for key, candidate_ids in tokens.items()}
        trees_of = [made[i if i in made else -1] for i in range(len(ids))]
        widest = max((len(tree.tokens) for several in made.values() for tree in several), default=0)
        columns = max((len(candidate_ids) for candidate_ids in tokens.values()), default=0)
        scores = torch.full((len(ids), columns), -torch.inf)
        for batch in length_batches(ids, tokens_per_batch, more_per_row=widest, passes=2):
            _score_batch(t5, [ids[i] for i in batch], [trees_of[i] for i in batch], scores, batch)
    if normalise_by_length:
        scores /= _token_counts(tokens, *scores.shape)
    return Ranking.of(scores)


def _candidate_ids(
    candidates: Iterable[str] | Iterable[Iterable[str]], sources: int, tokenizer: PreTrainedTokenizerBase
) -> dict[int, list[list[int]]]:
    """Token ids of the candidates by source, or of those for all sources under -1.

    Raises:
        ValueError: as `rank`.
    """
    several = read_candidates(candidates)
    shared = [candidate for candidate in several if isinstance(candidate, str)]
    lists = dict(enumerate(texts for texts in several if not isinstance(texts, str))) or {-1: shared}
    problems = []
    if -1 not in lists and len(lists) != sources:
        problems.append(f"{len(lists)} lists of candidates came for {sources} sources; one a source is expected")
    encoded = {}
    for key, texts in lists.items():
        where = "" if key == -1 else f" of source {key}"
        if not texts:
            problems.append(f"the list of candidates{where} is empty; at least one is expected")
        encoded[key] = encode(texts, tokenizer)
        columns: dict[tuple[int, ...], int] = {}
        for column, ids in enumerate(encoded[key]):
            if (other := columns.setdefault(tuple(ids), column)) != column:
                problems.append(
                    f"candidates {texts[other]!r} and {texts[column]!r}{where} are the same tokens; none can win"
                )
    if problems:
        raise ValueError("; ".join(problems[:10]))
    return encoded


def _check_ranks(model: nn.Module, t5: PreTrainedModel) -> None:
    if not t5.can_generate():
        raise ValueError(f"{type(t5).__name__} has no language model head and scores no texts; use classify")
    if has_peft_prompt(model):
        raise ValueError(
            f"the adapter is {model.active_peft_config.peft_type.value} of peft, which does not work in the T5 itself; "
            "rank takes those of t5peft (prefix_wrap, prompt_wrap) and of any other method"
        )


def _token_counts(tokens: dict[int, list[list[int]]], sources: int, columns: int) -> Tensor:
    """Tokens of each candidate [N, C], 1 where there is none."""
    counts = torch.ones(sources, columns)
    for key, candidate_ids in tokens.items():
        rows = slice(None) if key == -1 else key
        counts[rows, : len(candidate_ids)] = torch.tensor([float(len(ids)) for ids in candidate_ids])
    return counts


def _score_batch(
    t5: PreTrainedModel, rows: list[list[int]], trees_of: list[list[CandidateTree]], scores: Tensor, batch: list[int]
) -> None:
    """Encode the sources once and write the log-probabilities of their trees into the rows `batch` of scores [N, C]."""
    input_ids, attention_mask = padded(rows, t5.config.pad_token_id, t5.device)
    states = t5.encoder(input_ids=input_ids, attention_mask=attention_mask)
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
    """Decoder states [B, T, H] as the head gets them, for one tree a row over encoder states [B, S, H]."""
    positions = max(len(tree.tokens) for tree in group)
    masks = {id(tree): decoder_mask(tree, positions, t5) for tree in {id(tree): tree for tree in group}.values()}
    mask = next(iter(masks.values())) if len(masks) == 1 else torch.cat([masks[id(tree)] for tree in group])
    pad = t5.config.pad_token_id
    tokens = [[*tree.tokens, *[pad] * (positions - len(tree.tokens))] for tree in group]
    with with_hidden_states(t5):
        return t5(
            encoder_outputs=states,
            attention_mask=attention_mask,
            decoder_input_ids=torch.tensor(tokens, device=t5.device),
            decoder_attention_mask=mask,
            use_cache=False,
        ).logits


def _tree_log_probabilities(t5: PreTrainedModel, hidden: Tensor, tree: CandidateTree) -> Tensor:
    """Decoder states [B, T or more, H] to the log-probabilities [B, C] of the tree's candidates, in fp32.

    As in `t5peft.nn.loss`, logits exist for one chunk of positions at a time.
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
        logits = t5.lm_head(hidden[start : start + chunk]).float()
        first, last = torch.searchsorted(position, torch.tensor([start, start + chunk], device=hidden.device)).tolist()
        here = position[first:last] - start
        found[first:last] = logits[here, token[first:last]] - logits.logsumexp(dim=-1)[here]
    order = {edge: i for i, edge in enumerate(sorted(tree.edges))}
    # One column of zeros more, to which shorter paths point.
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
    """Class probabilities of a T5 with a trained head (`T5ForSequenceClassification`); columns are label ids.

    Raises:
        ValueError: a model with a language model head, which has no classes of its own.
    """
    ids = source_ids(sources, tokenizer, max_source_length)
    with evaluating(model) as t5:
        if t5.can_generate():
            raise ValueError(
                f"{type(t5).__name__} has a language model head and no classes; use rank with target words"
            )
        scores = torch.empty(len(ids), t5.config.num_labels)
        for batch in length_batches(ids, tokens_per_batch, more_per_row=1, passes=2):
            input_ids, attention_mask = padded([ids[i] for i in batch], t5.config.pad_token_id, t5.device)
            logits = t5(input_ids=input_ids, attention_mask=attention_mask).logits
            scores[batch] = logits.float().log_softmax(dim=-1).cpu()
    return Ranking.of(scores)
