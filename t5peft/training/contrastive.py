"""Train embeddings on pairs: each source is near its target, and far from the other targets of the step (Sentence-T5).

The loss of a source i with the target i is the cross-entropy of its cosines with all targets, divided by a temperature t:

    loss_i = -log( exp(cos(s_i, t_i) / t) / sum_j exp(cos(s_i, t_j) / t) )

Other targets with the tokens of t_i are left out of the sum. The targets of all processes and of all accumulated batches count.
A step is still cut into micro-batches, by two passes (GradCache, Gao et al. 2021): the first one keeps embeddings only, the loss
gives their gradient, and the second one computes each micro-batch again with the same dropout and takes that gradient back.

Letters: B pairs, C candidates, S source tokens, T target tokens, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from t5peft.compat.accelerate import gather_object
from t5peft.data.collate import bucket_by_length, collate_pairs, collate_sources
from t5peft.data.features import target_problems
from t5peft.nn.loss import IGNORED_LABEL
from t5peft.training.head import Batch, Feature, Head

if TYPE_CHECKING:
    from t5peft.training.trainer import T5PeftTrainer

ROWS = 1024  # of the table of cosines that are computed at once in an evaluation


def contrastive_loss(sources: Tensor, targets: Tensor, keys: Sequence[Any], temperature: float) -> Tensor:
    """Return the loss [] summed over sources.

    Args:
        sources: Embeddings of unit length of the sources.
        targets: Those of the targets, the one of source i in row i.
        keys: One object a target; targets with equal ones are no negatives of each other's sources.
        temperature: What cosines are divided by.

    Shapes:
        sources: [B, E].
        targets: [C, E], with C at least B.
    """
    numbers: dict[Any, int] = {}
    group = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], device=targets.device)
    place = torch.arange(len(targets), device=targets.device)
    total = sources.new_zeros(())
    for start in range(0, len(sources), ROWS):
        rows = place[start : min(start + ROWS, len(sources))]
        scores = sources[rows] @ targets.T / temperature
        repeated = (group[rows, None] == group) & (rows[:, None] != place)
        total = total + cross_entropy(scores.masked_fill(repeated, -torch.inf), rows, reduction="sum")
    return total


class EmbeddingHead(Head):
    """A head that makes embeddings of sources and of targets, which are texts alike."""

    layout = "target"
    name = "embedding_projection"
    reads_source_only = True
    temperature = 0.05

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if getattr(config, "embedding_size", None) is None:
            self.name = None

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Collate features; labels are the token ids of the targets, int64 [B, T]."""
        return collate_pairs(features, pad_token_id=self.config.pad_token_id)

    def label_problems(self, features: Sequence[Feature]) -> list[str]:
        """Return why the targets are not lists of token ids of the model."""
        return target_problems(features, self.config.vocab_size)

    def count(self, batch: Batch) -> float:
        """Count the pairs."""
        return int((batch["labels"] != IGNORED_LABEL).any(-1).sum())

    def embeddings(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return embeddings of the sources [B, E], and of the targets [B, E] where a batch has them."""
        sources = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        if batch.get("labels") is None:
            return sources, None
        present = batch["labels"] != IGNORED_LABEL
        ids = batch["labels"].masked_fill(~present, self.config.pad_token_id)
        return sources, model(input_ids=ids, attention_mask=present.long()).pooler_output

    def loss_and_outputs(
        self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> tuple[Tensor, float, Any]:
        """Return the loss [] summed over the pairs of one batch, their number, and both embeddings."""
        items, outputs = self.count(batch), self.embeddings(model, batch)
        if items == 0:
            return outputs[0].sum() * 0, 0, outputs
        return self.loss_of(outputs, batch, label_smoothing, z_loss), items, outputs

    def loss_of(self, outputs: Any, batch: Batch, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the loss [] of embeddings ([B, E], [B, E]), summed over the pairs, each against all targets given."""
        present = batch["labels"] != IGNORED_LABEL
        rows = present.any(-1).nonzero().flatten()
        keys = [tuple(batch["labels"][row][present[row]].tolist()) for row in rows]
        sources, targets = outputs
        return contrastive_loss(sources[rows], targets[rows], keys, self.temperature)

    def predictions(self, outputs: Any, batch: Batch) -> Any:
        """Return the embeddings."""
        return outputs[0] if outputs[1] is None else outputs


def contrastive_step(trainer: T5PeftTrainer, model: nn.Module, features: Sequence[Feature]) -> Tensor:
    """Run forward and backward of the pairs of one step; return the loss [] per pair over all processes.

    Args:
        trainer: The Trainer.
        model: The model, as it is in training.
        features: The pairs of this process. One without a target counts nothing.
    """
    head = trainer.head
    assert isinstance(head, EmbeddingHead)
    pairs = [feature for feature in features if feature["labels"]]
    texts = [f["input_ids"] for f in pairs or features] + [f["labels"] for f in pairs]
    batches = [
        (chosen, trainer._prepare_inputs(collate_sources([{"input_ids": texts[i]} for i in chosen], pad_token_id=pad)))
        for pad in [head.config.pad_token_id]
        for chosen in _cut(trainer, texts)
    ]
    for chosen, batch in batches:
        trainer.throughput.add(sum(len(texts[i]) for i in chosen), batch["input_ids"].numel())
    direct = len(batches) == 1 and trainer.accelerator.num_processes == 1
    found: Tensor | None = None
    states = []
    for chosen, batch in batches:
        states.append(_random_states(trainer.args.device))
        with torch.set_grad_enabled(direct), trainer.compute_loss_context_manager():
            embedded = model(**batch).pooler_output
        found = embedded.new_empty(len(texts), embedded.shape[1]) if found is None else found
        found = found.index_copy(0, torch.tensor(chosen, device=found.device), embedded)
    assert found is not None
    if direct:
        loss = _loss_of_all(trainer, head, found, pairs)
        trainer.accelerator.backward(loss)
        return loss.detach()
    leaf = found.detach().requires_grad_()
    loss = _loss_of_all(trainer, head, leaf, pairs)
    (gradient,) = torch.autograd.grad(loss, leaf)
    gradient *= trainer.accelerator.num_processes  # of which the mean is taken
    for index, ((chosen, batch), state) in enumerate(zip(batches, states, strict=True)):
        last = index == len(batches) - 1
        with nullcontext() if last else trainer.accelerator.no_sync(model):
            with _replayed(state, trainer.args.device), trainer.compute_loss_context_manager():
                embedded = model(**batch).pooler_output
            trainer.accelerator.backward((embedded * gradient[chosen]).sum())
    return loss.detach()


def _cut(trainer: T5PeftTrainer, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the indices of the texts of each micro-batch."""
    if not trainer.own.bucket_by_length:
        return [list(range(len(texts)))]
    return bucket_by_length([{"input_ids": text, "labels": [0]} for text in texts], trainer.budget.tokens)


def _loss_of_all(trainer: T5PeftTrainer, head: EmbeddingHead, own: Tensor, pairs: Sequence[Feature]) -> Tensor:
    """Return the mean loss [] of the pairs of all processes, as a function of this process's embeddings [2 B, E]."""
    sources, targets = own[: len(own) - len(pairs)], own[len(own) - len(pairs) :]
    keys = [tuple(pair["labels"]) for pair in pairs]
    if not pairs:
        sources = sources[:0]
    if trainer.accelerator.num_processes > 1:
        rank = trainer.accelerator.process_index
        everyone = gather_object([(sources.detach().cpu(), targets.detach().cpu(), keys)])
        parts = [(s.to(own.device), t.to(own.device), k) for s, t, k in everyone]
        parts[rank] = (sources, targets, keys)
        sources, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        keys = [key for part in parts for key in part[2]]
    if not keys:
        return own.sum() * 0
    return contrastive_loss(sources, targets, keys, head.temperature) / len(keys) + own.sum() * 0


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(states: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw the same random numbers as when ``states`` were taken, and leave the generators as they were."""
    cpu, cuda = states
    with torch.random.fork_rng([] if cuda is None else [device]):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
