"""The configurations of Accelerate that are shipped: what a CPU can run is run, and what it cannot is refused."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from fresh import Fresh, start_fresh
from paths import ROOT
from tiny import tiny_records, tiny_t5
from torch.distributed.fsdp import fully_shard

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, lora_wrap
from t5peft.nn.loss import target_loss

CONFIGS = ROOT / "examples" / "accelerate"


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed"])
def test_a_configuration_is_read_by_accelerate(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.mixed_precision != "fp16"
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}[name]


def test_the_blocks_that_fsdp_splits_are_those_of_t5() -> None:
    settings = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    block = getattr(transformers.models.t5.modeling_t5, settings["fsdp_transformer_layer_cls_to_wrap"])
    assert sum(isinstance(module, block) for module in tiny_t5().modules()) == 4


@pytest.mark.parametrize("asks", ["argument", "file", "launcher"])
def test_deepspeed_that_is_not_installed_is_one_line(
    asks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t5peft.training.arguments.find_spec", lambda name: None)
    settings: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    config = tmp_path / "zero.json"
    config.write_text(json.dumps(settings))
    if asks == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "True")
    given = {"argument": settings, "file": str(config), "launcher": None}[asks]
    with pytest.raises(ImportError, match=r"^Got a configuration for DeepSpeed .* Run `pip install deepspeed`\.$"):
        T5PeftTrainingArguments(str(tmp_path), deepspeed=given)


ALONE = """
import sys
from t5peft import T5PeftTrainingArguments
T5PeftTrainingArguments(sys.argv[1], use_cpu=True, ddp_timeout=2)
"""


@pytest.mark.processes
def test_a_process_that_never_meets_the_others_ends_after_ddp_timeout(tmp_path: Path) -> None:
    """The first process waits for the others in torch's store, and the others wait for the store."""
    with start_alone("0", tmp_path) as first, start_alone("1", tmp_path) as second:
        assert [process.wait(timeout=60) for process in (first, second)] == [1, 1]
        assert re.search(r"DistStoreError: Timed out after .* waiting for clients", first.stderr)
        assert re.search(r"DistNetworkError: The client socket has timed out after 2000ms", second.stderr)


def start_alone(rank: str, folder: Path) -> AbstractContextManager[Fresh]:
    """Start one process of a group of two whose other process is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return start_fresh(ALONE, folder, env=os.environ | meeting | {"OMP_NUM_THREADS": "1"})


def test_fsdp_that_the_launcher_asks_for_is_refused_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = T5PeftTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp on a CPU"):
        T5PeftTrainer(lora_wrap(tiny_t5()), arguments, train_dataset=tiny_records(4))


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_of_the_launcher_train_as_one(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, *sys.path)))
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    config = ["--config_file", str(CONFIGS / "ddp.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    script = str(ROOT / "examples" / "two_processes.py")
    done = subprocess.run(
        [*launcher, *config, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("processes "))
    assert line.startswith("processes 2, evaluation loss 0.33942")


SHARDED = """
import sys, torch, torch.distributed as dist
from test_accelerate import gradients, sharded
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
for method in ("full", "lora", "prefix", "ia3"):
    found = gradients(sharded(method), slice(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(found, f"{folder}/{method}.pt")
dist.destroy_process_group()
"""


def gradients(model: torch.nn.Module, rows: slice) -> dict[str, torch.Tensor]:
    """The gradients of the summed loss of some of four rows, whole."""
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(2, 380, (4, length), generator=draw) for length in (7, 5))
    inputs = {
        "input_ids": source[rows], "attention_mask": torch.ones_like(source[rows]),
        "decoder_input_ids": target[rows].roll(1, 1), "labels": target[rows],
    }  # fmt: skip
    target_loss(model, inputs)[0].backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def whole(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return METHODS[method].wrap(tiny_t5("v1.1").double()).double().train()


def sharded(method: str) -> torch.nn.Module:
    """The model split by FSDP2 as the configuration says: each block, and the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.models.t5.modeling_t5 import T5Block

    model, mesh = whole(method), init_device_mesh("cpu", (2,))
    for module in model.modules():
        if isinstance(module, T5Block):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@pytest.mark.slow
@pytest.mark.processes
def test_the_gradients_of_a_model_that_fsdp2_splits_are_those_of_a_whole_one(tmp_path: Path) -> None:
    """By torch itself, as accelerate splits on GPUs only. FSDP takes the mean of two processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent, *sys.path)))
    command = [sys.executable, "-W", "ignore", "-c", SHARDED]
    runs = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    for method in ("full", "lora", "prefix", "ia3"):
        expected = gradients(whole(method), slice(0, 4))
        found = torch.load(tmp_path / f"{method}.pt")
        assert found.keys() == expected.keys()
        assert found
        for name, grad in found.items():
            torch.testing.assert_close(2 * grad, expected[name])
