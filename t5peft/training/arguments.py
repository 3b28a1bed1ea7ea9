"""Training arguments: those of Seq2SeqTrainingArguments, and eight more."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from t5peft.deprecated import renamed_arguments


@dataclass
class T5PeftTrainingArguments(Seq2SeqTrainingArguments):
    """Arguments of ``T5PeftTrainer``.

    One optimizer step has ``per_device_train_batch_size * gradient_accumulation_steps`` examples per device. Their split into
    micro-batches affects memory and speed, but not the gradient. Set ``learning_rate``, because the default of transformers,
    5e-5, is too low for adapters. Start with ``METHODS[name].learning_rate``.

    Raises:
        ValueError: ``fp16`` is set, in which T5 overflows, or a value has another type than its argument.
        ImportError: DeepSpeed is requested but not installed.
    """

    tokens_per_micro_batch: int | None = None
    """Most source and target tokens of one micro-batch, with padding. None: chosen from the free memory."""
    bucket_by_length: bool = True
    """Whether to split an optimizer step into micro-batches of similar length. False: one padded batch per step."""
    pack: bool | None = None
    """Whether several examples share a row. True: with block masks on a GPU, padding-free on a CPU. False: never. None:
    padding-free on a CPU with ``fast_kernels``, else never."""
    fast_kernels: bool = True
    """Whether dropout, linear layers, LoRA, norms, attention and 8-bit layers use the kernels of this library, which give the
    same results and are faster."""
    z_loss: float = 0.0
    """Weight of the z-loss, the squared logarithm of the softmax denominator, in the training loss. T5X pretrains with 1e-4."""
    activation_cache_bytes: int = 0
    """Bytes of main memory to cache the activations of a ladder's frozen backbone across epochs. The backbone then has no
    dropout. 0: compute them in every step."""

    contrastive_temperature: float = 0.05
    """The temperature by which cosine similarities are divided in the loss of embeddings. Sentence-T5 uses 0.01."""
    lora_plus_ratio: float = 1.0
    """Learning rate of LoRA's B divided by that of A, which is ``learning_rate`` (LoRA+, Hayou et al. 2024). The paper recommends
    a lower learning rate with it. On the embedded backbone, a ratio of 8 gained 1.3 points on TREC and lost 1.8 on SST-2."""

    def __post_init__(self) -> None:
        """Fill in defaults, and refuse what does not work on T5."""
        _check_types(self)
        # Accelerate silently takes several processes without a GPU for one, and exchanges no gradients.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        asked_for_deepspeed = self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
        if asked_for_deepspeed and find_spec("deepspeed") is None:
            raise ImportError(
                "Got a configuration for DeepSpeed and no deepspeed; expected it to be installed. Run `pip install deepspeed`."
            )
        if self.use_cpu:
            # transformers forgets ddp_timeout on CPUs, and takes a group of processes that is there as it is.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        check_arguments(self)


T5PeftTrainingArguments.__init__ = renamed_arguments(  # type: ignore[method-assign]
    cut_by_length="bucket_by_length", keep_activations="activation_cache_bytes"
)(T5PeftTrainingArguments.__init__)

_OWN = {field.name: field.default for field in fields(T5PeftTrainingArguments)} | {
    field.name: field.default_factory()
    for field in fields(T5PeftTrainingArguments)
    if field.default_factory is not MISSING
}


def as_t5peft_arguments(args: TrainingArguments | None) -> Seq2SeqTrainingArguments:
    """Return arguments to train on: the given object itself where it has those of ``Seq2SeqTrainingArguments``.

    Args:
        args: The user's; plain ``TrainingArguments`` are copied, and None gives the defaults.

    Raises:
        ValueError: Got ``fp16``, or several processes on a CPU without ``use_cpu``.
    """
    if args is None:
        args = T5PeftTrainingArguments()
    if not isinstance(args, Seq2SeqTrainingArguments):
        args = own_arguments(args)
    check_arguments(args)
    # Several devices in one process would be torch's DataParallel; several processes are what ``accelerate launch`` is for.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def own_arguments(args: TrainingArguments) -> T5PeftTrainingArguments:
    """Return a view of arguments that has those of ``T5PeftTrainingArguments`` too, with defaults for what is not given."""
    if isinstance(args, T5PeftTrainingArguments):
        return args
    view = object.__new__(T5PeftTrainingArguments)
    view.__dict__.update(_OWN | args.__dict__)
    return view


def is_of(value: object, hint: object) -> bool:
    """Return whether a text, a bool or a number may stand for a type hint, as far as that names simple types.

    None, paths and other objects are left to transformers, which takes some of them for values of another type.
    """
    kinds = set(get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))
    if not kinds <= {bool, int, float, str, NoneType}:
        return True
    if isinstance(value, str | bool):
        return type(value) in kinds or (isinstance(value, str) and str in kinds)
    if isinstance(value, Real):
        return float in kinds or (int in kinds and isinstance(value, Integral)) or (bool in kinds and value in (0, 1))
    return True


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(T5PeftTrainingArguments)


def _check_types(args: TrainingArguments) -> None:
    """Refuse values such as "False", which is true, or "1e-4", as YAML reads 1e-4."""
    values = {name: value for name, value in vars(args).items() if not is_of(value, _hints().get(name))}
    if values:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        kinds = ", ".join(
            f"{name} of {getattr(hint, '__name__', hint)}" for name, hint in _hints().items() if name in values
        )
        raise ValueError(f"Got {given}; expected {kinds}. Convert them.")


def check_arguments(args: TrainingArguments) -> None:
    """Check what T5 and several processes need of the arguments, and that its numbers are possible.

    Raises:
        ValueError: Got a value of another type, a number that is too low or not finite, ``fp16``, or several processes on a CPU
            without ``use_cpu``.
    """
    _check_types(args)
    counts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 0}
    counts |= {"tokens_per_micro_batch": 1, "seed": 0}
    low = [
        f"{name}={value} (at least {least})"
        for name, least in counts.items()
        if (value := getattr(args, name, None)) is not None and not value >= least
    ]
    if low:
        raise ValueError(f"Got {', '.join(low)}; expected numbers that are not lower. Raise them, or leave them out.")
    names = ("learning_rate", "weight_decay", "label_smoothing_factor", "z_loss", "lora_plus_ratio")
    given = {name: getattr(args, name, 0.0) for name in names}
    wrong = [f"{name}={value}" for name, value in given.items() if not (math.isfinite(value) and value >= 0)]
    if args.max_grad_norm is not None and math.isnan(args.max_grad_norm):
        wrong.append(f"max_grad_norm={args.max_grad_norm}")
    if wrong:
        raise ValueError(f"Got {', '.join(wrong)}; expected finite numbers of at least 0.")
    if not 0 < (temperature := getattr(args, "contrastive_temperature", 1.0)) < math.inf:
        raise ValueError(f"Got contrastive_temperature={temperature}; expected a finite number above 0.")
    if args.fp16 or args.fp16_full_eval:
        raise ValueError(
            "Got fp16, in which the feed-forward activations of T5 overflow to inf and NaN; expected bf16=True where the "
            "device computes in bfloat16, or float32."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (args.use_cpu or torch.accelerator.is_available()):
        raise ValueError(
            "Got several processes on a machine without an accelerator, and arguments without use_cpu=True; expected it, "
            "because gradients are not exchanged otherwise. Set use_cpu=True, or use T5PeftTrainingArguments, which does."
        )
