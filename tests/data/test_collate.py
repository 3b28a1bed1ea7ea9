"""Collating, cutting and packing change where examples lie, never what the model computes on them."""

from __future__ import annotations

import random

import pytest
import torch
from narrow import gradient
from transformers import T5Config, T5ForConditionalGeneration

from t5peft.data.collate import bucket_by_length, collate, collate_padding_free, pack
from t5peft.nn.attention import use_attention
from t5peft.nn.loss import target_loss

PADS = {"pad_token_id": 0, "decoder_start_token_id": 0}


def some_features(count: int = 13, longest_source: int = 17, longest_target: int = 9) -> list[dict[str, list[int]]]:
    rng = random.Random(0)

    def tokens(longest: int) -> list[int]:
        return [rng.randrange(2, 97) for _ in range(rng.randint(1, longest))]

    return [{"input_ids": tokens(longest_source), "labels": tokens(longest_target)} for _ in range(count)]


def tiny_t5(feed_forward: str = "relu") -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=97,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    use_attention(model)
    return model.train()


def test_collate_pads_on_the_right_and_shifts_the_labels() -> None:
    features = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [8, 1], "labels": [9, 10, 11, 1]}]
    batch = collate(features, pad_token_id=0, decoder_start_token_id=3)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 1], [8, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[3, 7, 1, 0], [3, 9, 10, 11]],
        "labels": [[7, 1, -100, -100], [9, 10, 11, 1]],
    }


def test_collate_shifts_as_t5_does() -> None:
    batch = collate(some_features(), **PADS)
    assert torch.equal(batch["decoder_input_ids"], tiny_t5()._shift_right(batch["labels"]))


def test_collate_names_empty_examples() -> None:
    with pytest.raises(ValueError, match=r"features \[1, 2\] with an empty source or target"):
        collate(
            [{"input_ids": [1], "labels": [1]}, {"input_ids": [], "labels": [1]}, {"input_ids": [1], "labels": []}],
            **PADS,
        )
    with pytest.raises(ValueError, match="Got no features"):
        collate([], **PADS)


@pytest.mark.parametrize("budget", [1, 30, 60, 200, 10_000])
@pytest.mark.parametrize("overhead_tokens", [0, 24, 1000])
def test_cut_keeps_every_example_once_and_the_budget(budget: int, overhead_tokens: int) -> None:
    features = some_features(40)
    cuts = bucket_by_length(features, budget, overhead_tokens=overhead_tokens)
    assert sorted(index for cut in cuts for index in cut) == list(range(40))
    for cut in cuts:
        tokens = len(cut) * (
            max(len(features[index]["input_ids"]) for index in cut)
            + max(len(features[index]["labels"]) for index in cut)
        )
        assert tokens <= budget or len(cut) == 1


def test_cut_is_the_cheapest_of_all_cuts_in_order_of_length() -> None:
    features, overhead, budget = some_features(9), 7, 60

    def cost(cuts: list[list[int]]) -> float:
        total = 0.0
        for cut in cuts:
            tokens = len(cut) * (
                max(len(features[index]["input_ids"]) for index in cut)
                + max(len(features[index]["labels"]) for index in cut)
            )
            total += overhead + (float("inf") if tokens > budget and len(cut) > 1 else tokens)
        return total

    chosen = bucket_by_length(features, budget, overhead_tokens=overhead)
    order = [index for cut in chosen for index in cut]
    assert [len(features[index]["input_ids"]) for index in order] == sorted(
        (len(feature["input_ids"]) for feature in features), reverse=True
    )
    every = []
    for bits in range(2**8):
        cuts = [[order[0]]]
        for position, index in enumerate(order[1:]):
            if bits >> position & 1:
                cuts.append([index])
            else:
                cuts[-1].append(index)
        every.append(cost(cuts))
    assert cost(chosen) == min(every)


def test_cut_of_nothing_is_nothing_and_a_budget_of_nothing_is_an_error() -> None:
    assert bucket_by_length([], 10) == []
    with pytest.raises(ValueError, match="tokens_per_micro_batch=0"):
        bucket_by_length(some_features(), 0)


def gradients(
    model: T5ForConditionalGeneration, batches: list[dict[str, torch.Tensor]]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = target_loss(model, batch)
        loss.backward()
        total += loss.item()
    return total, {name: gradient(parameter).clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_cut_and_packed_steps_have_the_gradient_of_the_plain_step(feed_forward: str) -> None:
    model, features = tiny_t5(feed_forward), some_features()
    loss, expected = gradients(model, [collate(features, **PADS)])
    ways = {
        "cut": [collate([features[index] for index in cut], **PADS) for cut in bucket_by_length(features, 60)],
        "packed": [pack(features, **PADS)],
        "packed into long rows": [pack(features, max_source_tokens=50, max_target_tokens=31, **PADS)],
    }
    assert len(ways["cut"]) > 2
    assert len(ways["packed into long rows"][0]["input_ids"]) < len(ways["packed"][0]["input_ids"]) < len(features)
    for way, batches in ways.items():
        way_loss, grads = gradients(model, batches)
        assert way_loss == pytest.approx(loss, rel=1e-5), way
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5, msg=f"{way}: {name}")


def test_each_packed_example_has_the_logits_of_its_separate_run() -> None:
    model, features = tiny_t5().eval(), some_features()
    batch = pack(features, max_source_tokens=50, max_target_tokens=31, **PADS)
    labels = batch.pop("labels")
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[labels != -100]
    separate = {}
    for feature in features:
        alone = collate([feature], **PADS)
        alone.pop("labels")
        with torch.no_grad():
            separate[tuple(feature["labels"])] = model(**alone, use_cache=False).logits[0]
    targets = labels[labels != -100].tolist()
    position = 0
    while position < len(targets):
        target = next(target for target in separate if tuple(targets[position : position + len(target)]) == target)
        torch.testing.assert_close(packed[position : position + len(target)], separate[target], rtol=1e-4, atol=2e-5)
        position += len(target)
    assert position == sum(len(feature["labels"]) for feature in features)


def test_packing_leaves_less_padding_than_collating() -> None:
    features = some_features(60)
    packed, plain = pack(features, max_source_tokens=64, max_target_tokens=64, **PADS), collate(features, **PADS)
    assert packed["input_ids"].numel() + packed["labels"].numel() < 0.8 * (
        plain["input_ids"].numel() + plain["labels"].numel()
    )


def test_an_example_longer_than_a_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"features \[0\] that do not fit into a row of 2 source and 5 target tokens"):
        pack([{"input_ids": [4, 5, 1], "labels": [1]}], max_source_tokens=2, max_target_tokens=5, **PADS)


def test_rows_are_filled_to_few_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, filled = set(), set()
    for _ in range(300):
        lengths = torch.randint(1, 40, (16, 2), generator=generator).tolist()
        features = [{"input_ids": [5] * source, "labels": [6] * target} for source, target in lengths]
        row = collate_padding_free(features, **PADS)
        for name, token, sides in (("input_ids", 5, "source_lengths"), ("labels", 6, "target_lengths")):
            tokens, real = row[name].shape[1], sum(len(feature[name]) for feature in features)
            assert int((row[name] == token).sum()) == real
            assert sum(getattr(row["layout"], sides)) == tokens
            assert real <= tokens <= real + 32
            plain.add(real)
            filled.add(tokens)
    assert len(plain) > 150
    assert len(filled) < 20


@pytest.mark.parametrize("tokens", [1, 7, 15, 40, 64])
def test_short_rows_are_filled_little(tokens: int) -> None:
    row = collate_padding_free([{"input_ids": [5] * tokens, "labels": [6]}], **PADS)
    assert row["input_ids"].shape[1] <= 1.125 * tokens + 1
    assert row["labels"].shape[1] <= 2


def test_a_row_of_a_round_length_is_not_filled() -> None:
    row = collate_padding_free([{"input_ids": [5] * 64, "labels": [6] * 64}], **PADS)
    assert row["input_ids"].shape == row["labels"].shape == (1, 64)
    assert row["layout"].source_lengths == (64,)


@pytest.mark.parametrize("target", [[7, -100, 1], [-100, 7, 1], [7, 8, -100, -100, 9, 1]])
def test_ignored_labels_within_a_target_are_padding_to_the_decoder_in_every_layout(target: list[int]) -> None:
    model = tiny_t5()
    features = [{"input_ids": [5, 6, 1], "labels": target}, {"input_ids": [8, 1], "labels": [9, 10, 1]}]
    loss, expected = gradients(model, [collate(features, **PADS)])
    for way in (pack(features, **PADS), pack(features, max_source_tokens=9, max_target_tokens=9, **PADS)):
        assert int(way["decoder_input_ids"].min()) >= 0
        got, found = gradients(model, [way])
        assert got == pytest.approx(loss, rel=1e-6)
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
