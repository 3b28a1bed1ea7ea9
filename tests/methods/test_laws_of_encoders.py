"""The laws of the methods on encoders without a decoder: of T5, mT5 and umT5, with each head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference_encoders
import torch
from cases import ADAPTERS, Case, by_hand, stir, trained, wrap
from laws import in_double, precise, two_geometries
from narrow import t5_config
from tiny import Geometry, fill_unevenly, tiny_batch, tiny_config
from torch import Tensor, nn
from transformers import (
    MT5Config,
    MT5ForTokenClassification,
    PreTrainedModel,
    T5EncoderModel,
    T5ForTokenClassification,
    UMT5Config,
    UMT5ForTokenClassification,
)

from t5peft import METHODS, full_wrap, ladder_wrap, load_adapter, save_adapter
from t5peft.methods.base import head_module_name
from t5peft.models.encoders import (
    MT5EncoderForEmbedding,
    MT5EncoderForSequenceClassification,
    T5EncoderForEmbedding,
    T5EncoderForSequenceClassification,
    UMT5EncoderForEmbedding,
    UMT5EncoderForSequenceClassification,
    mean_over_tokens,
)

SHAPE = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2, "dropout_rate": 0.0}
CLASSES: dict[str, dict[str, Any]] = {
    "t5": {
        "sequence": T5EncoderForSequenceClassification, "tokens": T5ForTokenClassification,
        "embedding": T5EncoderForEmbedding, "projected": T5EncoderForEmbedding, "states": T5EncoderModel,
    },
    "mt5": {
        "sequence": MT5EncoderForSequenceClassification, "tokens": MT5ForTokenClassification,
        "embedding": MT5EncoderForEmbedding,
    },
    "umt5": {
        "sequence": UMT5EncoderForSequenceClassification, "tokens": UMT5ForTokenClassification,
        "embedding": UMT5EncoderForEmbedding,
    },
}  # fmt: skip
# A ladder ends in the decoder, and a prefix may stand only there; quantized encoders have a test of their own.
CASES = [
    case
    for case in ADAPTERS
    if METHODS[case.method].quantize is None and case.method != "ladder" and case.variant not in ("decoder", "cross")
]
KINDS = [(family, head) for family, heads in CLASSES.items() for head in heads]
FAST = [("t5", "sequence"), ("t5", "tokens"), ("t5", "embedding"), ("mt5", "embedding")]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_kind = pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(family, head, id=f"{family}-{head}", marks=[] if (family, head) in FAST else [pytest.mark.slow])
        for family, head in KINDS
    ],
)


def encoder(family: str, head: str, geometry: Geometry = "v1.0") -> PreTrainedModel:
    """A tiny encoder with uneven weights."""
    size = {"embedding_size": 12} if head == "projected" else {}
    if family == "t5":
        config: Any = tiny_config(geometry, num_labels=3, **size)
    else:
        config = {"mt5": MT5Config, "umt5": UMT5Config}[family](**SHAPE, num_labels=3, feed_forward_proj="gated-gelu")
    return fill_unevenly(CLASSES[family][head](config)).eval()


def inputs(side: Any = "right", extra_pads: int = 0) -> dict[str, Tensor]:
    batch = tiny_batch(side=side, extra_pads=extra_pads)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The result of the head; of tokens and plain states only where there are tokens."""
    found: Any = model(**batch)
    if "pooler_output" in found:
        return found.pooler_output
    scores: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return scores if scores.dim() == 2 else scores[batch["attention_mask"].bool()]


def some_loss(model: nn.Module) -> Tensor:
    found = output(model, inputs())
    return (found * torch.linspace(-1, 1, found.numel()).to(found.dtype).view_as(found)).sum()


@every_case
@two_geometries
def test_embeddings_are_those_of_the_reference_by_hand(case: Case, geometry: Geometry) -> None:
    model = precise(stir(wrap(case, encoder("t5", "projected", geometry))))
    state = in_double(dict(encoder("t5", "projected", geometry).named_parameters()))
    inner = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    for side in ("right", "left"):
        batch = inputs(side, extra_pads=1)
        means = reference_encoders.mean_states(
            inner, t5_config(model), batch["input_ids"], batch["attention_mask"], by_hand(model)
        )
        (projection,) = (
            p for name, p in model.named_parameters() if "embedding_projection" in name and p.requires_grad
        )
        expected = reference_encoders.unit(means @ projection.T)
        torch.testing.assert_close(output(model, batch), expected, rtol=0, atol=1e-9)


@every_case
@every_kind
def test_one_step_moves_adapter_and_head_and_no_bit_of_the_encoder_and_is_saved(
    case: Case, family: str, head: str, tmp_path: Path
) -> None:
    model, batch = stir(wrap(case, encoder(family, head))), inputs()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    some_loss(model.train()).backward()
    moving = trained(model)
    torch.optim.SGD(moving.values(), lr=0.1).step()
    name = head_module_name(encoder(family, head))
    assert name is None or any(f"{name}." in key for key in moving)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (key not in moving), key
    save_adapter(model.eval(), tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter", model=encoder(family, head))
    with torch.no_grad():
        assert torch.equal(output(loaded.eval(), batch), output(model, batch))


@every_case
@every_kind
def test_padding_and_checkpointing_change_nothing_and_wrapping_only_where_the_method_says_so(
    case: Case, family: str, head: str
) -> None:
    base = precise(encoder(family, head))
    with torch.no_grad():
        plain = output(base, inputs())
    model = precise(wrap(case, base))
    with torch.no_grad():
        assert (
            torch.allclose(output(model, inputs()), plain, rtol=0, atol=1e-12) == METHODS[case.method].identity_at_start
        )
        stir(model)
        expected = output(model, inputs())
        for side, pads in (("left", 0), ("right", 3), ("left", 2)):
            torch.testing.assert_close(output(model, inputs(side, pads)), expected, rtol=0, atol=1e-9)
    parameters = trained(model)
    gradients = torch.autograd.grad(some_loss(model.train()), list(parameters.values()))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = torch.autograd.grad(some_loss(model), list(parameters.values()))
    for name, one, other in zip(parameters, gradients, again, strict=True):
        assert one.norm() > 0, name
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if METHODS[case.method].merges], ids=str)
@pytest.mark.parametrize("family", CLASSES)
def test_merged_equals_unmerged_and_is_a_plain_encoder(case: Case, family: str) -> None:
    model = precise(stir(wrap(case, encoder(family, "sequence"))))
    with torch.no_grad():
        expected = output(model, inputs())
        merged = model.merge_and_unload()
        assert type(merged) is CLASSES[family]["sequence"]
        torch.testing.assert_close(output(merged, inputs()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "head"), KINDS)
def test_a_ladder_is_refused_and_full_tuning_trains_all(family: str, head: str) -> None:
    with pytest.raises(ValueError, match="expected a T5 with a decoder, as a ladder ends in the decoder"):
        ladder_wrap(encoder(family, head))
    model = full_wrap(encoder(family, head))
    some_loss(model.train()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_mean_is_of_tokens_only_and_padding_only_has_one_too() -> None:
    states = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_over_tokens(states, mask).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert mean_over_tokens(states, None).tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert mean_over_tokens(states.bfloat16(), mask).dtype == torch.float32


def test_a_prompt_leaves_the_states_of_the_text_at_their_tokens() -> None:
    """Without a mask there is no padding, and the states are those with a mask of ones."""
    make: Callable[[], nn.Module] = lambda: wrap(Case("prompt", {"length": 3}), encoder("t5", "states"))  # noqa: E731
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        found = make()(input_ids=ids).last_hidden_state
        assert found.shape[1] == 4
        torch.testing.assert_close(make()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state, found)
