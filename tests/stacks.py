"""Two ways to do the same thing: the plain stack (transformers and peft as they come) and t5peft.

A test takes one of them as ``stack``, so that both halves of a test assert the same behavior; see ``both_stacks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
import torch
from narrow import as_dataset
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from tiny import (
    tiny_tokenizer,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForSequenceClassification,
    TrainerCallback,
)

from t5peft import load_backbone, lora_wrap, prompt_wrap

Quantization = Literal["int8", "nf4"]
Records = Sequence[dict[str, Any]]


class Stack(Protocol):
    """The operations that both stacks have."""

    name: str

    def lora(self, model: PreTrainedModel) -> PeftModel: ...

    def prefix(self, model: PreTrainedModel, *, projection: bool = False) -> PeftModel: ...

    def prompt(self, model: PreTrainedModel) -> PeftModel: ...

    def load(self, folder: Path, *, quantize: Quantization | None = None) -> PreTrainedModel: ...

    def trainer(
        self, model: nn.Module, folder: Path, records: Records, evaluated: Records | None = None, **arguments: Any
    ) -> Seq2SeqTrainer: ...


PREFIX_LENGTH = PROMPT_LENGTH = 3


def quiet_arguments(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Training arguments of a short run on the CPU that writes nothing, with plain SGD and no clipping."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "dataloader_pin_memory": False,
    } | arguments


class PlainStack:
    """transformers and peft, used as their documentation says."""

    name = "plain"

    def lora(self, model: PreTrainedModel) -> PeftModel:
        return get_peft_model(model, LoraConfig(task_type=self._task(model), r=4, target_modules=["q", "v"]))

    def prefix(self, model: PreTrainedModel, *, projection: bool = False) -> PeftModel:
        config = PrefixTuningConfig(
            task_type=self._task(model), num_virtual_tokens=PREFIX_LENGTH, prefix_projection=projection
        )
        return get_peft_model(model, config)

    def prompt(self, model: PreTrainedModel) -> PeftModel:
        return get_peft_model(model, PromptTuningConfig(task_type=self._task(model), num_virtual_tokens=PROMPT_LENGTH))

    def load(self, folder: Path, *, quantize: Quantization | None = None) -> PreTrainedModel:
        quantization = {
            None: None,
            "int8": BitsAndBytesConfig(load_in_8bit=True),
            "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        }[quantize]
        return AutoModelForSeq2SeqLM.from_pretrained(folder, quantization_config=quantization)

    def trainer(
        self, model: nn.Module, folder: Path, records: Records, evaluated: Records | None = None, **arguments: Any
    ) -> Seq2SeqTrainer:
        tokenizer = tiny_tokenizer()
        return Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(**quiet_arguments(folder, arguments)),
            train_dataset=as_dataset(records),
            eval_dataset=as_dataset(evaluated or records),
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        )

    @staticmethod
    def _task(model: PreTrainedModel) -> TaskType:
        return TaskType.SEQ_CLS if isinstance(model, T5ForSequenceClassification) else TaskType.SEQ_2_SEQ_LM


class OurStack:
    """t5peft. Imported when used, so that a test of the plain stack does not need it."""

    name = "ours"

    def lora(self, model: PreTrainedModel) -> PeftModel:

        return lora_wrap(model, rank=4)

    def prefix(self, model: PreTrainedModel, *, projection: bool = False) -> PeftModel:
        from t5peft import prefix_wrap

        return prefix_wrap(model, length=PREFIX_LENGTH, projection_size=16 if projection else None)

    def prompt(self, model: PreTrainedModel) -> PeftModel:

        return prompt_wrap(model, length=PROMPT_LENGTH)

    def load(self, folder: Path, *, quantize: Quantization | None = None) -> PreTrainedModel:

        return load_backbone(str(folder), quantize=quantize)[0]

    def trainer(
        self, model: nn.Module, folder: Path, records: Records, evaluated: Records | None = None, **arguments: Any
    ) -> Seq2SeqTrainer:
        from t5peft import T5PeftTrainer, T5PeftTrainingArguments

        return T5PeftTrainer(
            model=model,
            args=T5PeftTrainingArguments(**quiet_arguments(folder, arguments)),
            train_dataset=records,
            eval_dataset=evaluated or records,
            processing_class=tiny_tokenizer(),
        )


PLAIN, OURS = PlainStack(), OurStack()


def both_stacks(raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError) -> pytest.MarkDecorator:
    """Runs a test twice: on the plain stack, where it must fail with ``raises``, and on ours, where it must pass."""
    plain = pytest.param(PLAIN, id="plain", marks=pytest.mark.xfail(strict=True, raises=raises))
    return pytest.mark.parametrize("stack", [plain, pytest.param(OURS, id="ours")])


def plain_fault(raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError) -> pytest.MarkDecorator:
    """A test of only the plain stack, that must fail with ``raises``."""
    return pytest.mark.xfail(strict=True, raises=raises)


class GradientRecorder(TrainerCallback):
    """Keeps a copy of every gradient of every optimizer step, before the step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        model = getattr(model, "module", model)  # DistributedDataParallel
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def one_step(trainer: Seq2SeqTrainer) -> tuple[float, dict[str, Tensor]]:
    """Trains for the trainer's steps; the first logged loss, and the gradients of the first step."""
    recorder = GradientRecorder()
    trainer.add_callback(recorder)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses[0], recorder.steps[0]


def relative_difference(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference over the norm of ``expected``, all tensors taken as one vector."""
    assert got.keys() == expected.keys()
    distance = torch.stack([(got[name].double() - expected[name].double()).square().sum() for name in expected])
    size = torch.stack([expected[name].double().square().sum() for name in expected])
    return float((distance.sum() / size.sum()).sqrt())


DidNotRaise = pytest.fail.Exception
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


@torch.no_grad()
def encoder_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).encoder_last_hidden_state


def save_backbone(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
