"""The laws that every tuning method obeys, on T5s of three geometries, with padding in every batch.

A method that is added to the table is tested without being named here. Where a law depends on what a method promises, its row
says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import reference
import torch
from cases import (
    ADAPTERS,
    ATTENDS_ITSELF,
    BY_HAND,
    CASES,
    FORMS,
    Case,
    by_hand,
    ready_t5,
    state_of,
    stir,
    trained,
    wrap,
)
from grids import sampled
from laws import (
    BEAMS,
    GREEDY,
    TOLERANCE,
    MakeBase,
    adapters_of_each_form,
    all_cases,
    all_geometries,
    assert_same,
    assert_same_gradients,
    cases_of_each_form,
    gradients_of,
    in_double,
    inputs_of,
    logits_of,
    precise,
    tensors_of,
    two_geometries,
)
from narrow import as_peft, generate, t5_config
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file
from tiny import (
    GEOMETRIES,
    Geometry,
    tiny_batch,
    tiny_t5,
)
from torch import Tensor
from transformers import T5ForConditionalGeneration

from t5peft import METHODS, load_backbone
from t5peft.methods.prefix import collapse
from t5peft.models.unwrap import unwrap_t5

MERGED = [case for case in ADAPTERS if METHODS[case.method].merges and METHODS[case.method].quantize is None]
NEVER_MERGED = [case for case in ADAPTERS if not METHODS[case.method].merges]


# What wrapping does


@all_geometries
@all_cases
def test_wrapping_changes_nothing_where_the_method_says_so(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    batch = tiny_batch()
    expected = logits_of(make_base(), batch)
    got = logits_of(wrap(case, make_base()), batch)
    if METHODS[case.method].identity_at_start:
        # DoRA divides by the norm it multiplies with
        assert_same(got, expected, TOLERANCE if case.method == "dora" else 0.0)
    else:
        assert (got - expected).abs().max() > 1e-3


@all_geometries
@all_cases
def test_one_step_moves_every_adapter_tensor_and_no_bit_of_the_base(
    case: Case, geometry: Geometry, make_base: MakeBase
) -> None:
    model = stir(wrap(case, make_base())).train()
    names = set(trained(model))
    model(**tiny_batch())  # at its first forward bitsandbytes moves its scales
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    model(**tiny_batch()).loss.backward()
    optimizer.step()
    after = tensors_of(model)
    assert names <= before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == names


# Against the reference by hand, and against peft


@pytest.mark.parametrize(("case", "side", "geometry"), sampled(BY_HAND, ["right", "left"], GEOMETRIES, every=2))
def test_logits_are_those_of_the_reference_by_hand(
    case: Case, geometry: Geometry, side: Literal["right", "left"]
) -> None:
    model, batch = precise(stir(wrap(case, ready_t5(geometry)))), tiny_batch(side=side, extra_pads=2)
    config = t5_config(model)
    with torch.no_grad():
        expected = reference.logits(
            in_double(state_of(case, geometry, model)),
            config,
            batch["input_ids"],
            batch["attention_mask"],
            reference.shift_right(batch["labels"], config),
            by_hand(model),
        )
    assert_same(logits_of(model, batch), expected)


@all_geometries
@pytest.mark.parametrize("case", BY_HAND, ids=str)
def test_gradients_are_those_of_the_reference_by_hand(case: Case, geometry: Geometry) -> None:
    # in double precision: the gradient of a ladder's gate is one number, a sum over all tokens that all but cancels
    model, batch = precise(stir(wrap(case, ready_t5(geometry)))).double(), tiny_batch()
    parameters, config = trained(model), t5_config(model)
    scores = reference.logits(
        {name: tensor.double() for name, tensor in in_double(state_of(case, geometry, model)).items()},
        config,
        batch["input_ids"],
        batch["attention_mask"],
        reference.shift_right(batch["labels"], config),
        by_hand(model),
    )
    total, count = reference.summed_cross_entropy(scores, batch["labels"])
    expected = torch.autograd.grad(total / count, list(parameters.values()))
    assert_same_gradients(gradients_of(model, batch), dict(zip(parameters, expected, strict=True)))


@all_geometries
def test_quantized_logits_are_those_of_the_reference_on_the_weights_taken_back(
    geometry: Geometry, folders: dict[str, Path]
) -> None:
    """In training bitsandbytes multiplies by the weights taken back from 8 bits, so they can be compared exactly."""
    pytest.importorskip("bitsandbytes")
    base = load_backbone(folders[geometry], quantize="int8", dtype=torch.float32)[0]
    state = {name: tensor.detach().clone() for name, tensor in base.named_parameters()}
    for name, parameter in base.named_parameters():
        if parameter.dtype == torch.int8:
            quantized: Any = parameter  # of bitsandbytes, with the values and the scales of its rows
            state[name] = quantized.CB.float() * quantized.SCB[:, None] / 127
    assert any(parameter.dtype == torch.int8 for parameter in base.parameters())
    model, batch = stir(as_peft(METHODS["qlora"].wrap(base, rank=4))).train(), tiny_batch()
    expected = reference.logits(
        state,
        t5_config(base),
        batch["input_ids"],
        batch["attention_mask"],
        reference.shift_right(batch["labels"], t5_config(base)),
        by_hand(model),
    )
    assert_same(model(**batch).logits, expected, 1e-4)


@all_geometries
@pytest.mark.parametrize("dora", [False, True])
def test_lora_is_that_of_peft(geometry: Geometry, dora: bool) -> None:
    ours = stir(wrap(Case("lora", {"rank": 4, "dora": dora}), ready_t5(geometry)))
    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=4, lora_alpha=8, target_modules=["q", "v"], use_dora=dora)
    theirs = get_peft_model(tiny_t5(geometry), config).eval()
    assert trained(theirs).keys() == trained(ours).keys()
    theirs.load_state_dict(ours.state_dict())
    assert_same(logits_of(ours, tiny_batch()), logits_of(theirs, tiny_batch()), 0.0)


@all_geometries
def test_ia3_is_that_of_peft(geometry: Geometry) -> None:
    ours = stir(wrap(Case("ia3"), ready_t5(geometry)))
    config = IA3Config(task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    theirs = get_peft_model(tiny_t5(geometry), config).eval()
    assert trained(theirs).keys() == trained(ours).keys()
    theirs.load_state_dict(ours.state_dict())
    assert_same(logits_of(ours, tiny_batch()), logits_of(theirs, tiny_batch()), 0.0)


@all_geometries
def test_prompt_tuning_is_that_of_peft_with_padding_on_the_right(geometry: Geometry) -> None:
    ours, batch = stir(wrap(Case("prompt", {"length": 3}), ready_t5(geometry))), tiny_batch()
    config = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3, num_transformer_submodules=1)
    theirs = get_peft_model(tiny_t5(geometry), config).eval()
    with torch.no_grad():
        prompt = by_hand(ours).prompt
        assert prompt is not None
        theirs.prompt_encoder["default"].get_parameter("embedding.weight").copy_(prompt)
    assert_same(logits_of(ours, batch), logits_of(theirs, batch))


# Padding


@two_geometries
@all_cases
def test_padding_on_either_side_and_more_of_it_changes_nothing(
    case: Case, geometry: Geometry, make_base: MakeBase
) -> None:
    if METHODS[case.method].quantize is not None:
        pytest.skip("LLM.int8 rounds activations by rows and outlier columns of the batch")
    model = precise(stir(wrap(case, make_base())))
    expected = logits_of(model, tiny_batch())
    for batch in (tiny_batch(side="left"), tiny_batch(extra_pads=5), tiny_batch(side="left", extra_pads=5)):
        assert_same(logits_of(model, batch), expected)


# Saving and loading


@pytest.mark.parametrize(("case", "geometry"), sampled(ADAPTERS, GEOMETRIES, every=2))
def test_saving_and_loading_is_exact_and_the_file_holds_the_adapter_alone(
    case: Case, geometry: Geometry, make_base: MakeBase, tmp_path: Path
) -> None:
    model, batch = stir(wrap(case, make_base())), tiny_batch()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(), tmp_path).eval()
    assert_same(logits_of(loaded, batch), logits_of(model, batch), 0.0)
    assert not trained(loaded)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(tuple(tensor.shape) for tensor in saved.values()) == sorted(
        tuple(parameter.shape) for parameter in trained(model).values()
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }


@two_geometries
@adapters_of_each_form
def test_an_adapter_is_loaded_without_memory_for_a_second_copy(
    case: Case, geometry: Geometry, make_base: MakeBase, tmp_path: Path
) -> None:
    model = stir(wrap(case, make_base()))
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, low_cpu_mem_usage=True).eval()
    # Its tensors lie where the file put them, so sums may be taken in another order: compared are the tensors, bit by bit.
    got, expected = loaded.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert torch.isfinite(logits_of(loaded, tiny_batch())).all()


@pytest.mark.parametrize(("case", "geometry"), sampled(ADAPTERS, GEOMETRIES, every=2))
def test_a_loaded_adapter_goes_on_as_if_it_had_never_been_saved(
    case: Case, geometry: Geometry, make_base: MakeBase, tmp_path: Path
) -> None:
    model, batch = stir(wrap(case, make_base())), tiny_batch()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_base(), tmp_path, is_trainable=True)
    expected = gradients_of(model.train(), batch)
    assert_same_gradients(gradients_of(loaded.train(), batch), expected, 0.0)


# Merging


@all_geometries
@pytest.mark.parametrize("case", MERGED, ids=str)
def test_merged_equals_unmerged_and_is_a_plain_t5(case: Case, geometry: Geometry) -> None:
    model, batch = precise(stir(wrap(case, ready_t5(geometry)))), tiny_batch()
    expected = logits_of(model, batch)
    merged = model.merge_and_unload()
    assert_same(logits_of(merged, batch), expected)
    assert type(merged) is T5ForConditionalGeneration
    assert merged.state_dict().keys() == tiny_t5(geometry).state_dict().keys()


@two_geometries
@pytest.mark.parametrize("case", NEVER_MERGED, ids=str)
def test_what_cannot_be_merged_says_so(case: Case, geometry: Geometry) -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        wrap(case, ready_t5(geometry)).merge_and_unload()


@two_geometries
def test_a_collapsed_prefix_equals_the_reparametrized_one_and_is_smaller(geometry: Geometry, tmp_path: Path) -> None:
    model, batch = stir(wrap(Case("prefix", {"length": 3, "projection_size": 7}), ready_t5(geometry))), tiny_batch()
    expected, inner = logits_of(model, batch), unwrap_t5(model).config
    collapse(model)
    assert_same(logits_of(model, batch), expected, 0.0)
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    attentions = inner.num_layers + 2 * inner.num_decoder_layers
    assert sum(map(Tensor.numel, saved.values())) == attentions * 2 * 3 * inner.num_heads * inner.d_kv
    loaded = PeftModel.from_pretrained(ready_t5(geometry), tmp_path).eval()
    assert_same(logits_of(loaded, batch), expected, 0.0)


exact_only = [case for case in CASES if METHODS[case.method].quantize is None and case.variant in FORMS]


@pytest.mark.parametrize(
    ("geometry", "search"),
    [("v1.0", GREEDY), ("wide", GREEDY), ("wide", BEAMS)],
    ids=["v1.0-greedy", "wide-greedy", "wide-beams"],
)
@pytest.mark.parametrize("case", exact_only, ids=str)
def test_generation_with_any_cache_equals_generation_without(
    case: Case, geometry: Geometry, search: dict[str, Any]
) -> None:
    model, inputs = stir(wrap(case, ready_t5(geometry))), inputs_of(tiny_batch())
    expected = model.generate(**inputs, **search, use_cache=False).tolist()
    assert model.generate(**inputs, **search).tolist() == expected
    assert model.generate(**inputs, **search, cache_implementation="static").tolist() == expected


@two_geometries
@pytest.mark.parametrize("case", BY_HAND, ids=str)
def test_greedy_generation_is_that_of_the_reference_by_hand(case: Case, geometry: Geometry) -> None:
    model, batch = stir(wrap(case, ready_t5(geometry))), tiny_batch()
    with torch.no_grad():
        expected = reference.generate_greedily(
            state_of(case, geometry, model),
            t5_config(model),
            batch["input_ids"],
            batch["attention_mask"],
            GREEDY["max_new_tokens"],
            by_hand(model),
        )
    assert model.generate(**inputs_of(batch), **GREEDY).tolist() == expected.tolist()


@two_geometries
@cases_of_each_form
def test_generation_follows_the_training_path(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    """Each generated token is the most likely one when the tokens before it are forced on the decoder."""
    model, inputs = stir(wrap(case, make_base())), inputs_of(tiny_batch())
    # not quantized: to 1e-4, as the order of sums differs between the two; quantized: activations are rounded by rows
    generated = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    forced = logits_of(model, inputs | {"decoder_input_ids": generated.sequences[:, :-1]})
    stepwise = torch.stack(generated.logits, dim=1)
    ended = (generated.sequences[:, :-1] == 1).cumsum(dim=1).bool()
    assert_same(stepwise[~ended], forced[~ended], 1e-4 if METHODS[case.method].quantize is None else 0.2)
    assert stepwise.argmax(-1)[~ended].tolist() == generated.sequences[:, 1:][~ended].tolist()


# Gradient checkpointing


@all_geometries
@all_cases
def test_gradient_checkpointing_changes_nothing(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    model, batch = stir(wrap(case, make_base())).train().double(), tiny_batch()
    # Gradients are summed in another order: what differs must be rounding, in double precision.
    expected_loss, expected = model(**batch).loss.item(), gradients_of(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert unwrap_t5(model).is_gradient_checkpointing
    assert model(**batch).loss.item() == pytest.approx(expected_loss, rel=1e-6)
    assert_same_gradients(gradients_of(model, batch), expected, 1e-7)


# Without the adapter, and with several


@two_geometries
@adapters_of_each_form
def test_a_disabled_adapter_leaves_the_base_exactly(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    base, batch = make_base(), tiny_batch()
    model = stir(wrap(case, make_base()))
    with model.disable_adapter():
        assert_same(logits_of(model, batch), logits_of(base, batch), 1e-5 if case.method in ATTENDS_ITSELF else 0.0)
        got = model.generate(**inputs_of(batch), **GREEDY)
        assert got.tolist() == generate(base, **inputs_of(batch), **GREEDY).tolist()
    assert (logits_of(model, batch) - logits_of(base, batch)).abs().max() > 1e-3
