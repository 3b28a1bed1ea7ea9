"""The loss without logits equals torch's own, and transformers' label smoothing, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from narrow import gradient
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration
from transformers.trainer_pt_utils import LabelSmoother

from t5peft.nn import loss
from t5peft.nn.loss import linear_cross_entropy, logits_loss, target_lengths, target_loss, with_hidden_states

OPTIONS = [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.1, 1e-2)]


def tiny_t5(tied: bool = True) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=97,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(97, 32))
        model.config.scale_decoder_outputs = False
    return model.train()


def some_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, 97, (3, 5), generator=generator)
    labels[1, 3:] = -100
    labels[2, 1:] = -100
    return {"input_ids": torch.randint(2, 97, (3, 7), generator=generator), "labels": labels}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 23, (4, 6))
    labels[0, 2:] = -100
    labels[3] = -100
    hidden = torch.randn(4, 6, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(23, 8, dtype=dtype, requires_grad=True)
    return hidden, weight, labels


def by_hand(logits: Tensor, labels: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """transformers' smoother as a sum, and the z-loss, by torch's own operations."""
    counted = int((labels != -100).sum())
    loss = LabelSmoother(epsilon=label_smoothing)({"logits": logits}, labels) * counted
    return loss + z_loss * (logits.logsumexp(-1).square() * (labels != -100)).sum()


@pytest.mark.parametrize(("label_smoothing", "z_loss"), OPTIONS)
@pytest.mark.parametrize("chunk_tokens", [1, 3, None])
def test_value_and_gradients_are_those_of_the_logits(
    label_smoothing: float, z_loss: float, chunk_tokens: int | None
) -> None:
    hidden, weight, labels = inputs()
    expected = by_hand(hidden @ weight.t(), labels, label_smoothing, z_loss)
    expected_grads = torch.autograd.grad(3.0 * expected, (hidden, weight))
    loss = linear_cross_entropy(
        hidden, weight, labels, label_smoothing=label_smoothing, z_loss=z_loss, chunk_tokens=chunk_tokens
    )
    grads = torch.autograd.grad(3.0 * loss, (hidden, weight))
    # The smoother sums in fp32 whatever comes.
    torch.testing.assert_close(loss, expected, rtol=1e-6 if label_smoothing else 1e-12, atol=0.0)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-7 if label_smoothing else 1e-12)


def test_without_options_it_is_torchs_cross_entropy_in_fp32() -> None:
    hidden, weight, labels = inputs(torch.float32)
    expected = cross_entropy((hidden @ weight.t()).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels), expected)


@pytest.mark.parametrize(("label_smoothing", "z_loss"), OPTIONS)
def test_gradcheck(label_smoothing: float, z_loss: float) -> None:
    hidden, weight, labels = inputs()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, labels, label_smoothing=label_smoothing, z_loss=z_loss, chunk_tokens=4
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_a_frozen_head_gets_no_gradient_and_neither_do_frozen_states() -> None:
    hidden, weight, labels = inputs()
    both = linear_cross_entropy(hidden, weight, labels)
    expected = torch.autograd.grad(both, (hidden, weight))
    frozen_head = linear_cross_entropy(hidden, weight.detach(), labels)
    frozen_states = linear_cross_entropy(hidden.detach(), weight, labels)
    torch.testing.assert_close(torch.autograd.grad(frozen_head, hidden)[0], expected[0], rtol=0.0, atol=0.0)
    torch.testing.assert_close(torch.autograd.grad(frozen_states, weight)[0], expected[1], rtol=0.0, atol=0.0)
    assert not linear_cross_entropy(hidden.detach(), weight.detach(), labels).requires_grad
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).requires_grad


def test_without_a_counted_label_loss_and_gradients_are_zero() -> None:
    hidden, weight, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), label_smoothing=0.1)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0.0
    assert all(not grad.any() for grad in grads)


def test_huge_scores_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight, labels = inputs(torch.float32)
    expected = cross_entropy((1e4 * hidden @ weight.t()).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(1e4 * hidden, weight, labels), expected)


def test_bf16_is_summed_in_fp32() -> None:
    hidden, weight, labels = inputs(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, labels)
    grads = torch.autograd.grad(loss, (hidden, weight))
    exact = linear_cross_entropy(hidden.double(), weight.double(), labels)
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact.float(), rtol=4e-3, atol=0.0)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(grad.flatten().double(), exact_grad.flatten().double(), 0) > 0.9999


def test_autocast_gives_fp32_gradients_to_fp32_leaves() -> None:
    hidden, weight, labels = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, label_smoothing=0.1)
    loss.backward()
    exact = linear_cross_entropy(hidden, weight, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0.0)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("trained_head", [False, True])
def test_no_more_logits_than_a_chunk_exist_at_once(trained_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, labels = torch.randn(50, 8, requires_grad=True), torch.randn(1000, 8), torch.arange(50)
    weight.requires_grad_(trained_head)
    largest = 0

    class Largest(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape[-1:] == (1000,):
                largest = max(largest, result.numel())
            return result

    with Largest():
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=4).backward()
    assert largest == 8 * 1000 or largest == 4 * 1000  # W.T has H = 8 rows


@pytest.mark.parametrize("vocabulary", [1009, 32_128, 250_112])
def test_a_whole_chunk_is_not_copied_to_fill_it_up(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = []

    def pad(x: Tensor, sides: tuple[int, ...]) -> Tensor:
        filled.append(len(x))
        return real(x, sides)

    real, size = torch.nn.functional.pad, 16
    monkeypatch.setattr("torch.nn.functional.pad", pad)
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", min(2**23, 300 * vocabulary))
    tokens = 3 * loss.CHUNK_ELEMENTS["cpu"] // vocabulary
    hidden = torch.randn(tokens, size, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,))
    linear_cross_entropy(hidden, torch.randn(vocabulary, size), labels)
    assert len(filled) <= 2, "logits and gradient of the last chunk"
    assert all(rows < tokens // 3 for rows in filled)


def test_errors_name_every_problem() -> None:
    hidden, weight, labels = inputs()
    labels[0, 0] = 23
    with pytest.raises(ValueError, match=r"labels from -100 to 23; expected 0 to 22.*label_smoothing=1\.0"):
        linear_cross_entropy(hidden, weight, labels, label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"hidden \[4, 6, 8\], weight \[23, 8\] and labels \[24\]; expected"):
        linear_cross_entropy(hidden, weight, labels.flatten())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("label_smoothing", "z_loss"), OPTIONS)
def test_target_loss_is_the_models_own_loss_times_its_tokens(tied: bool, label_smoothing: float, z_loss: float) -> None:
    model, batch = tiny_t5(tied), some_batch()
    outputs = model(**batch)
    expected = by_hand(outputs.logits, batch["labels"], label_smoothing, z_loss)
    if not label_smoothing and not z_loss:
        torch.testing.assert_close(expected, outputs.loss * 9)
    expected.backward()
    expected_grads = {name: gradient(parameter).clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss, target_tokens = target_loss(model, batch, label_smoothing=label_smoothing, z_loss=z_loss)
    loss.backward()
    assert target_tokens == 9
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapted_head_is_called_as_it_is() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_t5(tied=False), LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    batch = some_batch()
    loss, target_tokens = target_loss(model, batch, label_smoothing=0.1)
    expected = by_hand(model(**batch).logits, batch["labels"], 0.1, 0.0)
    torch.testing.assert_close(loss, expected)
    with model.disable_adapter():
        assert abs(target_loss(model, batch, label_smoothing=0.1)[0] - loss) > 1e-3
    assert target_tokens == 9


def test_logits_loss_is_the_same_loss() -> None:
    hidden, weight, labels = inputs()
    loss = logits_loss(hidden @ weight.t(), labels, label_smoothing=0.1, z_loss=1e-2)
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, labels, label_smoothing=0.1, z_loss=1e-2))


@pytest.mark.parametrize("tied", [True, False])
def test_with_hidden_states_gives_what_the_head_would_get_and_puts_the_head_back(tied: bool) -> None:
    model, batch = tiny_t5(tied), some_batch()
    head = model.lm_head
    logits = model(**batch).logits
    inputs = {"input_ids": batch["input_ids"], "decoder_input_ids": model._shift_right(batch["labels"])}
    with with_hidden_states(model):
        hidden = model(**inputs).logits
    torch.testing.assert_close(hidden @ model.lm_head.weight.t(), logits)
    with pytest.raises(KeyError, match="stop"), with_hidden_states(model):
        raise KeyError("stop")
    assert model.lm_head is head
    assert [name for name, _ in model.named_children()] == ["shared", "encoder", "decoder", "lm_head"]


def test_a_target_ends_with_its_last_label_that_counts() -> None:
    labels = torch.tensor([[5, -100, 1, -100], [1, -100, -100, -100], [2, 3, 4, 5], [-100, -100, -100, -100]])
    assert target_lengths(labels) == [3, 1, 4, 0]
