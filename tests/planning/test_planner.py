"""The planner: bytes from only a configuration, and what it says to change."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from tiny import GEOMETRIES, Geometry, tiny_config, tiny_t5
from transformers import AutoModelForSeq2SeqLM, BartConfig, ByT5Tokenizer

from t5peft.cli import main
from t5peft.methods import METHODS, lora_wrap
from t5peft.models.backbone import computes_bfloat16, load_backbone
from t5peft.models.encoders import T5EncoderForEmbedding
from t5peft.nn.loss import target_loss
from t5peft.planning import simulate
from t5peft.planning.geometry import config_of, known_checkpoints
from t5peft.planning.job import Job
from t5peft.planning.live_bytes import LiveBytes
from t5peft.planning.plan import changes, step_bytes
from t5peft.planning.simulate import StepBytes, StepShape, simulate_step
from t5peft.planning.units import parse_bytes

RECORD = ROOT / "benchmarks" / "records" / "bench" / "planner.json"

# As papers and cards give them, in millions: Raffel et al. 2020 (Appendix, table of models), Xue et al. 2021 and 2022.
PUBLISHED_MILLIONS = {
    "t5-small": 60.5, "t5-base": 222.9, "t5-large": 737.7, "t5-3b": 2851.6, "t5-11b": 11307.3,
    "google/flan-t5-small": 77.0, "google/flan-t5-base": 247.6, "google/flan-t5-large": 783.2,
    "google/flan-t5-xl": 2849.8, "google/flan-t5-xxl": 11135.3,
    "google/mt5-small": 300, "google/mt5-base": 582, "google/mt5-large": 1230, "google/mt5-xl": 3740, "google/mt5-xxl": 12900,
    "google/byt5-small": 300, "google/byt5-base": 582, "google/byt5-large": 1230, "google/byt5-xl": 3740,
    "google/byt5-xxl": 12900,
    "Salesforce/codet5p-220m": 223, "Salesforce/codet5p-770m": 738,
    "google/madlad400-3b-mt": 2940,
    "CohereLabs/aya-101": 12900, "google/flan-ul2": 19460,
    "castorini/monot5-base-msmarco": 222.9, "castorini/monot5-3b-msmarco": 2851.6,
    "Rostlab/prot_t5_xl_uniref50": 2818, "Rostlab/ProstT5": 2818,
    "amazon/chronos-t5-tiny": 8.4, "amazon/chronos-t5-mini": 20.4, "amazon/chronos-t5-small": 46, "amazon/chronos-t5-base": 201,
    "amazon/chronos-t5-large": 709,
}  # fmt: skip
# Sizes of the encoders by their cards, without the projection
ENCODER_MILLIONS = {"base": 110, "large": 335, "xl": 1240, "xxl": 4865}


@pytest.mark.parametrize("size", ENCODER_MILLIONS)
@pytest.mark.parametrize("family", ["gtr", "sentence"])
def test_a_sentence_encoder_has_as_many_weights_as_published(family: str, size: str) -> None:
    config = config_of(f"sentence-transformers/{family}-t5-{size}")
    with torch.device("meta"):
        model = T5EncoderForEmbedding(config)
    count = sum(p.numel() for name, p in model.named_parameters() if "embedding_projection" not in name)
    assert count / 1e6 == pytest.approx(ENCODER_MILLIONS[size], rel=0.012)


def test_an_encoder_is_planned_without_a_decoder() -> None:
    job = Job("sentence-transformers/gtr-t5-base", "lora", 64, 64, 8, 8, device="cpu")
    found, whole = step_bytes(job), step_bytes(replace(job, backbone="t5-base"))
    assert 0.45 < found.weights_bytes / whole.weights_bytes < 0.52
    assert found.peak_bytes < 0.7 * whole.peak_bytes
    assert found.trainable_parameters == 12 * 2 * 2 * 16 * 768 + 768 * 768  # two maps in each layer, and the projection


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_a_known_checkpoint_has_as_many_weights_as_published(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    if config.is_gated_act:  # its head is its own, but a model from only a configuration comes out tied
        count += config.vocab_size * config.d_model
    assert count / 1e6 == pytest.approx(PUBLISHED_MILLIONS[name], rel=0.012)


def test_every_known_checkpoint_has_a_configuration() -> None:
    assert {config_of(name).model_type for name in known_checkpoints()} == {"t5", "mt5", "umt5"}


def test_a_backbone_that_is_nowhere_is_refused_with_what_is_known() -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a folder with a config\.json.*google/flan-t5-xl"):
        config_of("./nowhere")


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Got a 'bart' checkpoint .*; expected one of t5, mt5, umt5"):
        config_of(str(tmp_path))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_counted_as_the_folder_has_it(gated: bool, tied: bool, tmp_path: Path) -> None:
    """Not as the variant mostly has it: a gated T5 may be tied, and one of the first version may not be."""
    model = tiny_t5(feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_backbone(tmp_path)
    planned = step_bytes(Job(str(tmp_path), "lora", 8, 4, batch=1, micro_batch=1, device="cpu"))
    assert planned.weights_bytes == sum(parameter.nbytes for parameter in loaded.parameters())


# --- the simulation


def test_live_bytes_are_those_of_the_tensors_that_live() -> None:
    meter = LiveBytes()
    with meter:
        a = torch.zeros(1000)
        b = a + 1
        assert meter.live_bytes == 8000
        view = b[10:]
        del b
        assert meter.live_bytes == 8000, "a view holds its storage"
        del view
        gc.collect()
        assert meter.live_bytes == 4000
        a.add_(1)
    assert (meter.live_bytes, meter.peak_bytes) == (4000, 8000)


@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt", "ia3"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_simulated_step_lives_as_much_as_a_real_one(geometry: Geometry, method: str) -> None:
    """The same counting on real tensors, which runs every kernel: byte for byte."""
    options = {"length": 5} if method in ("prefix", "prompt") else {}
    shape: dict[str, Any] = {"batch": 3, "source_tokens": 17, "target_tokens": 9}
    found = simulate_step(
        tiny_config(geometry),
        lambda model: METHODS[method].wrap(model, **options),
        StepShape(fast_kernels=False, **shape),
    )
    model = METHODS[method].wrap(tiny_t5(geometry), **options).train()
    source = torch.ones(3, 17, dtype=torch.long)
    mask = source.clone()
    mask[0, -1] = 0
    inputs = {
        "input_ids": source, "attention_mask": mask, "decoder_input_ids": torch.ones(3, 9, dtype=torch.long),
        "labels": torch.ones(3, 9, dtype=torch.long),
    }  # fmt: skip
    meter = LiveBytes()
    parameters = list(model.parameters())
    for tensor in [*parameters, *model.buffers(), *inputs.values()]:
        meter.count(tensor)
    with _values(meter):
        loss, _ = target_loss(model, inputs)
        loss.backward()
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    assert found.optimizer_bytes == 2 * trained
    assert found.weights_bytes + found.adapter_bytes == sum(parameter.nbytes for parameter in parameters)
    assert found.peak_bytes - found.optimizer_bytes == pytest.approx(meter.peak_bytes, rel=0.02)


class _values(LiveBytes):
    """Counts into another meter, and does not change values."""

    def __init__(self, meter: LiveBytes) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(leaf, torch.Tensor):
                self.meter.count(leaf)
        return result


def simulated(**changes: object) -> StepBytes:
    shape = {"batch": 4, "source_tokens": 32, "target_tokens": 8} | changes
    return simulate_step(tiny_config(), lambda model: lora_wrap(model, rank=4), StepShape(**shape))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [
        ("lora", True),
        ("ladder", False),
        *(
            pytest.param(method, checkpointing, marks=pytest.mark.slow)
            for method in ("full", "lora", "prefix", "ladder")
            for checkpointing in (False, True)
            if (method, checkpointing) not in (("lora", True), ("ladder", False))
        ),
    ],
)
def test_a_deep_model_is_counted_from_a_few_of_its_layers(
    method: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(num_layers=6, num_decoder_layers=5)
    shape = {"batch": 2, "source_tokens": 16, "target_tokens": 8, "checkpointing": checkpointing, "accumulation": 2}
    found = simulate_step(config, METHODS[method].wrap, StepShape(**shape))  # type: ignore[arg-type]
    monkeypatch.setattr("t5peft.planning.simulate.SIMULATED_LAYERS", 6)
    assert found == simulate_step(config, METHODS[method].wrap, StepShape(**shape))  # type: ignore[arg-type]


def test_checkpointing_takes_less_and_longer_rows_take_more() -> None:
    plain = simulated()
    kept = plain.activations_bytes
    assert simulated(batch=8).activations_bytes == pytest.approx(2 * kept, rel=1e-4)
    longer = simulated(source_tokens=64).activations_bytes
    scores = 2 * 4 * 4 * 4  # bytes of a score of both layers, four heads and four examples
    assert longer > kept + scores * (64**2 - 32**2)
    assert simulated(checkpointing=True).activations_bytes < kept / 4
    half = simulated(dtype=torch.bfloat16)
    assert (half.weights_bytes, half.adapter_bytes) == (plain.weights_bytes // 2, plain.adapter_bytes)
    for change in ({"checkpointing": True}, {"dtype": torch.bfloat16}):
        assert simulated(**change).peak_bytes < plain.peak_bytes
    for growth in ({"batch": 8}, {"source_tokens": 64}):
        assert simulated(**growth).peak_bytes - plain.peak_bytes >= simulated(**growth).activations_bytes - kept


def test_nothing_of_the_library_is_changed_by_a_simulation_for_cuda() -> None:
    from t5peft.nn.loss import CHUNK_ELEMENTS

    before = (dict(CHUNK_ELEMENTS), torch.nn.functional.scaled_dot_product_attention)
    config = tiny_config(dropout_rate=0.1)
    shape: dict[str, Any] = {"batch": 4, "source_tokens": 64, "target_tokens": 8, "fast_kernels": False}
    on = {
        device: simulate_step(config, lora_wrap, StepShape(device=device, **shape)).peak_bytes
        for device in ("cpu", "cuda")
    }
    assert on["cuda"] < on["cpu"], "no scores are kept there"
    assert (dict(CHUNK_ELEMENTS), torch.nn.functional.scaled_dot_product_attention) == before


def test_a_simulation_keeps_nothing_alive() -> None:
    models = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        models.append(weakref.ref(model))
        return lora_wrap(model)  # type: ignore[arg-type]

    simulate_step(tiny_config(), wrap, StepShape(2, 8, 4))
    gc.collect()
    assert models[0]() is None


def test_dora_is_planned_beside_four_bits() -> None:
    """peft takes each weight in full there, to find its norm."""
    shape = {"batch": 2, "source_tokens": 16, "target_tokens": 8, "quantize": "nf4"}
    lora, dora = (simulate_step(tiny_config(), METHODS[name].wrap, StepShape(**shape)) for name in ("lora", "dora"))  # type: ignore[arg-type]
    assert dora.trainable_parameters == lora.trainable_parameters + 6 * 2 * 32  # a factor for each output of q and v
    assert dora.peak_bytes > lora.peak_bytes


def test_quantised_weights_take_a_byte_or_half_of_one() -> None:
    config = tiny_config("v1.1", d_model=128, d_ff=256, num_heads=2, d_kv=64)
    of = {
        quantize: simulate_step(
            config, lambda model: METHODS["qlora"].wrap(model, rank=2), StepShape(1, 4, 4, quantize),
        ).weights_bytes
        for quantize in ("int8", "nf4")
    }  # fmt: skip
    linear = 2 * (4 + 8) * 128 * 128 + 4 * 2 * 128 * 256  # attention of both stacks, wi_0 and wi_1
    assert of["int8"] - of["nf4"] == pytest.approx(linear / 2, rel=0.05)


# --- plans


@pytest.mark.parametrize(
    ("text", "amount"),
    [("24GB", 24 * 10**9), ("16 GiB", 2**34), ("1.5gb", 15 * 10**8), ("8g", 8 * 10**9), ("3m", 3 * 10**6), ("9B", 9)],
)
def test_memory_is_read_with_its_unit(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["24 apples", "24", "0GB", "2 TB", "GB", ""])
def test_what_is_no_amount_of_memory_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"Got '{text}'; expected a number with MB, GB"
    with pytest.raises(ValueError, match=message):
        parse_bytes(text)
    with pytest.raises(SystemExit):
        main(["plan", "--memory", text])
    assert message in capsys.readouterr().err


def test_a_wrong_job_is_refused_with_everything_that_is_wrong() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)Got 0 as source_tokens.*Got method 'lara'.*Got micro-batches of 2 for 5 examples"
    ):
        Job("mini", "lara", 0, 8, batch=5, micro_batch=2)


def job(backbone: str = "mini", **changes: object) -> Job:
    fields = {"source_tokens": 64, "target_tokens": 16, "batch": 8, "micro_batch": 8, "device": "cpu"} | changes
    return Job(backbone, "lora", **fields)  # type: ignore[arg-type]


def test_what_fits_needs_no_change_and_what_does_not_gets_changes_that_fit(backbone: str) -> None:
    planned = job(backbone)
    needed = step_bytes(planned).needed_bytes
    assert changes(planned, needed) == []
    found = changes(planned, needed - 1)
    assert found[0].text == "micro-batches of 4, 2 of them a step: the same gradient"
    assert found[-1].text.startswith("gradient checkpointing")
    assert all(change.bytes.needed_bytes < needed for change in found)
    assert changes(planned, 1000) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_used_for_several_plans_gives_the_same_bytes(
    method: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it takes more rows, or several micro-batches, before: a forward pass stores nothing."""
    first, other = (replace(job(backbone), method=method, batch=8, micro_batch=rows) for rows in (4, 8))
    monkeypatch.setattr(simulate, "_MODELS", {})
    step_bytes.cache_clear()
    alone = step_bytes(other)
    assert len(simulate._MODELS) > 0
    simulate._MODELS.clear()
    step_bytes.cache_clear()
    step_bytes(first)
    made = len(simulate._MODELS)
    assert step_bytes(other) == alone
    assert len(simulate._MODELS) == made
    step_bytes.cache_clear()


def test_the_command_prints_the_plan(backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--backbone", backbone, "--source", "64", "--target", "16", "--batch", "8", "--device", "cpu"]
    assert main([*arguments, "--memory", "1GB"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "weights of the backbone",
        "adapter (",
        "optimizer (AdamW)",
        "peak of a step",
        "in 1 GB",
        "It fits",
    ):
        assert line in printed
    assert main([*arguments, "--memory", "0.1MB"]) == 1
    assert "Nothing tried makes it fit" in capsys.readouterr().out
    assert main([*arguments, "--batch", "0"]) == 2
    assert main([*arguments, "--micro-batch", "0"]) == 2


def measured() -> list[dict[str, Any]]:
    """Rows of the record that benchmarks/planner_accuracy.py makes: six shapes, all methods."""
    return list(json.loads(RECORD.read_text(encoding="utf-8"))["rows"]) if RECORD.is_file() else []


def test_every_method_was_measured_in_six_shapes() -> None:
    shapes = {(row["backbone"], row["rows"], row["source_tokens"], row["checkpointing"]) for row in measured()}
    assert len(shapes) == 6
    assert {(*shape, method) for shape in shapes for method in METHODS} == {
        (row["backbone"], row["rows"], row["source_tokens"], row["checkpointing"], row["method"])
        for row in measured()
        if "measured_bytes" in row
    }


SLOW_PLANS = {"dora", "adalora", "mam", "houlsby", "parallel"}  # their layers are those of lora, prefix and pfeiffer


def slow_if_large(row: dict[str, Any]) -> Any:
    """A parameter of pytest, named by what was measured; slow for the largest backbone, and for a shape that has a sibling.

    t5-small was measured in rows of 128 and of 256 tokens without checkpointing. All methods run on the longer ones, where
    what grows with the square of the length counts for more, but for those whose layers another method has. In the other
    shapes runs one method.
    """
    shape = (row["backbone"], row["source_tokens"], row["checkpointing"])
    is_sibling = shape != ("t5-small", 256, False) and row["method"] != "lora"
    name = f"{row['backbone']}-{row['rows']}x{row['source_tokens']}-{row['method']}"
    slow = row["backbone"] == "t5-base" or is_sibling or row["method"] in SLOW_PLANS
    return pytest.param(row, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("row", [slow_if_large(row) for row in measured()])
def test_the_planner_is_within_ten_percent_of_measured_peaks(row: dict[str, Any]) -> None:
    if METHODS[row["method"]].quantize and not computes_bfloat16():
        pytest.skip("the record's quantised backbones compute in bfloat16, which this machine would not choose")
    planned = step_bytes(
        Job(
            row["backbone"], row["method"], row["source_tokens"], row["target_tokens"], row["rows"], row["rows"],
            device="cpu", checkpointing=row["checkpointing"],
        )
    )  # fmt: skip
    assert planned.peak_bytes == pytest.approx(row["measured_bytes"], rel=0.10)
    assert row["measured_bytes"] <= planned.needed_bytes


def test_in_eight_bits_our_kernels_keep_no_input() -> None:
    def kept(**changes: Any) -> int:
        return simulate_step(
            tiny_config(), lambda model: METHODS["qlora"].wrap(model, rank=2), StepShape(2, 16, 8, checkpointing=True, **changes),
        ).activations_bytes  # fmt: skip

    assert kept(quantize="int8") == kept(quantize="nf4")
    assert kept(quantize="int8", fast_kernels=False) > kept(quantize="nf4", fast_kernels=False)
