"""Manifests: what is damaged is told in words, and training goes on from what is whole (L1, L2, C3)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_t5, tiny_tokenizer

from t5peft import load_adapter, load_backbone, lora_wrap, merge, save_adapter
from t5peft.adapters import base_of, brings_tokens, load_saved, quantization_of, save_model, write_manifest
from t5peft.adapters.checkpoints import newest_complete, of_another_model, read_run_state, rotate
from t5peft.adapters.manifest import CONFIG, MANIFEST, WEIGHTS, read_config
from t5peft.models.manifest import TEMPORARY_MANIFEST, read_manifest, saved_at, verify

Damage = Callable[[Path], object]


def content(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def edited(**fields: Any) -> Damage:
    """Fields put into the manifest of an old version, which has no checksum."""

    def damage(path: Path) -> None:
        text = json.loads(path.read_text())
        del text["checksum"]
        path.write_text(json.dumps(text | fields))

    return damage


def without(field: str) -> Damage:
    def damage(path: Path) -> None:
        text = json.loads(path.read_text())
        del text[field], text["checksum"]
        path.write_text(json.dumps(text))

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def one_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 3'))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


HASH = "0" * 64
DAMAGES: dict[str, Damage] = {
    "empty": content(b""),
    "cut": cut,
    "zeros": content(bytes(100)),
    "foreign bytes": content(b"\x80\xff\xfe"),
    "utf-16": content('{"files": {}}'.encode("utf-16")),
    "byte order mark": content(b"\xef\xbb\xbf{}"),
    "not JSON": content(b"saved"),
    "two objects": content(b"{} {}"),
    "a list": content(b"[]"),
    "a number": content(b"3"),
    "null": content(b"null"),
    "deep": content(b'{"files": ' + b"[" * 100_000),
    "deep and whole": content(b'{"files": ' + b"[" * 960 + b"]" * 960 + b"}"),
    "NaN": edited(saved=float("nan")),
    "too large a float": lambda path: path.write_bytes(path.read_bytes().replace(b'"saved": ', b'"saved": 1e999')),
    "too large an integer": edited(saved=10**400),
    "a text for the time": edited(saved="now"),
    "true for the time": edited(saved=True),
    "a text for the rows": edited(rows="many"),
    "no files": without("files"),
    "an empty table of files": edited(files={}),
    "a list of files": edited(files=[WEIGHTS]),
    "files without hashes": edited(files={WEIGHTS: None}),
    "a short hash": edited(files={WEIGHTS: "0"}),
    "a file above": edited(files={"../other": HASH}),
    "an absolute file": edited(files={"/etc/hostname": HASH}),
    "a null in a name": edited(files={"a\0b": HASH}),
    "fewer files": edited(files={"README.md": HASH}),
    "a list of data": edited(data=[1]),
    "an unknown quantization": edited(quantized="int3"),
    "a number for the backbone": edited(backbone=3),
    "one bit": one_bit,
    "a folder": as_folder,
    "a dangling link": dangling,
}


def checkpoint(run: Path, step: int, value: float = 0.1) -> Path:
    folder = run / f"checkpoint-{step}"
    model = lora_wrap(tiny_t5())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(value)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "trainer_state.json").write_text("{}")
    write_manifest(folder, model, {"examples": 8, "seed": 7})
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four checkpoints, which every test copies."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (2, 4, 6, 8):
        checkpoint(folder, step)
    return folder


@pytest.fixture
def run(checkpoints: Path, tmp_path: Path) -> Path:
    for step in (2, 4, 6):
        shutil.copytree(checkpoints / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_with_a_damaged_manifest_is_passed_over(damage: Damage, run: Path) -> None:
    damage(run / "checkpoint-6" / MANIFEST)
    assert verify(run / "checkpoint-6") != []
    assert newest_complete(run) == run / "checkpoint-4"
    damage(run / "checkpoint-2" / MANIFEST)
    assert newest_complete(run) == run / "checkpoint-4"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_rotation_goes_on_beside_a_damaged_manifest(damage: Damage, run: Path, checkpoints: Path) -> None:
    damage(run / "checkpoint-2" / MANIFEST)
    new = shutil.copytree(checkpoints / "checkpoint-8", run / "checkpoint-8")
    rotate(run, 2, None)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    assert newest_complete(run) == new


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_adapter_with_a_damaged_manifest_is_refused_by_everything_that_reads_it(
    damage: Damage, tmp_path: Path
) -> None:
    folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    content = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, tiny_t5(), {"seed": 7})
    # The card names the hash of the manifest, so it is written after it.
    assert {"README.md", *content["files"]} == json.loads((folder / MANIFEST).read_text())["files"].keys()
    damage(folder / MANIFEST)
    for load in (load_saved, merge, lambda folder: load_adapter(folder, model=tiny_t5())):
        with pytest.raises(
            ValueError, match=r"Got the adapter .*, which is not loaded: .*; expected an adapter as it was saved\."
        ):
            load(folder)


def test_what_reads_a_manifest_names_the_file_that_is_damaged(tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter")
    (folder / MANIFEST).write_text("{")
    for read in (read_manifest, quantization_of, read_run_state):
        with pytest.raises(
            ValueError, match=r"Got a damaged manifest .*t5peft\.json: it is not JSON .*Restore the folder"
        ):
            read(folder)


CONFIG_DAMAGES = {
    name: damage
    for name, damage in DAMAGES.items()
    if name
    in ("empty", "cut", "zeros", "foreign bytes", "utf-16", "byte order mark", "not JSON", "a list", "null", "deep")
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", CONFIG_DAMAGES.values(), ids=CONFIG_DAMAGES)
def test_a_damaged_configuration_is_one_clear_error(damage: Damage, sealed: bool, tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(tiny_t5()), tmp_path / "adapter", tokenizer=tiny_tokenizer())
    if not sealed:
        (folder / MANIFEST).unlink()
    damage(folder / CONFIG)
    for load in (load_saved, lambda folder: load_adapter(folder, model=tiny_t5())):
        with pytest.raises(ValueError, match=rf"(?s)Got .*{CONFIG}.*expected.*\."):
            load(folder)
    for read in (base_of, brings_tokens):
        with pytest.raises(ValueError, match=f"Got a damaged file .*{CONFIG}: it .*Restore"):
            read(folder)
    model = lora_wrap(tiny_t5())
    assert any(CONFIG in problem for problem in of_another_model(folder, model))


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "LORRA"},
        {"peft_type": None},
        {"r": "8"},
        {"r": -1},
        {"r": None},
        {"r": 0},
        {"target_modules": 3},
        {"target_modules": ["none"]},
        {"lora_alpha": "much"},
        {"lora_alpha": None},
        {"use_rslora": "no"},
        {"lora_dropout": "x"},
        {"rank_pattern": 3},
        {"bias": 3},
        {"modules_to_save": 3},
        {"trainable_token_indices": {"shared": "x"}},
        {"trainable_token_indices": {"shared": [10**6]}},
        {"task_type": ["SEQ_CLS"]},
        {"base_model_name_or_path": 3},
    ],
    ids=str,
)
def test_wrong_values_in_a_configuration_without_a_manifest_are_one_clear_error(
    change: dict[str, Any], tmp_path: Path
) -> None:
    lora_wrap(tiny_t5()).save_pretrained(str(tmp_path), save_embedding_layers=False)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"Got .*{tmp_path.name}"):
        load_adapter(tmp_path, model=tiny_t5())


@pytest.mark.parametrize(
    "damage", [cut, content(b""), content(b"\x80"), content(bytes(1000))], ids=["cut", "empty", "byte", "zeros"]
)
@pytest.mark.parametrize("safe", [True, False])
def test_damaged_weights_without_a_manifest_are_one_clear_error(damage: Damage, safe: bool, tmp_path: Path) -> None:
    model = get_peft_model(tiny_t5(), LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q"]))
    model.save_pretrained(str(tmp_path), safe_serialization=safe, save_embedding_layers=False)
    damage(tmp_path / (WEIGHTS if safe else "adapter_model.bin"))
    with pytest.raises(ValueError, match=r"Got the adapter .*; expected an adapter as it was saved\."):
        load_adapter(tmp_path, model=tiny_t5())


def test_a_leftover_of_an_interrupted_save_does_not_become_part_of_the_next(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    (folder / TEMPORARY_MANIFEST).write_text("half of one")
    write_manifest(folder, tiny_t5())
    assert verify(folder) == []
    assert TEMPORARY_MANIFEST not in json.loads((folder / MANIFEST).read_text())["files"]
    assert not (folder / TEMPORARY_MANIFEST).exists()
    (folder / TEMPORARY_MANIFEST).write_text("half of the next")
    assert newest_complete(tmp_path) == folder


def test_a_manifest_of_0_1_that_lists_such_a_leftover_is_read(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edited(files=files | {TEMPORARY_MANIFEST: HASH})(folder / MANIFEST)
    assert newest_complete(tmp_path) == folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "trainer_state.json"])
def test_a_file_that_is_not_in_the_manifest_is_told(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    del files[name]
    edited(files=files)(folder / MANIFEST)
    assert verify(folder) == [f"{name} was put there after the rest was saved"]


def test_a_checkpoint_saved_after_the_clock_was_set_back_is_the_newest(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    new = checkpoint(run, 8)
    rotate(run, 1, None)
    assert newest_complete(run) == new
    assert saved_at(new) > 1000.0


def test_a_fully_tuned_model_is_verified_when_it_is_loaded(tmp_path: Path) -> None:
    save_model(tiny_t5("v1.1"), tmp_path, tokenizer=tiny_tokenizer())
    loaded, _ = load_backbone(tmp_path)
    assert torch.equal(loaded.lm_head.weight, tiny_t5("v1.1").lm_head.weight)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 64
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        ValueError, match=r"Got a damaged model .*model\.safetensors was changed or damaged.*delete t5peft\.json"
    ):
        load_backbone(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"t5peft\.json is damaged: it is not JSON"):
        load_backbone(tmp_path)


def test_saving_a_whole_model_keeps_other_files_and_replaces_an_earlier_model(tmp_path: Path) -> None:
    save_model(tiny_t5(), tmp_path, tokenizer=tiny_tokenizer())
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model.safetensors").write_text("another")
    (tmp_path / "notes.txt").write_text("mine")
    save_model(tiny_t5(seed=1), tmp_path)
    assert not (tmp_path / "tokenizer_config.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert verify(tmp_path) == []
    assert torch.equal(load_file(tmp_path / "model.safetensors")["shared.weight"], tiny_t5(seed=1).shared.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
def test_a_backbone_that_holds_nan_is_refused(value: float, quantize: Any, tmp_path: Path) -> None:
    if quantize is not None:
        pytest.importorskip("bitsandbytes")
    model = tiny_t5(d_model=64, d_kv=16, d_ff=64)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_backbone(tmp_path, quantize=quantize)
    weights = load_file(tmp_path / "model.safetensors")
    weights["decoder.block.0.layer.0.SelfAttention.k.weight"][3, 5] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"hold NaN or infinity: .*SelfAttention\.k\.weight"):
        load_backbone(tmp_path, quantize=quantize)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "damage", [cut, content(b""), content(b"\x80\xff"), content(b"[]")], ids=["cut", "empty", "bytes", "list"]
)
def test_a_damaged_model_without_a_manifest_is_one_clear_error(name: str, damage: Damage, tmp_path: Path) -> None:
    tiny_t5().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"Got .*expected.*\."):
        load_backbone(tmp_path)


def test_an_intact_configuration_is_read_as_it_is(tmp_path: Path) -> None:
    folder = save_adapter(lora_wrap(tiny_t5(), rank=3), tmp_path / "adapter")
    assert read_config(folder)["r"] == 3
    assert saved_at(folder) > 1e9
