"""The laws that every tuning method obeys, on T5s of three geometries, with padding in every batch.

A method that is added to the table is tested without being named here. Where a law depends on what a method promises, its row
says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import pytest
import reference
import torch
from cases import ADAPTERS, BY_HAND, CASES, FORMS, Case, base_of, by_hand, ready_t5, state_of, stir, trained, wrap
from narrow import as_peft, generate, gradient, t5_config
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny import (
    GEOMETRIES,
    Geometry,
    tiny_batch,
    tiny_classifier,
    tiny_classifier_batch,
    tiny_t5,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, T5ForConditionalGeneration

from t5peft import METHODS, load_backbone, lora_wrap, prefix_wrap, prompt_wrap
from t5peft.methods.lora import set_lora_plus
from t5peft.methods.prefix import PrefixConfig, collapse, start_prefix
from t5peft.methods.prompt import PromptConfig, PromptEncoder
from t5peft.models.backbone import Quantization
from t5peft.models.unwrap import unwrap_t5

TOLERANCE = 1e-6

MERGED = [case for case in ADAPTERS if METHODS[case.method].merges and METHODS[case.method].quantize is None]
NEVER_MERGED = [case for case in ADAPTERS if not METHODS[case.method].merges]

all_geometries = pytest.mark.parametrize("geometry", GEOMETRIES)
# "wide" has all that "v1.1" has and more; laws about formulas and files are tested on all three, laws about life on two
two_geometries = pytest.mark.parametrize("geometry", ["v1.0", "wide"])
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
all_adapters = pytest.mark.parametrize("case", ADAPTERS, ids=str)
cases_of_each_form = pytest.mark.parametrize("case", [case for case in CASES if case.variant in FORMS], ids=str)
adapters_of_each_form = pytest.mark.parametrize("case", [case for case in ADAPTERS if case.variant in FORMS], ids=str)

MakeBase = Callable[[], PreTrainedModel]
Model = TypeVar("Model", bound=nn.Module)


@pytest.fixture
def make_base(case: Case, geometry: Geometry, folders: dict[Geometry, Path]) -> MakeBase:
    """Make the backbone of ``case`` anew, the same each time."""
    if METHODS[case.method].quantize is not None and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return partial(base_of, case, geometry, folders[geometry])


def precise(model: Model) -> Model:
    """``model`` in double precision, so that differences are not rounding and tolerances can be tight."""
    return model.double()


def in_double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def gradients_of(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = trained(model)
    gradients = torch.autograd.grad(model(**batch).loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def assert_same(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Each tensor's difference, measured against that tensor's own size."""
    assert got.keys() == expected.keys()
    for name in expected:
        assert expected[name].norm() > 0, f"{name} has no gradient"
        assert (got[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name


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


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, and the scales of quantized weights, which bitsandbytes keeps elsewhere."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, module in model.named_modules():
        if isinstance(scales := getattr(getattr(module, "state", None), "SCB", None), Tensor):
            tensors[f"{name}.SCB"] = scales
    return {name: tensor.detach() for name, tensor in tensors.items()}


# Against the reference by hand, and against peft


@all_geometries
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", BY_HAND, ids=str)
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


@all_geometries
@all_adapters
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


@all_geometries
@all_adapters
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


# Generation


GREEDY = {"max_new_tokens": 6, "do_sample": False}
BEAMS = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
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
        # prefix tuning changes the function that computes attention, for an equal one
        assert_same(logits_of(model, batch), logits_of(base, batch), 1e-5 if case.method == "prefix" else 0.0)
        got = model.generate(**inputs_of(batch), **GREEDY)
        assert got.tolist() == generate(base, **inputs_of(batch), **GREEDY).tolist()
    assert (logits_of(model, batch) - logits_of(base, batch)).abs().max() > 1e-3


@two_geometries
@adapters_of_each_form
def test_unloading_gives_the_base_back_exactly(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    expected, batch = logits_of(make_base(), tiny_batch()), tiny_batch()
    unloaded = stir(wrap(case, make_base())).unload()
    assert isinstance(unloaded, T5ForConditionalGeneration)
    assert unloaded.state_dict().keys() == make_base().state_dict().keys()
    assert_same(logits_of(unloaded, batch), expected, 1e-5 if case.method == "prefix" else 0.0)


@two_geometries
@adapters_of_each_form
def test_several_adapters_live_side_by_side(
    case: Case, geometry: Geometry, make_base: MakeBase, tmp_path: Path
) -> None:
    batch = tiny_batch()
    first, second = (stir(wrap(case, make_base()), seed) for seed in (5, 6))
    second.save_pretrained(str(tmp_path))
    expected_first, expected_second = logits_of(first, batch), logits_of(second, batch)
    assert (expected_first - expected_second).abs().max() > 1e-3
    first.load_adapter(str(tmp_path), "other")
    assert_same(logits_of(first, batch), expected_first, 0.0)
    first.set_adapter("other")
    assert_same(logits_of(first.eval(), batch), expected_second, 0.0)
    first.set_adapter("default")
    assert_same(logits_of(first, batch), expected_first, 0.0)
    first.delete_adapter("other")
    assert_same(logits_of(first, batch), expected_first, 0.0)


@two_geometries
@adapters_of_each_form
def test_an_added_adapter_is_new_and_the_first_stays(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    model, batch = stir(wrap(case, make_base())), tiny_batch()
    expected = logits_of(model, batch)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    names = set(trained(model))
    assert names
    assert all(".other" in name for name in names)
    model(**batch).loss.backward()
    model.set_adapter("default")
    assert_same(logits_of(model.eval(), batch), expected, 0.0)


@pytest.mark.parametrize("scale", [0.1, 20.0])
def test_a_random_prompt_is_of_the_tables_scale(scale: float) -> None:
    """That of real checkpoints differs by orders of magnitude; peft's start has a deviation of 1 whatever it is."""
    base = tiny_t5()
    base.get_input_embeddings().weight.data.normal_(std=scale)
    model = prompt_wrap(base, length=200, initialize="random")
    (prompt,) = (p.detach() for name, p in model.named_parameters() if p.requires_grad)
    assert float(prompt.std()) == pytest.approx(scale, rel=0.1)
    assert not any((base.get_input_embeddings().weight == row).all(dim=1).any() for row in prompt[:3])


def test_an_added_prompt_starts_from_words_of_the_vocabulary() -> None:
    """From zeros, where the norm's gradient is a thousand times as large, it hardly learned."""
    model = prompt_wrap(tiny_t5(), length=2)
    model.add_adapter("other", PromptConfig(length=5))
    table = model.get_input_embeddings().weight
    prompt = cast(PromptEncoder, unwrap_t5(model).get_submodule("encoder")).t5prompt["other"]
    for vector in prompt:
        assert (table == vector).all(dim=1).any()


def test_an_added_prefix_can_start_where_the_first_one_does() -> None:
    expected = prefix_wrap(tiny_t5(), length=5, initial_ids=[7, 8, 9])
    model = prefix_wrap(tiny_t5(), length=2)
    first = {name: tensor.detach().clone() for name, tensor in trained(model).items()}
    for name, sites in (("other", ["encoder", "decoder", "cross"]), ("small", ["encoder"])):
        model.add_adapter(name, PrefixConfig(length=5, sites=sites))
        model.set_adapter(name)
        start_prefix(model, [7, 8, 9])
        started = {key.replace(f".{name}.", ".default."): tensor for key, tensor in trained(model).items()}
        assert started
        for key, tensor in started.items():
            assert torch.equal(tensor, trained(expected)[key])
    model.set_adapter("default")
    for key, tensor in trained(model).items():
        assert torch.equal(tensor, first[key])
    with pytest.raises(ValueError, match="which is a LORA; expected a prefix"):
        start_prefix(lora_wrap(tiny_t5()), [7])
    with pytest.raises(ValueError, match="which is a prefix with a projection_size; expected a prefix"):
        start_prefix(prefix_wrap(tiny_t5(), projection_size=4), [7])


# A head


heads = [case for case in ADAPTERS if METHODS[case.method].quantize is None]


@two_geometries
@pytest.mark.parametrize("case", heads, ids=str)
def test_a_classifier_is_that_of_the_reference_and_its_head_is_trained_and_saved(
    case: Case, geometry: Geometry, tmp_path: Path
) -> None:
    model, batch = precise(stir(wrap(case, tiny_classifier(geometry)))), tiny_classifier_batch()
    head = {name: tensor for name, tensor in trained(model).items() if "classification_head" in name}
    assert len(head) == 4
    state = in_double(dict(tiny_classifier(geometry).named_parameters()))
    for name, tensor in head.items():
        state[name[name.index("classification_head") :].replace("modules_to_save.default.", "")] = tensor.detach()
    got = logits_of(model, batch)
    with torch.no_grad():
        expected = reference.class_logits(
            state, t5_config(model), batch["input_ids"], batch["attention_mask"], by_hand(model)
        )
    assert_same(got, expected)
    assert all(found.abs().max() > 0 for found in gradients_of(model, batch).values())
    model.save_pretrained(str(tmp_path))
    loaded = precise(PeftModel.from_pretrained(tiny_classifier(geometry), tmp_path)).eval()
    assert_same(logits_of(loaded, batch), got, 0.0)


# Errors


@all_adapters
def test_a_model_that_is_wrapped_already_is_an_error(case: Case) -> None:
    base = tiny_t5()
    wrapped = METHODS["lora"].wrap(base)
    with pytest.raises(ValueError, match=r"already wrapped .*'default'.* expected a plain T5.*unload"):
        METHODS[case.method].wrap(wrapped, **case.options)


@all_cases
def test_a_model_that_is_no_t5_is_an_error(case: Case) -> None:
    with pytest.raises(ValueError, match=r"Got a Linear; expected a T5 .* load_backbone"):
        METHODS[case.method].wrap(nn.Linear(2, 2), **case.options)


@all_adapters
def test_the_inside_of_a_wrapped_model_is_an_error_too(case: Case) -> None:
    """``lora_wrap(model)`` changes its argument in place; wrapping that argument again must not stack two adapters."""
    base = tiny_t5()
    METHODS["lora"].wrap(base)
    with pytest.raises(ValueError, match="already wrapped"):
        METHODS[case.method].wrap(base, **case.options)


def test_targets_that_match_nothing_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"\['nonexistent'\], which match no linear map .*'q', 'k', 'v', 'o', 'wi', 'wo'"
    ):
        METHODS["lora"].wrap(tiny_t5(), target_modules=["q", "nonexistent"])


def test_a_tied_head_is_no_target() -> None:
    with pytest.raises(ValueError, match="table of embeddings"):
        METHODS["lora"].wrap(tiny_t5(), target_modules=["q", "lm_head"])
    wrapped = METHODS["lora"].wrap(ready_t5("v1.1"), target_modules=["q", "lm_head"])
    assert any("lm_head" in name for name in trained(wrapped))


def test_a_quantized_model_is_needed_for_qlora() -> None:
    with pytest.raises(ValueError, match=r"expected a quantized model.*lora_wrap"):
        METHODS["qlora"].wrap(tiny_t5())


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantized_model_is_refused_by_full(quantize: Quantization, folders: dict[Geometry, Path]) -> None:
    model = load_backbone(folders["v1.0"], quantize=quantize, dtype=torch.float32)[0]
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"Got a quantized model; expected one in float32 or bfloat16"):
        METHODS["full"].wrap(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("case", [case for case in ADAPTERS if not case.variant], ids=str)
def test_every_method_is_trained_and_generates_beside_quantized_weights_in_bfloat16(
    case: Case, quantize: Quantization, folders: dict[Geometry, Path]
) -> None:
    base = load_backbone(folders["v1.1"], quantize=quantize, dtype=torch.bfloat16)[0]
    if (case.method, quantize) == ("dora", "int8"):
        with pytest.raises(ValueError, match="DoRA loses their scales at the first pass"):
            wrap(case, base)
        return
    model, batch = wrap(case, base).train(), tiny_batch()
    model(**batch).loss.backward()
    assert all(torch.isfinite(gradient(parameter)).all() for parameter in trained(model).values())
    assert model.eval().generate(**inputs_of(batch), max_new_tokens=3).shape[0] == len(batch["input_ids"])


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("lora", {"rank": 0}, "rank=0"),
        ("lora", {"alpha": 0}, r"alpha=0, with which nothing is learned"),
        ("lora", {"dropout": 1.0}, r"dropout=1\.0, with which nothing is learned"),
        ("lora", {"target_modules": "q"}, "a list of names"),
        ("lora", {"target_modules": []}, "a list of names"),
        ("prefix", {"length": 0}, "length=0"),
        ("prefix", {"sites": ["encoder", "middle"]}, "middle"),
        ("prefix", {"sites": []}, "one or more of encoder, decoder, cross"),
        ("prefix", {"sites": "encoder"}, "sites='encoder'; expected a list"),
        ("prefix", {"sites": None}, "sites=None; expected a list"),
        ("prefix", {"initial_ids": "text"}, "initial_ids='text'; expected one or more token ids"),
        (
            "prefix",
            {"initial_ids": [5, 384, -1, 2.0, True]},
            r"\[384, -1, 2\.0, True\]; expected integers from 0 to 383",
        ),
        ("prefix", {"projection_size": 0}, "projection_size=0"),
        ("prefix", {"initial_ids": []}, r"initial_ids=\[\]; expected one or more token ids"),
        (
            "prefix",
            {"initial_ids": [5], "projection_size": 8},
            "both projection_size and initial_ids; expected one of them",
        ),
        ("prompt", {"length": 0}, "length=0"),
        (
            "prompt",
            {"initialize": lambda table, length: table[: length + 1]},
            r"Got a prompt of shape \(21, 32\) from the initializer; expected .* \[P, H\]",
        ),
        ("prompt", {"initialize": lambda table, length: None}, "Got a NoneType from the initializer"),
        ("prompt", {"initialize": "text"}, "initialize='text'; expected one of vocabulary, random, or a function"),
        ("prompt", {"initialize": 3}, "initialize=3; expected one of vocabulary, random, or a function"),
        ("lora", {"alpha": float("nan")}, "alpha=nan"),
        ("lora", {"alpha": True}, "alpha=True"),
        ("lora", {"alpha": "32"}, "alpha='32'"),
        ("lora", {"dropout": "0.1"}, r"dropout='0\.1'"),
        ("lora", {"dora": "false"}, "dora='false'; expected True or False"),
        ("lora", {"rank_stabilized": 1}, "rank_stabilized=1; expected True or False"),
        ("lora", {"target_modules": ["q", 3]}, "a list of names"),
        ("lora", {"target_modules": None}, "a list of names"),
        ("lora", {"rank": 0, "dropout": 2}, "rank=0; .* and dropout=2"),
        ("pfeiffer", {"placement": ["houlsby"]}, r"placement=\['houlsby'\]; expected one of"),
        ("pfeiffer", {"activation": None}, "activation=None; expected one of"),
    ],
)
def test_options_out_of_range_are_told(method: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        METHODS[method].wrap(tiny_t5(), **options)


SIZES = [
    ("lora", "rank"),
    ("qlora", "rank"),
    ("prefix", "length"),
    ("prefix", "projection_size"),
    ("prompt", "length"),
    ("pfeiffer", "size"),
    ("ladder", "reduction"),
]


@pytest.mark.parametrize(("method", "option"), SIZES)
@pytest.mark.parametrize("value", [True, False, 2.0, 2.5, float("nan"), "2", b"2", [2], {}, 0, -3], ids=repr)
def test_a_size_is_an_integer_of_at_least_one(
    method: str, option: str, value: Any, folders: dict[Geometry, Path]
) -> None:
    if METHODS[method].quantize is None:
        base: PreTrainedModel = tiny_t5()
    else:
        pytest.importorskip("bitsandbytes")
        base = load_backbone(folders["v1.0"], quantize="int8", dtype=torch.float32)[0]
    with pytest.raises(ValueError, match=rf"^Got {option}={re.escape(repr(value))}; expected an integer [^;]*\.$"):
        METHODS[method].wrap(base, **{option: value})
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


@pytest.mark.parametrize(("method", "option"), [row for row in SIZES if row[0] != "qlora"])
def test_a_size_of_numpy_is_an_integer_that_can_be_saved(method: str, option: str, tmp_path: Path) -> None:
    model = as_peft(METHODS[method].wrap(tiny_t5(), **{option: np.int64(4)}))
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_t5(), tmp_path).eval()
    assert_same(logits_of(loaded, tiny_batch()), logits_of(model.eval(), tiny_batch()), 0.0)


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), True, "16"])
def test_a_ratio_of_lora_plus_is_a_positive_number(ratio: Any) -> None:
    model = lora_wrap(tiny_t5())
    with pytest.raises(ValueError, match=rf"lora_plus_ratio={re.escape(repr(ratio))} .*expected a positive ratio"):
        set_lora_plus(torch.optim.SGD(trained(model).values(), lr=1.0), model, ratio)


def test_a_prefix_for_a_task_starts_from_its_example_unless_told_otherwise() -> None:
    method, example = METHODS["prefix"], [7, 8, 9]

    def keys(options: dict[str, Any]) -> list[Tensor]:
        torch.manual_seed(0)
        model = method.wrap_for(tiny_t5(), example, options)
        return [parameter for name, parameter in model.named_parameters() if name.endswith("key")]

    def started(options: dict[str, Any]) -> list[Tensor]:
        torch.manual_seed(0)
        return [p for name, p in method.wrap(tiny_t5(), **options).named_parameters() if name.endswith("key")]

    for given, same in (
        ({}, {"initial_ids": example}),
        ({"length": 2}, {"length": 2, "initial_ids": example}),
        ({"initial_ids": [4]}, {"initial_ids": [4]}),
        ({"initial_ids": None}, {}),
    ):
        found, expected = keys(given), started(same)
        assert found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(keys({})[0], keys({"initial_ids": None})[0])
    assert keys({"projection_size": 8}) == []
