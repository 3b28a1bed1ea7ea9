"""LoRA (Hu et al. 2022, https://openreview.net/forum?id=nZeVKeeFYf9) on T5, by peft.

A frozen linear map W gets a trained product of rank R beside it: ``W x + scale * B (A x)``, with A random and B zero, so that
wrapping changes nothing. ``scale`` is ``alpha / R``, or ``alpha / sqrt(R)`` when rank-stabilised (Kalajdzievski 2023). DoRA
(Liu et al. 2024) trains the norm of each row of W as well. LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354) trains B
at a higher learning rate than A.

peft's LoRA is right on T5 and is used as it is; here targets are checked, and a new head is always trained and saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from t5peft.deprecated import renamed_arguments
from t5peft.methods.wrapping import wrap
from t5peft.models.backbone import has_untied_head, quantization_of_model
from t5peft.models.unwrap import ensure_unwrapped

ATTENTION = ("q", "k", "v", "o")


def linear_maps(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of every linear map of attention and feed-forward of ``model``; never of the embeddings or a head."""
    return (*ATTENTION, *(("wi_0", "wi_1", "wo") if model.config.is_gated_act else ("wi", "wo")))


@renamed_arguments(targets="target_modules", rank_stabilised="rank_stabilized")
def lora_wrap(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | Literal["all-linear"] = ("q", "v"),
    dora: bool = False,
    rank_stabilized: bool = False,
) -> PeftModel:
    """Wrap ``model`` for LoRA, in place.

    Args:
        model: a T5.
        rank: R.
        alpha: numerator of the scale; None: twice the rank.
        dropout: probability that an input of A is dropped in training.
        target_modules: names of linear maps, query and value as in the paper by default; ``"all-linear"``: every linear map of
            attention and feed-forward.
        dora: weight-decomposed LoRA.
        rank_stabilized: scale by ``alpha / sqrt(R)``.

    Raises:
        ValueError: for a wrapped model, a rank below one, an alpha or dropout that leaves nothing to learn, targets that
            match nothing, in whole or in part, or DoRA beside 8-bit weights on a CPU.
    """
    ensure_unwrapped(model)
    if rank < 1:
        raise ValueError(f"Got rank={rank}; expected a whole number of at least 1.")
    if (alpha is not None and alpha <= 0) or not 0 <= dropout < 1:
        raise ValueError(
            f"Got alpha={alpha} and dropout={dropout}, with which nothing is learned; expected an alpha above 0, or None, and a "
            "dropout of at least 0 and less than 1."
        )
    if dora and model.device.type == "cpu" and quantization_of_model(model) == "int8":
        raise ValueError(
            "Got dora=True beside 8-bit weights on a CPU, where peft's DoRA loses their scales at the first pass; expected a "
            "backbone in float32 or quantize='nf4', or a GPU."
        )
    names = linear_maps(model) if target_modules == "all-linear" else target_modules
    check_targets(model, names)
    return wrap(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            lora_dropout=dropout,
            target_modules=list(names),
            use_dora=dora,
            use_rslora=rank_stabilized,
        ),
    )


def check_targets(model: PreTrainedModel, target_modules: Sequence[str]) -> None:
    """Raise ValueError unless each of ``target_modules`` names linear maps of ``model`` that an adapter can change alone."""
    if isinstance(target_modules, str) or not target_modules:
        raise ValueError(f"Got target_modules={target_modules!r}; expected a list of names, or 'all-linear'.")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    missing = [target for target in target_modules if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if missing:
        raise ValueError(
            f"The targets {missing} match no linear map of this model; expected names among {list(linear_maps(model))}, or "
            "'all-linear'."
        )
    # Asked of the weights: transformers marks every T5 config as tied.
    if "lm_head" in target_modules and not has_untied_head(model):
        raise ValueError(
            "The output head of this model is its table of embeddings: an adapter on lm_head would change the embeddings "
            f"as well when merged. Leave it out of the target_modules {list(target_modules)}."
        )


def set_lora_plus(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Train B of every LoRA layer of ``model`` at ``ratio`` times the learning rate of its group, in place (LoRA+).

    peft's ``create_loraplus_optimizer`` makes an optimizer of its own for it, without the weight decay that was asked for.

    Raises:
        ValueError: for a ratio that is not positive, or a model without LoRA.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if ratio <= 0 or not layers:
        raise ValueError(
            f"Got lora_plus_ratio={ratio} for a model with {len(layers)} LoRA layers; expected a positive ratio, and a model "
            "that lora_wrap or qlora_wrap made."
        )
    raised = {id(parameter) for layer in layers for parameter in layer.lora_B.parameters()}
    for group in list(optimizer.param_groups):
        parameters = group["params"]
        chosen = [parameter for parameter in parameters if id(parameter) in raised]
        if chosen:
            group["params"] = [parameter for parameter in parameters if id(parameter) not in raised]
            optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * ratio})
