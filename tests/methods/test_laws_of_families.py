"""The laws that every method obeys on the families beside T5: a table of family and method, made here, with reasons for gaps.

``tests/methods/test_laws.py`` has the same laws on T5, and compares with references by hand. Here a method is compared with
the plain model of transformers, and prefixes with a reference by hand.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import reference_gemma
import torch
from cases import CASES, Case, stir, trained
from laws import BEAMS, GREEDY, assert_same, assert_same_gradients, gradients_of, inputs_of, logits_of
from narrow import as_peft
from peft import PeftModel
from safetensors.torch import load_file
from tiny_families import GEMMAS, OTHERS, Other, case_of, other_batch, precise, tiny_other, tiny_other_classifier

from t5peft import METHODS, lora_wrap, prefix_wrap, prompt_wrap
from t5peft.methods.prefix import PrefixLayer
from t5peft.methods.served import is_served
from t5peft.models.families import FAMILIES
from t5peft.models.unwrap import unwrap_t5

_FORMS = [
    case
    for case in CASES
    if METHODS[case.method].quantize is None and case.variant in ("", "reparametrized") and case.method != "own"
]


def row_of(family: Other) -> Any:
    return FAMILIES[family.partition("-")[0]]


def has(family: Other, case: Case) -> bool:
    return is_served(row_of(family).model_type, case.method)


SERVED = [(family, case) for family in OTHERS for case in _FORMS if has(family, case)]
MISSING = [(family, case) for family in OTHERS for case in _FORMS if not has(family, case)]
all_served = pytest.mark.parametrize(("family", "case"), [case_of(f, c.method, c) for f, c in SERVED])
all_adapters = pytest.mark.parametrize(
    ("family", "case"), [case_of(f, c.method, c) for f, c in SERVED if METHODS[c.method].has_adapter]
)


def wrap(family: Other, case: Case, seed: int = 1) -> PeftModel:
    options = dict(case.options)
    if case.method in ("dora", "adalora"):  # whose cases name maps of T5
        own = row_of(family)
        options["target_modules"] = [own.attention[0], own.gated[-1]]
    torch.manual_seed(seed)
    return cast(PeftModel, METHODS[case.method].wrap(tiny_other(family), **options).eval())


@pytest.mark.parametrize(("family", "case"), MISSING, ids=[f"{f}-{c}" for f, c in MISSING])
def test_what_a_family_cannot_have_is_refused_with_the_reason(family: Other, case: Case) -> None:
    reason = row_of(family).lacks[METHODS[case.method].needs]
    with pytest.raises(
        ValueError, match=rf"Got a {row_of(family).title} for a {case.method}.*{reason}.*expected one of T5"
    ):
        wrap(family, case)


@all_served
def test_a_method_starts_as_it_says_moves_all_its_tensors_and_no_bit_of_the_base(family: Other, case: Case) -> None:
    batch, base = other_batch(), tiny_other(family)
    model, expected = wrap(family, case), logits_of(base, batch)
    got = logits_of(model, batch)
    if METHODS[case.method].identity_at_start:
        assert_same(got, expected, 1e-5 if case.method == "dora" else 0.0)
    else:
        assert (got - expected).abs().max() > 1e-3
    stir(model).train()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    gradients = gradients_of(model, batch)
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    for name, parameter in trained(model).items():
        assert gradients[name].abs().max() > 0, f"{name} has no gradient"
        parameter.grad = gradients[name]
    optimizer.step()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == gradients.keys()
    assert not any(part in name for name in moved for part in row_of(family).untuned)


@all_served
def test_padding_changes_nothing(family: Other, case: Case) -> None:
    model = precise(stir(wrap(family, case)))
    expected = logits_of(model, other_batch())
    size = float(expected.abs().max())  # norms and angles are computed in single precision
    assert_same(logits_of(model, other_batch(extra_pads=5)) / size, expected / size)
    # LongT5 counts its blocks of global tokens from the first column, padding or not. T5Gemma counts positions so, and a query
    # meets the keys of a prefix, which are not rotated, at its own position.
    counts_padding = family == "longt5-tglobal" or (family in GEMMAS and METHODS[case.method].needs == "prefix")
    if not counts_padding:
        assert_same(logits_of(model, other_batch(side="left", extra_pads=5)) / size, expected / size, 1e-5)


@all_adapters
def test_saving_and_loading_is_exact_and_gradients_go_on(family: Other, case: Case, tmp_path: Path) -> None:
    model, batch = stir(wrap(family, case)), other_batch()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_other(family), tmp_path, is_trainable=True).eval()
    assert_same(logits_of(loaded, batch), logits_of(model, batch), 0.0)
    assert_same_gradients(gradients_of(loaded, batch), gradients_of(model, batch), 0.0)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(t.numel() for t in saved.values()) == sorted(p.numel() for p in trained(model).values())


@all_adapters
def test_merged_unloaded_and_disabled(family: Other, case: Case) -> None:
    model, batch, base = precise(stir(wrap(family, case))), other_batch(), precise(tiny_other(family))
    with model.disable_adapter():
        assert_same(logits_of(model, batch), logits_of(base, batch), 1e-9)
    if METHODS[case.method].merges:
        expected = logits_of(model, batch)
        merged = model.merge_and_unload()
        assert type(merged) is type(base)
        assert merged.state_dict().keys() == base.state_dict().keys()
        assert_same(logits_of(merged, batch), expected)
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge_and_unload()


@all_served
def test_generation_with_any_cache_equals_generation_without_and_the_training_path(family: Other, case: Case) -> None:
    model, inputs = stir(wrap(family, case)), inputs_of(other_batch())
    for search in (GREEDY, BEAMS):
        expected = model.generate(**inputs, **search, use_cache=False).tolist()
        assert model.generate(**inputs, **search).tolist() == expected
    assert model.generate(**inputs, **BEAMS, cache_implementation="static").tolist() == expected
    generated = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    forced = logits_of(model, inputs | {"decoder_input_ids": generated.sequences[:, :-1]})
    ended = (generated.sequences[:, :-1] == 1).cumsum(dim=1).bool()
    assert_same(torch.stack(generated.logits, dim=1)[~ended], forced[~ended], 1e-4)


@all_served
def test_gradient_checkpointing_changes_nothing(family: Other, case: Case) -> None:
    model, batch = precise(stir(wrap(family, case))).train(), other_batch()
    expected = gradients_of(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert unwrap_t5(model).is_gradient_checkpointing
    assert_same_gradients(gradients_of(model, batch), expected, 1e-7)


@pytest.mark.parametrize("family", GEMMAS)
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "norm"])
def test_a_head_of_classes_is_trained_saved_and_reads_the_same_state_in_any_batch(
    family: Other, method: str, tmp_path: Path
) -> None:
    model = stir(as_peft(METHODS[method].wrap(tiny_other_classifier(family)))).eval()
    assert any("score" in name for name in trained(model))
    batch = {name: value for name, value in other_batch(extra_pads=1).items() if name != "labels"}
    expected = logits_of(model, batch)
    wider = {name: value for name, value in other_batch(extra_pads=6).items() if name != "labels"}
    size = float(expected.abs().max())
    assert_same(logits_of(model, wider) / size, expected / size, 1e-5)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_other_classifier(family), tmp_path).eval()
    assert_same(logits_of(loaded, batch), expected, 0.0)


# Targets


def test_the_vision_tower_is_never_changed() -> None:
    for method in ("lora", "lora-all", "ia3", "houlsby", "prefix", "prompt", "norm", "full"):
        names = trained(wrap("t5gemma2", Case(method)))
        assert names
        assert not any("vision" in name or "projector" in name or "eoi" in name for name in names)


@pytest.mark.parametrize("family", GEMMAS)
def test_targets_are_checked_against_the_family(family: Other) -> None:
    assert {name.split(".")[-4] for name in trained(lora_wrap(tiny_other(family)))} == {"q_proj", "v_proj"}
    with pytest.raises(ValueError, match=r"Got the targets \['q'\].*'q_proj'"):
        lora_wrap(tiny_other(family), target_modules=["q"])
    with pytest.raises(ValueError, match=r"without lm_head\.out_proj"):
        lora_wrap(tiny_other(family), target_modules=["lm_head.out_proj"])


def test_t5gemma_2_has_no_site_between_decoder_and_encoder() -> None:
    with pytest.raises(ValueError, match="expected a list of one or more of encoder, decoder"):
        prefix_wrap(tiny_other("t5gemma2"), sites=["cross"])


@pytest.mark.parametrize("family", GEMMAS)
def test_a_prompt_of_words_is_that_text(family: Other) -> None:
    """A prompt has the size of rows of the table, as the family scales them: words as a prompt are those words as text."""
    words, batch, base = [7, 8, 9], other_batch(), tiny_other(family)
    model = prompt_wrap(base, length=3, initialize=lambda table, length: table[words[:length]])
    text = torch.tensor(words).expand(4, -1)
    ids = torch.cat([text, batch["input_ids"]], 1)
    mask = torch.cat([torch.ones_like(text), batch["attention_mask"]], 1)
    expected = logits_of(tiny_other(family), batch | {"input_ids": ids, "attention_mask": mask})
    assert_same(logits_of(model, batch), expected, 1e-5)


# Against the reference by hand


@pytest.mark.parametrize("projection_size", [None, 7])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", GEMMAS)
def test_a_prefix_stands_before_keys_and_values_as_in_the_reference_by_hand(
    family: Other, side: Any, projection_size: int | None
) -> None:
    """In T5Gemma 2 before the keys of decoder and encoder together, behind the norm of the keys, without a position."""
    model = precise(stir(prefix_wrap(tiny_other(family), length=3, projection_size=projection_size)))
    batch, parameters = other_batch(side=side, extra_pads=2), trained(model)
    prefixes = {
        name.removeprefix("base_model.model."): layer.adapters["default"]()
        for name, layer in model.named_modules()
        if isinstance(layer, PrefixLayer)
    }
    state = {name: tensor.double() for name, tensor in tiny_other(family).named_parameters()}
    config = unwrap_t5(model).config
    scores = reference_gemma.logits(
        state,
        config,
        batch["input_ids"],
        batch["attention_mask"],
        reference_gemma.shifted(batch["labels"], config),
        prefixes,
    )
    counted = (batch["labels"] != -100).flatten()
    found = logits_of(model, batch).flatten(0, 1)
    # transformers computes norms and angles in single precision, whatever the weights are in
    assert_same(found[counted], scores.flatten(0, 1)[counted].detach(), 1e-4)
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten())
    expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert_same_gradients(gradients_of(model, batch), expected, 1e-4)


@pytest.mark.parametrize("family", GEMMAS)
def test_a_prefix_starts_from_the_keys_and_values_of_a_text(family: Other) -> None:
    """Those before a position, and behind the norm of the keys."""
    model = prefix_wrap(tiny_other(family), length=3, initial_ids=[7, 8, 9])
    state = dict(tiny_other(family).named_parameters())
    path = "model.encoder.text_model" if family == "t5gemma2" else "model.encoder"
    encoder = unwrap_t5(model).config.encoder
    text = reference_gemma.Gemma(state, getattr(encoder, "text_config", encoder), path, family == "t5gemma2", {})
    x = text["embed_tokens.weight"][torch.tensor([[7, 8, 9]])] * 32**0.5
    x = text.norm("layers.0.pre_self_attn_layernorm", x)
    key, value = (text.heads(f"layers.0.self_attn.{part}_proj", x) for part in "kv")
    key = text.norm("layers.0.self_attn.k_norm", key) if family == "t5gemma2" else key
    found = model.get_submodule(f"base_model.model.{path}.layers.0.self_attn.t5prefix.default")
    assert_same(found.get_parameter("key").detach(), key[0].detach(), 1e-5)
    assert_same(found.get_parameter("value").detach(), value[0].detach(), 1e-5)


@pytest.mark.parametrize("family", [family for family in OTHERS if is_served(row_of(family).model_type, "prefix")])
def test_a_prefix_starts_at_the_values_of_the_plain_model(family: Other) -> None:
    ids, plain = torch.tensor([[5, 9, 7]]), tiny_other(family).eval()
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: object, _inputs: object, output: torch.Tensor) -> None:
        found.setdefault(name, output)

    for name, module in plain.named_modules():
        module.register_forward_hook(partial(keep, name))
    with torch.no_grad():
        plain.base_model(input_ids=ids, decoder_input_ids=ids)
    wrapped = prefix_wrap(tiny_other(family), length=3, initial_ids=ids[0].tolist())
    layers = {name: part for name, part in wrapped.named_modules() if isinstance(part, PrefixLayer)}
    assert layers
    for name, layer in layers.items():
        own, value = name.removeprefix("base_model.model."), cast(Any, layer.adapters["default"]).value
        expected = found[f"{own}.{row_of(family).attention[2]}"][0].unflatten(-1, (len(value), -1)).transpose(0, 1)
        torch.testing.assert_close(value, expected)
