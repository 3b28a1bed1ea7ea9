"""AdaLoRA (Zhang et al. 2023, https://openreview.net/forum?id=lq62uWRJjiY) on T5, by peft.

A frozen linear map W gets a trained product ``W x + scale * B (E * (A x))``, where E is a vector of singular values. E starts as
zero, so wrapping changes nothing. All maps start at one rank. In training the entries of E that matter least are set to zero, over
all maps together, until on average ``rank`` of them are left in each. A loss keeps the rows of A and the columns of B orthonormal.

    steps:  | first 10 %: all ranks | the budget falls | last 30 %: the ranks stay |

peft has the layer, the loss and the allocator, but nothing calls the allocator in a Trainer: without it AdaLoRA is LoRA with a
penalty. ``T5PeftTrainer`` calls it after each step, and saves its state in checkpoints. When the training ends, the entries that
are zero are left out of what is saved. The shares of the steps are near those of the paper's runs on GLUE.

Differs from peft: the loss of orthogonality belongs to training and is not in the loss of an evaluation; several adapters may be
trainable; ``adapter_names=``, which the AdaLoRA of peft ignores, is an error; beside quantized weights the output keeps the dtype
of the input.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, cast

import torch
from peft import AdaLoraConfig, AdaLoraModel, LoraModel, PeftModel
from peft.tuners.adalora import AdaLoraLayer, RankAllocator
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft.compat.peft import replace_tuner
from t5peft.methods.base import keep_dtype, no_mixed_batches, raise_if_problems, read_size, wrap
from t5peft.methods.lora import check_rank, check_targets, linear_maps
from t5peft.models.families import family_of, untuned_pattern
from t5peft.models.unwrap import ensure_unwrapped

_UNSET_STEPS = 1_000_000_000  # peft wants the steps of a training when a model is wrapped; the trainer sets them


class AdaLoraTuner(AdaLoraModel):
    """The AdaLoRA of peft with what this module changes."""

    _enable_peft_forward_hooks = staticmethod(no_mixed_batches)

    def __init__(self, model: Any, config: Any, adapter_name: str, **kwargs: Any) -> None:
        # That of peft makes an allocator for the one adapter that it allows; ours belongs to a training.
        LoraModel.__init__(self, model, config, adapter_name, **kwargs)

    @staticmethod
    def _create_new_module(
        lora_config: Any, adapter_name: Any, target: Any, device_map: Any = None, **kwargs: Any
    ) -> nn.Module:
        return keep_dtype(AdaLoraModel._create_new_module(lora_config, adapter_name, target, device_map, **kwargs))

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Make the layers, without the warning of peft that the keys of AdaLoRA's own patterns name no modules."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
            super().inject_adapter(*args, **kwargs)

    def _check_new_adapter_config(self, config: Any) -> None:
        LoraModel._check_new_adapter_config(self, config)

    @property
    def trainable_adapter_name(self) -> str:
        """The adapter whose orthogonality counts."""
        return str(self.active_adapters[0])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, in training with the loss of orthogonality."""
        return super().forward(*args, **kwargs) if self.training else self.model.forward(*args, **kwargs)

    def orthogonality(self) -> Tensor:
        """Return the loss [] that keeps A and B orthonormal, as the forward pass of peft adds it."""
        adapter = self.trainable_adapter_name
        layers = [layer for layer in self.model.modules() if isinstance(layer, AdaLoraLayer)]
        products = [a @ a.T for a in (cast(Tensor, layer.lora_A[adapter]) for layer in layers)]
        products += [b.T @ b for b in (cast(Tensor, layer.lora_B[adapter]) for layer in layers)]
        norms = [torch.linalg.matrix_norm(one - torch.eye(len(one), device=one.device)) for one in products]
        return cast(AdaLoraConfig, self.peft_config[adapter]).orth_reg_weight * torch.stack(norms).mean()

    def resize_modules_by_rank_pattern(self, rank_pattern: Mapping[str, Sequence[bool]], adapter_name: str) -> None:
        """Give each map the rank that it was saved with, where it has another one."""
        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, AdaLoraLayer)}
        own = {
            name: kept
            for name, kept in rank_pattern.items()
            if len(layers[name.partition(".lora_E")[0]].lora_E[adapter_name]) != sum(kept)
        }
        super().resize_modules_by_rank_pattern(own, adapter_name)


class Reallocation:
    """The reallocation of ranks in one training.

    Args:
        model: A model whose active adapter is AdaLoRA.
        steps: Optimizer steps of the training.
    """

    def __init__(self, model: PeftModel, steps: int) -> None:
        self.adapter = str(model.active_adapters[0])
        self.tuner = cast(AdaLoraTuner, model.base_model)
        self.model = self.tuner.model
        self.config = cast(AdaLoraConfig, model.peft_config[self.adapter])
        schedule = copy(self.config)
        if schedule.total_step == _UNSET_STEPS:  # a schedule of the user's own stays
            schedule.total_step, schedule.tinit, schedule.tfinal = steps, steps // 10, 3 * steps // 10
            schedule.deltaT = max(1, steps // 100)
        self.last = cast(int, schedule.total_step) - schedule.tfinal
        self.allocator = RankAllocator(self.model, schedule, self.adapter)
        self.kept: dict[str, list[bool]] | None = None
        # An adapter that was saved has its final ranks.
        self.is_over = self.allocator.init_bgt <= self.allocator.target_bgt
        if not self.is_over:
            self.config.rank_pattern = None

    def step(self, step: int) -> None:
        """Update the importance of each entry, and set the least important ones to zero.

        Args:
            step: The number of the optimizer step just made, from 1. Its gradients must be there.
        """
        if self.is_over:
            return
        if step > self.last:
            if self.kept is not None:
                self.allocator.mask_using_rank_pattern(self.model, self.kept)
            return
        if step == self.last:
            self.allocator.update_ipt(self.model)
        _, self.kept = self.allocator.update_and_allocate(self.model, step, force_mask=step == self.last)

    def state(self) -> dict[str, Any]:
        """Return what a training that resumes must find unchanged."""
        allocator = self.allocator
        return {"importances": (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc), "kept": self.kept}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned.

        Args:
            state: That of the checkpoint.
        """
        allocator = self.allocator
        allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc = state["importances"]
        self.kept = state["kept"]

    def finish(self) -> None:
        """Let what is saved from now on leave out the entries that are zero."""
        if not self.is_over:
            ending = f".lora_E.{self.adapter}"
            self.config.rank_pattern = {
                name.removesuffix(f".{self.adapter}"): (parameter != 0).flatten().tolist()
                for name, parameter in self.model.named_parameters()
                if name.endswith(ending)
            }


def reallocation_of(model: nn.Module, steps: int) -> Reallocation | None:
    """Return the reallocation of a training of ``model``, or None where its active adapter is not AdaLoRA."""
    if not isinstance(model, PeftModel) or not isinstance(model.base_model, AdaLoraTuner):
        return None
    return Reallocation(model, steps)


def ranks(model: PeftModel) -> dict[str, int]:
    """Return how many entries of E are not zero in each map of the active adapter.

    Args:
        model: A model with AdaLoRA.

    Returns:
        The ranks by the names of the maps in the backbone.
    """
    adapter = str(model.active_adapters[0])
    return {
        name: int(torch.count_nonzero(cast(Tensor, layer.lora_E[adapter])))
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, AdaLoraLayer)
    }


def adalora_wrap(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    initial_rank: int | None = None,
    target_modules: Sequence[str] | Literal["all-linear"] = "all-linear",
    orthogonality: float = 0.1,
) -> PeftModel:
    """Wrap ``model`` for AdaLoRA, in place. Train it with ``T5PeftTrainer``, which reallocates the ranks.

    Args:
        model: A T5.
        rank: The average rank per layer at the end of training.
        initial_rank: The rank of each layer at the start; None for 1.5 times ``rank``, as in the paper.
        target_modules: Names of linear layers, or ``"all-linear"`` for every linear layer of attention and feed-forward.
        orthogonality: The weight of the orthogonality loss; 0.1 in most runs of the paper.

    Returns:
        The wrapped model.

    Raises:
        ValueError: The model is already wrapped, an option is out of range, or a target matches nothing.
    """
    ensure_unwrapped(model)
    problems: list[str] = []
    rank = read_size("rank", rank, problems)
    initial_rank = (
        rank + max(1, rank // 2) if initial_rank is None else read_size("initial_rank", initial_rank, problems)
    )
    if not problems and initial_rank <= rank:
        problems.append(f"initial_rank={initial_rank}; expected more than rank, {rank}")
    if isinstance(orthogonality, bool) or not isinstance(orthogonality, int | float) or not orthogonality >= 0:
        problems.append(f"orthogonality={orthogonality!r}; expected a number of at least 0")
    raise_if_problems(problems)
    names = linear_maps(model) if target_modules == "all-linear" else target_modules
    check_targets(model, names)
    check_rank(model, names, initial_rank)
    config = AdaLoraConfig(
        target_r=rank,
        init_r=initial_rank,
        lora_alpha=2 * initial_rank,
        target_modules=list(names),
        exclude_modules=untuned_pattern(family_of(model.config)),
        orth_reg_weight=float(orthogonality),
        total_step=_UNSET_STEPS,
    )
    return wrap(model, config)


replace_tuner("ADALORA", AdaLoraTuner)
