"""Token budgets, micro-batches, and a step that runs out of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import PADS, features, tiny
from torch import Tensor, nn

from t5peft.data.collate import collate
from t5peft.nn.fast import fast_kernels, t5peft_attention
from t5peft.nn.loss import target_loss
from t5peft.training.micro_batches import (
    TokenBudget,
    layout_of,
    micro_batches,
    ran_out_of_memory,
)

# --- budgets ------------------------------------------------------------------------------------------------------------


def test_a_budget_is_halved_by_an_out_of_memory_alone_and_not_below_its_floor() -> None:
    budget = TokenBudget(tiny(), 200)
    assert not budget.halve_after(RuntimeError("shapes do not match"))
    assert budget.tokens == 200
    assert budget.halve_after(torch.OutOfMemoryError("CUDA out of memory"))
    assert budget.halve_after(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert budget.tokens == 50
    assert not budget.halve_after(MemoryError())


def test_torch_says_out_of_memory_in_the_words_we_look_for() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(error.value)


def kept_bytes_per_token(model: nn.Module) -> float:
    """Bytes that the backward pass of a step reads, without weights, per token of the step."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate(features(40), **PADS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = target_loss(model, batch)
    assert loss.requires_grad
    return sum(kept.values()) / (batch["input_ids"].numel() + batch["labels"].numel())


def test_a_budget_of_its_own_fits_into_half_of_the_memory_and_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(dropout_rate=0.1)
    tokens = {}
    for megabytes in (0, 4, 8, 10**6):
        free = megabytes * 10**6
        monkeypatch.setattr("t5peft.training.micro_batches.available_bytes", lambda device, free=free: free)
        tokens[megabytes] = TokenBudget(model).tokens
    assert tokens[8] == pytest.approx(2 * tokens[4], abs=1)
    assert (tokens[0], tokens[10**6]) == (64, 2048)
    needed = tokens[8] * kept_bytes_per_token(model)
    assert 8e6 / 8 < needed <= 8e6 / 2


@pytest.mark.parametrize("layout", ["padded", "padding_free", "packed"])
def test_micro_batches_hold_every_target_token_once(layout: Any) -> None:
    examples = features(30)
    batches = micro_batches(examples, 60, layout=layout, **PADS)
    assert sorted(index for chosen, _ in batches for index in chosen) == list(range(30))
    targets = [token for _, batch in batches for token in batch["labels"].flatten().tolist() if token != -100]
    assert sorted(targets) == sorted(token for example in examples for token in example["labels"])


def test_layouts_follow_the_device_the_method_and_the_wish() -> None:
    model = tiny()
    assert [layout_of(model, pack) for pack in (None, True)] == ["padded", "padded"]
    with t5peft_attention(model):
        assert [layout_of(model, pack) for pack in (None, True)] == ["padded", "packed"]
    with fast_kernels(model):
        assert [layout_of(model, pack) for pack in (None, True, False)] == ["padding_free", "padding_free", "padded"]


def test_a_step_that_runs_out_of_memory_starts_again_with_half_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t5peft import T5PeftTrainer, T5PeftTrainingArguments

    def train(fails_at: int | None) -> tuple[list[Tensor], int]:
        model = tiny()
        arguments = T5PeftTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=12,
            tokens_per_micro_batch=100,
            learning_rate=1e-2,
            optim="sgd",  # Adam would divide rounding by the size of a gradient that is all but zero
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = T5PeftTrainer(model=model, args=arguments, train_dataset=features())
        losses = trainer.summed_loss
        calls = 0

        def summed_loss(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses(*args, **kwargs)

        monkeypatch.setattr(trainer, "summed_loss", summed_loss)
        trainer.train()
        return [parameter.detach() for parameter in model.parameters()], trainer.budget.tokens

    plain, tokens = train(None)
    assert tokens == 100
    after, tokens = train(2)  # the second micro-batch of the first step: its first one has left gradients already
    assert tokens == 50
    for ours, expected in zip(after, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
