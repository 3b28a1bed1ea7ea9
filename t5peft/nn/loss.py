"""Cross-entropy of a linear head that never holds the logits.

``labels`` pick positions out of ``hidden``. Only those positions meet the head, a chunk of tokens at a time. The gradients of
hidden states and head are computed in the same pass, so only one chunk of the [tokens, V] matrix exists at a time, and none of
it is kept for the backward pass. With logits l = W h, s = logsumexp(l) and the label y, the loss of one position is

    (1 - eps) (s - l_y) + eps (s - mean(l)) + z s^2

This is ``transformers.trainer_pt_utils.LabelSmoother`` with the z-loss of PaLM, summed over positions and not averaged. The
caller divides by the target tokens of the whole optimizer step. mean(l) is computed as ``h . mean(W)``. The softmax is never
normalized, because a factor on rows commutes with both products that follow.

Not here: soft labels, class weights, a bias of the head. The gradient is computed once, without a second derivative.

Letters: B batch, T target tokens, H d_model, V vocabulary, C tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from t5peft.compat.torch import is_hooked
from t5peft.models.families import family_of
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.kernels.linear import FastLinear, product, product_over_rows, row_multiple
from t5peft.nn.kernels.module import runs_on_cpu
from t5peft.nn.notes import say_once

IGNORED_LABEL = -100
"""The label of a position that the loss leaves out, as in torch and transformers."""

# Elements of one chunk of logits. Smaller chunks lose more by reading the head's weights again than they save.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}
MIN_CHUNK_TOKENS = 64


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass. ``wanted`` says which of hidden and weight get a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        label_smoothing: float,
        z_loss: float,
        chunk_tokens: int,
        softcap: float | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """Map hidden [C.., H], weight [V, H], labels [C..] -> []. Every label counts."""
        sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        loss = torch.zeros((), dtype=sums, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=sums, device=weight.device) if wanted[1] else None
        mean_weight = weight.mean(0, dtype=sums) if label_smoothing and softcap is None else None
        for start in range(0, len(labels), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            grad = None if grad_hidden is None else grad_hidden[rows]
            chunk = (hidden[rows], weight, labels[rows], label_smoothing, z_loss)
            if softcap is None:
                loss += _chunk(*chunk, mean_weight, grad, grad_weight)
            else:
                loss += _capped_chunk(*chunk, softcap, grad, grad_weight)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.grads = (grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = (None if grad is None else grad * grad_output for grad in ctx.grads)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _chunk(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    label_smoothing: float,
    z_loss: float,
    mean_weight: Tensor | None,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """Return the loss [] of hidden [C, H]. Write its gradient to grad_hidden [C, H] and add it to grad_weight [V, H]."""
    sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    scores = _logits(hidden, weight, sums)
    label_score = scores.gather(1, labels[:, None]).squeeze(1)
    highest = scores.amax(1, keepdim=True)
    scores = scores.sub_(highest).exp_()
    total = scores.sum(1)
    log_total = total.log() + highest.squeeze(1)

    loss = log_total - (1 - label_smoothing) * label_score
    slope = 1 + 2 * z_loss * log_total  # d loss / d log_total
    if mean_weight is not None:
        loss = loss - label_smoothing * (hidden.to(sums) @ mean_weight)
    if z_loss:
        loss = loss + z_loss * log_total.square()

    row_scale = (slope / total)[:, None]
    scores = scores.to(weight.dtype)
    if grad_hidden is not None:
        grad = product(scores, weight.t()).to(sums).mul_(row_scale)
        grad -= (1 - label_smoothing) * weight[labels].to(sums)
        if mean_weight is not None:
            grad -= label_smoothing * mean_weight
        grad_hidden.copy_(grad)
    if grad_weight is not None:
        rows = hidden.to(sums)
        grad_weight += product_over_rows(scores, (rows * row_scale).to(weight.dtype)).to(sums)
        grad_weight.index_add_(0, labels, rows, alpha=label_smoothing - 1)
        if label_smoothing:
            grad_weight -= rows.sum(0) * (label_smoothing / len(weight))
    return loss.sum()


def _capped_chunk(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """Do as ``_chunk`` for logits c tanh(l / c), whose slope 1 - tanh^2 differs by token and word."""
    sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    bent = _logits(hidden, weight, sums).div_(softcap).tanh_()
    scores = bent * softcap
    log_total = scores.logsumexp(1)
    loss = log_total - (1 - label_smoothing) * scores.gather(1, labels[:, None]).squeeze(1)
    if label_smoothing:
        loss = loss - label_smoothing * scores.mean(1)
    slope = scores.sub_(log_total[:, None]).exp_().mul_((1 + 2 * z_loss * log_total)[:, None])
    slope -= label_smoothing / len(weight)
    slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), label_smoothing - 1))
    slope = slope.mul_(bent.square_().neg_().add_(1)).to(weight.dtype)
    if grad_hidden is not None:
        grad_hidden.copy_(product(slope, weight.t()))
    if grad_weight is not None:
        grad_weight += product_over_rows(slope, hidden.to(weight.dtype)).to(sums)
    return (loss + z_loss * log_total.square()).sum()


def _logits(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return logits [C, V] of hidden [C, H] and weight [V, H]. On CUDA half precision is summed straight into float32."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.t(), out_dtype=dtype)
    return product(hidden, weight).to(dtype)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the cross-entropy of the head ``weight`` on ``hidden``, summed over the positions whose label is not -100.

    Args:
        hidden: The states, scaled as the head gets them.
        weight: The head, in the dtype of ``hidden``, or in any under autocast. A frozen head gets no gradient.
        labels: int64; -100 does not count.
        label_smoothing: Share of the target probability that is spread evenly over the vocabulary.
        z_loss: Factor of the squared logsumexp.
        chunk_tokens: Tokens whose logits exist at once; None for as many as fit a fixed number of bytes.
        softcap: The final softcap c of T5Gemma, for which the logits are ``c * tanh(l / c)``; None for logits as they are.

    Returns:
        The loss in float32, or in float64 for float64 inputs. It is 0 without a counted label, and so are the gradients.

    Raises:
        ValueError: For shapes that do not fit, labels outside the vocabulary, a smoothing outside [0, 1), or a negative z_loss.

    Shapes:
        hidden: [.., H].
        weight: [V, H].
        labels: [..].
        Output: [].
    """
    _check(hidden, weight, labels, label_smoothing, z_loss, chunk_tokens)
    device = "cpu" if runs_on_cpu(hidden) else hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if chunk_tokens is None:
        chunk_tokens = max(MIN_CHUNK_TOKENS, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // len(weight))
        chunk_tokens -= chunk_tokens % row_multiple(chunk_tokens)  # so that a product need not copy it to fill it up
    counted = (labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
    hidden = hidden.flatten(0, -2)
    if len(counted) < len(hidden):
        hidden = hidden.index_select(0, counted)
    wanted = (torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    with torch.autocast(device, enabled=False):
        return cast(
            Tensor,
            _LinearCrossEntropy.apply(
                hidden, weight, labels.flatten()[counted], label_smoothing, z_loss, chunk_tokens, softcap, wanted
            ),
        )


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, label_smoothing: float, z_loss: float, chunk_tokens: int | None
) -> None:
    """Raise one ValueError that names every problem. Values on CUDA are not read: the host would wait for them."""
    problems = []
    if hidden.shape[:-1] != labels.shape or weight.ndim != 2 or hidden.shape[-1] != weight.shape[-1]:
        problems.append(
            f"hidden {list(hidden.shape)}, weight {list(weight.shape)} and labels {list(labels.shape)}; expected [.., H], [V, H] "
            "and [..]"
        )
    elif not labels.is_cuda and _outside(labels, len(weight)):
        problems.append(
            f"labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {len(weight) - 1}, or {IGNORED_LABEL} where a "
            "position does not count (check that tokenizer and model belong together)"
        )
    if not 0 <= label_smoothing < 1:
        problems.append(f"label_smoothing={label_smoothing}; expected at least 0 and less than 1")
    if not z_loss >= 0:
        problems.append(f"z_loss={z_loss}; expected at least 0")
    if chunk_tokens is not None and chunk_tokens < 1:
        problems.append(f"chunk_tokens={chunk_tokens}; expected at least 1, or None")
    if problems:
        raise ValueError("Got " + ", and ".join(problems) + ".")


def _outside(labels: Tensor, vocabulary: int) -> bool:
    if not labels.numel():
        return False
    return bool(labels.max() >= vocabulary or ((labels < 0) & (labels != IGNORED_LABEL)).any())


class _PassThrough(nn.Module):
    """Stands in for the head and returns its input."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class _LossHead(nn.Module):
    """Stands in for the head and turns decoder states [B, T, H] into the summed loss [].

    It runs inside the forward pass of the model. What DistributedDataParallel and FSDP do around a forward pass, to gather weights
    and to find the outputs that gradients flow from, then covers the head too.
    """

    def __init__(
        self, head: nn.Linear, labels: Tensor, label_smoothing: float, z_loss: float, softcap: float | None
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.head = head
        self.labels = labels
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    @torch.compiler.disable  # it chooses by values; without this, torch compiles it in many pieces
    def forward(self, hidden: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden,
            self.head.weight,
            self.labels,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
        )


@contextmanager
def _head_replaced(t5: PreTrainedModel, replacement: nn.Module) -> Iterator[None]:
    """Let ``replacement`` stand in for the head. The softcap that follows on it is left out."""
    holder, _, name = family_of(t5.config).head.rpartition(".")
    parent = t5.get_submodule(holder)
    head, cap = getattr(parent, name), softcap_of(t5)
    setattr(parent, name, replacement)
    if cap is not None:
        _softcapped(t5).final_logit_softcapping = None
    try:
        yield
    finally:
        setattr(parent, name, head)
        if cap is not None:
            _softcapped(t5).final_logit_softcapping = cap


def _softcapped(t5: PreTrainedModel) -> Any:
    """Return the config that says whether the logits of ``t5`` have a softcap."""
    return family_of(t5.config).stack_configs(t5.config)[1]


def softcap_of(t5: PreTrainedModel) -> float | None:
    """Return the softcap of the logits of ``t5``; None where they have none."""
    return _softcapped(t5).final_logit_softcapping if family_of(t5.config).scores_are_capped else None


def logits_of_states(t5: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits that ``t5`` computes of what ``with_hidden_states`` gives.

    Shapes:
        hidden: [.., H].
        Output: [.., V].
    """
    logits, cap = t5.get_submodule(family_of(t5.config).head)(hidden), softcap_of(t5)
    return cast(Tensor, logits if cap is None else torch.tanh(logits / cap) * cap)


@contextmanager
def with_hidden_states(t5: PreTrainedModel) -> Iterator[None]:
    """Let ``t5(...).logits`` be the scaled input [B, T, H] of the head inside the block. No logits are made.

    The head is left out whatever it is. A head with an adapter loses the adapter too (see ``target_loss``).
    """
    with _head_replaced(t5, _PassThrough()):
        yield


def is_plain_head(head: nn.Module) -> bool:
    """Return whether calling ``head`` computes ``x @ head.weight.T`` only: no tuner layer, no bias, no hooks."""
    return type(head) in (nn.Linear, FastLinear) and head.bias is None and not is_hooked(head)


def target_loss(
    model: nn.Module, batch: Mapping[str, Any], *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, int]:
    """Return the summed loss [] over the target tokens of ``batch``, and their number, by one call of ``model``.

    The logits are left out where the head is a plain linear map. A head with an adapter (LoRA on lm_head, a head in
    modules_to_save) or with hooks is called as it is, and its logits exist.

    Args:
        model: A T5ForConditionalGeneration, plain or inside PeftModel, DistributedDataParallel and the like.
        batch: As ``collate`` or ``pack`` of ``t5peft.data.collate`` returns it. Labels are shifted here if it has no decoder
            inputs.
        label_smoothing: As in ``linear_cross_entropy``.
        z_loss: As in ``linear_cross_entropy``.
    """
    t5 = unwrap_t5(model)
    inputs = dict(batch)
    labels = inputs.pop("labels")
    if "decoder_input_ids" not in inputs and "decoder_inputs_embeds" not in inputs:
        inputs["decoder_input_ids"] = cast(Any, t5).prepare_decoder_input_ids_from_labels(labels)  # every T5 has it
    if getattr(t5.get_decoder(), "reads_target_lengths", False) and "layout" not in inputs:
        inputs["target_lengths"] = target_lengths(labels)
    target_tokens = int((labels != IGNORED_LABEL).sum())
    head = t5.get_submodule(family_of(t5.config).head)
    if is_plain_head(head):
        plain = cast(nn.Linear, head)
        with _head_replaced(t5, _LossHead(plain, labels, label_smoothing, z_loss, softcap_of(t5))):
            return model(**inputs, use_cache=False).logits, target_tokens
    say_once("The head has an adapter, a bias or hooks, so the logits of the whole vocabulary are made.")
    logits = model(**inputs, use_cache=False).logits
    return logits_loss(logits, labels, label_smoothing=label_smoothing, z_loss=z_loss), target_tokens


def target_lengths(labels: Tensor) -> list[int]:
    """Return for each row of labels [B, T] the number of positions up to the last label that counts."""
    positions = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return ((labels != IGNORED_LABEL) * positions).amax(1).tolist()


def logits_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Return the loss of ``linear_cross_entropy`` from logits that exist already.

    Shapes:
        logits: [.., V].
        labels: [..].
        Output: [].
    """
    counted = labels != IGNORED_LABEL
    scores = logits[counted]
    scores = scores if scores.dtype == torch.float64 else scores.float()
    log_total = scores.logsumexp(-1)
    label_score = scores.gather(-1, labels[counted][:, None]).squeeze(-1)
    loss = log_total - (1 - label_smoothing) * label_score - label_smoothing * scores.mean(-1)
    return (loss + z_loss * log_total.square()).sum()
