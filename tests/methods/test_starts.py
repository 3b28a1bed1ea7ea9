"""PiSSA, OLoRA and LoRA-GA: the starts of their papers, on a backbone that stays as it is, saved as plain LoRA."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cases import ready_t5, stir, trained
from laws import GREEDY, assert_same, assert_same_gradients, gradients_of, inputs_of, logits_of, precise
from narrow import gradient
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import Linear, LoraLayer
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_records, tiny_t5
from torch import Tensor, nn
from trainers import arguments, seeded
from transformers import T5ForConditionalGeneration, TrainerCallback, TrainerControl, TrainerState

from t5peft import METHODS, T5PeftTrainer, load_adapter, lora_wrap, save_adapter
from t5peft.adapters.fingerprint import fingerprint_of_maps
from t5peft.methods.starts import STARTS, Start, from_gradient, gradients_of_maps
from t5peft.nn.fast import fast_kernels
from t5peft.nn.half_frozen import HalfFrozenLinear
from t5peft.nn.kernels.linear import FastLoraLinear
from t5peft.serving.adapter import read_adapter

RANK = 3


class StopAt(TrainerCallback):
    """Stops a run after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


all_starts = pytest.mark.parametrize("start", STARTS)


@torch.no_grad()
def base_t5() -> T5ForConditionalGeneration:
    """A tiny T5 whose maps have three singular values above the others, so that a quick decomposition finds them."""
    model, generator = ready_t5("wide"), torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if name.endswith((".q.weight", ".wi_0.weight", ".wo.weight")):
            left, right = (torch.randn(size, RANK, generator=generator) for size in weight.shape)
            weight.add_(left @ right.T / weight.shape[1] ** 0.5)
    return model


def started(start: Start, **options: Any) -> PeftModel:
    torch.manual_seed(1)
    given: dict[str, Any] = {"start_records": tiny_records(4)} if start == "lora-ga" else {}
    return lora_wrap(base_t5(), rank=RANK, target_modules=["q", "wi_0", "wo"], start=start, **given, **options).eval()


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def halves(layer: LoraLayer) -> tuple[HalfFrozenLinear, HalfFrozenLinear]:
    return cast(HalfFrozenLinear, layer.lora_A["default"]), cast(HalfFrozenLinear, layer.lora_B["default"])


@all_starts
@pytest.mark.parametrize("options", [{}, {"rank_stabilized": True}, {"dora": True}], ids=str)
def test_a_start_changes_neither_the_outputs_nor_a_bit_of_the_backbone(start: Start, options: dict[str, Any]) -> None:
    base, batch = base_t5(), tiny_batch()
    model = started(start, **options)
    assert_same(logits_of(precise(model), batch), logits_of(precise(base), batch), 1e-5)
    plain = dict(base_t5().named_parameters())
    own = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(own[name].float(), plain[name]) for name in plain)
    assert fingerprint_of_maps(started(start)) == fingerprint_of_maps(base)
    assert len(layers(model)) == (2 + 3 + 3) + 2 * (2 + 3)  # queries, and two maps of each feed-forward
    for layer in layers(model).values():
        a, b = halves(layer)
        assert a.trained.shape[0] == b.trained.shape[1] == RANK
        assert a.trained.norm() > 0 < b.trained.norm()


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_the_start_and_its_first_gradient_are_those_of_peft(start: Any, rank_stabilized: bool) -> None:
    ours = started(start, rank_stabilized=rank_stabilized)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["q", "wi_0", "wo"],
        use_rslora=rank_stabilized,
        init_lora_weights=start,
    )
    theirs = get_peft_model(base_t5(), config).eval()
    for name, layer in layers(theirs).items():
        a, b = halves(layers(ours)[name])
        expected = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert_same(layers(ours)[name].scaling["default"] * b.trained @ a.trained, expected, 1e-4)
    loss = ours(**tiny_batch()).loss
    assert_same(loss, theirs(**tiny_batch()).loss, 1e-4)
    loss.backward()
    theirs(**tiny_batch()).loss.backward()
    for name, layer in layers(theirs).items():
        got = [cast(Tensor, half.trained.grad).norm() for half in halves(layers(ours)[name])]
        expected_norms = [
            gradient(part["default"].get_parameter("weight")).norm() for part in (layer.lora_A, layer.lora_B)
        ]
        torch.testing.assert_close(torch.stack(got), torch.stack(expected_norms), rtol=1e-2, atol=0)


def test_the_gradient_is_that_of_full_fine_tuning_and_leaves_the_model_as_it_was() -> None:
    model, records = tiny_t5("wide").train(), tiny_records(3)
    model.shared.weight.requires_grad_(False)
    got = gradients_of_maps(model, ["q", "wo"], records)
    assert model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"shared.weight"}
    assert all(p.grad is None for p in model.parameters())
    for record in records:
        model(input_ids=torch.tensor([record["input_ids"]]), labels=torch.tensor([record["labels"]])).loss.backward()
    expected = {
        name.removesuffix(".weight"): cast(Tensor, p.grad)
        for name, p in model.named_parameters()
        if name.endswith((".q.weight", ".wo.weight"))
    }
    assert_same_gradients(got, expected, 1e-5)


def test_the_first_step_of_lora_ga_is_as_near_to_full_fine_tuning_as_its_rank_allows() -> None:
    """A from the first right singular vectors and B from the next left ones: the step has the best rank of 2R (theorem 3.1)."""
    torch.manual_seed(0)
    gradient = torch.randn(20, 30) * torch.logspace(0, -2, 30)
    a, b = from_gradient(1e-3 * gradient, RANK)
    assert_same(a @ a.T, torch.eye(RANK) * 20**0.5 / 16, 1e-4)
    assert_same(b.T @ b, torch.eye(RANK) * 20**0.5 / 16, 1e-4)
    step = (
        b @ (b.T @ gradient) + (gradient @ a.T) @ a
    )  # the change of B A by a step of gradient descent, to first order
    left, sizes, right = torch.linalg.svd(gradient)
    sizes[2 * RANK :] = 0
    best = left @ torch.diag(sizes) @ right[:20]
    torch.testing.assert_close(step / step.norm(), best / best.norm(), rtol=0, atol=2e-3)


@all_starts
@pytest.mark.parametrize("dora", [False, True])
def test_what_is_saved_is_plain_lora_on_the_original_backbone(start: Start, dora: bool, tmp_path: Path) -> None:
    model, batch = stir(started(start, dora=dora)), tiny_batch()
    frozen = {name: b.clone() for name, b in model.named_buffers() if name.endswith("frozen")}
    assert frozen
    save_adapter(model, tmp_path / "adapter")
    for loaded in (
        load_adapter(tmp_path / "adapter", model=base_t5())[0].eval(),
        PeftModel.from_pretrained(base_t5(), tmp_path / "adapter").eval(),
    ):
        assert_same(logits_of(loaded, batch), logits_of(model, batch), 1e-6)
        assert all(type(half) is nn.Linear for layer in layers(loaded).values() for half in halves(layer))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {len(t) for name, t in saved.items() if "lora_A" in name} == {2 * RANK}
    assert (
        model.generate(**inputs_of(batch), **GREEDY).tolist() == loaded.generate(**inputs_of(batch), **GREEDY).tolist()
    )
    expected = logits_of(precise(model), batch)
    with model.disable_adapter():
        assert_same(logits_of(model, batch), logits_of(precise(base_t5()), batch), 0.0)
    assert_same(logits_of(model.merge_and_unload(), batch), expected)


@all_starts
def test_only_the_trained_half_moves_and_a_checkpoint_brings_both_halves_back(start: Start) -> None:
    model, batch = started(start).train(), tiny_batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    after = model.state_dict()
    for name, tensor in after.items():
        if "lora_" in name:
            trained_half, frozen = (tensor != before[name]).chunk(2, 0 if "lora_A" in name else 1)
            assert trained_half.all()
            assert not frozen.any()
        else:
            assert torch.equal(tensor, before[name])
    other = started(start)
    stir(other)
    for layer in layers(other).values():  # a start that another machine has computed with other rounding
        for half in halves(layer):
            half.get_buffer("frozen").mul_(1.1)
    assert other.load_state_dict(after, strict=True).missing_keys == []
    assert_same(logits_of(other, batch), logits_of(model.eval(), batch), 0.0)
    with pytest.raises(RuntimeError, match="of shape"):
        other.load_state_dict({name: t[:1] if "lora_A" in name else t for name, t in after.items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: t for name, t in after.items() if "lora_A" not in name})


def test_the_fused_kernel_takes_both_halves() -> None:
    """The kernel takes single precision only, so its error is held against that of torch's own layers."""
    model, batch = stir(started("pissa")), tiny_batch()
    plain, wanted = logits_of(model, batch), gradients_of(model, batch)
    exact = logits_of(precise(deepcopy(model)), batch)
    with fast_kernels(model):
        layer = next(iter(layers(model).values()))
        assert cast(FastLoraLinear, layer)._adapter_to_fuse() == "default"
        fused = logits_of(model, batch)
        assert (fused - exact).abs().max() < 3 * (plain - exact).abs().max() < 1e-3 * exact.abs().max()
        assert_same_gradients(gradients_of(model, batch), wanted, 1e-4)


@all_starts
def test_a_run_that_stops_and_resumes_is_the_whole_run_bit_by_bit(start: Start, tmp_path: Path) -> None:
    """The checkpoint brings the frozen half, too: the second run computes its start of other records."""

    def run(folder: Path, steps: int, records: list[Any], resume: bool = False) -> dict[str, Tensor]:
        given: dict[str, Any] = {"start_records": records} if start == "lora-ga" else {}
        model = lora_wrap(seeded(base_t5), rank=RANK, target_modules=["q", "wo"], start=start, **given)
        args = arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, lora_plus_ratio=4.0)
        stop: list[TrainerCallback] = [StopAt(steps)]
        trainer = T5PeftTrainer(model, args, train_dataset=tiny_records(8), callbacks=stop)
        trainer.train(resume_from_checkpoint=resume)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    whole = run(tmp_path / "whole", 4, tiny_records(4))
    run(tmp_path / "parts", 2, tiny_records(4))
    resumed = run(tmp_path / "parts", 4, tiny_records(4, seed=9), resume=True)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    loaded, _ = load_adapter(tmp_path / "parts" / "checkpoint-4", model=seeded(base_t5))
    assert [name for name, tensor in loaded.state_dict().items() if not torch.equal(whole[name], tensor)] == []


@all_starts
def test_it_shares_a_batch_with_other_adapters(start: Start, tmp_path: Path) -> None:
    model = stir(started(start))
    save_adapter(model, tmp_path / "adapter")
    weights = read_adapter("one", tmp_path / "adapter", base_t5())
    for name, layer in layers(model.get_base_model()).items():
        change = weights.maps[name]
        assert_same(
            cast(Tensor, change.b) @ cast(Tensor, change.a), cast(Linear, layer).get_delta_weight("default"), 1e-5
        )


def test_lora_ga_of_a_task_takes_its_gradient_of_records_from_all_parts_of_the_training_set() -> None:
    records = tiny_records(70)
    model = METHODS["lora"].wrap_for(tiny_t5("wide"), records, {"rank": RANK, "start": "lora-ga"})
    torch.manual_seed(0)
    gradients = gradients_of_maps(tiny_t5("wide"), ["q"], [records[index * 70 // 32] for index in range(32)])
    name, gradient = next(iter(gradients.items()))
    expected, _ = from_gradient(gradient, RANK)
    a, _ = halves(layers(model)[f"base_model.model.{name}"])
    assert_same((a.trained @ expected.T).abs(), torch.eye(RANK) * len(gradient) ** 0.5 / 16, 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "random"}, r"start='random'; expected one of pissa, olora, lora-ga"),
        ({"start": "lora-ga", "rank": 4}, "without start_records"),
        ({"start": "lora-ga", "rank": 16, "start_records": tiny_records(1)}, "takes 32 directions .* at most 24"),
        ({"start": "pissa", "rank": 25}, "takes 25 directions"),
    ],
)
def test_a_start_that_cannot_be_computed_is_told_before_the_model_is_changed(
    options: dict[str, Any], message: str
) -> None:
    model = tiny_t5("wide")
    with pytest.raises(ValueError, match=message):
        lora_wrap(model, **options)
    assert not layers(model)
