"""Prediction and ranking against one example at a time by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scored import (
    SOURCES,
    TOKENIZER,
    WORDS,
    MakeModel,
    by_hand,
    each_model,
    generated_alone,
    ids_of,
    mt5,
    umt5,
    v1_0,
    wide,
    wrapped,
)
from transformers import (
    PreTrainedModel,
)

from t5peft.evaluation import (
    candidates,
    loss_and_perplexity,
    predict,
    rank,
    ranking,
)
from t5peft.evaluation.inference import length_batches


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
    with pytest.raises(ValueError, match="Got max_new_tokens=0 and num_beams=1; expected whole numbers, at least 1"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=0)
    with pytest.raises(
        ValueError, match=r"Got max_new_tokens=1\.5 and num_beams='2'; expected whole numbers, at least 1"
    ):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=1.5, num_beams="2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Got tokens_per_batch=0; expected at least 1"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3, tokens_per_batch=0)
    with pytest.raises(ValueError, match="Got max_source_length=1; expected at least 2"):
        predict(model, TOKENIZER, SOURCES, max_new_tokens=3, max_source_length=1)


def test_tokens_that_the_model_has_not_are_refused() -> None:
    model, size = v1_0(), v1_0().config.vocab_size
    for use in (
        lambda: predict(model, TOKENIZER, [[5, size, 1]], max_new_tokens=2),
        lambda: rank(model, TOKENIZER, [[5, size, 1]], WORDS),
    ):
        with pytest.raises(ValueError, match=f"Got the token id {size}; expected ids below {size}, the vocabulary"):
            use()
    predict(model, TOKENIZER, [[5, size - 1, 1]], max_new_tokens=2)


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
