"""Pretraining: embeddings, optimizers, and a loop that resumes exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from documents import EOS, document
from narrow import gradient
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration

import t5peft
from t5peft.cli import main
from t5peft.pretraining.corruption import (
    Corruption,
    corruption_of,
)
from t5peft.pretraining.init import Shape, new_model, step_flops
from t5peft.pretraining.matching_head import set_matching_head
from t5peft.pretraining.optimizers import Muon, make_optimizer, orthogonalized, rate_factor
from t5peft.pretraining.pretrainer import PretrainConfig, Pretrainer
from t5peft.pretraining.tokens import TokenStore, write_store

MINI = Path(t5peft.__file__).parent / "mini"
TINY = Shape(d_model=32, d_ff=64, layers=2, heads=2, d_kv=16)


# Span corruption


@pytest.mark.parametrize(
    ("length", "noise", "spans"),
    # Counted by hand: 15 % of the tokens and a third of those, rounded half to even, at least 1, at most what is there.
    [(2, 1, 1), (3, 1, 1), (10, 2, 1), (20, 3, 1), (30, 4, 1), (31, 5, 2), (100, 15, 5), (512, 77, 26), (568, 85, 28)],
)
def test_the_counts_are_the_published_ones(length: int, noise: int, spans: int) -> None:
    assert corruption_of(length) == Corruption(length, noise, spans)


# Optimizers


@pytest.mark.parametrize("shape", [(3, 32, 16), (2, 16, 48), (1, 24, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalized(torch.randn(shape, generator=torch.Generator().manual_seed(1)), steps=8)
    )
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_turns_matrices_and_leaves_tables_to_adamw(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY)
    optimizer = make_optimizer(model, "muon")
    assert isinstance(optimizer, Muon)
    sizes = [{tuple(p.shape) for p in group["params"]} for group in optimizer.param_groups]
    assert sizes[1] == {(32, 32)}
    assert (len(tokenizer), 32) in sizes[2]
    assert (len(tokenizer), 32) not in sizes[0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=torch.tensor([[5, 6, 1]]), labels=torch.tensor([[7, 1]])).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if gradient(p).abs().sum() > 0)


def test_the_learning_rate_rises_stays_falls_and_cools_down() -> None:
    def rate(step: int) -> float:
        return rate_factor(step, warmup=10, decay_start_step=100, steps=1000, cooldown=200)

    assert rate(0) == pytest.approx(0.1)
    assert rate(9) == rate(100) == 1.0
    assert rate(400) == pytest.approx(0.5)
    assert rate(900) == pytest.approx(1 / 6), "half of the cool-down, times the root of 100 / 900"
    assert rate(1000) == 0


# The loop


def _pretrainer(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, directory: Path, **changes: object
) -> Pretrainer:
    options = {
        "source_tokens": 32,
        "rows": 4,
        "task_rows": 4,
        "steps": 7,
        "warmup": 3,
        "log_every": 1,
        "eval_every": 100,
    }
    config = PretrainConfig(**{**options, **changes})  # type: ignore[arg-type]
    return Pretrainer(new_model(tokenizer, TINY), tokenizer, store, config, directory, held_out=store)


def _losses(directory: Path) -> list[float]:
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "adamw"])
def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(
    optimizer: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = _pretrainer(store, tokenizer, tmp_path / "whole", optimizer=optimizer)
    whole.train()
    _pretrainer(store, tokenizer, tmp_path / "parts", optimizer=optimizer).train(until=3)
    resumed = _pretrainer(store, tokenizer, tmp_path / "parts", optimizer=optimizer)
    assert resumed.resume()
    assert resumed.step == 3
    resumed.train()
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")
    assert resumed.tokens_seen == whole.tokens_seen
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "after",
    [
        "half a line before a whole one",
        "no state",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("a state", "a line", "half a line")),
    ],
)
def test_the_log_of_a_run_that_was_killed_has_each_step_once(
    after: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"eval_every": 2, "save_every": 2, "steps": 4}
    _pretrainer(store, tokenizer, tmp_path / "whole", **options).train()
    killed = _pretrainer(store, tokenizer, tmp_path / "killed", **options)
    if after == "no state":
        monkeypatch.setattr(killed, "save_state", lambda: None)
    if after == "a state":
        monkeypatch.setattr(killed, "_evaluate", lambda: None)
    killed.train(until=2)
    monkeypatch.undo()
    log = tmp_path / "killed" / "log.jsonl"
    if after != "a state":
        end = {"a line": "}\n", "half a line before a whole one": '{"step": 3, "tokens_seen": 96}\n'}.get(after, "")
        log.write_text(log.read_text() + '{"step": 3, "tokens_seen": 9' + end)
    again = _pretrainer(store, tokenizer, tmp_path / "killed", **options)
    assert again.resume() == (after != "no state")
    again.train()
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    for line in (*logs[0], *logs[1]):
        line.pop("tokens_per_second", None)
    assert logs[0] == logs[1]


def test_dropout_is_that_of_the_seed_and_the_step(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def run(name: str, until: int | None = None) -> list[float]:
        run = _pretrainer(store, tokenizer, tmp_path / name, steps=4)
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        run.resume()
        run.train(until=until)
        return _losses(tmp_path / name)

    whole = run("whole")
    run("parts", until=2)
    torch.rand(3)
    assert run("parts") == whole


def test_a_state_of_another_optimizer_is_not_resumed(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _pretrainer(store, tokenizer, tmp_path, optimizer="adafactor").train(until=1)
    with pytest.raises(ValueError, match=r"Got optimizer='adamw' for .*state\.pt; expected 'adafactor'"):
        _pretrainer(store, tokenizer, tmp_path, optimizer="adamw").resume()


def test_a_state_of_another_model_is_not_resumed(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    _pretrainer(store, tokenizer, tmp_path).train(until=1)
    other = new_model(tokenizer, dataclasses.replace(TINY, d_model=48))
    with pytest.raises(ValueError, match=r"does not fit .*state\.pt .*expected the backbone or the shape"):
        Pretrainer(other, tokenizer, store, PretrainConfig(source_tokens=32), tmp_path).resume()


def test_a_held_out_text_that_is_too_short_is_told_before_the_training(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = write_store([document(0)[:1]], tokenizer, tmp_path / "short")
    with pytest.raises(ValueError, match=r"held-out text that is too short.* Got \d+ tokens; expected at least \d+"):
        Pretrainer(new_model(tokenizer, TINY), tokenizer, store, PretrainConfig(), tmp_path, held_out=short)


def test_a_state_is_saved_before_it_is_evaluated(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path, eval_every=2, save_every=2)
    monkeypatch.setattr(run, "held_out_loss", None)
    with pytest.raises(TypeError):
        run.train()
    assert _pretrainer(store, tokenizer, tmp_path).resume()


@pytest.mark.parametrize("objective", ["spans", "prefix"])
def test_the_held_out_loss_falls(
    objective: str, store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(
        store, tokenizer, tmp_path, objective=objective, optimizer="muon", steps=30, task_rows=0, log_every=30
    )
    before = run.held_out_loss(rows=16)
    assert before == run.held_out_loss(rows=16)
    run.train()
    assert run.held_out_loss(rows=16) < before - 0.5


def test_nothing_is_padded_and_labels_end_in_eos(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    text, tasks = run.groups(0)
    assert text[0]["attention_mask"].all()
    assert text[0]["input_ids"].shape == (4, 32)
    for batch in (*text, *tasks):
        last = (batch["labels"] != -100).sum(1) - 1
        assert (batch["labels"].gather(1, last[:, None]) == EOS).all()
        assert (batch["input_ids"] >= 0).all()


def test_a_state_that_broke_off_while_writing_changes_nothing(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    run.train(until=2)

    def broken(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        run.train(until=4)
    monkeypatch.undo()
    again = _pretrainer(store, tokenizer, tmp_path)
    assert again.resume()
    assert again.step == 2


def test_a_loss_that_is_not_finite_stops_the_run(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    run.model.get_parameter("shared.weight").data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        run.train()


def test_a_loss_of_tasks_that_is_not_finite_stops_the_run_before_the_update(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _pretrainer(store, tokenizer, tmp_path)
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(
        "t5peft.pretraining.pretrainer.target_loss",
        lambda model, batch: (model.get_parameter("shared.weight").sum() * next(losses), 1),
    )
    before = run.model.get_parameter("shared.weight").clone()
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        run.train()
    assert torch.equal(run.model.get_parameter("shared.weight"), before)


def test_config_names_all_its_problems() -> None:
    with pytest.raises(ValueError, match=r"rows=0.*decay_start_step=0.*warmup=-2.*cooldown=-1"):
        PretrainConfig(rows=0, decay_start_step=0, warmup=-2, cooldown=-1)


def test_step_flops_counts_every_matrix_once_for_the_tokens_that_meet_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY)
    matrices = [p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "relative" not in n]
    assert step_flops(model.config, source_tokens=7, target_tokens=7) == 6 * 7 * sum(matrices)


def test_a_matching_head_finds_the_same_piece_elsewhere_and_not_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(tokenizer, TINY, seed=3).eval()
    model.set_attn_implementation("eager")
    source = torch.tensor([[300, 301, 302, 303, 304, 305, 306, 301, 307, 308]])

    def attention() -> torch.Tensor:
        return model.encoder(source, output_attentions=True).attentions[0][0].detach()

    plain = attention()
    assert plain[:, 1, 7].max() < 0.5, "without it, one head does so already"
    head = set_matching_head(model)
    found = attention()
    assert found[head, 1].argmax() == 7
    assert found[head, 7].argmax() == 1
    assert found[head, 1, 7] > 0.5
    assert found[head, [1, 7], [1, 7]].max() < 0.01
    others = [number for number in range(TINY.heads) if number != head]
    assert torch.equal(found[others], plain[others])


# The command and the shipped files


def test_the_command_makes_a_model_resumes_it_and_adapts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(document(number)) for number in range(80)), encoding="utf-8")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n\n".join("\n".join(document(number)) for number in range(80, 110)), encoding="utf-8")
    shape = [
        "--d-model",
        "32",
        "--d-ff",
        "64",
        "--layers",
        "2",
        "--heads",
        "2",
        "--d-kv",
        "16",
        "--vocabulary",
        "600",
        "--vocabulary-share",
        "1",
    ]
    common = ["--source-tokens", "32", "--rows", "4", "--log-every", "1", "--eval-every", "2"]
    first = ["pretrain", "--text", str(text), "--held-out", str(held_out), "--output", str(tmp_path / "run")]
    assert main([*first, *shape, *common, "--task-rows", "2", "--steps", "2"]) == 0
    assert main([*first, *shape, *common, "--task-rows", "2", "--steps", "4"]) == 0
    out = capsys.readouterr().out
    assert "resumed at step 2" in out
    assert "% of matmul speed" in out
    assert "held-out loss" in out
    again = [
        "pretrain",
        "--text",
        str(text),
        "--output",
        str(tmp_path / "lm"),
        "--backbone",
        str(tmp_path / "run/model"),
    ]
    assert main([*again, *common, "--objective", "prefix", "--matching-head", "--steps", "2"]) == 0
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "lm" / "model")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "lm" / "model")) == model.config.vocab_size


def test_options_of_a_new_model_beside_a_backbone_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--backbone", "mini", "--d-model", "64", "--vocabulary-share", "1"]
    assert main(["pretrain", "--text", "no.txt", "--output", "no", *options]) == 2
    assert "Got --vocabulary-share, --d-model, of a new model, with --backbone mini" in capsys.readouterr().err


def test_the_shipped_files_are_those_of_the_card() -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", card, flags=re.MULTILINE))
    assert set(listed) == {path.name for path in MINI.iterdir() if path.is_file()} - {"README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((MINI / name).read_bytes()).hexdigest() == digest, name


def test_the_shipped_weights_are_small_enough() -> None:
    assert (MINI / "model.safetensors").stat().st_size <= 24 * 2**20
