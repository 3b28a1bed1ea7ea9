"""Models by name, on random weights of a tiny shape: what is their own in tokens, padding and heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
import torch
from cases import stir
from narrow import as_dataset, ids_of
from peft import (
    AutoPeftModel,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from safetensors.torch import save_file
from tiny import fill_unevenly, tiny_config, tiny_t5, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import normalize
from trainers import trainer_of
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5EncoderModel, T5ForConditionalGeneration

from t5peft import T5PeftTrainer, load_adapter, load_backbone, lora_wrap, merge, save_adapter
from t5peft.adapters import save_model
from t5peft.data import tokenize_words
from t5peft.evaluation import embed, rank, tag
from t5peft.models.encoders import (
    EncoderHead,
    T5EncoderForEmbedding,
    T5EncoderForSequenceClassification,
    mean_over_tokens,
)

RESIDUES = "ALGVSREDTIPKFQNYMHWCX"


def words_tokenizer(words: list[str], *, pad: int = 0, eos: int = 1) -> PreTrainedTokenizerFast:
    """A token a word between spaces, as ProtT5 has one a residue."""
    vocabulary = {("<pad>" if i == pad else "</s>" if i == eos else f"<{i}>"): i for i in range(3)}
    vocabulary |= {word: 3 + i for i, word in enumerate(words)} | {"<unk>": 3 + len(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", eos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=10**6
    )


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_prott5_has_a_label_for_each_residue_and_none_for_the_end(tmp_path: Path) -> None:
    """Its checkpoint is an encoder in float16, a residue is a token, and ProstT5 has one more token in front."""
    tokenizer = words_tokenizer([*RESIDUES, "<AA2fold>"])
    base = fill_unevenly(T5EncoderModel(tiny_config(vocab_size=128))).half()
    folder = saved(base, tokenizer, tmp_path / "prot")
    proteins = [list("MKVLA"), list("GW"), ["<AA2fold>", *"ACDE"]]
    labels = [[0, 1, 2, 0, 1], [2, 2], [-100, 0, 0, 1, 1]]
    features = tokenize_words(proteins, tokenizer, labels)
    assert features[0]["input_ids"] == [*ids_of(tokenizer, proteins[0]), 1]
    assert features[0]["labels"] == [0, 1, 2, 0, 1, -100]
    model, read = load_backbone(folder, head="tokens", num_labels=3)
    assert model.dtype == torch.float32
    assert model.get_parameter("classifier.weight").std() < 0.4  # not the 1 of transformers
    torch.manual_seed(0)
    wrapped = lora_wrap(model)
    trainer = trainer_of(
        T5PeftTrainer,
        wrapped,
        tmp_path / "run",
        features,
        max_steps=60,
        learning_rate=0.5,
        train_sampling_strategy="random",
    )
    trainer.train()
    assert tag(wrapped, read, proteins)[:2] == labels[:2]
    assert tag(wrapped, read, proteins)[2][1:] == labels[2][1:]
    save_adapter(wrapped, tmp_path / "adapter")
    loaded, again = load_adapter(tmp_path / "adapter")
    assert tag(loaded, again, proteins) == tag(wrapped, read, proteins)


@pytest.mark.parametrize("make", [tiny_tokenizer, lambda: load_backbone("mini")[1]], ids=["bytes", "pieces"])
def test_sentences_come_from_any_iterable(make: Any) -> None:
    tokenizer, words = make(), [["where", "is"], ["!"]]
    expected = tokenize_words(words, tokenizer)
    for given in ((iter(row) for row in words), pandas.Series(words), pyarrow.array(words), tuple(map(tuple, words))):
        assert tokenize_words(given, tokenizer) == expected
    assert tokenize_words(iter(()), tokenizer) == []


@pytest.mark.parametrize("make", [tiny_tokenizer, lambda: load_backbone("mini")[1]], ids=["bytes", "pieces"])
def test_the_first_token_of_a_word_has_its_label(make: Any) -> None:
    tokenizer = make()
    (feature,) = tokenize_words([["where", "is", "!"]], tokenizer, [[4, 5, 6]])
    labels = feature["labels"]
    assert [label for label in labels if label != -100] == [4, 5, 6]
    assert [labels[place] for place in feature["first"]] == [4, 5, 6]
    assert feature["input_ids"] == tokenizer("where is !").input_ids
    starts = [tokenizer.decode(feature["input_ids"][place:]).replace("</s>", "") for place in feature["first"]]
    assert [start.strip() for start in starts] == ["where is !", "is !", "!"]


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        (["MKV"], None, "Got the text 'MKV' as sentence 0; expected its words"),
        ([["a", " "]], None, r"Got \['a', ' '\] as sentence 0; expected non-empty words"),
        ([["a"], []], None, r"Got \[\] as sentence 1"),
        ([["a", None]], None, "Got None .* as number 1 of sentence 0; expected a text"),
        ([[3, 4, 1]], None, "Got 3 .* as number 0 of sentence 0; expected a text"),
        ("MKV", None, r"Got one text as sentences, 'MKV'"),
        ({"words": ["a"]}, None, "Got builtins.dict as sentences"),
        ([["a", "b"]], [[1]], r"sentences \[0\] whose number of labels differs from the number of words"),
        ([["a"], ["b"]], [[1]], "labels for 1 of 2 sentences"),
    ],
)
def test_words_that_cannot_be_labeled_are_refused(words: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize_words(words, tiny_tokenizer(), labels)


def test_madlad_pads_with_1_and_ends_with_2(tmp_path: Path) -> None:
    tokenizer = words_tokenizer([*"abcdef"], pad=1, eos=2)
    base = tiny_t5("v1.1", pad_token_id=1, eos_token_id=2, decoder_start_token_id=0)
    model, read = load_backbone(saved(base, tokenizer, tmp_path), head="embedding")
    found = embed(model, read, ["a b c", "d"])
    for row, text in zip(found, ("a b c", "d"), strict=True):
        torch.testing.assert_close(row, embed(model, read, [text])[0], rtol=0, atol=1e-5)
    whole, _ = load_backbone(tmp_path)
    records = [{"input_ids": read(text).input_ids, "labels": read("c").input_ids} for text in ("a b", "d e f")]
    head = trainer_of(T5PeftTrainer, lora_wrap(whole), tmp_path / "run", records).head
    batch = head.collate([head.unpad(record) for record in records])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids"][0].tolist() == [3, 4, 2, 1]
    assert batch["decoder_input_ids"][:, 0].tolist() == [0, 0]


def test_monot5_ranks_by_two_tokens(tmp_path: Path) -> None:
    tokenizer = words_tokenizer(["true", "false", "Query", "Document", "Relevant", "one", "two"])
    model, read = load_backbone(saved(tiny_t5(), tokenizer, tmp_path))
    sources = ["Query: one Document: two Relevant:", "Query: two Document: two one Relevant:"]
    found = rank(model, read, sources, ["true", "false"]).probabilities
    batch = read(sources, return_tensors="pt", padding=True)
    words, scores = ids_of(read, ["true", "false"]), []
    for word in words:
        decoded = torch.tensor([[0, word]] * 2)
        with torch.no_grad():
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=decoded
            ).logits
        scores.append(logits[:, 0, word] + logits[:, 1].log_softmax(-1)[:, 1])  # and the end after the word
    torch.testing.assert_close(found, torch.stack(scores, dim=1).softmax(-1), rtol=0, atol=1e-5)


def test_chronos_trains_on_bins_without_a_tokenizer(tmp_path: Path) -> None:
    base = fill_unevenly(T5ForConditionalGeneration(tiny_config(vocab_size=4096)))
    records = [{"input_ids": [2047 + i, 2100, 4095, 1], "labels": [2050 + i, 2051, 1]} for i in range(6)]
    trainer = trainer_of(T5PeftTrainer, lora_wrap(base), tmp_path, records, max_steps=2)
    trainer.train()
    assert trainer.evaluate(as_dataset(records))["eval_loss"] > 0


def dense(folder: Path, weight: Tensor, **changes: Any) -> Path:
    """The files that sentence-transformers writes beside an encoder with a projection, as of sentence-t5 and GTR."""
    parts = ["Transformer", "Pooling", "Dense", "Normalize"]
    listed = [
        {"idx": i, "path": f"{i}_{part}", "type": f"sentence_transformers.models.{part}"}
        for i, part in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "2_Dense").mkdir()
    settings = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"} | changes
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    save_file({"linear.weight": weight.contiguous()}, folder / "2_Dense" / "model.safetensors")
    return folder


def test_sentence_t5_and_gtr_bring_their_projection(tmp_path: Path) -> None:
    base = fill_unevenly(T5EncoderModel(tiny_config())).eval()
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    folder = dense(saved(base, tiny_tokenizer(), tmp_path / "st"), weight)
    model, tokenizer = load_backbone(folder, head="embedding")
    ids = torch.tensor([tokenizer("one").input_ids])
    with torch.no_grad():
        expected = normalize(mean_over_tokens(base(ids).last_hidden_state, None) @ weight.T, dim=-1)
    torch.testing.assert_close(embed(model, tokenizer, ["one"]), expected, rtol=0, atol=1e-6)
    save_adapter(lora_wrap(model), tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(embed(loaded, tokenizer, ["one"]), expected, rtol=0, atol=1e-6)
    assert load_backbone(folder, head="embedding", embedding_size=8)[0].get_parameter(
        "embedding_projection.weight"
    ).shape == (8, 32)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="without the weights of 2_Dense"):
        load_backbone(folder, head="embedding")
    other = dense(saved(base, tiny_tokenizer(), tmp_path / "other"), weight, activation_function="torch.nn.Tanh")
    with pytest.raises(ValueError, match="is not one linear map without a bias; expected such a map"):
        load_backbone(other, head="embedding")


def test_a_whole_t5_an_encoder_and_a_saved_head_are_loaded_by_head(tmp_path: Path) -> None:
    whole = saved(tiny_t5("v1.1"), tiny_tokenizer(), tmp_path / "whole")
    plain, _ = load_backbone(whole, head="states")
    assert isinstance(plain, T5EncoderModel)
    assert torch.equal(plain.shared.weight, tiny_t5("v1.1").shared.weight)
    kinds: list[tuple[EncoderHead, type[PreTrainedModel], dict[str, Any]]] = [
        ("sequence", T5EncoderForSequenceClassification, {"num_labels": 5}),
        ("embedding", T5EncoderForEmbedding, {"embedding_size": 6}),
        ("embedding", T5EncoderForEmbedding, {}),
    ]
    for head, kind, options in kinds:
        model, tokenizer = load_backbone(whole, head=head, **options)
        save_model(model, tmp_path / f"{head}{len(options)}", tokenizer=tokenizer)
        again, _ = load_backbone(tmp_path / f"{head}{len(options)}")
        assert type(again) is kind
        assert all(torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "options", [{"head": "embedding"}, {"head": "tokens", "num_labels": 3}, {"head": "states"}], ids=str
)
def test_an_adapter_is_merged_into_its_encoder(options: Any, tmp_path: Path) -> None:
    model, tokenizer = load_backbone("mini", **options)
    save_adapter(stir(lora_wrap(model, rank=2)), tmp_path / "adapter")
    merged, _, parity = merge(tmp_path / "adapter")
    assert parity.unmerged < 1e-4
    save_model(merged, tmp_path / "merged", tokenizer=tokenizer)
    again, _ = load_backbone(tmp_path / "merged", head=options["head"])
    assert type(again) is type(merged)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in merged.named_parameters())


@pytest.mark.parametrize(
    ("head", "options", "by_peft"),
    [
        ("sequence", {"num_labels": 3}, AutoPeftModelForSequenceClassification),
        ("tokens", {"num_labels": 3}, AutoPeftModelForTokenClassification),
        ("embedding", {"embedding_size": 5}, AutoPeftModelForFeatureExtraction),
        ("embedding", {}, AutoPeftModel),
        ("states", {}, AutoPeftModel),
    ],
)
def test_pefts_own_loaders_give_the_encoder_that_was_saved_or_refuse(
    head: EncoderHead, options: dict[str, Any], by_peft: Any, tmp_path: Path
) -> None:
    """They take the class of a whole T5 for an adapter with a task of peft's, whatever its backbone was."""
    base = saved(tiny_t5(), tiny_tokenizer(), tmp_path / "base")
    model, tokenizer = load_backbone(base, head=head, **options)
    encoder = saved(model, tokenizer, tmp_path / "encoder")
    model, _ = load_backbone(encoder, head=head)
    folder = save_adapter(stir(lora_wrap(model, rank=2)).eval(), tmp_path / "adapter")
    batch = tokenizer(["some words"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch)[0 if head != "embedding" else "pooler_output"]
        for load in (lambda: by_peft.from_pretrained(str(folder), import_allowlist=["t5peft", "transformers"]),
                     lambda: load_adapter(folder)[0]):  # fmt: skip
            loaded = load().eval()
            assert torch.equal(loaded(**batch)[0 if head != "embedding" else "pooler_output"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "words"}, "Got head='words'; expected None or one of sequence, tokens, embedding, states"),
        ({"head": "embedding", "num_labels": 2}, "Got num_labels=2 with head='embedding'; expected none"),
        ({"embedding_size": 8}, "Got embedding_size=8 with head=None; expected 1 or more with 'embedding'"),
        ({"head": "embedding", "embedding_size": 0}, "Got embedding_size=0 with head='embedding'"),
    ],
)
def test_a_head_that_there_is_not_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone("mini", **options)


def test_predictions_of_another_head_are_refused() -> None:
    model, tokenizer = load_backbone("mini", head="tokens", num_labels=2)
    with pytest.raises(
        ValueError, match="Got a T5ForTokenClassification; expected a class that ends in EncoderForEmbedding"
    ):
        embed(model, tokenizer, ["a"])
    with pytest.raises(ValueError, match="expected a class that ends in ForTokenClassification"):
        tag(load_backbone("mini")[0], tokenizer, [["a"]])


def test_a_quantized_encoder_keeps_its_head_and_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from t5peft import qlora_wrap

    model, tokenizer = load_backbone("mini", head="embedding", embedding_size=16, quantize="int8")
    assert type(model.get_submodule("embedding_projection")) is torch.nn.Linear
    wrapped = qlora_wrap(model, rank=2)
    records = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [8, 1], "labels": [9, 4, 1]}]
    trainer_of(T5PeftTrainer, wrapped, tmp_path / "run", records, max_steps=2).train()
    expected = embed(wrapped, tokenizer, ["one", "two"])
    loaded, _ = load_adapter(save_adapter(wrapped, tmp_path / "adapter"), quantize="int8")
    torch.testing.assert_close(embed(loaded, tokenizer, ["one", "two"]), expected, rtol=0, atol=1e-5)
