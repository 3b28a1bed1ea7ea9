"""Exports answer as the adapter does, in every engine, or are refused by name and leave nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cases import ADAPTERS, Case, stir, wrap
from tiny import EOS, fill_unevenly, tiny_classifier, tiny_config, tiny_records, tiny_t5, tiny_tokenizer
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5EncoderModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft import METHODS, Task, export, load_backbone, load_exported, lora_wrap, predict, prefix_wrap, prompt_wrap
from t5peft.adapters import load_saved, save_adapter
from t5peft.cli import main
from t5peft.cli.data import save_task
from t5peft.data.decoding import decode
from t5peft.evaluation import classify, rank
from t5peft.models.backbone import load_tokenizer
from t5peft.models.unwrap import unwrap_t5
from t5peft.serving import export as module
from t5peft.serving.bake import MORE_DIMENSIONS, bake, into_one_table, with_prompt
from t5peft.serving.exported import TARGETS, Target
from t5peft.serving.parity import ParityError

pytest.importorskip("ctranslate2")
pytest.importorskip("onnxruntime")

TEXTS = ["a film", "Tom: Are you coming?\nMia: yes ü", "x" * 40]
WORDS = ["yes", "no", "it is not"]
MERGED = ("lora", "lora-all", "dora", "adalora", "qlora", "ia3", "norm")


def adapter(folder: Path, geometry: Any, make: Callable[[PreTrainedModel], Any], **changes: Any) -> Path:
    """An adapter that was moved off its start, beside a tiny backbone of its own."""
    base = folder / "base"
    tiny_t5(geometry, **changes).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    save_adapter(stir(make(load_backbone(base)[0])), folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on an untied head, with a task beside it."""
    folder = adapter(tmp_path_factory.mktemp("lora"), "v1.1", lambda model: lora_wrap(model, rank=4))
    save_task(Task("own", "film: {text}", "{label}", {"0": "bad", "1": "good"}, max_target_length=8), folder)
    return folder


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt beside a tied head, whose table has no spare rows."""
    return adapter(tmp_path_factory.mktemp("prompt"), "v1.0", lambda model: prompt_wrap(model, length=3))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("prefix"), "v1.0", lambda model: prefix_wrap(model, length=3))


def check_answers(folder: Path, exported: Path, *, beams: bool = True) -> None:
    """``predict`` and ``rank`` of an export give what those of the library give for the adapter."""
    model, tokenizer = load_saved(folder)
    found = load_exported(exported)
    ours = rank(model, tokenizer, TEXTS, WORDS).log_probabilities
    theirs = found.rank(TEXTS, WORDS).log_probabilities
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    normalized = rank(model, tokenizer, TEXTS, WORDS, normalize_by_length=True).log_probabilities
    torch.testing.assert_close(found.rank(TEXTS, WORDS, normalize_by_length=True).log_probabilities, normalized)
    for num_beams in (1, 3) if beams else (1,):
        options: dict[str, Any] = {"max_new_tokens": 6, "num_beams": num_beams}
        expected = predict(model, tokenizer, TEXTS, **options)
        answers = found.predict(TEXTS, tokens_per_batch=64, **options)
        assert answers == expected
        assert answers.truncated_fraction == expected.truncated_fraction
        ids = tokenizer(TEXTS).input_ids
        rows = [model.generate(input_ids=torch.tensor([row]), **options)[0, 1:].tolist() for row in ids]
        assert found.answer_ids(ids, tokens_per_batch=64, **options) == rows


def test_an_untied_head_is_scaled_right_in_every_reader(lora: Path, tmp_path: Path) -> None:
    for to in ("transformers", "ct2"):
        parity = export(lora, tmp_path / to, to=to)
        assert parity.passes
        assert {check.name for check in parity.checks} == {"log-probabilities", "beams", "rankings"}
        assert max(check.difference for check in parity.checks) < 1e-5
        assert json.loads((tmp_path / to / "parity.json").read_text())["checks"][0]["difference"] < 1e-5
        check_answers(lora, tmp_path / to, beams=to != "ct2")
        assert (tmp_path / to / "task.yaml").read_text() == (lora / "task.yaml").read_text()
    config = json.loads((tmp_path / "transformers" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["scale_decoder_outputs"]) == (False, False)


def test_beams_of_ctranslate2_end_as_those_of_transformers_with_early_stopping(lora: Path, tmp_path: Path) -> None:
    export(lora, tmp_path / "ct2", to="ct2")
    model, tokenizer = load_saved(lora)
    settings = unwrap_t5(model).generation_config
    assert settings is not None
    settings.early_stopping, settings.num_beams = True, 4
    expected = predict(model, tokenizer, TEXTS, max_new_tokens=8, num_beams=4)
    assert load_exported(tmp_path / "ct2").predict(TEXTS, max_new_tokens=8, num_beams=4) == expected


@pytest.mark.parametrize("to", ["transformers", "ct2"])
def test_a_baked_prompt_is_written_by_the_tokenizer_and_never_by_the_head(
    to: Target, prompt: Path, tmp_path: Path
) -> None:
    assert export(prompt, tmp_path / "out", to=to).passes
    check_answers(prompt, tmp_path / "out", beams=to != "ct2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = tiny_tokenizer()(TEXTS).input_ids
    assert tokenizer(TEXTS).input_ids == [[384, 385, 386, *ids] for ids in own]
    if to == "transformers":
        plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
        inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = plain(**inputs, labels=torch.tensor([[5, 6, EOS]] * 3)).logits
        assert logits.shape[-1] == 387
        assert float(logits.softmax(-1)[..., 384:].max()) == 0.0
        assert plain.generation_config.suppress_tokens == [384, 385, 386]
    else:
        assert len(json.loads((tmp_path / "out" / "source_vocabulary.json").read_text())) == 387
        assert len(json.loads((tmp_path / "out" / "target_vocabulary.json").read_text())) == 384


@pytest.mark.parametrize(
    ("geometry", "rows", "more"), [("v1.0", 390, 0), ("v1.1", 390, 0), ("wide", 384, MORE_DIMENSIONS)]
)
def test_one_table_holds_a_prompt_whether_it_has_spare_rows_or_not(
    geometry: Any, rows: int, more: int, tmp_path: Path
) -> None:
    folder = adapter(
        tmp_path, geometry, lambda model: prompt_wrap(model, length=3), vocab_size=rows, layer_norm_epsilon=0.05
    )
    model, tokenizer = load_saved(folder)
    records = tiny_records(4)
    inputs = {"input_ids": torch.tensor([records[1]["input_ids"]]), "labels": torch.tensor([records[1]["labels"]])}
    with torch.no_grad():
        expected = model(**inputs).logits.log_softmax(-1)
    t5, _, ids = bake(model, tokenizer)
    one = into_one_table(t5, ids)
    assert (one.config.d_model, one.config.vocab_size) == (model.config.d_model + more, max(rows, 387))
    with torch.no_grad():
        inputs["input_ids"] = torch.cat([torch.tensor([ids]), inputs["input_ids"]], dim=1)
        found = one(**inputs).logits.log_softmax(-1)
    torch.testing.assert_close(found[..., :rows], expected, rtol=1e-5, atol=1e-5)


def test_a_tokenizer_of_bytes_writes_a_prompt_as_one_with_a_file_does() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["plain", "ü € 𝄞\n\t<extra_id_3> </s> x", "", " two  spaces "]
    writing, ids = with_prompt(tokenizer, 2)
    assert ids == [384, 385]
    assert writing(texts).input_ids == [[384, 385, *row] for row in tokenizer(texts).input_ids]
    rows = [*tokenizer(texts).input_ids, [198, 40, 243, 160, 50, 1]]  # the last has bytes that are not text
    assert decode(rows, writing) == decode(rows, tokenizer)
    with pytest.raises(ValueError, match="Got a tokenizer that knows <prompt_0>; expected none"):
        with_prompt(writing, 1)


def test_a_prefix_is_a_part_of_the_graphs_of_onnx(prefix: Path, tmp_path: Path) -> None:
    parity = export(prefix, tmp_path / "out", to="onnx")
    assert max(check.difference for check in parity.checks) < 1e-5
    check_answers(prefix, tmp_path / "out")


@pytest.mark.parametrize("to", ["transformers", "ct2"])
def test_what_an_engine_cannot_run_is_refused_by_name(to: Target, prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Got a prefix, which {to} does not support; expected .* Export to onnx"):
        export(prefix, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_told_at_once(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Got to='torch'; expected one of .* Got quantize='nf4'; expected None or 'int8'"
    ):
        export(lora, tmp_path / "out", to="torch", quantize="nf4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Got quantize='int8' for transformers, which quantizes when it loads"):
        export(lora, tmp_path / "out", to="transformers", quantize="int8")
    with pytest.raises(FileNotFoundError, match="is not an export; expected a folder from `t5peft export`"):
        load_exported(lora)


def test_an_export_that_answers_otherwise_leaves_nothing(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flatten(t5: PreTrainedModel, *rest: Any) -> None:
        t5.get_output_embeddings().weight.data *= 0.5  # greedy answers stay the same
        write(t5, *rest)

    write = module.write_transformers
    monkeypatch.setattr(module, "write_transformers", flatten)
    output = tmp_path / "new" / "out"
    with pytest.raises(
        ParityError, match=r"(?s)that differs from .*; expected differences within 0.001.*log-probabilities"
    ):
        export(lora, output, to="transformers")
    assert not (tmp_path / "new").exists()
    assert main(["export", str(lora), "--to", "transformers", "--output", str(output)]) == 1
    assert "Nothing was written" in capsys.readouterr().err
    monkeypatch.undo()
    export(lora, output, to="transformers")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in output.iterdir())
    monkeypatch.setattr(module, "write_transformers", flatten)
    with pytest.raises(ParityError):
        export(lora, output, to="transformers", overwrite=True)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in output.iterdir()) == before


def test_export_on_the_command_line(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = tmp_path / "films.csv", tmp_path / "out"
    data.write_text("text,label\ngood,1\nbad,0\n")
    command = ["export", str(lora), "--to", "transformers", "--output", str(output)]
    assert main([*command, "--data", str(data)]) == 0
    assert "tolerance 0.001, on 2 records of own" in capsys.readouterr().out
    assert main(command) == 2
    assert "which holds an export; expected a folder without one" in capsys.readouterr().err
    command[3] = "ct2"
    assert main([*command, "--overwrite"]) == 0
    assert "on built-in texts in the template of own" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == str(output)
    stored = json.loads((output / "parity.json").read_text())
    assert len(told["parity"]["checks"]) == len(stored["checks"]) > 0
    assert not (output / "model.safetensors").exists()
    assert load_exported(output).details.target == "ct2"
    (output / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Got a damaged export in .*model.bin was changed"):
        load_exported(output)
    (output / "export.json").write_text('{"target": "ct2"}')
    assert main(["predict", str(output), "--text", "film"]) == 2
    assert "with the target 'ct2' and the fields target; expected one of transformers, ct2" in capsys.readouterr().err
    assert main(["export", str(lora), "--to", "ct2", "--output", str(lora)]) == 2
    assert "holds an adapter" in capsys.readouterr().err


def test_a_classification_head_and_an_encoder_are_exported_too(tmp_path: Path) -> None:
    base = tmp_path / "classifier"
    tiny_classifier().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    save_adapter(stir(prompt_wrap(load_backbone(base)[0], length=2)), tmp_path / "prompt")
    assert export(tmp_path / "prompt", tmp_path / "onnx", to="onnx").passes
    model, tokenizer = load_saved(tmp_path / "prompt")
    found = load_exported(tmp_path / "onnx")
    ours = classify(model, tokenizer, TEXTS).log_probabilities
    torch.testing.assert_close(found.classify(TEXTS).log_probabilities, ours)
    with pytest.raises(
        ValueError, match=r"Got predict of an exported classifier; expected a language model\. Use classify"
    ):
        found.predict(TEXTS, max_new_tokens=3)
    for to in ("transformers", "ct2"):
        with pytest.raises(ValueError, match=r"Got a prompt beside a classifier, .* Export to onnx"):
            export(tmp_path / "prompt", tmp_path / "out", to=to)
    with pytest.raises(ValueError, match="Got a T5ForSequenceClassification, which CTranslate2 does not support"):
        export(base, tmp_path / "out", to="ct2")
    encoder = fill_unevenly(T5EncoderModel(tiny_config())).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    adapted = stir(lora_wrap(T5EncoderModel.from_pretrained(tmp_path / "encoder"), rank=2)).eval()
    save_adapter(adapted, tmp_path / "encoder-lora")
    kinds: tuple[Literal["transformers", "onnx"], ...] = ("transformers", "onnx")
    for to in kinds:
        assert export(tmp_path / "encoder-lora", tmp_path / f"encoder-{to}", to=to).passes
        states = load_exported(tmp_path / f"encoder-{to}").encode(TEXTS)
        ids = torch.tensor([tiny_tokenizer()(TEXTS[1]).input_ids])
        with torch.no_grad():
            torch.testing.assert_close(states[1], adapted(input_ids=ids).last_hidden_state[0], rtol=1e-5, atol=1e-5)


# --- the table: every family, every method, every engine


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.empty_like(head.weight))
    return fill_unevenly(model).eval()


def _family(name: str) -> tuple[PreTrainedModel, Any]:
    """A tiny model and a tokenizer. ByT5 is v1.1 with bytes; umT5 is loaded only with a tokenizer file."""
    if name == "T5":
        return tiny_t5("v1.0", vocab_size=8192), load_tokenizer("mini")
    if name == "Flan-T5":
        return tiny_t5("v1.1", vocab_size=8220), load_tokenizer("mini")
    if name == "ByT5":
        return tiny_t5("wide"), tiny_tokenizer()
    options = tiny_config("v1.1").to_dict() | {"tie_word_embeddings": False, "vocab_size": 8192}
    options = {key: value for key, value in options.items() if key not in ("model_type", "architectures")}
    if name == "mT5":
        return _untied(MT5ForConditionalGeneration(MT5Config(**options))), load_tokenizer("mini")
    return _untied(UMT5ForConditionalGeneration(UMT5Config(**options | {"vocab_size": 8224}))), load_tokenizer("mini")


FAMILIES = ("T5", "Flan-T5", "ByT5", "mT5", "umT5")


def reason(family: str, method: str, to: Target) -> str | None:
    """The error of a combination that is refused; None for one that is exported."""
    if to != "onnx" and method not in (*MERGED, "prompt", "full"):
        return (
            rf"Got a (prefix|bottleneck adapter|ladder|prefix with .*), which {to} does not support; .* Export to onnx"
        )
    if to == "transformers" and family == "umT5":
        return r"Got a umT5, whose head transformers 5 scales as if it were tied, .* Export to onnx or ct2, or run `t5peft merge`"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_families_methods_and_engines(family: str, tmp_path: Path) -> None:
    """15 methods x 3 engines a family. QLoRA is trained beside 8 bits, and exported onto the unquantized backbone."""
    base = tmp_path / "base"
    t5, tokenizer = _family(family)
    t5.save_pretrained(base)
    tokenizer.save_pretrained(base)
    for case in [*ADAPTERS, Case("full")]:
        folder = base
        if case.method != "full":
            folder = tmp_path / str(case)
            quantize = METHODS[case.method].quantize
            model = load_backbone(base, quantize=quantize, dtype=torch.float32)[0]
            save_adapter(stir(wrap(case, model)), folder)
        for to in TARGETS:
            output = tmp_path / f"{case}-{to}"
            if (why := reason(family, case.method, to)) is not None:
                with pytest.raises(ValueError, match=why):
                    export(folder, output, to=to)
                assert not output.exists()
                continue
            parity = export(folder, output, to=to)
            assert max(check.difference for check in parity.checks) < 1e-4, f"{case} {to}\n{parity}"
            assert all(check.same in (None, 1.0) for check in parity.checks), f"{case} {to}\n{parity}"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["ct2", "onnx"])
def test_eight_bits_are_within_their_own_tolerance(to: Target, tmp_path: Path) -> None:
    save_adapter(stir(lora_wrap(load_backbone("mini")[0], rank=4)), tmp_path / "adapter")
    exact = export(tmp_path / "adapter", tmp_path / "exact", to=to)
    rounded = export(tmp_path / "adapter", tmp_path / "rounded", to=to, quantize="int8")
    assert exact.tolerance < max(check.difference for check in rounded.checks) < rounded.tolerance == 0.25
    assert load_exported(tmp_path / "rounded").details.quantize == "int8"
    sizes = [sum(path.stat().st_size for path in (tmp_path / name).rglob("*")) for name in ("rounded", "exact")]
    assert sizes[0] < (0.3 if to == "ct2" else 0.5) * sizes[1]


def test_records_of_a_task_are_what_is_compared(lora: Path, tmp_path: Path) -> None:
    records = [{"text": f"film {i}", "label": str(i % 2)} for i in range(40)]
    parity = export(lora, tmp_path / "out", to="ct2", records=records)
    assert parity.inputs == "16 records of own"
    assert [check.count for check in parity.checks][1:] == [16, 32]


def test_no_export_is_taken_for_an_adapter(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(lora, tmp_path / "out", to="ct2")
    (tmp_path / "films.csv").write_text("text,label\ngood,1\n")
    assert main(["evaluate", str(tmp_path / "out"), "--data", str(tmp_path / "films.csv")]) == 2
    assert "which is an export; expected an adapter or a whole model" in capsys.readouterr().err
    assert replace(load_exported(tmp_path / "out").details, versions={}).method == "lora"


def test_a_head_over_an_encoder_is_exported_to_onnx_and_others_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    backbone, tokenizer = load_backbone("mini", head="sequence", num_labels=3)
    model = stir(lora_wrap(backbone, rank=2)).eval()
    save_adapter(model, tmp_path / "adapter")
    assert export(tmp_path / "adapter", tmp_path / "onnx", to="onnx").passes
    texts = ["one", "a longer text of some words"]
    expected = classify(model, tokenizer, texts).probabilities
    found = load_exported(tmp_path / "onnx").classify(texts).probabilities
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="T5EncoderForSequenceClassification, which plain transformers does not have"):
        export(tmp_path / "adapter", tmp_path / "plain", to="transformers")
    with pytest.raises(ValueError, match=r"CTranslate2 does not support; expected a language model. Export to onnx\.$"):
        export(tmp_path / "adapter", tmp_path / "ct2", to="ct2")
    save_adapter(lora_wrap(load_backbone("mini", head="tokens", num_labels=3)[0]), tmp_path / "tokens")
    with pytest.raises(ValueError, match="T5ForTokenClassification, which is not exported"):
        export(tmp_path / "tokens", tmp_path / "out", to="onnx")
