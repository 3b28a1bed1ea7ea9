"""T5PeftTrainer on the families beside T5: losses and gradients are those of plain transformers, however a step is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from narrow import as_dataset
from stacks import relative_difference
from tiny import tiny_records, tiny_tokenizer
from tiny_families import GEMMAS, OTHERS, Other, case_of, other_batch, precise, tiny_other, tiny_other_classifier
from trainers import losses_and_gradients, trainer_of
from transformers import Seq2SeqTrainer

from t5peft import METHODS, T5PeftTrainer, lora_wrap, prefix_wrap
from t5peft.evaluation.prediction import predict
from t5peft.nn.loss import logits_loss, target_loss

RECORDS = tiny_records(8)
TUNED = ["full", "lora", "prompt", "prefix"]


def model_of(family: Other, method: str) -> Any:
    torch.manual_seed(3)
    options = {"length": 3} if method in ("prompt", "prefix") else {}
    return METHODS[method].wrap(tiny_other(family), **options)


@pytest.mark.parametrize(
    ("family", "method"),
    [case_of(f, m) for f in OTHERS for m in TUNED if not (f.startswith("longt5") and m == "prefix")],
)
def test_losses_and_gradients_are_those_of_plain_transformers(family: Other, method: str, tmp_path: Path) -> None:
    """With two batches a step, which plain transformers divides by the target tokens of both where a model says so."""
    accumulates = family in GEMMAS  # the loss of LongT5, as that of T5, is a mean of each batch
    given = {
        "per_device_train_batch_size": 2 if accumulates else 4,
        "gradient_accumulation_steps": 2 if accumulates else 1,
    }
    ours = trainer_of(T5PeftTrainer, model_of(family, method), tmp_path, RECORDS, **given)
    plain = trainer_of(Seq2SeqTrainer, model_of(family, method), tmp_path, RECORDS, **given)
    assert ours.evaluate(as_dataset(RECORDS))["eval_loss"] == pytest.approx(plain_loss(plain), rel=1e-5)
    (losses, gradients), (expected, wanted) = losses_and_gradients(ours), losses_and_gradients(plain)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert relative_difference(gradients[0], wanted[0]) < 1e-5
    assert relative_difference(gradients[1], wanted[1]) < 1e-4  # after a step of Adam, which divides by their size


def plain_loss(trainer: Seq2SeqTrainer) -> float:
    """The mean over target tokens that plain transformers computes of one batch of all records."""
    trainer.args.per_device_eval_batch_size = len(RECORDS)
    return float(trainer.evaluate(as_dataset(RECORDS))["eval_loss"])


@pytest.mark.parametrize("family", ["t5gemma", "longt5-tglobal"])
def test_a_run_that_is_resumed_ends_where_one_without_a_break_does(family: Other, tmp_path: Path) -> None:
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    whole = trainer_of(T5PeftTrainer, model_of(family, "lora"), tmp_path / "run", RECORDS, **given)
    whole.train()
    again = trainer_of(T5PeftTrainer, model_of(family, "lora"), tmp_path / "run", RECORDS, **given)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    trained = {name: p for name, p in again.wrapped_model.named_parameters() if p.requires_grad}
    for name, parameter in whole.wrapped_model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(trained[name], parameter), name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_without_logits_has_the_final_softcap(smoothing: float, z_loss: float) -> None:
    model, batch = precise(tiny_other("t5gemma")), other_batch()
    cap = model.config.decoder.final_logit_softcapping
    logits = model(**batch).logits
    assert 0.5 * cap < logits.abs().max() < cap
    expected = logits_loss(logits, batch["labels"], label_smoothing=smoothing, z_loss=z_loss)
    got, _ = target_loss(model, batch, label_smoothing=smoothing, z_loss=z_loss)
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found, wanted = (dict(zip(names, torch.autograd.grad(x, parameters), strict=True)) for x in (got, expected))
    assert relative_difference(found, wanted) < 1e-8
    assert model.config.decoder.final_logit_softcapping == cap
    assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize("family", GEMMAS)
def test_a_head_of_classes_learns_the_same_whatever_the_batch_is(family: Other, tmp_path: Path) -> None:
    records = [{"input_ids": r["input_ids"], "labels": i % 3} for i, r in enumerate(RECORDS)]

    def losses(**given: Any) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
        torch.manual_seed(3)
        model = lora_wrap(tiny_other_classifier(family))
        return losses_and_gradients(trainer_of(T5PeftTrainer, model, tmp_path, records, **given))

    (cut, gradients), (whole, expected) = losses(), losses(tokens_per_micro_batch=1)
    assert cut == pytest.approx(whole, rel=1e-5)
    assert relative_difference(gradients[0], expected[0]) < 1e-5


@pytest.mark.parametrize("family", OTHERS)
def test_predictions_do_not_depend_on_the_batch(family: Other) -> None:
    model = lora_wrap(tiny_other(family)) if family.startswith("longt5") else prefix_wrap(tiny_other(family), length=3)
    sources = [record["input_ids"] for record in RECORDS]
    together = predict(model, tiny_tokenizer(), sources, max_new_tokens=5)
    one_by_one = [predict(model, tiny_tokenizer(), [ids], max_new_tokens=5)[0] for ids in sources]
    assert list(together) == one_by_one
