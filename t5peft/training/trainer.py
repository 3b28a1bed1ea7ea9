"""A Trainer for T5 whose loss and gradient do not depend on how a step is cut.

The loss of one optimizer step is the sum of the cross-entropy over its target tokens, divided by their number over all
devices. Because it is a sum, the examples of a step may be cut by length into micro-batches, or packed, without changing the
gradient: that is where most of the speed comes from. Evaluation is a sum over target tokens too, and so exact for every
batch size and number of processes; label smoothing and z-loss are left out of it, so that runs that differ in them compare.

Against transformers' Trainer: ``gradient_accumulation_steps`` batches are taken as one step of so many examples; the loss of T5, a
mean that the Trainer takes for a sum, is not used; the head never makes logits over the whole vocabulary at once.

Letters: B batch, T target tokens, G generated tokens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset
from transformers import Seq2SeqTrainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    EvalPrediction,
    denumpify_detensorize,
)

from t5peft.adapters.checkpoint import (
    MANIFEST,
    WEIGHTS,
    folder_of,
    newest_complete,
    non_finite_names,
    of_another_model,
    read_run_state,
    rotate,
    verify,
    write_manifest,
)
from t5peft.data.collate import bucket_by_length, collate, collate_for_head
from t5peft.data.features import check_dataset, check_features, unpadded
from t5peft.methods.base import has_peft_prompt, head_module_name
from t5peft.methods.ladder import cached_activations
from t5peft.methods.lora import set_lora_plus
from t5peft.models.backbone import correct_config
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.fast import fast_kernels, t5peft_attention
from t5peft.nn.loss import IGNORED_LABEL, target_loss
from t5peft.training.arguments import T5PeftTrainingArguments, as_t5peft_arguments
from t5peft.training.micro_batches import TokenBudget, layout_of, micro_batches
from t5peft.training.progress import LinePrinter, LineProgress, Throughput

logger = logging.getLogger("t5peft")

Batch = dict[str, Any]


def keep_features(features: list[Mapping[str, Any]]) -> Batch:
    """The collator of :class:`T5PeftTrainer`: a batch stays a list of features until it is cut."""
    return {"features": [unpadded(feature) for feature in features]}


class T5PeftTrainer(Seq2SeqTrainer):
    """Drop-in for ``Seq2SeqTrainer`` that trains a T5, plain (full fine-tuning) or wrapped.

    Args:
        model: a T5, or what a ``*_wrap`` made of it.
        args: :class:`T5PeftTrainingArguments`, or plain ``Seq2SeqTrainingArguments``.
        train_dataset, eval_dataset: records with ``input_ids`` and ``labels``; padding and other columns are ignored. Streams
            (an ``IterableDataset`` of torch or datasets) in one process; one to evaluate on is read to its end each time.
        processing_class: the tokenizer; saved with checkpoints.
        data_collator: needed by no method; one that returns tensors is used as it is, without cutting by length.
        compute_metrics: from ``EvalPrediction`` to a dictionary. With ``predict_with_generate`` it gets token ids
            without -100, [B, G] and [B, T], padded with the padding token. ``predict`` too has ``predictions`` with it, or a class
            head, alone; else they are None, as no logits exist.

    Raises:
        ValueError: for fp16, an empty data set, misspelt columns, sources without tokens, targets that are all padding, token ids
            or classes that the model has not, a stream in several processes, and for what is not served: ``compute_metrics`` with
            neither ``predict_with_generate`` nor a class head, ``compute_loss_func``, ``preprocess_logits_for_metrics``,
            ``include_for_metrics``, ``batch_eval_metrics``, ``neftune_noise_alpha``, ``bf16_full_eval``, a head of other than
            text or one class an example.
        FloatingPointError: when the loss is no longer a number; training stops there.
    """

    control: Any  # of transformers, which does not say its type

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Batch] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(train_dataset, Mapping):
            raise ValueError(
                f"train_dataset is a mapping with {list(train_dataset)}; expected one data set, such as one of these."
            )
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_dataset(dataset, name)
        args = as_t5peft_arguments(args)
        if args.world_size == 1:
            # Accelerate would take a batch of a stream for tensors, to hand them out to processes.
            args.accelerator_config = replace(args.accelerator_config, dispatch_batches=False)
        # Folded into one, the batches that an epoch does not fill would be left out with the examples of the last.
        self._folds_batches = data_collator is None and args.deepspeed is None and not args.dataloader_drop_last
        self._batches_of_a_step = _fold_batches(args) if self._folds_batches else 1
        self.throughput = Throughput()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or keep_features,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self._check_served()
        correct_config(unwrap_t5(self.model))
        for plain, lines in ((ProgressCallback, LineProgress), (PrinterCallback, LinePrinter)):
            if self.pop_callback(plain) is not None:
                self.add_callback(lines)

    def _check_served(self) -> None:
        """Raise one ValueError for all arguments of transformers' Trainer that would be without effect here."""
        problems = []
        if self.compute_metrics and not (self.args.predict_with_generate or self._has_class_head):
            problems.append(
                "compute_metrics without predict_with_generate=True (set it: no logits exist, metrics get generated tokens)"
            )
        if self.compute_loss_func:
            problems.append("compute_loss_func (override summed_loss in a subclass)")
        if self.preprocess_logits_for_metrics:
            problems.append("preprocess_logits_for_metrics (do it in compute_metrics)")
        if self.args.include_for_metrics:
            problems.append("include_for_metrics (compute_metrics gets all rows, in the order of the data set)")
        if self.args.batch_eval_metrics:
            problems.append("batch_eval_metrics (compute_metrics is called once, with all rows)")
        if self.args.neftune_noise_alpha is not None:
            problems.append("neftune_noise_alpha (transformers adds the noise to a table that T5's stacks do not read)")
        if self.args.bf16_full_eval:
            problems.append("bf16_full_eval (bf16=True evaluates in bfloat16 too)")
        if self.args.lora_plus_ratio != 1 and self.optimizer is not None:
            problems.append("lora_plus_ratio with an optimizer of one's own (give its groups their rates)")
        t5 = unwrap_t5(self.model)
        if not type(t5).__name__.endswith(("ForConditionalGeneration", "ForSequenceClassification")):
            problems.append(f"{type(t5).__name__} (expected T5ForConditionalGeneration or T5ForSequenceClassification)")
        elif self._has_class_head:
            if t5.config.problem_type not in (None, "single_label_classification"):
                problems.append(f"problem_type={t5.config.problem_type!r} (a class head has one class an example)")
            if self.args.z_loss:
                problems.append("z_loss for a class head (it is of the vocabulary's logits)")
        if isinstance(self.model, PeftModel) and has_peft_prompt(self.model):
            problems.append(
                f"peft's own {self.model.active_peft_config.peft_type.value} (wrap by prompt_wrap or prefix_wrap)"
            )
        if problems:
            raise ValueError(f"Got arguments that T5PeftTrainer does not serve: {'; '.join(problems)}. Leave them out.")

    def _hp_search_setup(self, trial: Any) -> None:
        """Set the arguments of a trial of ``hyperparameter_search``, which are examples a batch and batches a step."""
        if trial is not None:
            self.args.per_device_train_batch_size //= self._batches_of_a_step
            self.args.gradient_accumulation_steps *= self._batches_of_a_step
        super()._hp_search_setup(trial)
        if trial is not None and self._folds_batches:
            self._batches_of_a_step = _fold_batches(self.args)
            self._train_batch_size = self.args.train_batch_size

    def _get_dataloader(self, dataset: Any, description: str, *given: Any, **options: Any) -> DataLoader:
        if description != "Training":
            check_dataset(dataset, "eval_dataset" if description == "Evaluation" else "test_dataset")
        if isinstance(dataset, IterableDataset) and self.accelerator.num_processes > 1:
            raise ValueError(
                f"Got a stream ({type(dataset).__name__}) in {self.accelerator.num_processes} processes; expected a list or a "
                "datasets.Dataset, of which each process takes its part. Load it whole, or train in one process."
            )
        return super()._get_dataloader(dataset, description, *given, **options)

    # --- training ------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of the arguments, or the one that was given; with LoRA's B at another rate where they say so."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.args.lora_plus_ratio != 1:
            set_lora_plus(optimizer, self.model, self.args.lora_plus_ratio)
        return optimizer

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Train, on our kernels; here and not in `train`, which may first replace the model by one of ``model_init``."""
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                f"Got a {type(self.model).__name__} with no parameter that requires a gradient; expected one that a *_wrap "
                "returned, or load_adapter(folder, trainable=True)."
            )
        head = head_module_name(unwrap_t5(self.model))
        if head and not any(
            parameter.requires_grad for parameter in unwrap_t5(self.model).get_submodule(head).parameters()
        ):
            logger.warning(
                "The classification head is frozen: of an adapter that add_adapter added, name it in modules_to_save=[%r] of "
                "its config, as the first one's wrap does.",
                head,
            )
        keep = self.args.activation_cache_bytes
        with contextlib.ExitStack() as during:
            if self.args.fast_kernels and not self.args.torch_compile:
                during.enter_context(fast_kernels(self.model))
            elif self.args.pack:
                during.enter_context(t5peft_attention(self.model))
            if keep:
                during.enter_context(cached_activations(self.model, keep))
            output = super()._inner_training_loop(batch_size, **kwargs)
        self._check_weights()
        return output

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one batch, cut into micro-batches; returns the loss [] per target token of the step.

        Where memory runs out, the step starts again with half the tokens a micro-batch.
        """
        model.train()
        if hasattr(self.optimizer, "train"):  # schedule-free ones
            self.optimizer.train()
        while True:
            try:
                total = self._forward_backward(model, self.micro_batches(inputs), num_items_in_batch)
                break
            except (RuntimeError, MemoryError) as error:
                # Another process would wait for gradients that never come.
                alone = self.accelerator.num_processes == 1 and self.args.gradient_accumulation_steps == 1
                if not alone or not self.budget.halve_after(error):
                    raise
                model.zero_grad()
        if not torch.isfinite(total):
            raise FloatingPointError(self._why_not_finite(float(total)))
        return total

    def _forward_backward(
        self, model: nn.Module, batches: list[Batch], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        total = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(batches):
            # Gradients are exchanged between processes once a step, however many micro-batches each process has.
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
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
        """Summed loss of ``inputs`` over ``num_items_in_batch`` (None: the items of ``inputs``), times the processes.

        The factor undoes the mean over processes that is taken of gradients. ``return_outputs`` gives no logits, as none exist.
        """
        batch = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss, items = self.summed_loss(model, batch)
        count = items if num_items_in_batch is None else num_items_in_batch
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        loss = loss * scale / count
        return (loss, {}) if return_outputs else loss

    def summed_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Loss [] summed over the target tokens (or the examples, for a head) of ``batch``, and their number.

        Label smoothing and z-loss belong to training: in evaluation mode it is the plain cross-entropy.
        """
        smoothing, z_loss = (self.args.label_smoothing_factor, self.args.z_loss) if model.training else (0.0, 0.0)
        if not self._has_class_head:
            return target_loss(model, batch, label_smoothing=smoothing, z_loss=z_loss)
        labels = batch["labels"]
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum"), int(
            (labels != IGNORED_LABEL).sum()
        )

    def micro_batches(self, inputs: Batch) -> list[Batch]:
        """The micro-batches of a batch; a batch of tensors, from a collator of the user's, is one."""
        if "features" not in inputs:
            return [inputs]
        features = inputs["features"]
        batches = self._lay_out(features)
        for cut, batch in batches:
            tokens = sum(len(features[i]["input_ids"]) + _length(features[i]["labels"]) for i in cut)
            self.throughput.add(tokens, batch["input_ids"].numel() + batch["labels"].numel())
        return [batch for _, batch in batches]

    def _lay_out(self, features: list[Batch]) -> list[tuple[list[int], Batch]]:
        """Micro-batches with the indices of their features."""
        if not self.args.bucket_by_length or self.is_deepspeed_enabled:
            return [(list(range(len(features))), self._collate(features))]
        if self._has_class_head:
            cuts = bucket_by_length([{**feature, "labels": [0]} for feature in features], self.budget.tokens)
            return [(cut, self._collate([features[i] for i in cut])) for cut in cuts]
        config = unwrap_t5(self.model).config
        return micro_batches(
            features,
            self.budget.tokens,
            layout=layout_of(self.model, self.args.pack),
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @cached_property
    def budget(self) -> TokenBudget:
        """Most tokens of a micro-batch."""
        return TokenBudget(self.model, self.args.tokens_per_micro_batch)

    def _collate(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        config = unwrap_t5(self.model).config
        if self._has_class_head:
            return collate_for_head(features, pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id)
        return collate(features, pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id)

    def _check_features(self, features: Sequence[Mapping[str, Any]]) -> None:
        config = unwrap_t5(self.model).config
        check_features(features, config.vocab_size, config.num_labels if self._has_class_head else None)

    @property
    def _has_class_head(self) -> bool:
        return head_module_name(unwrap_t5(self.model)) is not None

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Target tokens (or examples, for a head) of one step, over all processes; None at the end of a stream."""
        if not batch_samples:
            return None
        for batch in batch_samples:
            self._check_features(batch.get("features", []))
        if "features" in batch_samples[-1]:
            batch_samples[-1]["features"] = self._without_repeated(batch_samples[-1]["features"])
        count = sum(_items(batch) for batch in batch_samples)
        items = torch.tensor(float(count), device=device)
        items = self.accelerator.reduce(items, reduction="sum") if self.accelerator.num_processes > 1 else items
        if items == 0:
            raise ValueError(
                "The targets of a whole step are all padding (-100); expected at least one target token. Look at the "
                "`labels` of the data."
            )
        return items

    def _without_repeated(self, features: list[Batch]) -> list[Batch]:
        """The last batch of an epoch without the examples that Accelerate repeats so that every process gets as many.

        A process that is left with none keeps one without a target: it must take part in the exchange of gradients.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return features
        real = state.remainder - self.accelerator.process_index * self.args.per_device_train_batch_size
        if real > 0:
            return features[:real]
        labels = IGNORED_LABEL if self._has_class_head else [IGNORED_LABEL] * len(features[0]["labels"])
        return [{**features[0], "labels": labels}]

    def _check_weights(self) -> None:
        """Raise FloatingPointError where a step has left trained weights that are no numbers."""
        if broken := non_finite_names((name, p.data) for name, p in self.model.named_parameters() if p.requires_grad):
            raise FloatingPointError(
                f"After step {self.state.global_step} these weights are no numbers: {broken[:5]}. Training stops, and nothing is "
                "saved of it, so that the last checkpoint is kept. Lower the learning rate, or clip gradients (max_grad_norm)."
            )

    def _why_not_finite(self, loss: float) -> str:
        broken = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        where = (
            f"these weights were no numbers before the step: {broken[:5]}"
            if broken
            else f"all weights were finite, so the step itself overflowed (learning rate {self._get_learning_rate():.2e})"
        )
        return (
            f"The loss is {loss} at step {self.state.global_step + 1}; {where}. Training stops, the last checkpoint is kept. "
            "Lower the learning rate, clip gradients (max_grad_norm), or look for broken weights in what was loaded."
        )

    def floating_point_ops(self, inputs: Batch) -> int:
        """Operations of one step by the usual six a parameter and token."""
        features = inputs.get("features")
        if features is None:
            return super().floating_point_ops(inputs)
        return 6 * sum(len(f["input_ids"]) for f in features) * self._parameters_beside_embeddings

    @cached_property
    def _parameters_beside_embeddings(self) -> int:
        return unwrap_t5(self.model).num_parameters(exclude_embeddings=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with tokens per second, share of padding and peak memory beside the loss."""
        if "loss" in logs:
            logs.update(self.throughput.read())
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        """Count source tokens of all processes, where asked; features have no padding, so "all" is "non_padding"."""
        if "features" not in inputs:
            super()._track_num_input_tokens(inputs)
        elif self.args.include_num_input_tokens_seen != "no":
            tokens = torch.tensor(sum(len(f["input_ids"]) for f in inputs["features"]), device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; ``resume_from_checkpoint=True`` goes on from the newest checkpoint that is complete.

        Raises:
            ValueError: nothing to resume from, or a checkpoint that was damaged or is another model's; nothing to train.
        """
        if resume_from_checkpoint is True:
            newest = newest_complete(self.args.output_dir)
            if newest is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to resume from.")
            resume_from_checkpoint = str(newest)
        if resume_from_checkpoint:
            self._check_checkpoint(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, **kwargs: Any) -> None:
        """None of a run whose steps are all done, of which transformers would take one more: it looks after a step alone."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _check_checkpoint(self, folder: Path) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # which have formats of their own
        if problems := verify(folder) or ([] if sharded else of_another_model(folder, self.model)):
            raise ValueError(
                f"The checkpoint {folder} cannot be resumed from: {'; '.join(problems)}. Expected a whole one, and the model that "
                "it was saved of: make that again, or train into another folder."
            )
        if not sharded and not (folder / OPTIMIZER_NAME).is_file():
            logger.warning("%s holds no optimizer: its state and the schedule of learning rates begin anew.", folder)
        own = self._data()
        if changed := {
            name: (saved, own[name]) for name, saved in read_run_state(folder).items() if saved != own.get(name, saved)
        }:
            logger.warning(
                "The checkpoint %s is of a run with other training data (%s): the steps that it took are skipped in another order, "
                "so that some examples come twice and others not at all.",
                folder,
                ", ".join(f"{name} {now}, not {saved}" for name, (saved, now) in changed.items()),
            )

    def _data(self) -> dict[str, int]:
        """What decides the order of the training examples; nothing of a stream, or of a loader of one's own."""
        if not hasattr(self.train_dataset, "__len__"):
            return {}
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return {"examples": len(self.train_dataset), "seed": seed}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save, then seal: a checkpoint counts when its seal is written, and only then may an older one go.

        Raises FloatingPointError, before anything is saved or goes, for weights that are no numbers.
        """
        self._check_weights()
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder, self.model, self._data())
            rotate(folder.parent, limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the adapter alone; peft by itself would look on the hub whether the embeddings were resized.

        A seal of what was there before goes: it would call the new files damaged.
        """
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / MANIFEST).unlink(missing_ok=True)
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, Path(folder) / TRAINING_ARGS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tell keys that a checkpoint lacks, but for tied weights, which are in it under one name alone."""
        tied = unwrap_t5(self.model).all_tied_weights_keys
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        """Load the best checkpoint, of an adapter its own: transformers takes that called ``default`` whichever is trained."""
        if not isinstance(self.model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
            return
        self._load_adapters(self.model, Path(self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint, of an adapter every active one: transformers takes the first alone, and leaves that alone active."""
        model = self.model if model is None else model
        if not isinstance(model, PeftModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._load_adapters(model, Path(resume_from_checkpoint))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])

    @staticmethod
    def _load_adapters(model: PeftModel, checkpoint: Path) -> None:
        for name in model.active_adapters:
            folder = folder_of(checkpoint, name)
            if not (folder / WEIGHTS).is_file():
                raise ValueError(
                    f"The checkpoint {checkpoint} holds no weights of the adapter {name!r}; expected {WEIGHTS} in {folder}."
                )
            model.load_adapter(str(folder), name)

    # --- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Cross-entropy per target token, and generated tokens or class scores where metrics ask for them; exact on every split."""
        dataset: Any = dataloader.dataset
        if isinstance(dataset, IterableDataset):
            dataset = list(dataset)
            check_dataset(dataset, "The stream")
        self.callback_handler.eval_dataloader = dataloader
        model = self.accelerator.unwrap_model(self.model) if not self.is_fsdp_enabled else self.model_wrapped
        model.to(self.args.device)
        if hasattr(self.optimizer, "eval"):  # schedule-free ones
            self.optimizer.eval()
        model.eval()  # and stays so, as by transformers; a step of training sets what it needs
        outputs_wanted = not (self.args.prediction_loss_only or prediction_loss_only) and (
            self._has_class_head or self.args.predict_with_generate
        )
        limit = self._generation_limit(dataset) if outputs_wanted and not self._has_class_head else {}
        loss_sum, items = 0.0, 0
        rows: list[tuple[int, np.ndarray, np.ndarray | None]] = []
        for indices, batch in self._eval_batches(dataset, dataloader):
            with torch.no_grad(), self.compute_loss_context_manager():
                if "labels" in batch:
                    loss, count = self.summed_loss(model, batch)
                    loss_sum += float(loss)
                    items += count
                if outputs_wanted:
                    labels = list(batch["labels"].cpu().numpy()) if "labels" in batch else [None] * len(indices)
                    rows += zip(indices, self._outputs(model, batch, limit), labels, strict=True)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.throughput.restart()
        return self._summarize(dataset, loss_sum, items, rows, metric_key_prefix, limit)

    def _eval_batches(self, dataset: Any, dataloader: DataLoader) -> Iterator[tuple[list[int], Batch]]:
        """Batches of this process, longest first, with the indices of their rows in ``dataset``."""
        ours = self.data_collator is keep_features
        order = list(range(len(dataset)))
        unlabelled: Batch = {}
        if ours:
            unlabelled = {} if "labels" in dataset[0] else {"labels": 0 if self._has_class_head else [0]}
            raw = [{**unpadded(dataset[i]), **unlabelled} for i in order]
            self._check_features(raw)
        if "input_ids" in dataset[0]:  # and not what a collator makes them of
            order.sort(key=lambda i: len(dataset[i]["input_ids"]), reverse=True)
        per_batch = max(1, self.args.per_device_eval_batch_size)
        cuts = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
        for cut in cuts[self.accelerator.process_index :: self.accelerator.num_processes]:
            batch = self._collate([raw[i] for i in cut]) if ours else dataloader.collate_fn([dataset[i] for i in cut])
            if unlabelled or batch.get("labels") is None:  # as transformers' collator gives them
                batch = {name: value for name, value in batch.items() if name != "labels"}
            yield cut, self._prepare_inputs(batch)

    def _outputs(self, model: nn.Module, batch: Batch, limit: dict[str, Any]) -> list[np.ndarray]:
        """Class scores, or generated tokens without padding, a row an example."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        if self._has_class_head:
            return list(model(**inputs).logits.float().cpu().numpy())
        tokens = unwrap_t5(model).generate(**inputs, **limit)[:, 1:]
        pad, end = unwrap_t5(model).config.pad_token_id, unwrap_t5(model).config.eos_token_id
        return [_until_end(row, pad, end) for row in tokens.cpu().numpy()]

    def _generation_limit(self, dataset: Any) -> dict[str, Any]:
        """Arguments of generate: given ones, else as many new tokens as the model's generation config says, or else as the
        longest target of the data has.
        """
        t5 = unwrap_t5(self.model)
        if self.args.generation_config is not None:
            # transformers gives it to the wrapper, which is not what generates
            t5.generation_config = self.load_generation_config(self.args.generation_config)
        given = {name: value for name, value in getattr(self, "_gen_kwargs", {}).items() if value is not None}
        if "max_new_tokens" in given or "max_length" in given:
            return given
        for name in ("max_new_tokens", "max_length"):
            if (most := getattr(t5.generation_config, name)) is not None:
                return {**given, name: most}
        for data in (dataset, self.train_dataset):
            if data is not None and hasattr(data, "__len__") and "labels" in data[0]:
                return {**given, "max_new_tokens": max(_length(unpadded(row)["labels"]) for row in data)}
        return {**given, "max_new_tokens": 64}

    def _summarize(
        self,
        dataset: Any,
        loss_sum: float,
        items: int,
        rows: list[tuple[int, np.ndarray, np.ndarray | None]],
        prefix: str,
        limit: dict[str, Any],
    ) -> EvalLoopOutput:
        """Gather the processes' parts, compute the metrics."""
        if self.accelerator.num_processes > 1:
            parts = gather_object([(loss_sum, items, rows)])
            loss_sum, items = sum(part[0] for part in parts), sum(part[1] for part in parts)
            rows = [row for part in parts for row in part[2]]
        rows.sort(key=lambda row: row[0])
        metrics: dict[str, Any] = {f"{prefix}_loss": loss_sum / items} if items else {}
        pad = unwrap_t5(self.model).config.pad_token_id
        predictions = _stack([row for _, row, _ in rows], pad) if rows else None
        labels = self._labels([label for _, _, label in rows], dataset, pad)
        if predictions is not None and not self._has_class_head and "max_new_tokens" in limit:
            end = unwrap_t5(self.model).config.eos_token_id
            metrics[f"{prefix}_cut_share"] = float(np.mean([row[-1:].tolist() != [end] for _, row, _ in rows]))
        if self.compute_metrics is not None and predictions is not None and labels is not None:
            computed = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
            metrics.update({k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in computed.items()})
        return EvalLoopOutput(predictions, labels, denumpify_detensorize(metrics), len(dataset))

    def _labels(self, collated: list[np.ndarray | None], dataset: Any, pad: int) -> np.ndarray | None:
        """Labels of the data, or else those that a collator made, in the order of the data."""
        if "labels" in dataset[0]:
            labels = [unpadded(dataset[i])["labels"] for i in range(len(dataset))]
        elif any(label is None for label in collated) or not collated:
            return None
        else:
            labels = collated
        if self._has_class_head:
            return np.array(labels)
        return _stack([np.where(np.array(row) == IGNORED_LABEL, pad, row) for row in labels], pad)


def _fold_batches(args: T5PeftTrainingArguments) -> int:
    """Make the batches of a step one, in place, as a step is one set of examples; returns how many they were."""
    batches = args.gradient_accumulation_steps
    args.per_device_train_batch_size *= batches
    args.gradient_accumulation_steps = 1
    return batches


def _items(batch: Batch) -> int:
    labels = [f["labels"] for f in batch["features"]] if "features" in batch else batch["labels"].tolist()
    return sum(sum(token != IGNORED_LABEL for token in (row if isinstance(row, list) else [row])) for row in labels)


def _length(labels: Any) -> int:
    return len(labels) if isinstance(labels, list) else 1


def _until_end(row: np.ndarray, pad: int, end: int) -> np.ndarray:
    """Generated tokens up to and with the end token; what was cut has none."""
    ends = np.flatnonzero(row == end)
    return row[: ends[0] + 1] if len(ends) else row[: max(np.flatnonzero(row != pad), default=-1) + 1]


def _stack(rows: list[np.ndarray], pad: int) -> np.ndarray:
    """Rows of any length to one array, filled on the right."""
    longest = max(len(row) for row in rows)
    stacked = np.full((len(rows), longest), pad, dtype=rows[0].dtype)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return stacked
