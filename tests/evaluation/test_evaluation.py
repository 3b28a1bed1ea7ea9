"""Prediction and ranking against one example at a time by hand, and the scores of whole tasks against their definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narrow
import numpy as np
import pandas as pd
import pytest
import torch
from narrow import as_peft, generate
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny import fill_unevenly, tiny_classifier, tiny_config, tiny_t5
from torch import nn
from transformers import (
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5peft.data.task import Task
from t5peft.evaluation import (
    METRICS,
    EvaluationSet,
    Ranking,
    candidates,
    classify,
    compute,
    evaluate_task,
    expected_calibration_error,
    fit_temperature,
    loss_and_perplexity,
    merged,
    predict,
    rank,
    ranking,
)
from t5peft.evaluation.inference import evaluating, length_batches
from t5peft.methods import METHODS, lora_wrap, qlora_wrap
from t5peft.models.backbone import MINI, correct_config, has_untied_head, load_backbone
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import fast_kernels
from t5peft.nn.kernels.linear import FastLinear

TOKENIZER = AutoTokenizer.from_pretrained(MINI)
SOURCES = [
    "no",
    "I am not happy with the service at all, so please help me to send back what came on Monday",
    "the cat sat on the mat",
    "",
    "Where is my order? It was due a week ago and nobody answers the telephone.",
    "thanks",
]
WORDS = ["positive", "negative", "positive and negative", "very positive", "the refund was late", "the refund", "a"]


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """The model with uneven weights, under which some answers end by themselves and some do not."""
    fill_unevenly(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[TOKENIZER.eos_token_id] *= 8 if has_untied_head(model) else 5
    correct_config(model)
    return model.eval()


def v1_0() -> PreTrainedModel:
    return ready(tiny_t5("v1.0", vocab_size=len(TOKENIZER)))


def wide() -> PreTrainedModel:
    return ready(tiny_t5("wide", vocab_size=len(TOKENIZER)))


def eager() -> PreTrainedModel:
    model = v1_0()
    model.set_attn_implementation("eager")
    return model


def mt5() -> PreTrainedModel:
    return ready(MT5ForConditionalGeneration(MT5Config(**foreign())))


def umt5() -> PreTrainedModel:
    return ready(UMT5ForConditionalGeneration(UMT5Config(**foreign())))


def foreign() -> dict[str, Any]:
    values = tiny_config("wide", vocab_size=len(TOKENIZER), eos_token_id=1, pad_token_id=0).to_dict()
    return {key: value for key, value in values.items() if key not in ("model_type", "architectures")}


MakeModel = Callable[[], nn.Module]


def wrapped(method: str, **options: Any) -> Callable[[], PeftModel]:
    """A T5 wrapped by a method, its adapter moved away from where it starts."""

    def make() -> PeftModel:
        torch.manual_seed(0)
        model = as_peft(METHODS[method].wrap(wide(), **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.train()

    make.__name__ = method
    return make


PLAIN: list[MakeModel] = [v1_0, wide, eager, mt5, umt5]
MODELS = [*PLAIN, *map(wrapped, ("lora", "ia3", "prompt", "ladder")), wrapped("prefix", length=1)]
each_model = pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])


def ids_of(text: str) -> list[int]:
    ids = TOKENIZER(text)["input_ids"]
    assert ids[-1] == TOKENIZER.eos_token_id
    return ids


def teacher_forced(model: nn.Module, source: str, target: str) -> float:
    """Summed log-probability of one target after one source, nothing padded, nothing shared."""
    ids = ids_of(target)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids_of(source)]), decoder_input_ids=torch.tensor([[0, *ids[:-1]]])
        ).logits
    model.train(training)
    return float(logits[0].double().log_softmax(-1)[range(len(ids)), ids].sum())


def by_hand(model: nn.Module, sources: list[str], words: list[str]) -> torch.Tensor:
    return torch.tensor([[teacher_forced(model, source, word) for word in words] for source in sources])


def generated_alone(model: nn.Module, source: str, max_new_tokens: int, num_beams: int) -> tuple[str, bool]:
    """The answer to one source by plain generate without a cache, and whether it was cut."""
    training = model.training
    model.eval()
    with torch.no_grad():
        (ids,) = generate(
            model,
            input_ids=torch.tensor([ids_of(source)]),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            use_cache=False,
        )
    model.train(training)
    return narrow.text(TOKENIZER.decode(ids, skip_special_tokens=True)), 1 not in ids.tolist()


@each_model
def test_rank_gives_the_log_probabilities_of_teacher_forcing(make: MakeModel) -> None:
    model = make()
    found = rank(model, TOKENIZER, SOURCES, WORDS)
    expected = by_hand(model, SOURCES, WORDS)
    assert expected.std(dim=0).min() > 0.05, "the sources must matter, else this test sees too little"
    torch.testing.assert_close(found.log_probabilities, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.probabilities, expected.softmax(-1), rtol=1e-4, atol=1e-6)
    assert found.best == expected.argmax(-1).tolist()


@each_model
@pytest.mark.parametrize("num_beams", [1, 3])
def test_predict_gives_what_generate_gives_for_each_source_alone(make: MakeModel, num_beams: int) -> None:
    model = make()
    alone = [generated_alone(model, source, 7, num_beams) for source in SOURCES]
    for tokens_per_batch in (60, 8192):
        found = predict(
            model, TOKENIZER, SOURCES, max_new_tokens=7, num_beams=num_beams, tokens_per_batch=tokens_per_batch
        )
        assert list(found) == [text for text, _ in alone]
        assert found.truncated_fraction == pytest.approx(sum(cut for _, cut in alone) / len(alone))


def test_some_answers_end_and_some_are_cut_so_that_the_tests_of_predict_see_both() -> None:
    assert 0 < predict(wide(), TOKENIZER, SOURCES, max_new_tokens=7).truncated_fraction < 1
    assert predict(wide(), TOKENIZER, SOURCES[:1], max_new_tokens=1).truncated_fraction == 1.0


@pytest.mark.parametrize("make", [v1_0, umt5])
def test_rank_takes_a_list_of_candidates_for_each_source(make: MakeModel) -> None:
    model = make()
    lists = [WORDS[: i + 1] for i in range(len(SOURCES))]
    found = rank(model, TOKENIZER, SOURCES, lists, tokens_per_batch=90)
    expected = by_hand(model, SOURCES, WORDS[: len(SOURCES)])
    missing = torch.ones_like(expected).triu(1).bool()
    torch.testing.assert_close(found.log_probabilities, expected.masked_fill(missing, -torch.inf), rtol=1e-5, atol=1e-5)
    assert found.probabilities[missing].eq(0).all()
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(len(SOURCES)))


@pytest.mark.parametrize("make", [v1_0, wrapped("prompt")])
def test_many_candidates_are_scored_in_several_trees_and_few_positions_of_logits_at_once(
    make: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    expected = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    monkeypatch.setattr(candidates, "MOST_POSITIONS", 6)
    monkeypatch.setattr(ranking, "MIN_CHUNK_TOKENS", 4)
    monkeypatch.setattr(ranking, "CHUNK_ELEMENTS", {"cpu": 1, "cuda": 1})
    ids = [ids_of(word) for word in WORDS]
    assert len(candidates.trees(ids, 0, True)) > 2
    lists = [WORDS if i % 2 else WORDS[:2] for i in range(len(SOURCES))]
    torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, expected, rtol=1e-5, atol=1e-5)
    found = rank(model, TOKENIZER, SOURCES, lists).log_probabilities
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1::2], expected[1::2], rtol=1e-5, atol=1e-5)


def test_beginnings_are_shared_and_blocks_are_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = v1_0()
    ids = [ids_of(word) for word in WORDS]
    beginnings = {tuple(one[:length]) for one in ids for length in range(len(one))}
    assert [len(tree.tokens) for tree in candidates.trees(ids, 0, True)] == [len(beginnings)]
    assert [len(tree.tokens) for tree in candidates.trees(ids, 0, False)] == [sum(map(len, ids))]
    expected = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    monkeypatch.setattr(ranking, "can_share", lambda t5: False)
    torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, expected, rtol=1e-5, atol=1e-5)


def test_only_float32_models_with_one_position_bias_share_beginnings() -> None:
    assert candidates.can_share(v1_0())
    assert candidates.can_share(mt5())
    assert not candidates.can_share(umt5())
    assert not candidates.can_share(v1_0().bfloat16())


def test_rank_of_a_bfloat16_model_is_as_close_as_bfloat16_is() -> None:
    model = v1_0().bfloat16()
    found = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    torch.testing.assert_close(found, by_hand(model, SOURCES, WORDS), rtol=0.02, atol=0.1)


def test_normalized_by_length_the_scores_are_means_over_tokens() -> None:
    model = v1_0()
    lengths = torch.tensor([len(ids_of(word)) for word in WORDS])
    plain = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    found = rank(model, TOKENIZER, SOURCES, WORDS, normalize_by_length=True)
    torch.testing.assert_close(found.log_probabilities, plain / lengths)
    torch.testing.assert_close(found.probabilities, (plain / lengths).softmax(-1))
    lists = rank(model, TOKENIZER, SOURCES, [WORDS] * len(SOURCES), normalize_by_length=True)
    torch.testing.assert_close(lists.log_probabilities, found.log_probabilities)


def test_sources_may_be_token_ids_and_are_cut_before_their_end() -> None:
    model = v1_0()
    ids = [ids_of(source) for source in SOURCES]
    cut = [one if len(one) <= 8 else [*one[:7], 1] for one in ids]
    assert cut != ids
    assert predict(model, TOKENIZER, ids, max_new_tokens=6) == predict(model, TOKENIZER, SOURCES, max_new_tokens=6)
    found = rank(model, TOKENIZER, SOURCES, WORDS, max_source_length=8).log_probabilities
    torch.testing.assert_close(found, rank(model, TOKENIZER, cut, WORDS).log_probabilities)
    expected = predict(model, TOKENIZER, cut, max_new_tokens=6)
    assert predict(model, TOKENIZER, SOURCES, max_new_tokens=6, max_source_length=8) == expected


@pytest.mark.parametrize("kind", [np.array, pd.Series])
def test_sources_and_candidates_may_be_arrays_of_texts(kind: Callable[[list[Any]], Any]) -> None:
    model = v1_0()
    expected = rank(model, TOKENIZER, SOURCES, WORDS)
    assert torch.equal(rank(model, TOKENIZER, kind(SOURCES), kind(WORDS)).log_probabilities, expected.log_probabilities)
    assert predict(model, TOKENIZER, kind(SOURCES), max_new_tokens=3) == predict(
        model, TOKENIZER, SOURCES, max_new_tokens=3
    )


def test_batches_keep_to_the_budget_and_hold_every_source_once() -> None:
    sources = [[1] * length for length in (3, 40, 7, 7, 100, 1, 9)]
    batches = length_batches(sources, 60, more_per_row=5, passes=2, copies=2)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or 2 * len(batch) * (5 + max(len(sources[i]) for i in batch)) <= 60
    # A pass costs something whatever its size: many passes are worth some padding, few are not.
    alike = [[1] * length for length in (10, 20, 30, 40)]
    assert len(length_batches(alike, 1000, more_per_row=1, passes=50)) == 1
    assert len(length_batches(alike, 1000, more_per_row=1, passes=0)) == 4


def test_nothing_comes_of_no_sources() -> None:
    model = v1_0()
    assert predict(model, TOKENIZER, [], max_new_tokens=3) == []
    assert rank(model, TOKENIZER, [], WORDS).probabilities.shape == (0, len(WORDS))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_merging_changes_the_weights_inside_and_no_bit_outside(method: str) -> None:
    model = wrapped(method)().eval()
    before, addresses = snapshot(model), {name: value.data_ptr() for name, value in model.state_dict().items()}
    inputs = {"input_ids": torch.tensor([ids_of(SOURCES[1])]), "labels": torch.tensor([ids_of(WORDS[4])])}
    with torch.no_grad():
        unmerged = model(**inputs).logits
        with merged(model):
            assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
            torch.testing.assert_close(model(**inputs).logits, unmerged, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(**inputs).logits, unmerged)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert addresses == {name: value.data_ptr() for name, value in model.state_dict().items()}


def test_evaluation_runs_on_the_kernels_and_merges_within_those_of_a_trainer_too() -> None:
    model = wrapped("lora")()
    plain = [type(module) for module in model.modules()]
    with evaluating(model) as t5:
        assert any(isinstance(module, FastLinear) for module in t5.modules())
    assert [type(module) for module in model.modules()] == plain
    with fast_kernels(model):
        inside = [type(module) for module in model.modules()]
        with evaluating(model) as t5:
            assert all(module.merged for module in t5.modules() if isinstance(module, LoraLayer))
        assert [type(module) for module in model.modules()] == inside
    assert [type(module) for module in model.modules()] == plain


def test_weights_and_training_flags_come_back_after_an_error() -> None:
    model = wrapped("lora")()
    unwrap_t5(model).get_submodule("encoder").eval()
    before, flags = snapshot(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop here"), merged(model):
        raise RuntimeError("stop here")
    with pytest.raises(IndexError):
        predict(model, TOKENIZER, [[10**6, 1]], max_new_tokens=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    assert torch.is_grad_enabled()


def test_what_is_no_change_of_a_linear_map_is_told_as_not_merged() -> None:
    for method, merges in (("lora", True), ("norm", False), ("prefix", False)):
        with torch.no_grad(), merged(METHODS[method].wrap(v1_0())) as any_merged:
            assert any_merged is merges


def test_a_disabled_adapter_is_not_merged() -> None:
    model = wrapped("lora")()
    base = by_hand(wide(), SOURCES, WORDS)
    with model.disable_adapter():
        torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, base, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_bfloat16_weights_is_left_unmerged() -> None:
    model = lora_wrap(v1_0().bfloat16())
    before = snapshot(model)
    with merged(model):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dora_is_merged_and_put_back() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(v1_0(), LoraConfig(target_modules=["q", "v"], use_dora=True, task_type="SEQ_2_SEQ_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    before, expected = snapshot(model), by_hand(model, SOURCES, WORDS)
    torch.testing.assert_close(rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_quantised_weights_are_left_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    v1_0().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model = qlora_wrap(load_backbone(tmp_path, quantize="int8")[0])
    before = snapshot(model)
    found = rank(model, TOKENIZER, SOURCES, WORDS).log_probabilities
    texts = predict(model, TOKENIZER, SOURCES, max_new_tokens=5)
    assert len(texts) == len(SOURCES)
    assert torch.isfinite(found).all()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_rank_says_what_is_wrong_with_candidates() -> None:
    model = v1_0()
    with pytest.raises(ValueError, match="Got an empty list of candidates; expected at least one"):
        rank(model, TOKENIZER, SOURCES, [])
    with pytest.raises(ValueError, match="Got the candidates 'a' and 'a', the same tokens; expected"):
        rank(model, TOKENIZER, SOURCES, ["a", "the", "a"])
    with pytest.raises(ValueError) as caught:
        rank(model, TOKENIZER, SOURCES, [["a", "b"], []])
    assert "Got 2 lists of candidates for 6 sources" in str(caught.value)
    assert "Got an empty list of candidates of source 1" in str(caught.value)
    with pytest.raises(ValueError, match="Got one text as sources, 'no'; expected a list of texts"):
        rank(model, TOKENIZER, "no", WORDS)


def test_one_text_in_place_of_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="Got one text as candidates, 'yes'; expected a list of texts"):
        rank(v1_0(), TOKENIZER, SOURCES, "yes")


def test_numbers_below_one_are_refused() -> None:
    model = v1_0()
    with pytest.raises(ValueError, match="Got max_new_tokens=0 and num_beams=1; expected at least 1 of each"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=0)
    with pytest.raises(ValueError, match="Got tokens_per_batch=0; expected at least 1"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3, tokens_per_batch=0)
    with pytest.raises(ValueError, match="Got max_source_length=1; expected at least 2"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3, max_source_length=1)


def peft_prompt(kind: str) -> PreTrainedModel:
    """A T5 with a prefix or a prompt of peft itself, away from where it starts."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    config = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}[kind]
    model = get_peft_model(v1_0(), config(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model.train()


def by_peft(model: PreTrainedModel, source: str, target: str) -> float:
    """Summed log-probability of one target after one source by peft's own forward pass."""
    model.eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids_of(source)]), labels=torch.tensor([ids_of(target)]))
    model.train()
    return -float(found.loss) * len(ids_of(target))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_the_prompt_learning_of_peft_itself_is_scored_by_its_own_forward_pass(kind: str) -> None:
    model = peft_prompt(kind)
    expected = torch.tensor([[by_peft(model, source, word) for word in WORDS] for source in SOURCES])
    assert not torch.allclose(expected, by_hand(v1_0(), SOURCES, WORDS), atol=0.1), "the prompt must count"
    found = rank(model, TOKENIZER, SOURCES, WORDS)
    torch.testing.assert_close(found.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    lists = rank(model, TOKENIZER, SOURCES, [WORDS[: i + 1] for i in range(len(SOURCES))]).log_probabilities
    missing = torch.ones_like(lists).triu(1).bool()
    torch.testing.assert_close(
        lists, expected[:, : len(SOURCES)].masked_fill(missing, -torch.inf), rtol=1e-4, atol=1e-4
    )
    features = [{"input_ids": ids_of(source), "labels": ids_of(WORDS[i])} for i, source in enumerate(SOURCES)]
    tokens = sum(len(feature["labels"]) for feature in features)
    loss = -float(expected[range(len(SOURCES)), range(len(SOURCES))].sum()) / tokens
    assert loss_and_perplexity(model, features)["loss"] == pytest.approx(loss, rel=1e-4)
    assert model.training


def headed(labels: int) -> PreTrainedModel:
    return tiny_classifier(num_labels=labels, vocab_size=len(TOKENIZER))


def test_classify_gives_the_probabilities_of_a_head() -> None:
    model = headed(3)
    found = classify(model, TOKENIZER, SOURCES, tokens_per_batch=40)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([ids_of(source)])).logits for source in SOURCES])
    torch.testing.assert_close(found.probabilities, logits.softmax(-1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"T5ForSequenceClassification, which has no .* to score texts"):
        rank(model, TOKENIZER, SOURCES, WORDS)
    with pytest.raises(ValueError, match=r"no language model head; expected one, to generate\. Use classify"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"expected a classification head\. Use rank"):
        classify(v1_0(), TOKENIZER, SOURCES)


SENTIMENT = Task(
    "sentiment",
    "sentiment: {text}",
    "it is {label}",
    {"0": "negative", "1": "very positive", "2": "neutral"},
    metrics=("accuracy", "f1", "matthews", "perplexity"),
)
LABELLED: list[dict[str, Any]] = [
    {"text": text, "label": i % 3} for i, text in enumerate(text for text in SOURCES if text)
]


def test_a_task_with_target_words_is_scored_by_ranking_them() -> None:
    model = v1_0()
    targets = ["it is negative", "it is very positive", "it is neutral"]
    sources = [f"sentiment: {record['text']}" for record in LABELLED]
    expected = by_hand(model, sources, targets)
    best = [str(i) for i in expected.argmax(-1).tolist()]
    truths = [str(record["label"]) for record in LABELLED]
    found = evaluate_task(model, TOKENIZER, SENTIMENT, LABELLED)
    for name in ("accuracy", "f1", "matthews"):
        for key, value in compute(name, best, truths).items():
            assert found[key] == pytest.approx(value)
    tokens = [len(ids_of(targets[record["label"]])) for record in LABELLED]
    nats = [-float(expected[i, record["label"]]) for i, record in enumerate(LABELLED)]
    assert found["loss"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-4)
    labels = [record["label"] for record in LABELLED]
    assert found["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(expected.softmax(-1), labels), abs=1e-5
    )


def test_a_task_with_target_words_is_scored_by_the_head_where_there_is_one() -> None:
    model = headed(3)
    task = Task("sentiment", "{text}", "{label}", SENTIMENT.verbalizer, metrics=("accuracy",))
    best = classify(model, TOKENIZER, [record["text"] for record in LABELLED]).best
    right = sum(column == record["label"] for column, record in zip(best, LABELLED, strict=True))
    assert evaluate_task(model, TOKENIZER, task, LABELLED)["accuracy"] == pytest.approx(right / len(LABELLED))
    with pytest.raises(
        ValueError, match="whose head has 2 classes; expected 3, the target words of the task 'sentiment'"
    ):
        evaluate_task(headed(2), TOKENIZER, task, LABELLED)


def test_a_class_head_has_no_perplexity() -> None:
    task = Task("sentiment", "{text}", "{label}", SENTIMENT.verbalizer, metrics=("accuracy", "perplexity"))
    with pytest.raises(
        ValueError, match="which has no language model head; expected one, as perplexity is that of its targets"
    ):
        evaluate_task(headed(3), TOKENIZER, task, LABELLED)


def test_one_set_scores_several_models_and_each_example() -> None:
    task = Task("sentiment", "sentiment: {text}", "it is {label}", SENTIMENT.verbalizer, metrics=("accuracy", "f1"))
    held = EvaluationSet(task, iter(LABELLED), TOKENIZER)
    for model in (v1_0(), wide()):
        found = held.score(model)
        assert found.diagnostics | found.scores == evaluate_task(model, TOKENIZER, task, LABELLED)
        assert found.example_metric == held.lead == "accuracy"
        assert sum(found.per_example) == pytest.approx(len(LABELLED) * found.scores["accuracy"])
        features = task.tokenize(LABELLED, TOKENIZER).to_list()
        assert held.loss(model) == loss_and_perplexity(model, features)["loss"]


def test_the_matthews_correlation_of_one_example_is_whether_it_is_right() -> None:
    """Of one example there is none: 0 for each would make all methods the same."""
    held = EvaluationSet(
        Task("free", "{text}", "{answer}", metrics=("matthews",)), [{"text": "a", "answer": "b"}], TOKENIZER
    )
    assert [held.score_examples([answer]) for answer in ("b", "c")] == [[1.0], [0.0]]


@pytest.mark.parametrize("metric", ["bleu", "gleu"])
def test_a_short_example_has_the_score_of_a_sentence(metric: str) -> None:
    task = Task("short", "{text}", "{answer}", metrics=(metric,))
    held = EvaluationSet(task, [{"text": "I is here", "answer": "I am here"}], TOKENIZER)
    highest = pytest.approx(METRICS[metric].highest)
    assert [held.score_examples([answer]) for answer in ("I am here", "no")] == [[highest], [0.0]]
    assert held.score(v1_0()).example_metric == f"sentence_{metric}"


def test_exact_match_compares_labels_as_they_are() -> None:
    task = Task("sentiment", "{text}", "{label}", {"-1": "negative", "1": "positive"})
    records = [{"text": text, "label": sign} for text in SOURCES if text for sign in (-1, 1)]
    assert evaluate_task(v1_0(), TOKENIZER, task, records)["exact_match"] == 0.5


def test_a_task_with_free_targets_is_scored_by_generation() -> None:
    model = wide()
    texts = [text for text in SOURCES if text]
    answers = [generated_alone(model, f"echo: {text}", 7, 2) for text in texts]
    records = [
        {"text": text, "answer": "something", "answers": ["something", answer] if i % 2 else ["something"]}
        for i, (text, (answer, _)) in enumerate(zip(texts, answers, strict=True))
    ]
    task = Task(
        "echo", "echo: {text}", "{answer}", metrics=("exact_match", "gleu", "bleu"),
        max_target_length=7, num_beams=2, references="answers",
    )  # fmt: skip
    found = evaluate_task(model, TOKENIZER, task, records)
    assert found["exact_match"] == pytest.approx(sum(i % 2 for i in range(len(texts))) / len(texts))
    assert found["truncated_fraction"] == pytest.approx(sum(cut for _, cut in answers) / len(answers))
    assert 0 < found["bleu"] < 100
    assert "gleu" in found
    with pytest.raises(ValueError, match=r"Got metrics \['rouje'\] of the task 'echo'; expected some of accuracy"):
        evaluate_task(model, TOKENIZER, Task("echo", "{text}", "{answer}", metrics=("rouje",)), records)


def test_a_column_of_references_that_no_record_has_is_told() -> None:
    task = Task("echo", "{text}", "{answer}", references="refs")
    with pytest.raises(
        ValueError, match=r"'refs', which is in none of the 1 records; the columns there are: 'text', 'answer'"
    ):
        evaluate_task(v1_0(), TOKENIZER, task, [{"text": "a", "answer": "b"}])


@pytest.mark.parametrize("make", [v1_0, wrapped("lora"), wrapped("prompt")])
def test_the_loss_is_a_mean_over_target_tokens_whatever_the_batches(make: MakeModel) -> None:
    model = make()
    features = [{"input_ids": ids_of(source), "labels": ids_of(WORDS[i])} for i, source in enumerate(SOURCES)]
    total = -sum(teacher_forced(model, source, WORDS[i]) for i, source in enumerate(SOURCES))
    expected = total / sum(len(feature["labels"]) for feature in features)
    for tokens_per_batch in (1, 70, 8192):
        found = loss_and_perplexity(model, features, tokens_per_batch=tokens_per_batch)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert unwrap_t5(model).training == model.training


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_size() -> None:
    probabilities = torch.tensor([[0.95, 0.05], [0.91, 0.09], [0.42, 0.58], [0.35, 0.65], [0.5, 0.5]])
    # Bins of a tenth: (0.9, 1] holds two, of which one is right; (0.5, 0.6] one, right; (0.6, 0.7] one, wrong; (0.4, 0.5] one.
    labels = [0, 1, 1, 0, 0]
    expected = (abs(1 - 0.95 - 0.91) + abs(1 - 0.58) + abs(0 - 0.65) + abs(1 - 0.5)) / 5
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [0, 1]) == 0.0
    with pytest.raises(ValueError, match=r"Got the labels \[2\]; expected columns 0 to 1"):
        expected_calibration_error(probabilities, [0, 1, 1, 0, 2])


def test_the_fitted_temperature_undoes_one_that_was_put_in_and_has_the_least_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 4, generator=generator).mul(2).log_softmax(-1)
    labels = torch.multinomial(honest.exp(), 1, generator=generator).squeeze(1)
    overconfident = Ranking.of(honest * 3)
    temperature = fit_temperature(overconfident.log_probabilities, labels)
    assert temperature == pytest.approx(3, rel=0.1)
    softened = overconfident.at_temperature(temperature)
    assert softened.best == overconfident.best
    error = expected_calibration_error(softened.probabilities, labels)
    assert error < 0.03 < expected_calibration_error(overconfident.probabilities, labels)

    def loss(at: float) -> float:
        return float(nn.functional.nll_loss((overconfident.log_probabilities.double() / at).log_softmax(-1), labels))

    assert loss(temperature) < min(loss(0.99 * temperature), loss(1.01 * temperature))
    with_missing = torch.cat([overconfident.log_probabilities, torch.full((4000, 1), -torch.inf)], dim=1)
    assert fit_temperature(with_missing, labels) == pytest.approx(temperature)
    with pytest.raises(ValueError, match="Got temperature=0; expected a number above 0"):
        softened.at_temperature(0)
