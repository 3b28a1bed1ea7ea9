"""A Trainer for T5 whose loss and gradient do not depend on how a step is cut.

The loss of one optimizer step is the sum of the cross-entropy over its target tokens, divided by their number over all
devices. Because it is a sum, the examples of a step may be cut by length into micro-batches, or packed, without changing the
gradient: that is where most of the speed comes from. Evaluation is a sum over target tokens too, and so exact for every
batch size and number of processes. It leaves out label smoothing and z-loss, so that runs that differ in them compare.

Against transformers' Trainer: ``gradient_accumulation_steps`` batches are one step of so many examples; the loss of T5, a mean
that the Trainer takes for a sum, is not used; the head never makes logits over the whole vocabulary at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from t5peft.compat.accelerate import clear_device_cache
from t5peft.methods.activation_cache import read_batches
from t5peft.methods.ladder import cached_activations
from t5peft.methods.lora import set_lora_plus
from t5peft.models.backbone import correct_config
from t5peft.models.unwrap import ensure_unmerged, unwrap_t5
from t5peft.nn.fast import fast_kernels, t5peft_attention
from t5peft.training.arguments import as_t5peft_arguments
from t5peft.training.batches import BatchingTrainer, uses_items
from t5peft.training.callbacks import DuringTraining
from t5peft.training.contrastive import EmbeddingHead
from t5peft.training.contrastive_step import contrastive_step
from t5peft.training.diagnosis import non_finite_gradients, non_finite_loss
from t5peft.training.evaluation_loop import Collator
from t5peft.training.given import check_data, check_gradients, check_held, check_parts, warn_of_unsaved
from t5peft.training.head import PLAIN, Added, Batch
from t5peft.training.heads import TextHead
from t5peft.training.micro_batches import TokenBudget, layout_of, micro_batches
from t5peft.training.progress import LinePrinter, LineProgress, Throughput
from t5peft.training.served import check_served

logger = logging.getLogger("t5peft")


class T5PeftTrainer(BatchingTrainer):
    """Drop-in replacement for ``Seq2SeqTrainer`` that trains a T5, plain (full fine-tuning) or wrapped.

    It takes the same arguments as ``Seq2SeqTrainer`` in the same order, and calls the same methods of a subclass. If
    ``compute_loss`` is overridden or ``compute_loss_func`` is given, steps are not split into micro-batches. The loss is then
    computed on the batches of plain Trainer. It is a mean over a batch unless it uses ``num_items_in_batch`` or
    ``loss_is_scaled_for_ga`` says otherwise. The same applies to a model whose ``forward`` was changed: its own loss is trained.

    Args:
        model: A T5 with a head for text, sequence classification, regression, token classification, spans or embeddings, plain
            or wrapped.
        args: ``T5PeftTrainingArguments`` or ``Seq2SeqTrainingArguments``; the object itself is used, not a copy.
        data_collator: None splits steps by length. A collator that returns tensors turns this off.
        train_dataset: Records with ``input_ids`` and ``labels``, or a stream of them. Padding and other columns are ignored, and
            ``label`` is accepted for ``labels``.
        eval_dataset: The same; a stream is read to its end each time.
        processing_class: The tokenizer, which is saved with checkpoints.
        model_init: A function that creates a new model for each training.
        compute_loss_func: A function of the outputs, the labels and ``num_items_in_batch`` that returns the loss.
        compute_metrics: A function from ``EvalPrediction`` to a dictionary. With ``predict_with_generate``, it gets token IDs
            [B, G] and [B, T], padded with the padding token instead of -100. Otherwise it gets logits, and labels padded with -100.
        callbacks: Callbacks in addition to those of the arguments.
        optimizers: An optimizer and a scheduler, or None for those of the arguments.
        preprocess_logits_for_metrics: A function of the logits and labels of a batch that returns what to keep of them.

    Raises:
        ValueError: The data set is empty, columns are misspelled, sources have no tokens, targets are all padding, the model lacks
            token IDs or labels, weights are in float16, or arguments are not supported.
        FloatingPointError: The loss or a gradient became NaN or infinite; training stops at that step.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Batch] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        check_data(train_dataset, eval_dataset)
        called = (data_collator, model_init, compute_loss_func, compute_metrics, preprocess_logits_for_metrics)
        check_parts(args, callbacks, optimizers, called)
        if model is not None:
            unwrap_t5(model)
        self._pending, self.throughput = [], Throughput()
        self._during_training = contextlib.ExitStack()
        super().__init__(
            model=cast(Any, model),
            args=as_t5peft_arguments(args),
            data_collator=cast(Any, data_collator or Collator()),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        check_served(self)
        self._check_precision()
        self._tell_collator()
        correct_config(self.t5)
        if isinstance(self.head, EmbeddingHead):  # of which the model is given the tokens as sources
            self.label_names = [*self.head.labels]
        if self.has_own_loss() and self.loss_is_scaled_for_ga is None:
            self.loss_is_scaled_for_ga = uses_items(self.compute_loss_func or self.compute_loss)
        for plain, lines in ((ProgressCallback, LineProgress), (PrinterCallback, LinePrinter)):
            if self.pop_callback(plain) is not None:
                self.add_callback(lines)
        self.add_callback(DuringTraining(self))

    # --- training ---------------------------------------------------------------------------------------------------

    def _train(self, *arguments: Any) -> TrainOutput:
        """Train, on the kernels of this library."""
        try:
            return super()._train(*arguments)
        except RuntimeError as error:
            check_gradients(error, self.optimizer)
            raise
        finally:
            self._during_training.close()
            self.activations = None

    def start_kernels(self) -> None:
        """Run the model on the kernels of this library until the training ends."""
        self._during_training.close()
        if self.own.fast_kernels and not self.args.torch_compile:
            self._during_training.enter_context(fast_kernels(self.wrapped_model))
        elif self.own.pack:
            self._during_training.enter_context(t5peft_attention(self.wrapped_model))
        if self.own.activation_cache_bytes:
            caching = cached_activations(self.wrapped_model, self.own.activation_cache_bytes)
            self.activations = self._during_training.enter_context(caching)
            if self.resumed_from is not None:
                self._fill_cache(self.resumed_from)

    @torch.no_grad()
    def _fill_cache(self, checkpoint: Path) -> None:
        """Compute again what the run had cached when it saved ``checkpoint``, in the same batches and so with the same bits."""
        self.wrapped_model.train()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the side network has dropout
            for batch in read_batches(self.batches_file(checkpoint)):
                self.compute_loss(self.wrapped_model, dict(batch))
                self._note(batch)

    def _note(self, batch: Batch) -> None:
        if self.activations is not None:
            self.activations.note(batch)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Return the optimizer of the arguments or of the user, with LoRA's B at its own learning rate where asked.

        Raises:
            ValueError: The model has no parameter to train, a merged adapter, or weights in float16.
        """
        if not any(parameter.requires_grad for parameter in self.wrapped_model.parameters()):
            raise ValueError(
                f"Got a {type(self.model).__name__} with no parameter that requires a gradient; expected one that a *_wrap "
                "returned, or load_adapter(folder, trainable=True)."
            )
        self._check_precision()
        ensure_unmerged(self.wrapped_model)
        head = self.head.module
        if head and not any(parameter.requires_grad for parameter in self.t5.get_submodule(head).parameters()):
            logger.warning(
                "The head of the model is frozen. For an adapter from add_adapter, name it in modules_to_save=[%r] of its "
                "config, as the wrap of the first adapter does.",
                head,
            )
        if not self._is_sharded:
            warn_of_unsaved(self.wrapped_model)
        made = self.optimizer is None
        if isinstance(self.optimizer, Optimizer) and not self._is_sharded:
            check_held(self.wrapped_model, self.optimizer)
        optimizer = super().create_optimizer(model)
        if made and self.own.lora_plus_ratio != 1:
            set_lora_plus(optimizer, self.wrapped_model, self.own.lora_plus_ratio)
        return optimizer

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Run forward and backward of one batch; return the loss [] per target token of the step.

        The batches of a step are kept until its last one, and then cut into micro-batches together. Where memory runs out, the
        step starts again with half the tokens a micro-batch.

        Args:
            model: The model.
            inputs: A batch of the loader.
            num_items_in_batch: Items of the step over all processes; None for those of this batch.

        Raises:
            FloatingPointError: The loss or a gradient is NaN or infinite.
        """
        if self.has_own_loss():
            total = super().training_step(model, inputs, num_items_in_batch)
            self._note(inputs)
            self._check_step(total, lambda: self.head.split(inputs))
            return total
        model.train()
        if self.optimizer is not None and hasattr(self.optimizer, "train"):  # schedule-free ones
            self.optimizer.train()
        if self.args.torch_empty_cache_steps and self.state.global_step % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()
        if not self._cuts_steps:
            total = self._forward_backward(model, [inputs], num_items_in_batch)
            self._check_step(total, lambda: self.head.split(inputs))
            return total
        self._pending += self.head.split(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        features, self._pending = self._pending, []
        if num_items_in_batch is None:
            num_items_in_batch = int(self.head.count(self.head.collate(features))) * self.accelerator.num_processes
        total = self._cut_step(model, features, num_items_in_batch)
        self._check_step(total, lambda: features)
        return total

    def _cut_step(self, model: nn.Module, features: list[dict[str, Any]], num_items: Tensor | int) -> Tensor:
        while True:
            try:
                if isinstance(self.head, EmbeddingHead):  # whose loss is not a sum over micro-batches
                    tokens = self.budget.tokens if self.own.bucket_by_length else None
                    with_penalty = partial(self._with_orthogonality, model, items=1)
                    return contrastive_step(self, model, features, tokens, self.throughput, with_penalty)
                return self._forward_backward(model, self.micro_batches(features), num_items)
            except (RuntimeError, MemoryError) as error:
                # Another process would wait for gradients that never come.
                if self.accelerator.num_processes > 1 or not self.budget.halve_after(error):
                    raise
                model.zero_grad()

    def _forward_backward(
        self, model: nn.Module, batches: list[Batch], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(batches):
            # Gradients are exchanged between processes once a step, however many micro-batches each process has.
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                self._note(batch)
                self.accelerator.backward(loss)
            total += loss.detach()
            del loss  # what autograd functions keep beside their saved tensors lives as long as the graph
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss [] of a batch: its sum over the items, divided by ``num_items_in_batch``.

        Args:
            model: The model.
            inputs: A batch.
            return_outputs: Whether to return the outputs of the model too; those of a language model then hold all logits.
            num_items_in_batch: Items of the step; None for those of the batch. In training, where it is counted over all
                processes, the loss is multiplied by their number, as the mean over processes is taken of gradients.
        """
        batch = self._prepare_inputs(inputs)
        if self.compute_loss_func is not None:
            labels = batch.pop("labels", None)
            outputs = model(**batch)
            loss, items = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch), 1.0
            divisor: Any = 1
        elif return_outputs:
            with self.compute_loss_context_manager():
                loss, items, outputs = self.head.loss_and_outputs(model, batch, self._added_losses(model))
                loss = self._with_orthogonality(model, loss, items)
            divisor = num_items_in_batch
        else:
            with self.compute_loss_context_manager():
                loss, items = self.summed_loss(model, batch)
            divisor = num_items_in_batch
        everywhere = num_items_in_batch is not None and model.training and self.args.average_tokens_across_devices
        scale = self.accelerator.num_processes if everywhere else 1
        loss = loss * scale / ((items or 1) if divisor is None else divisor)
        return (loss, outputs) if return_outputs else loss

    def summed_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss [] summed over the items of a batch (target tokens, or examples of a head), and their number.

        Label smoothing and z-loss belong to training: in evaluation mode it is the plain cross-entropy.
        """
        loss, items = self.head.loss(model, batch, self._added_losses(model))
        return self._with_orthogonality(model, loss, items), items

    def _with_orthogonality(self, model: nn.Module, loss: Tensor, items: float) -> Tensor:
        """Add the loss of AdaLoRA, which counts once a step, as in the mean that the model itself returns."""
        if self.reallocation is None or not model.training:
            return loss
        return loss + items * self.reallocation.tuner.orthogonality()

    def _added_losses(self, model: nn.Module) -> Added:
        return Added(self.args.label_smoothing_factor, self.own.z_loss) if model.training else PLAIN

    def micro_batches(self, features: list[dict[str, Any]]) -> list[Batch]:
        """Return the micro-batches of the examples of a step."""
        batches = self._lay_out(features)
        for chosen, batch in batches:
            targets = batch.get("labels")
            text = isinstance(self.head, TextHead)
            tokens = sum(len(features[i]["input_ids"]) + (len(features[i]["labels"]) if text else 0) for i in chosen)
            padded = batch["input_ids"].numel() + (targets.numel() if text and targets is not None else 0)
            self.throughput.add(tokens, padded)
        return [batch for _, batch in batches]

    def _lay_out(self, features: list[dict[str, Any]]) -> list[tuple[list[int], Batch]]:
        """Micro-batches with the indices of their features."""
        if not self.own.bucket_by_length:
            return [(list(range(len(features))), self.head.collate(features))]
        if not isinstance(self.head, TextHead):
            cuts = self.head.cut(features, self.budget.tokens)
            return [(chosen, self.head.collate([features[i] for i in chosen])) for chosen in cuts]
        config = self.t5.config
        return micro_batches(
            features,
            self.budget.tokens,
            layout=layout_of(self.wrapped_model, self.own.pack),
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @cached_property
    def budget(self) -> TokenBudget:
        """The most tokens of a micro-batch."""
        return TokenBudget(self.wrapped_model, self.own.tokens_per_micro_batch)

    def _check_step(self, loss: Tensor, features: Callable[[], list[dict[str, Any]]]) -> None:
        """Raise FloatingPointError for a loss, or gradients of a whole step, that are NaN or infinite.

        The device is asked once, for both, as the host waits for every answer.
        """
        gradients: list[Tensor] = []
        if self.accelerator.sync_gradients and not self._is_sharded:
            gradients = [p.grad for p in self.wrapped_model.parameters() if p.grad is not None]
        finite = torch.isfinite(loss)
        if torch.logical_and(finite, torch.isfinite(get_total_norm(gradients))) if gradients else finite:
            return
        if not finite:
            raise FloatingPointError(non_finite_loss(self, float(loss), features()))
        if message := non_finite_gradients(self, features):
            raise FloatingPointError(message)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Return the operations of one batch by the usual six a parameter and token."""
        if not isinstance(self.data_collator, Collator):
            return super().floating_point_ops(inputs)
        return 6 * int(inputs["attention_mask"].sum()) * self._parameters_beside_embeddings

    @cached_property
    def _parameters_beside_embeddings(self) -> int:
        return self.t5.num_parameters(exclude_embeddings=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with tokens per second, the share of padding and peak memory beside the loss."""
        if "loss" in logs:
            logs.update(self.throughput.read())
        super().log(logs, start_time)
