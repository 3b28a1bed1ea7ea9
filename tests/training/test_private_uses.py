"""Every private name of another library that we use exists, has the signature that we rely on, and is still called."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from narrow import as_dataset
from private_uses import PRIVATE_USES, PrivateUse
from served_names import CALLED_METHODS, SERVED_ARGUMENTS, UNCHANGED_METHODS
from tiny import tiny_t5
from trainers import RECORDS, trainer_of
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from t5peft import T5PeftTrainer, full_wrap, lora_wrap
from t5peft.training import batches, checkpoints, evaluation_loop, served, trainer

LIBRARY = (
    trainer.T5PeftTrainer,
    batches.BatchingTrainer,
    evaluation_loop.EvaluatingTrainer,
    checkpoints.CheckpointTrainer,
)


@pytest.mark.parametrize("use", [use for use in PRIVATE_USES if use.parameters is not None], ids=lambda use: use.name)
def test_a_private_function_is_there_with_the_signature_relied_on(use: PrivateUse) -> None:
    assert tuple(inspect.signature(getattr(use.owner, use.name)).parameters) == use.parameters
    assert use.reason.endswith(".")


@pytest.mark.parametrize("use", [use for use in PRIVATE_USES if use.parameters is None], ids=lambda use: use.name)
def test_a_private_attribute_is_set_by_its_owner(use: PrivateUse) -> None:
    assert f".{use.name} = " in "".join(inspect.getsource(kind) for kind in use.owner.__mro__[:-1])


def test_every_private_override_stands_in_the_table() -> None:
    upstream = {name for name in dir(Seq2SeqTrainer) if name.startswith("_") and not name.startswith("__")}
    overridden = {name for kind in LIBRARY for name in vars(kind) if name in upstream}
    assert overridden == {use.name for use in PRIVATE_USES if use.overridden}


def test_every_private_override_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counting(name: str, method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return method(self, *args, **kwargs)

        return call

    for use in PRIVATE_USES:
        if use.overridden:
            own = vars(checkpoints.CheckpointTrainer)[use.name]
            monkeypatch.setattr(checkpoints.CheckpointTrainer, use.name, counting(use.name, own))
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    saving |= {"load_best_model_at_end": True, "eval_dataset": RECORDS}
    for wrap in (full_wrap, lora_wrap):
        folder = tmp_path / wrap.__name__
        trainer_of(T5PeftTrainer, wrap(tiny_t5()), folder, max_steps=1, **saving).train()
        trainer_of(T5PeftTrainer, wrap(tiny_t5()), folder, max_steps=2, **saving).train(resume_from_checkpoint=True)
    assert set(calls) == {use.name for use in PRIVATE_USES if use.overridden}


# Arguments and methods of transformers


def test_every_argument_of_transformers_is_served_or_refused_by_name() -> None:
    names = {field.name for field in fields(Seq2SeqTrainingArguments)}
    assert names == SERVED_ARGUMENTS | served.REFUSED_ARGUMENTS.keys()
    assert not SERVED_ARGUMENTS & served.REFUSED_ARGUMENTS.keys()


def test_every_public_method_of_transformers_is_decided_on() -> None:
    names = {name for name, _ in inspect.getmembers(Seq2SeqTrainer, inspect.isfunction) if not name.startswith("_")}
    assert names == CALLED_METHODS | UNCHANGED_METHODS
    assert not CALLED_METHODS & UNCHANGED_METHODS


REFUSED = {
    "batch_eval_metrics": True, "bf16_full_eval": True, "liger_kernel_config": {"rope": True}, "neftune_noise_alpha": 5.0,
    "optim": "lomo", "sortish_sampler": True, "use_liger_kernel": True, "parallelism_config": object(),
}  # fmt: skip


@pytest.mark.parametrize("name", served.REFUSED_ARGUMENTS)
def test_a_refused_argument_is_named(name: str, tmp_path: Path) -> None:
    if name.startswith("fp16"):
        with pytest.raises(ValueError, match="Got fp16"):
            trainer_of(T5PeftTrainer, tiny_t5(), tmp_path, **{name: True})
        return
    made = trainer_of(T5PeftTrainer, tiny_t5(), tmp_path)
    setattr(made.args, name, REFUSED[name])
    with pytest.raises(ValueError, match=rf"does not support: {name} \("):
        served.check_served(made)


# Methods that a single process calls in training, evaluation and prediction, without a search
SEEN = CALLED_METHODS - {
    "get_optimizer_cls_and_kwargs",  # static
    "load_generation_config",  # static
}


def test_a_method_that_a_subclass_overrides_is_called_where_plain_trainer_calls_it(tmp_path: Path) -> None:
    seen = {}
    for kind in (T5PeftTrainer, Seq2SeqTrainer):
        calls: Counter[str] = Counter()

        def counting(name: str, method: Any, calls: Counter[str] = calls) -> Any:
            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                calls[name] += 1
                return method(self, *args, **kwargs)

            return call

        quiet = SEEN - {"compute_loss"}  # an overridden one changes how steps are cut; see test_drop_in.py
        watched: type[Seq2SeqTrainer] = type(
            "Watched", (kind,), {name: counting(name, getattr(kind, name)) for name in quiet}
        )
        made: Seq2SeqTrainer = trainer_of(
            watched, tiny_t5(), tmp_path / kind.__name__, model_init=None, max_steps=2, eval_dataset=RECORDS,
            save_strategy="steps", save_steps=1, per_device_eval_batch_size=4,
        )  # fmt: skip
        made.train()
        made.evaluate()
        made.predict(as_dataset(RECORDS))
        seen[kind] = calls
    ours, plain = seen[T5PeftTrainer], seen[Seq2SeqTrainer]
    missing = set(plain) - set(ours)
    assert missing <= {"get_cp_size", "get_sp_size", "get_tp_size", "autocast_smart_context_manager"}, missing
    for name in ("training_step", "prediction_step", "log", "save_model", "floating_point_ops", "get_batch_samples"):
        assert ours[name] == plain[name], name
