"""Bottlenecks, norm tuning and ladders beside the laws (tests/methods/test_laws.py, where their references are)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cases import Case, ready_t5, stir, trained, wrap
from narrow import gradient
from peft import LNTuningConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from tiny import Geometry, tiny_batch, tiny_classifier, tiny_config, tiny_t5
from torch import Tensor, nn
from torch.nn.functional import gelu, silu
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5EncoderModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer, EncoderDecoderCache

from t5peft import (
    METHODS,
    bottleneck_wrap,
    ladder_wrap,
    load_adapter,
    load_backbone,
    lora_wrap,
    norm_wrap,
    prefix_wrap,
    save_adapter,
)
from t5peft.adapters import fingerprint
from t5peft.methods.bottleneck import BottleneckLayer
from t5peft.methods.ladder import LadderStack, SideStack, side_cache, side_config
from t5peft.methods.norm import NormConfig, NormLayer
from t5peft.methods.prefix import PrefixLayer
from t5peft.models.backbone import Quantization
from t5peft.models.unwrap import unwrap_t5

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@contextmanager
def watched(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The first input and the output of ``module`` in its last call."""
    seen: dict[str, Tensor] = {}
    handle = module.register_forward_hook(lambda _, inputs, output: seen.update(input=inputs[0], output=output))
    try:
        yield seen
    finally:
        handle.remove()


# Bottlenecks


@pytest.mark.parametrize(
    ("placement", "places"),
    [
        ("pfeiffer", {"DenseReluDense": 5}),
        ("parallel", {"DenseReluDense": 5}),
        ("houlsby", {"DenseReluDense": 5, "SelfAttention.o": 5}),
    ],
)
def test_bottlenecks_stand_where_the_paper_puts_them(placement: Any, places: dict[str, int]) -> None:
    model = bottleneck_wrap(ready_t5("wide"), size=5, placement=placement)
    names = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    assert {place: sum(name.endswith(place) for name in names) for place in places} == places
    assert len(names) == sum(places.values())
    assert sum(p.numel() for p in trained(model).values()) == len(names) * (24 * 5 + 5 + 5 * 24 + 24)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby", "parallel"])
@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("gelu", gelu), ("silu", silu)])
def test_a_bottleneck_computes_the_formula_of_its_paper(placement: Any, activation: Any, function: Any) -> None:
    model = stir(bottleneck_wrap(ready_t5("v1.1"), size=5, placement=placement, activation=activation).eval())
    layer = next(module for module in model.modules() if isinstance(module, BottleneckLayer))
    with watched(layer.base_layer) as base, watched(layer) as whole, torch.no_grad():
        model(**tiny_batch())
    weights = {name: p.detach() for name, p in layer.adapters["default"].named_parameters()}
    read = base["input"] if placement == "parallel" else base["output"]
    inner = function(read @ weights["down.weight"].T + weights["down.bias"])
    change = inner @ weights["up.weight"].T + weights["up.bias"]
    expected = base["output"] + (4 if placement == "parallel" else 1) * change
    torch.testing.assert_close(whole["output"], expected, rtol=0, atol=1e-6)


def test_two_bottlenecks_at_once_follow_on_each_other() -> None:
    model = stir(bottleneck_wrap(ready_t5("v1.0"), size=5).eval())
    model.add_adapter("other", model.peft_config["default"])
    cast(BaseTuner, model.base_model).set_adapter(["default", "other"])
    stir(model, 7).eval()
    layer = next(module for module in model.modules() if isinstance(module, BottleneckLayer))
    with watched(layer.base_layer) as base, watched(layer) as whole, torch.no_grad():
        model(**tiny_batch())
        first = base["output"] + layer.adapters["default"](base["output"])
        expected = first + layer.adapters["other"](first)
    torch.testing.assert_close(whole["output"], expected, rtol=0, atol=0)


def test_two_prefixes_at_once_are_one_of_both_lengths() -> None:
    model = stir(prefix_wrap(ready_t5("v1.0"), length=2).eval())
    model.add_adapter("other", model.peft_config["default"])
    cast(BaseTuner, model.base_model).set_adapter(["default", "other"])
    stir(model, 7).eval()
    longer = prefix_wrap(ready_t5("v1.0"), length=4).eval()
    layers = [[part for part in one.modules() if isinstance(part, PrefixLayer)] for one in (model, longer)]
    with torch.no_grad():
        for two, one in zip(*layers, strict=True):
            for name in ("key", "value"):
                parts = [two.adapters[adapter].get_parameter(name) for adapter in ("default", "other")]
                one.adapters["default"].get_parameter(name).copy_(torch.cat(parts, dim=1))
        torch.testing.assert_close(model(**tiny_batch()).logits, longer(**tiny_batch()).logits, rtol=0, atol=1e-6)


def test_options_of_a_bottleneck_out_of_range_are_told_all_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"size=0; .* and placement='before'; .*pfeiffer.* and activation='tanh'; .*relu"
    ):
        bottleneck_wrap(tiny_t5(), size=0, placement="before", activation="tanh")  # type: ignore[arg-type]


# Beside a backbone in bfloat16


@pytest.mark.parametrize("make", [bottleneck_wrap, norm_wrap, ladder_wrap])
def test_an_adapter_is_in_float32_beside_a_backbone_in_bfloat16(make: Any) -> None:
    model = make(ready_t5("v1.0").bfloat16())
    output = model(**tiny_batch())
    assert output.logits.dtype == torch.bfloat16
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    output.loss.backward()
    assert all(torch.isfinite(gradient(p)).all() for p in trained(model).values())


def moved_by_a_small_step(model: nn.Module) -> float:
    """The share of trained numbers that a step of AdamW at 1e-3 changes."""
    parameters = list(trained(model).values())
    before = [p.detach().clone() for p in parameters]
    model(**tiny_batch()).loss.backward()
    torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0).step()
    changed = sum(int((p != old).sum()) for p, old in zip(parameters, before, strict=True))
    return changed / sum(p.numel() for p in parameters)


def test_small_steps_move_norms_in_bfloat16_where_those_of_peft_stand_still() -> None:
    config = LNTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["layer_norm", "final_layer_norm"])
    with pytest.warns(UserWarning, match="Unsupported layer type .*T5LayerNorm"):
        theirs = get_peft_model(ready_t5("v1.0").bfloat16(), config)
    assert moved_by_a_small_step(theirs) < 0.1
    assert moved_by_a_small_step(norm_wrap(ready_t5("v1.0").bfloat16())) > 0.9


# Norms


def test_every_norm_is_trained_and_nothing_else() -> None:
    model = norm_wrap(ready_t5("wide"))
    assert len(trained(model)) == 2 * 2 + 3 * 3 + 2
    assert all(tuple(p.shape) == (24,) for p in trained(model).values())


def test_a_second_norm_adapter_starts_from_the_backbone_beside_a_merged_one() -> None:
    base, batch = ready_t5("v1.0"), tiny_batch()
    model = stir(norm_wrap(ready_t5("v1.0")).eval())
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.add_adapter("second", NormConfig())
    model.set_adapter("second")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, base(**batch).logits)


def test_merged_norms_come_out_again_bit_for_bit() -> None:
    base, batch = ready_t5("v1.0"), tiny_batch()
    model = stir(norm_wrap(ready_t5("v1.0")).eval())
    with torch.no_grad():
        tuned, plain = model(**batch).logits, base(**batch).logits
        model.merge_adapter()
        assert torch.equal(model(**batch).logits, tuned)
        with model.disable_adapter():  # takes it out
            assert torch.equal(model(**batch).logits, plain)
        assert torch.equal(model(**batch).logits, tuned)
    names = dict(base.named_parameters())
    for name, module in unwrap_t5(model).named_modules():
        if isinstance(module, NormLayer):
            assert torch.equal(module.base_layer.weight, names[f"{name}.weight"])


def test_a_merged_classifier_with_tuned_norms_is_a_plain_one() -> None:
    """Where peft's own norm tuning leaves its wrapper around the head."""
    assert norm_wrap(tiny_classifier()).merge_and_unload().state_dict().keys() == tiny_classifier().state_dict().keys()


def test_two_norms_or_two_ladders_at_once_are_an_error() -> None:
    for model, text in (
        (norm_wrap(ready_t5("v1.0")), "one weight"),
        (ladder_wrap(ready_t5("v1.0")), "Got the ladders .* at once; expected one"),
    ):
        model.add_adapter("other", model.peft_config["default"])
        cast(BaseTuner, model.base_model).set_adapter(["default", "other"])
        with pytest.raises(ValueError, match=text):
            model(**tiny_batch())


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "houlsby", "ladder", "norm"])
def test_a_batch_of_several_adapters_is_refused_where_it_would_be_one_of_the_active(method: str, tmp_path: Any) -> None:
    model = METHODS[method].wrap(ready_t5("v1.0")).eval()
    batch, names = tiny_batch(), ["default", "__base__", "default", "__base__"]
    for each in (model, load_adapter(save_adapter(model, tmp_path / "adapter"), model=ready_t5("v1.0"))[0]):
        with pytest.raises(ValueError, match=r"Got adapter_names=\['__base__', 'default'\] .*in one batch"):
            each(**batch, adapter_names=names)
        with pytest.raises(ValueError, match="in one batch"):
            each.generate(input_ids=batch["input_ids"], adapter_names=names)
        each(**batch)


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "houlsby", "ladder", "norm"])
@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter", "copy", "pickle", "get_peft_model"])
def test_a_batch_of_several_adapters_is_refused_however_the_model_was_made(
    method: str, way: str, tmp_path: Path
) -> None:
    """The corrections are those of the tuner's class and not of one model."""
    model = METHODS[method].wrap(ready_t5("v1.0")).eval()
    model.save_pretrained(str(tmp_path))
    other = {
        "from_pretrained": lambda: PeftModel.from_pretrained(ready_t5("v1.0"), tmp_path),
        "load_adapter": lambda: with_second_adapter(tmp_path),
        "copy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "get_peft_model": lambda: get_peft_model(ready_t5("v1.0"), PeftConfig.from_pretrained(str(tmp_path))),
    }[way]().eval()
    batch = tiny_batch()
    with pytest.raises(ValueError, match=r"Got adapter_names=\['__base__', 'default'\] .*in one batch"):
        other(**batch, adapter_names=["default", "__base__"] * 2)
    other(**batch)


def with_second_adapter(folder: Path) -> PeftModel:
    """A model that peft made, and an adapter that it read into it."""
    made = PeftModel.from_pretrained(ready_t5("v1.0"), folder)
    made.load_adapter(folder, "second")
    return made


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_ia3_that_peft_loads_keeps_the_dtype_beside_quantized_weights(
    quantize: Quantization, folders: dict[Geometry, Path], tmp_path: Path
) -> None:
    def backbone() -> PreTrainedModel:
        return load_backbone(folders["v1.1"], quantize=quantize, dtype=torch.bfloat16)[0]

    model = stir(METHODS["ia3"].wrap(backbone())).eval()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(backbone(), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)
    assert loaded.generate(**inputs_of(tiny_batch()), **GREEDY).shape[0] == 4


@pytest.mark.parametrize("make", [norm_wrap, ladder_wrap])
def test_a_tuned_adapter_does_not_change_the_fingerprint_of_its_backbone(make: Any, tmp_path: Any) -> None:
    model = stir(make(ready_t5("v1.0")))
    assert fingerprint(model) == fingerprint(ready_t5("v1.0"))
    loaded, _ = load_adapter(save_adapter(model.eval(), tmp_path / "adapter"), model=ready_t5("v1.0"))
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


# Ladders


def saved_by(model: nn.Module) -> tuple[set[int], int]:
    """Addresses of the tensors that the backward pass of a step would read, and the bytes that are not weights."""
    addresses, sizes = set(), {}

    def keep(tensor: Tensor) -> Tensor:
        addresses.add(tensor.untyped_storage().data_ptr())
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(**tiny_batch()).loss  # noqa: B018
    return addresses, sum(size for address, size in sizes.items() if address not in weights)


def test_the_backward_pass_of_a_ladder_reads_no_weight_of_the_backbone_but_the_head() -> None:
    model = ladder_wrap(ready_t5("v1.1"), reduction=4)
    t5 = unwrap_t5(model)
    frozen = {p.untyped_storage().data_ptr(): name for name, p in t5.named_parameters() if not p.requires_grad}
    read, kept_bytes = saved_by(model)
    assert {frozen[address] for address in read & frozen.keys()} == {"lm_head.weight"}
    lora_read, lora_bytes = saved_by(lora_wrap(ready_t5("v1.1")))
    assert len(lora_read) > 0
    assert kept_bytes < 0.8 * lora_bytes


def test_a_ladder_is_narrower_by_its_reduction_and_as_deep() -> None:
    model = ladder_wrap(ready_t5("wide"), reduction=4)
    decoder = unwrap_t5(model).get_submodule("decoder")
    assert isinstance(decoder, LadderStack)
    stack: Any = cast(SideStack, decoder.adapters["default"]).stack
    assert (stack.config.d_model, stack.config.d_ff, stack.config.d_kv, len(stack.block)) == (6, 10, 2, 3)
    assert side_config(tiny_config("wide"), 20).d_kv == 1, "10 // 20 would be none"
    with pytest.raises(ValueError, match=r"reduction=25; expected an integer from 1 to 24"):
        ladder_wrap(ready_t5("wide"), reduction=25)
    with pytest.raises(ValueError, match="Got a T5EncoderModel; expected a T5 with a decoder"):
        ladder_wrap(T5EncoderModel(tiny_config()))


def mt5(geometry: Geometry = "wide") -> PreTrainedModel:
    return MT5ForConditionalGeneration(MT5Config(**_numbers(geometry)))


def umt5(geometry: Geometry = "wide") -> PreTrainedModel:
    return UMT5ForConditionalGeneration(UMT5Config(**_numbers(geometry)))


def _numbers(geometry: Geometry) -> dict[str, Any]:
    values = tiny_config(geometry, eos_token_id=1, pad_token_id=0).to_dict()
    return {name: value for name, value in values.items() if name not in ("model_type", "architectures")}


@pytest.mark.parametrize("make", [mt5, umt5])
@pytest.mark.parametrize("method", ["houlsby", "parallel", "norm", "ladder"])
def test_relatives_of_t5_are_wrapped_alike(method: str, make: Any) -> None:
    torch.manual_seed(3)
    base, batch = make().eval(), tiny_batch()
    with torch.no_grad():
        plain = base(**batch).logits
        model = wrap(Case(method), base)
        assert torch.equal(model(**batch).logits, plain)
        stir(model)
        assert not torch.equal(model(**batch).logits, plain)
    expected = model.generate(**inputs_of(batch), **GREEDY, num_beams=2, use_cache=False).tolist()
    for options in ({}, {"cache_implementation": "static"}):
        assert model.generate(**inputs_of(batch), **GREEDY, num_beams=2, **options).tolist() == expected
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None for p in trained(model).values())


def test_hidden_states_are_given_out_only_where_they_are_asked_for() -> None:
    model, batch = ladder_wrap(ready_t5("v1.0")).eval(), tiny_batch()
    assert model(**batch).decoder_hidden_states is None
    asked, plain = (
        made(**batch, output_hidden_states=True).decoder_hidden_states for made in (model, ready_t5("v1.0"))
    )
    assert len(asked) == len(plain)
    torch.testing.assert_close(asked, plain, rtol=0, atol=1e-5)


def test_encoder_states_without_a_ladder_are_refused_by_its_decoder() -> None:
    model, batch = ladder_wrap(ready_t5("v1.0")), tiny_batch()
    with model.disable_adapter():
        states = unwrap_t5(model).get_submodule("encoder")(**inputs_of(batch))
    with pytest.raises(
        ValueError, match=r"encoder states of shape .*32\) .*; expected \[B, S, 36\] .* Encode with the adapter"
    ):
        model(encoder_outputs=states, attention_mask=batch["attention_mask"], labels=batch["labels"])


def test_a_cache_that_a_ladder_does_not_know_is_refused() -> None:
    cache = EncoderDecoderCache(DynamicCache(config=tiny_config()), DynamicCache(config=tiny_config()))
    cache.self_attention_cache.layers[0] = DynamicSlidingWindowLayer(sliding_window=4)
    with pytest.raises(ValueError, match=r"cache of DynamicSlidingWindowLayer; expected .*use_cache=False"):
        side_cache(cache, 2)
