"""Count the answers that a training step asks a GPU for: for each the host waits until all before it is computed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from tiny import tiny_config, tiny_records, tiny_t5
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5ForConditionalGeneration

from t5peft import METHODS, T5PeftTrainer, T5PeftTrainingArguments, lora_wrap
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import _head_replaced, _LossHead, target_loss

_aten = torch.ops.aten
ASKING = (_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.masked_select.default)


class Asked(TorchDispatchMode):
    """Count the operations whose result the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKING:
            self.counts[str(func)] += 1
            if args[0].is_meta:  # a device without values: answer as for a batch without padding
                if func is _aten.nonzero.default:
                    return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
                return args[0].dtype != torch.bool and 0
        return func(*args, **(kwargs or {}))


def asked_in(steps: int, folder: Path) -> Counter[str]:
    arguments = T5PeftTrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", fast_kernels=False, pack=False,
    )  # fmt: skip
    trainer = T5PeftTrainer(lora_wrap(tiny_t5(), rank=2), arguments, train_dataset=tiny_records(64))
    with Asked() as asked:
        trainer.train()
    return asked.counts


def test_a_step_asks_for_no_more_than_it_did(tmp_path: Path) -> None:
    """Of the eleven scalars, two are of the bounds of labels, which are not read on CUDA, and three of tensors on the host.

    The rest: the items of a step; the target tokens; twice whether a mask hides anything, and twice whether the loss is a number,
    by transformers; whether loss and gradients are finite.
    """
    few, many = asked_in(2, tmp_path), asked_in(6, tmp_path)
    each = {name: (many[name] - few[name]) / 4 for name in many}
    assert each["aten.nonzero.default"] == 1  # the positions of the loss
    assert each["aten._local_scalar_dense.default"] <= 11
    assert set(each) <= {"aten.nonzero.default", "aten._local_scalar_dense.default"}


@pytest.mark.parametrize("weights", ["trained", "frozen"])
def test_forward_and_backward_run_on_a_device_without_values(weights: str) -> None:
    """So nothing but what is counted needs them: a hidden ``.cpu()``, ``.numpy()`` or ``.tolist()`` would be an error."""
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(tiny_config())
    model = (t5 if weights == "trained" else lora_wrap(t5, rank=2)).train()
    ids = torch.ones(3, 7, dtype=torch.long, device="meta")
    with Asked() as asked:
        loss, _ = target_loss(model, {"input_ids": ids, "attention_mask": ids, "labels": ids, "decoder_input_ids": ids})
        loss.backward()
    assert asked.counts["aten.nonzero.default"] == 1
    assert asked.counts["aten._local_scalar_dense.default"] <= 6
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it
@pytest.mark.parametrize("method", ["full", "lora"])
def test_torch_compile_makes_one_graph_of_the_model_and_stops_at_the_loss(method: str) -> None:
    """The step as ``torch_compile=True`` trains it."""
    dynamo.reset()
    model = METHODS[method].wrap(tiny_t5()).train()
    ids = torch.randint(2, 380, (3, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids, "use_cache": False}
    plain = dynamo.explain(model)(**inputs)
    assert (plain.graph_count, plain.break_reasons) == (1, [])
    dynamo.reset()
    t5 = unwrap_t5(model)
    with _head_replaced(t5, _LossHead(t5.lm_head, ids, 0.0, 0.0, None)):  # as ``target_loss`` calls the model
        ours = dynamo.explain(model)(**inputs)
    assert ours.graph_count == 1
    (reason,) = ours.break_reasons
    assert "_LossHead.forward" in reason.reason
