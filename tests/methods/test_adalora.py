"""AdaLoRA beside the laws: its loss, the reallocation of ranks in a training, and what is saved of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from laws import assert_same, logits_of
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import RankAllocator
from safetensors.torch import load_file
from test_starts import StopAt
from tiny import tiny_batch, tiny_records, tiny_t5
from torch import Tensor
from trainers import arguments, seeded
from transformers import TrainerState

from t5peft import T5PeftTrainer, adalora_wrap, load_adapter, save_adapter
from t5peft.methods.adalora import AdaLoraTuner, Reallocation, ranks
from t5peft.serving.adapter import read_adapter
from t5peft.training.callbacks import DuringTraining
from t5peft.training.checkpoints import ALLOCATOR_STATE

MAPS = 10  # queries and output maps of the feed-forward of two and two layers
STEPS = 10


def make() -> PeftModel:
    return adalora_wrap(seeded(tiny_t5), rank=2, initial_rank=4, target_modules=["q", "wo"])


def run(folder: Path, *, stop: int = STEPS, resume: bool = False, **changes: Any) -> T5PeftTrainer:
    args = arguments(folder, max_steps=STEPS, save_strategy="steps", save_steps=1, **changes)
    model = seeded(make)
    trainer = T5PeftTrainer(model, args, train_dataset=tiny_records(8), callbacks=[StopAt(stop)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[T5PeftTrainer, Path]:
    folder = tmp_path_factory.mktemp("adalora")
    return run(folder), folder


def model_of(trainer: T5PeftTrainer) -> PeftModel:
    return cast(PeftModel, trainer.wrapped_model)


def test_the_budget_falls_to_the_rank_and_maps_end_with_ranks_of_their_own(
    trained_once: tuple[T5PeftTrainer, Path],
) -> None:
    found = ranks(model_of(trained_once[0]))
    assert len(found) == MAPS
    assert sum(found.values()) == 2 * MAPS
    assert len(set(found.values())) > 1
    totals = []
    for step in range(1, STEPS + 1):
        saved = load_file(trained_once[1] / f"checkpoint-{step}" / "adapter_model.safetensors")
        totals.append(sum(int(torch.count_nonzero(t)) for name, t in saved.items() if "lora_E" in name))
    # cubic from step 1 to step 7: 20 + 20 * (1 - (step - 1) / 6) ** 3
    assert totals == [40, 31, 25, 22, 20, 20, 20, 20, 20, 20]


def test_the_allocation_is_that_of_peft_called_by_hand(trained_once: tuple[T5PeftTrainer, Path]) -> None:
    model = seeded(make)
    config = cast(AdaLoraConfig, model.peft_config["default"])
    config.total_step, config.tinit, config.tfinal, config.deltaT = STEPS, 1, 3, 1
    t5 = model.get_base_model()
    allocator = RankAllocator(t5, config, "default")
    reallocation = Reallocation(other := seeded(make), STEPS)
    for step in range(1, 7):
        for one in (model, other):
            one.train()(**tiny_batch(seed=step)).loss.backward()
            with torch.no_grad():
                for parameter in one.parameters():
                    if parameter.requires_grad:
                        parameter -= 0.1 * cast(Tensor, parameter.grad)
        allocator.update_and_allocate(t5, step)
        reallocation.step(step)
        model.zero_grad()
        other.zero_grad()
    assert ranks(model) == ranks(other)
    assert sum(ranks(model).values()) < 4 * MAPS
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@torch.no_grad()
def test_orthogonality_counts_in_training_only() -> None:
    model, batch = make(), tiny_batch()
    plain = tiny_t5(seed=0)
    plain.load_state_dict(seeded(tiny_t5).state_dict())
    expected = plain(**batch).loss
    assert_same(model.eval()(**batch).loss, expected)
    parts = [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    norms = [torch.linalg.matrix_norm((p @ p.T if "lora_A" in n else p.T @ p) - torch.eye(4)).item() for n, p in parts]
    assert len(norms) == 2 * MAPS
    assert float(cast(AdaLoraTuner, model.base_model).orthogonality()) == pytest.approx(0.1 * sum(norms) / len(norms))
    assert float(model.train()(**batch).loss) == pytest.approx(
        float(expected) + 0.1 * sum(norms) / len(norms), rel=1e-5
    )


def test_an_evaluation_has_the_loss_of_the_task_only(trained_once: tuple[T5PeftTrainer, Path]) -> None:
    trainer, _ = trained_once
    found = trainer.evaluate(cast(Any, tiny_records(4)))["eval_loss"]
    with torch.no_grad():
        expected = model_of(trainer).eval()(**tiny_batch(4)).loss
    assert found == pytest.approx(float(expected), rel=1e-5)


def pattern_of(model: PeftModel) -> Any:
    return cast(AdaLoraConfig, model.peft_config["default"]).rank_pattern


@pytest.mark.parametrize("stop", [3, 8])
def test_a_resumed_run_is_the_whole_run_bit_by_bit(
    stop: int, trained_once: tuple[T5PeftTrainer, Path], tmp_path: Path
) -> None:
    run(tmp_path, stop=stop)
    resumed = model_of(run(tmp_path, resume=True))
    whole = model_of(trained_once[0])
    assert pattern_of(resumed) == pattern_of(whole)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_is_saved_has_the_final_ranks_and_is_trained_on_and_served(
    trained_once: tuple[T5PeftTrainer, Path], tmp_path: Path
) -> None:
    model, batch = model_of(trained_once[0]), tiny_batch()
    expected = logits_of(model.eval(), batch)
    folder = save_adapter(model, tmp_path / "adapter")
    saved = load_file(folder / "adapter_model.safetensors")
    assert sum(len(t) for name, t in saved.items() if "lora_E" in name) == 2 * MAPS
    loaded, _ = load_adapter(folder, model=seeded(tiny_t5), trainable=True)
    assert_same(logits_of(loaded.eval(), batch), expected, 1e-5)
    again, _ = load_adapter(save_adapter(loaded, tmp_path / "again"), model=seeded(tiny_t5))
    assert_same(logits_of(again.eval(), batch), expected, 1e-5)
    weights = read_adapter("one", folder, seeded(tiny_t5))
    for name, layer in model.get_base_model().named_modules():
        if name in weights.maps:
            change = weights.maps[name]
            delta = cast(Any, layer).get_delta_weight("default")
            assert_same(cast(Tensor, change.b) @ cast(Tensor, change.a), delta, 1e-6)
    before = ranks(loaded)
    args = arguments(tmp_path / "more", max_steps=3, save_strategy="steps", save_steps=1)
    T5PeftTrainer(loaded, args, train_dataset=tiny_records(8)).train()
    assert ranks(loaded) == before
    other, _ = load_adapter(folder, model=seeded(tiny_t5), trainable=True)
    T5PeftTrainer(other, arguments(tmp_path / "more", max_steps=4), train_dataset=tiny_records(8)).train(
        resume_from_checkpoint=True
    )
    assert ranks(other) == before


def test_the_trainer_adds_the_loss_of_the_model_once_a_step(tmp_path: Path) -> None:
    records = tiny_records(8)
    args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=8, tokens_per_micro_batch=40, logging_steps=1)
    trainer = T5PeftTrainer(seeded(make), args, train_dataset=records)
    trainer.train()
    plain = T5PeftTrainer(seeded(tiny_t5), args).evaluate(cast(Any, records))["eval_loss"]
    orthogonality = cast(AdaLoraTuner, seeded(make).base_model).orthogonality().item()
    assert orthogonality > 0.01
    assert trainer.state.log_history[0]["loss"] == pytest.approx(plain + orthogonality, rel=1e-5)


def test_a_schedule_of_the_users_own_stays(tmp_path: Path) -> None:
    model = seeded(make)
    config = cast(AdaLoraConfig, model.peft_config["default"])
    config.total_step, config.tinit, config.tfinal = 6, 4, 1
    T5PeftTrainer(model, arguments(tmp_path, max_steps=4), train_dataset=tiny_records(8)).train()
    assert sum(ranks(model).values()) == 4 * MAPS


def test_options_out_of_range_are_told_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"rank=0; .* and orthogonality=-1; expected a number"):
        adalora_wrap(tiny_t5(), rank=0, orthogonality=-1)
    with pytest.raises(ValueError, match="initial_rank=8; expected more than rank, 8"):
        adalora_wrap(tiny_t5(), rank=8, initial_rank=8)


def test_the_state_is_read_on_a_cpu_with_an_index_as_several_processes_have_it(tmp_path: Path) -> None:
    torch.save({"importances": ({"map": torch.ones(2)}, {}, {}), "kept": None}, tmp_path / ALLOCATOR_STATE)
    trainer: Any = SimpleNamespace(
        wrapped_model=adalora_wrap(tiny_t5(), rank=2), resumed_from=tmp_path, reallocation=None
    )
    trainer.callback_handler, trainer.start_kernels = SimpleNamespace(callbacks=[]), lambda: None
    args, state = SimpleNamespace(device=torch.device("cpu:0")), TrainerState(max_steps=20)
    DuringTraining(trainer).on_train_begin(args, state, None)
    assert trainer.reallocation.allocator.ipt["map"].tolist() == [1.0, 1.0]
