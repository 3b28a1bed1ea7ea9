"""Training arguments: those of Seq2SeqTrainingArguments, and seven of our own."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, fields

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from t5peft.deprecated import renamed_arguments


@dataclass
class T5PeftTrainingArguments(Seq2SeqTrainingArguments):
    """Arguments of :class:`~t5peft.T5PeftTrainer`.

    ``per_device_train_batch_size * gradient_accumulation_steps`` examples make one optimizer step on one device; how they
    are cut into micro-batches is a matter of memory and speed alone and does not change the gradient. Give ``learning_rate``: the
    default of transformers, 5e-5, is too low for adapters; ``METHODS[name].learning_rate`` is where to start.

    Raises:
        ValueError: for ``fp16``, in which T5 overflows.
    """

    tokens_per_micro_batch: int | None = None
    """Padded source and target tokens of one micro-batch at most; None: chosen from the memory there is."""
    bucket_by_length: bool = True
    """Whether an optimizer step is cut into micro-batches of similar lengths; False: one padded batch, as it comes."""
    pack: bool | None = None
    """Whether several examples share a row; None: where it saves padding."""
    fast_kernels: bool = True
    """Whether dropout and LoRA run on kernels of our own, equal in result and cheaper."""
    z_loss: float = 0.0
    """Factor of the squared log of the softmax's denominator, added to the loss of training; T5X pretrains with 1e-4."""
    activation_cache_bytes: int = 0
    """Bytes of main memory for what the frozen backbone of a ladder computes of each example, kept over epochs; the
    backbone then drops nothing. 0: computed in every step."""

    lora_plus_ratio: float = 1.0
    """Learning rate of LoRA's B over that of A, which is ``learning_rate`` (LoRA+, Hayou et al. 2024). The paper advises a lower
    learning rate with it; on the embedded backbone 8 brought 1.3 points on TREC and cost 1.8 on SST-2."""

    def __post_init__(self) -> None:
        """Fill in defaults, and refuse what does not work on T5."""
        # Without a word of it, Accelerate takes several processes without a GPU for one, and exchanges no gradients.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        _settle(self)


T5PeftTrainingArguments.__init__ = renamed_arguments(  # type: ignore[method-assign]
    cut_by_length="bucket_by_length", keep_activations="activation_cache_bytes"
)(T5PeftTrainingArguments.__init__)


def as_t5peft_arguments(args: TrainingArguments | None) -> T5PeftTrainingArguments:
    """``args`` as our own, so that a plain ``Seq2SeqTrainingArguments`` works too; never changed in place.

    Raises ValueError for ``fp16``, and for several processes on a CPU without ``use_cpu``.
    """
    if args is None:
        return T5PeftTrainingArguments()
    converted = object.__new__(T5PeftTrainingArguments)
    converted.__dict__.update({field.name: field.default for field in fields(T5PeftTrainingArguments)})
    converted.__dict__.update(copy.copy(args.__dict__))
    _settle(converted)
    return converted


def _settle(args: T5PeftTrainingArguments) -> None:
    if args.fp16 or args.fp16_full_eval:
        raise ValueError(
            "Got fp16, in which the feed-forward activations of T5 overflow to inf and NaN; expected bf16=True where the "
            "device computes in bfloat16, or float32."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (args.use_cpu or torch.accelerator.is_available()):
        raise ValueError(
            "Got several processes on a machine without an accelerator, and arguments without use_cpu=True: gradients would "
            "not be exchanged between them. Set use_cpu=True, or use T5PeftTrainingArguments, which does."
        )
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    if not torch.cuda.is_available():
        args.dataloader_pin_memory = False
    # Several devices in one process would be torch's DataParallel; several processes are what `accelerate launch` is for.
    args._n_gpu = min(args.n_gpu, 1)
