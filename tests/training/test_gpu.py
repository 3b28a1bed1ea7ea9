"""Low precision, quantized backbones, packing, torch.compile and mixed batches on a GPU, as ``make gpu`` runs them.

Each test has the same body on a CPU, where it is slow, so that it is rehearsed where there is no GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow import on_device
from peft import PeftModel
from tiny import tiny_records, tiny_t5, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, load_adapter, load_backbone, save_adapter
from t5peft.evaluation import loss_and_perplexity, predict
from t5peft.serving.adapter import read_adapter
from t5peft.serving.mixed import MixedModel

DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
RECORDS = tiny_records(32)
SOURCES = [record["input_ids"] for record in RECORDS[:6]]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return str(request.param)


def trained(model: nn.Module, device: str, folder: Path, **more: Any) -> list[float]:
    """The losses of eight steps."""
    arguments = T5PeftTrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=8, learning_rate=1e-2, use_cpu=device == "cpu", seed=1,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, dataloader_pin_memory=False, **more,
    )  # fmt: skip
    trainer = T5PeftTrainer(model, arguments, train_dataset=RECORDS)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def wrapped(method: str = "lora") -> PreTrainedModel | PeftModel:
    torch.manual_seed(0)
    return METHODS[method].wrap(tiny_t5())


@pytest.fixture(scope="module")
def of_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of LoRA on the CPU in float32, without kernels of our own."""
    return trained(wrapped(), "cpu", tmp_path_factory.mktemp("cpu"), fast_kernels=False, pack=False)


def test_float32_trains_as_on_the_cpu(device: str, of_cpu: list[float], tmp_path: Path) -> None:
    assert trained(wrapped(), device, tmp_path) == pytest.approx(of_cpu, rel=2e-3)


def test_bf16_trains_nearly_as_float32(device: str, of_cpu: list[float], tmp_path: Path) -> None:
    assert trained(wrapped(), device, tmp_path, bf16=True) == pytest.approx(of_cpu, rel=3e-2)


@pytest.mark.parametrize("method", ["full", "prefix", "prompt", "ia3", "ladder"])
def test_every_kind_of_method_trains_in_bf16(method: str, device: str, tmp_path: Path) -> None:
    exact = trained(wrapped(method), device, tmp_path)
    assert trained(wrapped(method), device, tmp_path, bf16=True) == pytest.approx(exact, rel=5e-2)


def test_packed_rows_train_as_padded_ones(device: str, of_cpu: list[float], tmp_path: Path) -> None:
    assert trained(wrapped(), device, tmp_path, pack=True) == pytest.approx(of_cpu, rel=2e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch compiles a look at it
def test_a_compiled_model_trains_as_a_plain_one(device: str, of_cpu: list[float], tmp_path: Path) -> None:
    compiled = trained(wrapped(), device, tmp_path, torch_compile=True, pack=False)
    assert compiled == pytest.approx(of_cpu, rel=2e-3)


def test_checkpointing_changes_nothing(device: str, of_cpu: list[float], tmp_path: Path) -> None:
    assert trained(wrapped(), device, tmp_path, gradient_checkpointing=True) == pytest.approx(of_cpu, rel=2e-3)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantized_backbone_trains_is_saved_and_answers(
    quantize: Any, device: str, backbone: str, tmp_path: Path
) -> None:
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    base, tokenizer = load_backbone(backbone, quantize=quantize)
    model = METHODS["qlora"].wrap(on_device(base, device), rank=4)
    losses = trained(model, device, tmp_path / "run", bf16=True)
    assert losses[-1] < losses[0]
    answers = predict(model, tokenizer, SOURCES, max_new_tokens=5)
    folder = save_adapter(model, tmp_path / "adapter")
    again = load_adapter(folder, model=on_device(load_backbone(backbone, quantize=quantize)[0], device))[0]
    assert predict(again, tokenizer, SOURCES, max_new_tokens=5) == answers


def test_a_mixed_batch_answers_as_each_adapter_does(device: str, tmp_path: Path) -> None:
    names = ("lora", "ia3", "prefix")
    folders = {}
    for name in names:
        model = wrapped(name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        folders[name] = save_adapter(model, tmp_path / name)
    mixed = MixedModel(on_device(tiny_t5(), device))
    adapters = [read_adapter(name, folders[name], mixed.t5) for name in names]
    rows = mixed.generate(SOURCES[:3], adapters, max_new_tokens=6)
    for row, (name, source) in enumerate(zip(names, SOURCES, strict=False)):
        by_itself = mixed.generate([source], [adapters[row]], max_new_tokens=6)
        assert rows[row].tolist()[: by_itself.shape[1]] == by_itself[0].tolist(), name


def test_loss_and_answers_are_those_of_the_cpu(device: str) -> None:
    tokenizer = tiny_tokenizer()
    losses, answers = [], []
    for where in ("cpu", device):
        model = on_device(wrapped(), where)
        losses.append(loss_and_perplexity(model, RECORDS)["loss"])
        answers.append(predict(model, tokenizer, SOURCES, max_new_tokens=5))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert answers[1] == answers[0]
