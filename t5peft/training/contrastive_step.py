"""One optimizer step on pairs, whose loss needs all embeddings of the step.

The step is cut into micro-batches by two passes (GradCache, Gao et al. 2021). The first one keeps embeddings only, the loss gives
their gradient, and the second one computes each micro-batch again with the same dropout and takes that gradient back.

Letters: B pairs, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from t5peft.compat.accelerate import gather_object
from t5peft.data.collate import bucket_by_length, collate_sources
from t5peft.training.batches import BatchingTrainer
from t5peft.training.contrastive import EmbeddingHead, contrastive_loss
from t5peft.training.head import Feature
from t5peft.training.progress import Throughput


def contrastive_step(
    trainer: BatchingTrainer,
    model: nn.Module,
    features: Sequence[Feature],
    tokens: int | None,
    throughput: Throughput,
    with_penalty: Callable[[Tensor], Tensor],
) -> Tensor:
    """Run forward and backward of the pairs of one step; return the loss [] per pair over all processes.

    Args:
        trainer: The Trainer.
        model: The model, as it is in training.
        features: The pairs of this process. One without a target counts nothing.
        tokens: Most tokens of a micro-batch; None for one batch.
        throughput: Counts the tokens.
        with_penalty: Adds to a loss what the tuner adds to that of a step.
    """
    head = trainer.head
    assert isinstance(head, EmbeddingHead)
    pairs = [feature for feature in features if feature["labels"]]
    texts = [f["input_ids"] for f in pairs or features] + [f["labels"] for f in pairs]
    batches = []
    for chosen in _cut(texts, tokens):
        batch = collate_sources([{"input_ids": texts[i]} for i in chosen], pad_token_id=head.config.pad_token_id)
        batches.append((chosen, trainer._prepare_inputs(batch)))
    for chosen, batch in batches:
        throughput.add(sum(len(texts[i]) for i in chosen), batch["input_ids"].numel())
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
        loss = with_penalty(_loss_of_all(trainer, head, found, pairs))
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
            product = (embedded * gradient[chosen]).sum()
            trainer.accelerator.backward(with_penalty(product) if last else product)
    return with_penalty(loss.detach()).detach()


def _cut(texts: Sequence[Sequence[int]], tokens: int | None) -> list[list[int]]:
    """Return the indices of the texts of each micro-batch."""
    if tokens is None:
        return [list(range(len(texts)))]
    return bucket_by_length([{"input_ids": text, "labels": [0]} for text in texts], tokens)


def _loss_of_all(trainer: BatchingTrainer, head: EmbeddingHead, own: Tensor, pairs: Sequence[Feature]) -> Tensor:
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
