"""The private names of other libraries that this package relies on exist and take the arguments that it gives."""

from __future__ import annotations

import inspect
import logging
import sys
from importlib.util import find_spec

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import (
    ModulesToSaveWrapper,
    PeftType,
    get_peft_model_state_dict,
    load_peft_weights,
    set_additional_trainable_modules,
)
from torch import nn

from t5peft import load_backbone, lora_wrap
from t5peft.compat import bitsandbytes as quantization
from t5peft.compat.peft import adapter_modules, adapter_state
from t5peft.compat.torch import computes_bfloat16

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (get_peft_model_state_dict, {"model", "adapter_name", "save_embedding_layers"}),
        (load_peft_weights, {"model_id", "device"}),
        (set_additional_trainable_modules, {"model", "peft_config", "model_config", "adapter_name"}),
        (PeftModel.from_pretrained, {"model", "model_id", "is_trainable", "config"}),
        (PeftModel.save_pretrained, {"save_directory", "save_embedding_layers", "selected_adapters"}),
        (PeftConfig.from_pretrained, {"pretrained_model_name_or_path"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_functions_of_peft_take_what_they_are_given(function: object, arguments: set[str]) -> None:
    assert arguments <= inspect.signature(function).parameters.keys()  # type: ignore[arg-type]


def test_layers_of_peft_have_the_attributes_that_are_read() -> None:
    assert {"adapter_layer_names", "merged", "get_base_layer"} <= set(dir(BaseTunerLayer))
    layer = TrainableTokensLayer(nn.Embedding(4, 2), "default")
    assert {"tied_adapter", "trainable_tokens_delta"} <= set(dir(layer))
    wrapper = ModulesToSaveWrapper(nn.Linear(2, 2), "default")
    assert "default" in wrapper.modules_to_save
    assert isinstance(wrapper.original_module, nn.Linear)


def test_the_enumeration_of_methods_is_built_as_it_is_extended() -> None:
    assert all(hasattr(PeftType, name) for name in ("_member_names_", "_member_map_", "_value2member_map_"))
    own = lora_wrap(load_backbone("mini")[0]).peft_config["default"].peft_type
    assert isinstance(own, PeftType)
    assert PeftType(own.value) is PeftType.__members__[own.value] is own


def test_the_modules_of_an_adapter_are_those_whose_weights_are_saved() -> None:
    model = lora_wrap(load_backbone("mini", num_labels=2)[0], rank=1)
    weights = {p.data_ptr() for module in adapter_modules(model) for p in module.parameters(recurse=False)}
    assert weights == {tensor.data_ptr() for tensor in adapter_state(model, "default").values()}


def test_torch_says_what_the_processor_computes() -> None:
    assert isinstance(computes_bfloat16(), bool)
    assert all(callable(getattr(torch.cpu, name)) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


@needs_bitsandbytes
def test_classes_of_bitsandbytes_take_what_they_are_given() -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = {"input_features", "output_features", "bias", "compute_dtype", "quant_storage", "device"}
    assert linear <= inspect.signature(Linear4bit).parameters.keys()
    assert {"data", "requires_grad", "quant_type", "quant_storage"} <= inspect.signature(Params4bit).parameters.keys()
    layer = quantization.linear_nf4(nn.Linear(64, 64, bias=False), torch.float32)
    assert {"support_avx512bf16_for_cpu", "compute_dtype"} <= set(vars(layer)) | set(dir(layer))
    assert quantization.compute_dtypes(nn.Sequential(layer)) == {torch.float32}
    quantization.keep_4_bits(nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("capability", "inputs", "wrong"), [("AVX512", 16, ["0"]), ("AVX512", 64, []), ("AVX2", 16, [])]
)
def test_maps_that_avx_512_reads_with_wrong_scales_are_named(
    capability: str, inputs: int, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = quantization.linear_nf4(nn.Linear(inputs, 64, bias=False), torch.float32)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert quantization.maps_with_wrong_scales(nn.Sequential(layer)) == wrong


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_the_scales_of_quantized_weights_are_where_they_are_read(quantize: str) -> None:
    model, _ = load_backbone("mini", quantize=quantize)  # type: ignore[arg-type]
    numbers = list(quantization.stored_numbers(model))
    assert all(tensor.is_floating_point() for _, tensor in numbers)
    assert {name for name, _ in numbers} == {name for name, _ in model.named_parameters()}


@needs_bitsandbytes
def test_the_note_on_casting_comes_from_the_logger_that_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    load_backbone("mini", quantize="int8")
    source = inspect.getsource(sys.modules[quantization.CAST_LOGGER])
    assert quantization.CAST_NOTE in source
    logging.getLogger(quantization.CAST_LOGGER).warning(f"{quantization.CAST_NOTE} from torch.float32")
    assert quantization.CAST_NOTE not in caplog.text
