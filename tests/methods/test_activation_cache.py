"""The activation cache of a frozen backbone: the same gradients as without it, and one computation per example."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ready_t5, stir
from torch import nn

from t5peft import T5PeftTrainer, T5PeftTrainingArguments, ladder_wrap, lora_wrap
from t5peft.data.collate import collate, collate_padding_free, pack
from t5peft.methods.activation_cache import Activations
from t5peft.methods.ladder import LadderStack, cached_activations
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import fast_kernels
from t5peft.nn.loss import target_loss

PLENTY = 10**9
IDS = {"pad_token_id": 0, "decoder_start_token_id": 0}


def examples(count: int = 6) -> list[dict[str, list[int]]]:
    """Sources and targets of several lengths, two of them with the same source."""
    generator = torch.Generator().manual_seed(5)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 30, (length,), generator=generator).tolist()

    made = [{"input_ids": ids(3 + 2 * (index % 4)), "labels": ids(1 + index % 3)} for index in range(count)]
    made[1]["input_ids"] = made[0]["input_ids"]
    return made


def ladder(dropout: float = 0.0) -> Any:
    model = ladder_wrap(ready_t5("wide"), reduction=4)
    stir(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.train()


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _ = target_loss(model, batch)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def batches(lay_out: Any, orders: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    features = examples()
    return [lay_out([features[i] for i in order], **IDS) for order in orders]


def runs_of_the_backbone(model: Any) -> list[str]:
    """A list that grows with each run of one of the backbone's stacks."""
    seen: list[str] = []
    for name in ("encoder", "decoder"):
        stack = getattr(unwrap_t5(model), name).base_layer
        stack.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


@pytest.mark.parametrize("lay_out", [collate, collate_padding_free])
def test_gradients_are_those_of_activations_computed_anew(lay_out: Any) -> None:
    model = ladder()
    # the second epoch has other neighbors, and so other padding
    laid = batches(lay_out, [[0, 1, 2], [3, 4, 5], [5, 0], [2, 4, 3, 1]])
    with fast_kernels(model):
        expected = [gradients(model, batch) for batch in laid]
        seen = runs_of_the_backbone(model)
        with cached_activations(model, PLENTY) as kept:
            found = [gradients(model, batch) for batch in laid]
    assert seen == ["encoder", "decoder"] * 2
    assert kept.bytes > 0
    for ours, plain in zip(found, expected, strict=True):
        assert ours.keys() == plain.keys()
        for name in plain:
            torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-5, msg=name)


def cache_of(model: nn.Module) -> Activations | None:
    encoder = unwrap_t5(model).get_submodule("encoder")
    assert isinstance(encoder, LadderStack)
    return encoder.cache


def test_the_backbone_drops_nothing_and_the_side_does() -> None:
    model = ladder(dropout=0.5)
    (batch,) = batches(collate, [[0, 1, 2, 3]])
    backbone = unwrap_t5(model).get_submodule("decoder.base_layer")
    modes: list[bool] = []
    backbone.register_forward_pre_hook(lambda *_: modes.append(backbone.training))
    with cached_activations(model, PLENTY):
        losses = {target_loss(model, batch)[0].item() for _ in range(3)}
        assert modes == [False]
        assert len(losses) == 3
    assert backbone.training
    target_loss(model, batch)
    assert modes == [False, True]


def test_a_full_store_says_so_once_and_computes_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    model = ladder()
    laid = batches(collate, [[0, 1], [2, 3], [2, 3], [0, 1]])
    expected = [gradients(model, batch) for batch in laid]
    with caplog.at_level(logging.WARNING, "t5peft"), cached_activations(model, 6_000) as kept:
        found = [gradients(model, batch) for batch in laid]
    assert 0 < kept.bytes <= 6_000
    assert [record.message.count("full after") for record in caplog.records] == [1]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_rows_told_apart_by_masks_alone_are_computed_anew() -> None:
    model = ladder()
    features = examples()
    with fast_kernels(model), cached_activations(model, PLENTY) as kept:
        gradients(model, pack(features, **IDS))
    assert kept.bytes == 0


def arguments(folder: Path, **changes: Any) -> T5PeftTrainingArguments:
    settings: dict[str, Any] = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return T5PeftTrainingArguments(str(folder), **(settings | changes))


def test_training_runs_the_backbone_in_the_first_epoch_alone(tmp_path: Path) -> None:
    weights = []
    for keep in (0, PLENTY):
        torch.manual_seed(0)
        model = ladder()
        seen = runs_of_the_backbone(model)
        T5PeftTrainer(model, arguments(tmp_path, activation_cache_bytes=keep), train_dataset=examples(8)).train()
        assert len(seen) == (2 * 2 if keep else 4 * 2 * 2)  # two steps an epoch, encoder and decoder
        assert cache_of(model) is None
        weights.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def test_only_a_ladder_keeps_activations(tmp_path: Path) -> None:
    trainer = T5PeftTrainer(
        lora_wrap(ready_t5("v1.0")), arguments(tmp_path, activation_cache_bytes=5), train_dataset=examples()
    )
    with pytest.raises(ValueError, match=r"activation_cache_bytes=5 for a model without a ladder.*ladder_wrap"):
        trainer.train()


def without_mask(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in batch.items() if name != "attention_mask"}


def with_holes(batch: dict[str, Any]) -> dict[str, Any]:
    mask = batch["attention_mask"].clone()
    mask[:, 1] = 0
    return {**batch, "attention_mask": mask}


@pytest.mark.parametrize("change", [with_holes, without_mask])
def test_what_the_tokens_of_an_example_do_not_tell_is_computed_anew(change: Any) -> None:
    """The same examples with other masks, or with padding of another length that no mask hides."""
    model = ladder()
    laid = batches(collate, [[0, 1], [0, 3], [3, 0]])
    laid = [laid[0], *map(change, laid)]
    expected = [model(**batch).loss.item() for batch in laid]
    with cached_activations(model, PLENTY):
        assert [model(**batch).loss.item() for batch in laid] == pytest.approx(expected, rel=1e-5)


def test_targets_are_not_taken_for_those_of_a_source_that_was_encoded_before() -> None:
    model = ladder()
    first, second = batches(collate, [[0, 1], [2, 3]])
    states = model.get_encoder()(second["input_ids"], attention_mask=second["attention_mask"])
    targets = {name: tensor for name, tensor in second.items() if name not in ("input_ids", "attention_mask")}
    given = {"encoder_outputs": states, "attention_mask": second["attention_mask"], **targets}
    crossed = {"input_ids": first["input_ids"], "attention_mask": first["attention_mask"], **targets}
    expected = [model(**batch).loss.item() for batch in (given, crossed)]
    with cached_activations(model, PLENTY):
        model(**first)
        assert [model(**batch).loss.item() for batch in (given, crossed)] == pytest.approx(expected, rel=1e-5)


HOLES = [
    [20, -100, 1],
    [20, 0, 1],
    [-100, 20, 1],
    [20, 0, 0, 21, 1, -100],
    [20, 1, -100, -100, 22],
    [20, 21, 22, 23, 24, 1],
]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("labels", HOLES, ids=str)
def test_a_target_with_uncounted_or_padding_tokens_has_the_same_loss_in_every_epoch(
    labels: list[int], fast: bool, tmp_path: Path
) -> None:
    """Its length is not that of its tokens without padding: a token behind the padding counts."""
    torch.manual_seed(0)
    records = [{"input_ids": [7, 8, 9, 1], "labels": labels}, {"input_ids": [7, 8, 1], "labels": [5, 6, 6, 1]}]
    args = arguments(
        tmp_path, optim="sgd", lr_scheduler_type="constant", max_grad_norm=1e-12, pack=False, fast_kernels=fast,
        activation_cache_bytes=PLENTY, logging_steps=1,
    )  # fmt: skip
    model = ladder()
    seen = runs_of_the_backbone(model)
    trainer = T5PeftTrainer(model, args, train_dataset=records)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 4
    assert seen == ["encoder", "decoder"]


def test_an_example_is_cached_once_beside_longer_and_shorter_neighbors() -> None:
    model = ladder()
    orders = [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5], [2, 5], [1, 4]]
    laid = batches(collate, orders)
    expected = [gradients(model, batch) for batch in laid]
    seen = runs_of_the_backbone(model)
    with cached_activations(model, PLENTY) as cache:
        found = [gradients(model, batch) for batch in laid]
    assert seen == ["encoder", "decoder"] * 5
    targets = sum(len(one["labels"]) for one in examples())
    sources = {tuple(one["input_ids"]) for one in examples()}
    states = (2 + 1) * sum(map(len, sources)) + (3 + 1) * targets  # two layers in the encoder, three in the decoder
    assert cache.bytes == states * 24 * 4
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["rows", "pairs"])
def test_a_mask_of_the_targets_is_taken_into_account(shape: str) -> None:
    """A masked token may still have a label that counts."""
    model = ladder()
    (batch,) = batches(collate, [[2, 5]])
    mask = torch.ones_like(batch["decoder_input_ids"])
    mask[0, -1] = 0
    batch["decoder_attention_mask"] = mask if shape == "rows" else mask[:, None, None, :].bool()
    expected = model(**batch).loss.item()
    with cached_activations(model, PLENTY):
        assert [model(**batch).loss.item() for _ in range(3)] == pytest.approx([expected] * 3, rel=1e-5)


def test_a_source_of_padding_that_no_mask_hides_is_read() -> None:
    model = ladder()
    batch = {"input_ids": torch.tensor([[0] * 4, [7, 8, 9, 1]]), "labels": torch.tensor([[5, 6, 1]] * 2)}
    expected = target_loss(model, batch)[0].item()
    with cached_activations(model, PLENTY):
        assert [target_loss(model, batch)[0].item() for _ in range(3)] == pytest.approx([expected] * 3, rel=1e-5)


def test_a_copy_or_a_pickle_goes_without_what_is_cached() -> None:
    model = ladder()
    (batch,) = batches(collate, [[0, 1, 2]])
    with cached_activations(model, PLENTY) as cache:
        expected = gradients(model, batch)
        assert cache.bytes > 0
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert cache_of(model) is cache
    for one in copies:
        assert cache_of(one) is None
        torch.testing.assert_close(gradients(one, batch), expected)


def test_only_flags_of_training_that_were_set_are_set_again() -> None:
    model = ladder(dropout=0.5)
    dropouts = [
        module
        for module in unwrap_t5(model).get_submodule("decoder.base_layer").modules()
        if isinstance(module, nn.Dropout)
    ]
    dropouts[0].eval()
    (batch,) = batches(collate, [[0, 1]])
    with cached_activations(model, PLENTY):
        gradients(model, batch)
    assert [module.training for module in dropouts] == [False] + [True] * (len(dropouts) - 1)


def test_padding_that_counts_behind_a_targets_end_has_the_same_loss_in_every_epoch(tmp_path: Path) -> None:
    """A tokenizer's padding of labels, without -100."""
    model = ladder()
    end = unwrap_t5(model).config.eos_token_id
    records = [{**one, "labels": [*one["labels"], end, *[0] * (6 - len(one["labels"]))]} for one in examples()]
    args = arguments(
        tmp_path, optim="sgd", lr_scheduler_type="constant", max_grad_norm=1e-12, gradient_accumulation_steps=2,
        fast_kernels=False, activation_cache_bytes=PLENTY, logging_steps=1,
    )  # fmt: skip
    trainer = T5PeftTrainer(model, args, train_dataset=records)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 4  # an epoch is a step


@pytest.mark.parametrize(
    "changes",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"pack": False})), {"activation_cache_bytes": 6_000}],
    ids=str,
)
def test_a_run_that_is_resumed_reads_the_activations_of_the_whole_run(changes: dict[str, Any], tmp_path: Path) -> None:
    """Computed in batches of other shapes, as those of a later epoch are, they would differ by rounding."""
    weights = []
    for checkpoint in (None, *(tmp_path / f"checkpoint-{step}" for step in (2, 3, 5))):
        torch.manual_seed(0)
        model = ladder(dropout=0.1)
        saving = {"save_strategy": "no"} if checkpoint else {"save_strategy": "steps", "save_steps": 1}
        args = arguments(
            tmp_path, per_device_train_batch_size=3, **saving, **({"activation_cache_bytes": PLENTY} | changes)
        )
        trainer = T5PeftTrainer(model, args, train_dataset=examples(9))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        weights.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
    for resumed in weights[1:]:
        assert all(torch.equal(resumed[name], weights[0][name]) for name in weights[0])
