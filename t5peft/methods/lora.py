"""LoRA (Hu et al. 2022, https://openreview.net/forum?id=nZeVKeeFYf9) on T5, by peft.

A frozen linear map W gets a trained product of rank R beside it: ``W x + scale * B (A x)``. A starts random and B starts as zero,
so wrapping changes nothing. ``scale`` is ``alpha / R``, or ``alpha / sqrt(R)`` when rank-stabilized (Kalajdzievski 2023). DoRA
(Liu et al. 2024) also trains the norm of each row of W. LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354) trains B at a
higher learning rate than A. ``starts.py`` has the starts that are not zero.

The LoRA of peft is right on T5 and is used as it is. This file checks the targets and always trains and saves a new head.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, Literal, cast

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from t5peft.deprecated import renamed_arguments
from t5peft.methods.base import check_choice, check_flag, ensure_fits, raise_if_problems, read_size, wrap
from t5peft.methods.starts import STARTS, Start, gradients_of_maps, start_lora
from t5peft.models.backbone import has_untied_head
from t5peft.models.families import family_of, untuned_pattern
from t5peft.models.quantized import quantization_of_model
from t5peft.models.unwrap import ensure_unwrapped

logger = logging.getLogger("t5peft")


def linear_maps(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of all linear maps of attention and feed-forward of ``model``, without embeddings and heads."""
    family = family_of(model.config)
    return (*family.attention, *family.feed_forward_maps(model.config))


@renamed_arguments(targets="target_modules", rank_stabilised="rank_stabilized")
def lora_wrap(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | Literal["all-linear"] | None = None,
    dora: bool = False,
    rank_stabilized: bool = False,
    start: Start | None = None,
    start_records: Sequence[Mapping[str, Any]] = (),
) -> PeftModel:
    """Wrap ``model`` for LoRA, in place.

    With ``start``, the adapter has rank 2R, and half of it is trained (see ``t5peft.methods.starts``).

    Args:
        model: A T5.
        rank: R, the rank of A and B.
        alpha: Numerator of the scale; None for twice the rank.
        dropout: Dropout probability of the inputs of A during training.
        target_modules: Names of linear layers; None for query and value, as in the paper. ``"all-linear"`` selects every linear
            layer of attention and feed-forward.
        dora: Whether to train the norms of the rows as well (DoRA).
        rank_stabilized: Whether to scale by ``alpha / sqrt(R)``.
        start: The initialization of A and B: ``"pissa"`` and ``"olora"`` use the weight, ``"lora-ga"`` uses the gradient of the
            first step of full fine-tuning. None initializes A randomly and B with zeros.
        start_records: Some tokenized training records, with ``input_ids`` and ``labels``, for the gradient of LoRA-GA.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, an option is out of range, a target matches nothing, DoRA is used with 8-bit
            weights on a CPU, or ``start`` is used with quantized weights or without the records that it needs.
    """
    ensure_unwrapped(model)
    problems: list[str] = []
    rank = read_size("rank", rank, problems)
    if alpha is not None and not (_is_number(alpha) and alpha > 0):
        problems.append(f"alpha={alpha!r}, with which nothing is learned; expected a number above 0, or None")
    if not (_is_number(dropout) and 0 <= dropout < 1):
        problems.append(f"dropout={dropout!r}, with which nothing is learned; expected at least 0 and less than 1")
    check_flag("dora", dora, problems)
    check_flag("rank_stabilized", rank_stabilized, problems)
    if start is not None:
        check_choice("start", start, STARTS, problems)
    raise_if_problems(problems)
    if dora:
        _check_dora(model)
    family = family_of(model.config)
    names = linear_maps(model) if target_modules == "all-linear" else target_modules
    names = family.default_targets if names is None else names
    check_targets(model, names)
    check_rank(model, names, rank)
    numerator = 2 * rank if alpha is None else alpha if isinstance(alpha, int) else float(alpha)
    if start is not None:
        numerator *= 2**0.5 if rank_stabilized else 2  # for the same scale at twice the rank
        gradients = _gradients_for(start, model, names, rank, start_records)
    wrapped = wrap(
        model,
        LoraConfig(
            r=rank if start is None else 2 * rank,
            lora_alpha=cast(int, numerator),  # peft only divides it by the rank, so a float is as good
            lora_dropout=float(dropout),
            target_modules=list(names),
            exclude_modules=untuned_pattern(family),
            use_dora=dora,
            use_rslora=rank_stabilized,
        ),
    )
    if start is not None:
        start_lora(wrapped, start, rank, gradients)
    return wrapped


def _gradients_for(
    start: Start, model: PreTrainedModel, names: Sequence[str], rank: int, records: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return the gradients that a start needs, or raise ValueError where it cannot be computed."""
    if (quantized := quantization_of_model(model)) is not None:
        raise ValueError(
            f"Got start={start!r} beside weights in {quantized}; expected a backbone that is not quantized. Load it without "
            "quantize, or leave the start out."
        )
    maps = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names]
    smallest = min(min(module.get_parameter("weight").shape) for module in maps)
    needed = 2 * rank if start == "lora-ga" else rank
    if needed > smallest:
        raise ValueError(
            f"Got rank={rank} for start={start!r}, which takes {needed} directions of each weight; expected at most "
            f"{smallest}, as many as the smallest has. Take a lower rank."
        )
    if start == "lora-ga" and not records and model.device.type != "meta":
        raise ValueError(
            "Got start='lora-ga' without start_records; expected some tokenized training records, of which its gradient is taken. "
            "Give start_records=start_records(train_dataset)."
        )
    return gradients_of_maps(model, names, records) if start == "lora-ga" and records else {}


def _check_dora(model: PreTrainedModel) -> None:
    if model.device.type == "cpu" and quantization_of_model(model) == "int8":
        raise ValueError(
            "Got dora=True beside 8-bit weights on a CPU, where peft's DoRA loses their scales at the first pass; expected a "
            "backbone in float32 or quantize='nf4', or a GPU."
        )


def check_rank(model: PreTrainedModel, target_modules: Sequence[str], rank: int) -> None:
    """Refuse a rank whose adapter does not fit into the memory, and warn of one above the dimensions of a linear map."""
    family = family_of(model.config)
    maps = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and family.is_tuned(name)
        and any(f".{name}".endswith(f".{target}") for target in target_modules)
    ]
    ensure_fits(model, rank=(rank, sum(module.in_features + module.out_features for module in maps)))
    smallest = min(min(module.in_features, module.out_features) for module in maps)
    if rank > smallest:
        logger.warning(
            "The rank %d is above %d, the smaller dimension of a linear map that it changes. %d reaches every change of that map.",
            rank,
            smallest,
            smallest,
        )


def check_targets(model: PreTrainedModel, target_modules: Sequence[str]) -> None:
    """Raise ValueError unless each of ``target_modules`` names linear maps that an adapter can change by itself."""
    if (
        isinstance(target_modules, str)
        or not isinstance(target_modules, Collection)
        or not target_modules
        or not all(isinstance(target, str) for target in target_modules)
    ):
        raise ValueError(f"Got target_modules={target_modules!r}; expected a list of names, or 'all-linear'.")
    family = family_of(model.config)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and family.is_tuned(name)]
    missing = [target for target in target_modules if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if missing:
        raise ValueError(
            f"Got the targets {missing}, which match no linear map of this model; expected names among "
            f"{list(linear_maps(model))}, or 'all-linear'."
        )
    # The weights say it; the config does not, as transformers marks every T5 config as tied.
    head = family.head
    if any(f".{head}".endswith(f".{target}") for target in target_modules) and not has_untied_head(model):
        raise ValueError(
            f"Got target_modules={list(target_modules)} for a model whose output head is its table of embeddings; expected targets "
            f"without {head}, as an adapter on it would change the embeddings as well when merged."
        )


def set_lora_plus(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Train B of every LoRA layer of ``model`` at ``ratio`` times the learning rate of its group, in place (LoRA+).

    ``create_loraplus_optimizer`` of peft makes an optimizer of its own for this, without the weight decay that was asked for.

    Args:
        optimizer: The optimizer of ``model``; B moves to groups of its own.
        model: A model with LoRA.
        ratio: The factor; the paper recommends about 16.

    Raises:
        ValueError: For a ratio that is not positive, or a model without LoRA.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not (_is_number(ratio) and ratio > 0) or not layers:
        raise ValueError(
            f"Got lora_plus_ratio={ratio!r} for a model with {len(layers)} LoRA layers; expected a positive ratio, and a model "
            "that lora_wrap or qlora_wrap made."
        )
    raised = {id(parameter) for layer in layers for parameter in layer.lora_B.parameters()}
    for group in list(optimizer.param_groups):
        parameters = group["params"]
        chosen = [parameter for parameter in parameters if id(parameter) in raised]
        if chosen:
            group["params"] = [parameter for parameter in parameters if id(parameter) not in raised]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
