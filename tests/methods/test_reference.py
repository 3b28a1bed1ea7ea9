"""The reference by hand agrees with plain transformers, so that the other tests may lean on it."""

from __future__ import annotations

from typing import Literal

import pytest
import reference
import torch
from narrow import generate
from tiny import GEOMETRIES, Geometry, tiny_batch, tiny_classifier, tiny_classifier_batch, tiny_config, tiny_t5
from transformers.models.t5.modeling_t5 import T5Attention

TOLERANCE = 1e-5


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 12), (32, 64)])
def test_buckets_are_those_of_transformers(both_ways: bool, buckets: int, reach: int) -> None:
    distances = range(-300, 301)
    expected = T5Attention._relative_position_bucket(torch.tensor(distances), both_ways, buckets, reach)
    got = [reference.bucket(d, both_ways=both_ways, buckets=buckets, reach=reach) for d in distances]
    assert got == expected.tolist()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_loss_and_encoder_are_those_of_transformers(geometry: Geometry, side: Literal["right", "left"]) -> None:
    model, batch = tiny_t5(geometry), tiny_batch(side=side)
    config, state = model.config, model.state_dict()
    encoded, _ = reference.encoder_states(state, config, batch["input_ids"], batch["attention_mask"])
    scores = reference.logits(
        state, config, batch["input_ids"], batch["attention_mask"], reference.shift_right(batch["labels"], config)
    )
    loss, count = reference.summed_cross_entropy(scores, batch["labels"])
    with torch.no_grad():
        plain = model(**batch)
    counts = batch["attention_mask"].bool()  # the states of padding are nobody's business
    torch.testing.assert_close(encoded[counts], plain.encoder_last_hidden_state[counts], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(scores, plain.logits, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(loss / count, plain.loss, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_those_of_transformers(geometry: Geometry) -> None:
    model, batch = tiny_t5(geometry), tiny_batch()
    state = {name: tensor.clone().requires_grad_() for name, tensor in model.state_dict().items()}
    if model.config.scale_decoder_outputs:  # tied: one leaf, not three copies
        state.pop("lm_head.weight")
    scores = reference.logits(
        state,
        model.config,
        batch["input_ids"],
        batch["attention_mask"],
        reference.shift_right(batch["labels"], model.config),
    )
    loss, count = reference.summed_cross_entropy(scores, batch["labels"])
    (loss / count).backward()
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(state[name].grad, parameter.grad, rtol=1e-4, atol=TOLERANCE, msg=name)


def test_the_untied_head_is_another_tensor_than_the_embeddings_and_the_tied_one_is_the_same() -> None:
    for geometry in ("v1.1", "wide"):
        model = tiny_t5(geometry)
        assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
        assert (model.lm_head.weight - model.shared.weight).abs().mean() > 0.1
    tied = tiny_t5("v1.0")
    assert tied.lm_head.weight is tied.shared.weight


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_position_biases_and_norms_are_not_negligible(geometry: Geometry) -> None:
    model, batch = tiny_t5(geometry), tiny_batch()
    with torch.no_grad():
        before = model(**batch).logits
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.zero_()
        assert (model(**batch).logits - before).abs().max() > 0.1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_classification_logits_are_those_of_transformers(geometry: Geometry) -> None:
    model, batch = tiny_classifier(geometry), tiny_classifier_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    got = reference.class_logits(model.state_dict(), model.config, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_greedy_generation_is_that_of_transformers(geometry: Geometry) -> None:
    model, batch = tiny_t5(geometry), tiny_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # without a cache: with one, transformers raises IndexError where the decoder is deeper than the encoder
    expected = generate(model, **inputs, max_new_tokens=7, do_sample=False, use_cache=False)
    got = reference.generate_greedily(
        model.state_dict(), model.config, batch["input_ids"], batch["attention_mask"], new_tokens=7
    )
    assert got.tolist() == expected.tolist()


def test_label_smoothing_is_that_of_the_trainer() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    model, batch = tiny_t5(), tiny_batch()
    with torch.no_grad():
        outputs = model(**batch)
    expected = LabelSmoother(epsilon=0.1)(outputs, batch["labels"])
    total, count = reference.summed_cross_entropy(outputs.logits, batch["labels"], label_smoothing=0.1)
    torch.testing.assert_close(total / count, expected, rtol=1e-6, atol=0)


def test_adapters_that_do_nothing_change_nothing_and_others_do() -> None:
    model, batch = tiny_t5("wide"), tiny_batch()
    config, state = model.config, model.state_dict()
    inputs = (
        state,
        config,
        batch["input_ids"],
        batch["attention_mask"],
        reference.shift_right(batch["labels"], config),
    )
    plain = reference.logits(*inputs)
    query = "decoder.block.2.layer.1.EncDecAttention.q"
    attention = query.removesuffix(".q")
    out_size = config.num_heads * config.d_kv
    down, up = torch.randn(2, config.d_model), torch.randn(out_size, 2)
    no_effect = reference.Adapters(
        lora={query: reference.LowRank(down, torch.zeros_like(up), 2.0)},
        output_scales={query: torch.ones(out_size)},
        input_scales={"encoder.block.0.layer.1.DenseReluDense.wo": torch.ones(config.d_ff)},
        # keys that no query likes: minus infinity is what is left of a prefix when it gets no softmax mass
        prefixes={attention: reference.KeysValues(torch.zeros(3, 0, 10), torch.zeros(3, 0, 10))},
        prompt=torch.zeros(0, config.d_model),
    )
    torch.testing.assert_close(reference.logits(*inputs, no_effect), plain, rtol=0, atol=TOLERANCE)
    effects = [
        reference.Adapters(lora={query: reference.LowRank(down, up, 2.0)}),
        reference.Adapters(output_scales={query: torch.full((out_size,), 1.5)}),
        reference.Adapters(input_scales={"encoder.block.0.layer.1.DenseReluDense.wo": torch.full((config.d_ff,), 2.0)}),
        # zeros too: they take softmax mass
        reference.Adapters(prefixes={attention: reference.KeysValues(torch.zeros(3, 4, 10), torch.zeros(3, 4, 10))}),
        reference.Adapters(prompt=torch.zeros(4, config.d_model)),
    ]
    for adapters in effects:
        assert (reference.logits(*inputs, adapters) - plain).abs().max() > 1e-3


def test_a_prompt_of_embeddings_of_words_is_the_same_as_those_words_in_the_source() -> None:
    model, batch = tiny_t5("v1.1"), tiny_batch()
    config, state = model.config, model.state_dict()
    words = torch.tensor([11, 12, 13])
    targets = reference.shift_right(batch["labels"], config)
    adapters = reference.Adapters(prompt=state["shared.weight"][words])
    got = reference.logits(state, config, batch["input_ids"], batch["attention_mask"], targets, adapters)
    lengthened = torch.cat([words.expand(len(targets), -1), batch["input_ids"]], dim=1)
    mask = torch.cat([torch.ones(len(targets), 3, dtype=torch.long), batch["attention_mask"]], dim=1)
    with torch.no_grad():
        expected = model(input_ids=lengthened, attention_mask=mask, decoder_input_ids=targets).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_a_prompt_gives_the_same_with_padding_on_either_side() -> None:
    model = tiny_t5("v1.1")
    right, left = tiny_batch(extra_pads=3), tiny_batch(side="left", extra_pads=3)
    adapters = reference.Adapters(prompt=torch.randn(5, model.config.d_model))
    targets = reference.shift_right(right["labels"], model.config)
    one, other = (
        reference.logits(
            model.state_dict(), model.config, batch["input_ids"], batch["attention_mask"], targets, adapters
        )
        for batch in (right, left)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


def test_a_prefix_of_keys_and_values_of_masked_words_equals_attention_over_them() -> None:
    """Cross-attention has no position bias, so a prefix there is exactly a longer memory."""
    config = tiny_config("wide")
    state = tiny_t5("wide").state_dict()
    name = "decoder.block.1.layer.1.EncDecAttention"
    states, memory, extra = torch.randn(2, 3, 24), torch.randn(2, 4, 24), torch.randn(2, 5, 24)
    allowed = torch.ones(2, 3, 4, dtype=torch.bool)
    allowed[1, :, 3] = False
    heads = (config.num_heads, config.d_kv)
    keys = (extra @ state[f"{name}.k.weight"].T).unflatten(-1, heads).transpose(1, 2)
    values = (extra @ state[f"{name}.v.weight"].T).unflatten(-1, heads).transpose(1, 2)
    prefixed = reference.Adapters(prefixes={name: reference.KeysValues(keys, values)})
    got = reference.attention(state, name, states, memory, allowed, None, prefixed, config)
    longer = torch.cat([extra, memory], dim=1)
    everything = torch.cat([torch.ones(2, 3, 5, dtype=torch.bool), allowed], dim=2)
    expected = reference.attention(state, name, states, longer, everything, None, reference.NO_ADAPTERS, config)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)
