"""Errors of the wraps, and what they take beside quantized weights."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import ADAPTERS, Case, ready_t5, trained, wrap
from grids import sampled
from laws import all_adapters, all_cases, assert_same, inputs_of, logits_of
from narrow import as_peft, gradient
from peft import (
    PeftModel,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import (
    Geometry,
    tiny_batch,
    tiny_t5,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from t5peft import METHODS, load_backbone, lora_wrap
from t5peft.methods.lora import set_lora_plus
from t5peft.models.backbone import Quantization


@all_cases
def test_a_model_that_is_no_t5_is_an_error(case: Case) -> None:
    with pytest.raises(ValueError, match=r"Got a Linear; expected a T5 .* load_backbone"):
        METHODS[case.method].wrap(nn.Linear(2, 2), **case.options)


@pytest.mark.parametrize("given", [(tiny_t5(), "tokenizer"), "mini", None], ids=["pair", "name", "none"])
def test_what_is_no_model_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError, match=r"as model; expected a T5\. (Give the first|load_backbone)"):
        lora_wrap(given)


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
@pytest.mark.parametrize(
    ("case", "quantize"), sampled([case for case in ADAPTERS if not case.variant], ["int8", "nf4"], every=2)
)
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
        model = method.wrap_for(tiny_t5(), [{"input_ids": [*example, 1], "labels": [5, 1]}], options)
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
