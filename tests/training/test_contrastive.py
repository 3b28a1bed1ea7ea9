"""Embeddings are trained on pairs: each step has one loss and gradient, however it is cut, resumed or accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference_encoders
import torch
from cases import stir
from laws import in_double
from narrow import array, as_dataset, t5_config
from stacks import relative_difference
from tiny import fill_unevenly, tiny_config, tiny_records, tiny_tokenizer
from trainers import losses_and_gradients, trainer_of

from t5peft import T5PeftTrainer, adalora_wrap, load_adapter, lora_wrap, prompt_wrap, save_adapter
from t5peft.evaluation import embed
from t5peft.models.encoders import T5EncoderForEmbedding
from t5peft.training import contrastive
from t5peft.training.contrastive import contrastive_loss
from t5peft.training.contrastive_step import contrastive_step

PAIRS = tiny_records(12)
PAIRS[5]["labels"] = PAIRS[2]["labels"]  # the same target twice, which is a negative of neither
TEMPERATURE = 0.2


def embedder(dropout: float = 0.0) -> Any:
    config = tiny_config(embedding_size=12, dropout_rate=dropout)
    return fill_unevenly(T5EncoderForEmbedding(config)).double().eval()


def trainer(folder: Path, model: Any = None, pairs: Any = PAIRS, **given: Any) -> T5PeftTrainer:
    given = {"contrastive_temperature": TEMPERATURE, "per_device_train_batch_size": 12} | given
    return trainer_of(T5PeftTrainer, lora_wrap(embedder(), rank=2) if model is None else model, folder, pairs, **given)


def by_hand(model: Any, pairs: Any = PAIRS, temperature: float = TEMPERATURE) -> torch.Tensor:
    """The mean loss of all pairs at once, of float64 weights without an adapter."""
    state = {name.removeprefix("transformer."): p for name, p in model.named_parameters()}

    def embedding(ids: list[int]) -> torch.Tensor:
        text = torch.tensor([ids])
        means = reference_encoders.mean_states(in_double(state), t5_config(model), text, torch.ones_like(text))
        return reference_encoders.unit(means @ state["embedding_projection.weight"].T)[0]

    sources, targets = (torch.stack([embedding(pair[name]) for pair in pairs]) for name in ("input_ids", "labels"))
    return reference_encoders.contrastive(sources, targets, [pair["labels"] for pair in pairs], temperature) / len(
        pairs
    )


def test_the_loss_is_that_of_the_formula_and_equal_targets_are_no_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sources, targets = (reference_encoders.unit(torch.randn(5, 4).double()).requires_grad_() for _ in "st")
    keys = [[1], [2], [1], [3], [4]]
    expected = reference_encoders.contrastive(sources, targets, keys, 0.1)
    wanted = torch.autograd.grad(expected, (sources, targets))
    for rows in (1024, 2):
        monkeypatch.setattr(contrastive, "ROWS", rows)
        loss = contrastive_loss(sources, targets, [tuple(key) for key in keys], 0.1)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        for got, right in zip(torch.autograd.grad(loss, (sources, targets)), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)
    assert expected < contrastive_loss(sources, targets, range(5), 0.1)


CUTS: list[dict[str, Any]] = [
    {},
    {"tokens_per_micro_batch": 30},
    {"bucket_by_length": False},
    {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "tokens_per_micro_batch": 40},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    {"fast_kernels": False, "tokens_per_micro_batch": 30},
    {"gradient_checkpointing": True, "tokens_per_micro_batch": 30},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_step_has_the_loss_and_gradient_of_one_batch_by_hand(cut: dict[str, Any], tmp_path: Path) -> None:
    model = embedder()
    expected = by_hand(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    expected = expected.detach()
    losses, steps = losses_and_gradients(trainer(tmp_path, embedder(), max_steps=1, **cut))
    assert losses[0] == pytest.approx(float(expected), rel=1e-6)
    right = {name: gradient for name, gradient in zip(names, wanted, strict=True) if gradient is not None}
    assert relative_difference({name: steps[0][name] for name in right}, right) < 1e-7


@pytest.mark.parametrize("cut", CUTS[:3], ids=str)
def test_what_a_tuner_adds_to_the_loss_counts_once_a_step(cut: dict[str, Any], tmp_path: Path) -> None:
    """AdaLoRA's loss of orthogonality, however the step is cut."""

    def step(orthogonality: float) -> tuple[float, Any, Any]:
        torch.manual_seed(0)
        model = stir(adalora_wrap(embedder(), rank=2, orthogonality=orthogonality))
        made = trainer(tmp_path, model, max_steps=1, learning_rate=0.0, **cut)
        (loss,), (gradient,) = losses_and_gradients(made)
        return loss, gradient, model

    plain, without, model = step(0.0)
    loss, gradient, _ = step(3.0)
    model.peft_config["default"].orth_reg_weight = 3.0
    penalty = model.base_model.orthogonality()
    assert float(penalty.detach()) > 1
    assert loss == pytest.approx(plain + float(penalty.detach()), rel=1e-6)
    names = [name for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    added = torch.autograd.grad(penalty, [model.get_parameter(name) for name in names])
    right = {name: without[name] + more for name, more in zip(names, added, strict=True)}
    assert relative_difference({name: gradient[name] for name in names}, right) < 1e-6


def test_the_second_pass_drops_what_the_first_one_dropped(tmp_path: Path) -> None:
    cut = trainer(tmp_path, embedder(0.3), tokens_per_micro_batch=40)
    seen: list[torch.Tensor] = []
    cut.t5.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.pooler_output.detach()))
    torch.manual_seed(3)
    contrastive_step(cut, cut.t5.train(), PAIRS, 40, cut.throughput, torch.clone)
    half = len(seen) // 2
    assert half > 2
    for first, second in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], cut.t5(input_ids=torch.tensor([PAIRS[-1]["labels"]])).pooler_output[:1])


def test_an_evaluation_has_each_source_against_all_targets_whatever_the_batch(tmp_path: Path) -> None:
    expected = float(by_hand(embedder()).detach())
    for size in (1, 5, 12):
        found = trainer(tmp_path, embedder(), per_device_eval_batch_size=size).predict(as_dataset(PAIRS))
        assert found.metrics is not None
        assert found.metrics["test_loss"] == pytest.approx(expected, rel=1e-6)
        sources, targets = (array(part) for part in found.predictions)
        assert sources.shape == targets.shape == (12, 12)
    alone = embed(embedder().float(), tiny_tokenizer(), [pair["input_ids"] for pair in PAIRS])
    torch.testing.assert_close(torch.tensor(sources).float(), alone, rtol=0, atol=1e-5)
    unlabeled = trainer(tmp_path, embedder()).predict(as_dataset([{"input_ids": pair["input_ids"]} for pair in PAIRS]))
    assert array(unlabeled.predictions).shape == (12, 12)
    assert unlabeled.metrics is not None
    assert "test_loss" not in unlabeled.metrics


def test_a_run_that_is_resumed_is_the_run_that_was_never_interrupted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "tokens_per_micro_batch": 30, "optim": "adamw_torch", "learning_rate": 1e-2,
    }  # fmt: skip

    def run(folder: str, checkpoint: str | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        made = trainer(tmp_path / folder, lora_wrap(embedder(0.1), rank=2), **settings)
        made.train(resume_from_checkpoint=checkpoint)
        losses = [line["loss"] for line in made.state.log_history if "loss" in line]
        return losses, {name: p.detach() for name, p in made.t5.named_parameters() if p.requires_grad}

    losses, weights = run("whole")
    again, resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert len(losses) == 4
    assert again == losses
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_training_brings_pairs_together_and_the_adapter_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prompt_wrap(embedder().float(), length=3)
    made = trainer(tmp_path / "run", model, max_steps=30, learning_rate=0.5, contrastive_temperature=0.05)
    before = made.evaluate(as_dataset(PAIRS))["eval_loss"]
    made.train()
    assert made.evaluate(as_dataset(PAIRS))["eval_loss"] < 0.8 * before
    save_adapter(model, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter", model=embedder().float())
    texts = ["one", "a longer text"]
    assert torch.equal(embed(loaded, tiny_tokenizer(), texts), embed(model, tiny_tokenizer(), texts))
    lengths = embed(model, tiny_tokenizer(), texts).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2))


def test_a_pair_without_a_target_counts_nothing(tmp_path: Path) -> None:
    """As of a process that has no pair left in the last step of an epoch."""
    made, head = trainer(tmp_path, embedder()), trainer(tmp_path, embedder()).head
    batch = head.without_labels(head.collate(PAIRS[:2]))
    loss, items = head.loss(made.t5, batch)
    assert (float(loss.detach()), items) == (0, 0)
    assert float(contrastive_step(made, made.t5, head.split(batch), None, made.throughput, torch.clone)) == 0
    assert not any(p.grad.any() for p in made.t5.parameters() if p.grad is not None)
    both = contrastive_step(made, made.t5, [*PAIRS[:3], *head.split(batch)], None, made.throughput, torch.clone)
    assert float(both) == pytest.approx(float(by_hand(made.t5, PAIRS[:3]).detach()), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor for numbers, spans or pairs"),
        ({"per_device_train_batch_size": 1}, "steps of one pair, which has no negatives"),
        ({"contrastive_temperature": 0.0}, r"contrastive_temperature=0.0; expected a finite number above 0"),
        ({"contrastive_temperature": float("nan")}, "contrastive_temperature=nan"),
        ({"z_loss": 1e-4}, "z_loss for a classification head"),
    ],
)
def test_settings_that_embeddings_have_no_use_for_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, embedder(), **settings)


def test_weights_of_a_stirred_adapter_reach_the_embeddings() -> None:
    plain = embed(embedder().float(), tiny_tokenizer(), ["one"])
    assert (embed(stir(lora_wrap(embedder().float())), tiny_tokenizer(), ["one"]) - plain).abs().max() > 1e-4
