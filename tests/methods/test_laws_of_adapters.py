"""Laws about taking adapters out, holding several of them, and training a head beside them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import reference
import torch
from cases import ADAPTERS, ATTENDS_ITSELF, Case, by_hand, stir, trained, wrap
from laws import (
    MakeBase,
    adapters_of_each_form,
    all_adapters,
    assert_same,
    gradients_of,
    in_double,
    logits_of,
    precise,
    two_geometries,
)
from narrow import t5_config
from peft import (
    PeftModel,
)
from tiny import (
    Geometry,
    tiny_batch,
    tiny_classifier,
    tiny_classifier_batch,
    tiny_t5,
)
from transformers import T5ForConditionalGeneration

from t5peft import METHODS, lora_wrap, prefix_wrap, prompt_wrap
from t5peft.methods.prefix import PrefixConfig, start_prefix
from t5peft.methods.prompt import PromptConfig, PromptEncoder
from t5peft.models.unwrap import unwrap_t5


@two_geometries
@adapters_of_each_form
def test_unloading_gives_the_base_back_exactly(case: Case, geometry: Geometry, make_base: MakeBase) -> None:
    expected, batch = logits_of(make_base(), tiny_batch()), tiny_batch()
    unloaded = stir(wrap(case, make_base())).unload()
    assert isinstance(unloaded, T5ForConditionalGeneration)
    assert unloaded.state_dict().keys() == make_base().state_dict().keys()
    assert_same(logits_of(unloaded, batch), expected, 1e-5 if case.method in ATTENDS_ITSELF else 0.0)


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
