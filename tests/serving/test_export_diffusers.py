"""LoRA of a text encoder in the form of diffusers: the names, the settings, and diffusers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import stir
from safetensors import safe_open
from tiny import fill_unevenly, tiny_batch, tiny_config, tiny_t5
from transformers import T5EncoderModel

from t5peft import ia3_wrap, lora_wrap, save_adapter
from t5peft.cli import main
from t5peft.models.encoders import T5EncoderForEmbedding
from t5peft.serving.export_diffusers import WEIGHTS, diffusers_state, export_diffusers

BATCH = {name: tensor for name, tensor in tiny_batch().items() if name != "labels"}


def encoder() -> Any:
    return fill_unevenly(T5EncoderModel(tiny_config("v1.1"))).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rank-stabilized"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    options: dict[str, Any] = {"rank": 3, "alpha": 5.0, "target_modules": ["q", "wo"], "rank_stabilized": request.param}
    model = stir(lora_wrap(encoder(), **options)).eval()
    return model, save_adapter(model, tmp_path_factory.mktemp("lora") / "adapter")


def test_names_and_settings_are_those_of_diffusers(adapter: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = adapter
    path = export_diffusers(folder, tmp_path, text_encoder="text_encoder_3")
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
        names = set(file.keys())
    assert path.name == WEIGHTS
    start = "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q.lora_linear_layer."
    assert {f"{start}up.weight", f"{start}down.weight"} <= names
    assert len(names) == 2 * 2 * 2  # two maps in two layers
    assert (settings["text_encoder_3.r"], settings["text_encoder_3.lora_alpha"]) == (3, 5.0)
    assert main(["export", str(folder), "--to", "diffusers", "--output", str(tmp_path / "cli")]) == 0
    with safe_open(tmp_path / "cli" / WEIGHTS, "pt") as file:
        assert {name.replace("_2.", "_3.", 1) for name in file.keys()} == names  # noqa: SIM118


def test_an_embedder_is_written_by_the_same_names(tmp_path: Path) -> None:
    made = lora_wrap(T5EncoderForEmbedding(tiny_config()), rank=2)
    state, _ = diffusers_state(save_adapter(made, tmp_path / "adapter"))
    assert "text_encoder_2.encoder.block.1.layer.0.SelfAttention.v.lora_linear_layer.up.weight" in state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ia3_wrap(encoder()), "Got an adapter of IA3; expected LoRA without DoRA"),
        (lambda: lora_wrap(encoder(), dora=True), "Got an adapter of DoRA; expected LoRA without DoRA"),
        (lambda: lora_wrap(tiny_t5()), r"not of an encoder, such as .*decoder\.block"),
        (
            lambda: lora_wrap(T5EncoderForEmbedding(tiny_config(embedding_size=4))),
            r"such as base_model\.model\.embedding_projection\.weight; expected LoRA",
        ),
    ],
)
def test_what_diffusers_has_no_place_for_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_diffusers(save_adapter(make(), tmp_path / "adapter"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("pipeline", "part"), [("Flux", "text_encoder_2"), ("SD3", "text_encoder_3")])
@pytest.mark.filterwarnings("ignore")
def test_the_loader_of_diffusers_computes_the_same(
    pipeline: str, part: Any, adapter: tuple[Any, Path], tmp_path: Path
) -> None:
    loaders = pytest.importorskip("diffusers.loaders.lora_pipeline")
    loader = getattr(loaders, f"{pipeline}LoraLoaderMixin")
    model, folder = adapter
    export_diffusers(folder, tmp_path, text_encoder=part)
    state, metadata = loader.lora_state_dict(str(tmp_path), return_lora_metadata=True)
    loaded = encoder()
    loader.load_lora_into_text_encoder(state, None, loaded, prefix=part, metadata=metadata)
    with torch.no_grad():
        expected = model(**BATCH).last_hidden_state
        assert (expected - encoder()(**BATCH).last_hidden_state).abs().max() > 1e-2
        torch.testing.assert_close(loaded(**BATCH).last_hidden_state, expected, rtol=0, atol=1e-6)
