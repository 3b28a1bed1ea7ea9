"""Evaluate exactly: the loss is a mean over all items of the data, whatever the batch size and the number of processes.

Letters: B batch, T target tokens, G generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import nested_detach, nested_numpify
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from t5peft.compat.accelerate import gather_object
from t5peft.data.features import check_dataset
from t5peft.models.unwrap import unwrap_t5
from t5peft.nn.loss import IGNORED_LABEL
from t5peft.training.arguments import T5PeftTrainingArguments, own_arguments
from t5peft.training.checkpoints import CheckpointTrainer
from t5peft.training.contrastive import EmbeddingHead
from t5peft.training.head import PLAIN, Batch, Head
from t5peft.training.heads import TextHead, head_of

NEW_TOKENS = 64  # where neither the arguments, the model nor any target says how many


class Part(NamedTuple):
    """The results of one batch."""

    number: int
    indices: list[int]
    loss: float | None
    weight: float
    predictions: Any
    labels: Any
    inputs: Any


class Collator:
    """Collate features of the user's into a batch that is an input of the model."""

    head: Head

    def __call__(self, features: Sequence[Any]) -> Batch:
        """Check features, and collate them without their own padding.

        Raises:
            ValueError: The model cannot take them.
        """
        if other := next((feature for feature in features if not isinstance(feature, Mapping)), None):
            raise ValueError(
                f"Got {other!r:.60} ({type(other).__name__}) as an example; expected a mapping with `input_ids`. See Task.tokenize."
            )
        unpadded = [self.head.unpad(feature) for feature in features]
        labeled = any(name in feature for feature in unpadded for name in self.head.labels)
        self.head.check(unpadded, labeled=labeled)
        return self.head.collate(unpadded)


class EvaluatingTrainer(CheckpointTrainer):
    """A Trainer with an exact evaluation loss, and predictions in the order of the data."""

    args: Seq2SeqTrainingArguments  # as ``__init__`` made sure
    control: Any  # transformers does not declare its type

    @property
    def own(self) -> T5PeftTrainingArguments:
        """The arguments, with defaults for those that only ``T5PeftTrainingArguments`` has."""
        return own_arguments(self.args)

    @property
    def head(self) -> Head:
        """The head of the model."""
        t5 = self.t5
        if self._head is None or self._head[0] is not t5:
            head = head_of(t5)
            if head is None:
                raise ValueError(f"Got a {type(t5).__name__}; expected a T5 with a head.")
            if isinstance(head, EmbeddingHead):
                head.temperature = self.own.contrastive_temperature
            self._head = (t5, head)
        return self._head[1]

    _head: tuple[nn.Module, Head] | None = None

    def has_own_loss(self) -> bool:
        """Return whether the loss is the user's: ``compute_loss_func``, or an overridden ``compute_loss``."""
        return self.compute_loss_func is not None or self.overrides("compute_loss")

    def overrides(self, name: str) -> bool:
        """Return whether a subclass, or the object itself, replaces a method of this library's Trainer."""
        library = (kind for kind in type(self).__mro__ if kind.__module__.startswith("t5peft.training."))
        base = next(vars(kind)[name] for kind in library if name in vars(kind))
        return getattr(getattr(self, name), "__func__", None) is not base

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of the evaluation data, after a check of its columns."""
        if not isinstance(eval_dataset, str):
            check_dataset(self.eval_dataset if eval_dataset is None else eval_dataset, "eval_dataset")
        self._tell_collator()
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the loader of the test data, after a check of its columns."""
        check_dataset(test_dataset, "test_dataset")
        self._tell_collator()
        return super().get_test_dataloader(test_dataset)

    def _tell_collator(self) -> None:
        """Tell the collator the head of the model, which ``model_init`` may have made anew."""
        if isinstance(self.data_collator, Collator):
            self.data_collator.head = self.head

    def _check_precision(self) -> None:
        if halves := [name for name, p in self.wrapped_model.named_parameters() if p.dtype == torch.float16]:
            raise ValueError(
                f"Got weights in float16, such as {halves[0]}, in which the feed-forward activations of T5 overflow to inf and "
                "NaN; expected float32 or bfloat16. Load the model with load_backbone, or call model.float()."
            )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate on all batches, each process on its own part, and compute the metrics of all."""
        self._check_precision()
        self.callback_handler.eval_dataloader = dataloader
        model = self.model_wrapped if self.is_fsdp_enabled else self.accelerator.unwrap_model(self.model)
        model.to(self.args.device)
        if self.optimizer is not None and hasattr(self.optimizer, "eval"):  # schedule-free ones
            self.optimizer.eval()
        model.eval()  # and stays so, as by transformers; a training step sets what it needs
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        rows = list(cast(Any, dataloader.dataset))
        check_dataset(rows, "stream" if isinstance(dataloader.dataset, IterableDataset) else "data set")
        self._limit_generation(rows)
        # An iteration of the loader would draw its seed here. The next epoch's order is drawn from the same generator.
        torch.empty((), dtype=torch.int64).random_(generator=dataloader.generator)
        parts = []
        for number, indices, batch in self._batches(rows, dataloader.collate_fn):
            loss, predictions, labels = self.prediction_step(model, batch, loss_only, ignore_keys=ignore_keys)
            parts.append(self._part(number, indices, batch, loss, predictions, labels))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.accelerator.num_processes > 1:
            parts = sorted(gather_object(parts), key=lambda part: part.number)
        return self._summarize(parts, len(rows), metric_key_prefix)

    def _batches(self, rows: list[Any], collate: Callable[[list[Any]], Any]) -> Iterator[tuple[int, list[int], Batch]]:
        """Batches of this process with their numbers and the indices of their rows.

        The longest come first, unless code of the user's sees the batches, which then come as plain Trainer's do.
        """
        order = list(range(len(rows)))
        if not self._user_sees_batches and isinstance(rows[0], Mapping) and "input_ids" in rows[0]:
            order.sort(key=lambda index: len(rows[index]["input_ids"]), reverse=True)
        size = max(1, self.args.per_device_eval_batch_size)
        cuts = list(enumerate(order[start : start + size] for start in range(0, len(order), size)))
        for number, indices in cuts[self.accelerator.process_index :: self.accelerator.num_processes]:
            yield number, indices, collate([rows[index] for index in indices])

    @property
    def _user_sees_batches(self) -> bool:
        return (
            self.has_own_loss()
            or self.overrides("prediction_step")
            or self.preprocess_logits_for_metrics is not None
            or bool(self.args.include_for_metrics)
            or not self.args.eval_do_concat_batches
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """Predict one batch.

        Args:
            model: The model.
            inputs: A batch.
            prediction_loss_only: Whether to leave out predictions and labels.
            ignore_keys: Outputs of the model to leave out where predictions are its logits.
            gen_kwargs: Arguments of ``generate``; without any, those of ``evaluate`` or ``predict``.

        Returns:
            The mean loss [] over the items of the batch; generated tokens [B, G], or the scores of a head, or the outputs of a
            language model; the labels. Each is None where it is not asked for or cannot be computed.
        """
        batch = self._prepare_inputs(inputs)
        head, labeled = self.head, self.head.is_labeled(batch)
        generates = self.args.predict_with_generate and isinstance(head, TextHead)
        loss, outputs, predictions = None, None, None
        if isinstance(head, EmbeddingHead) and not self.has_own_loss():  # whose loss is of all embeddings
            with torch.no_grad(), self.compute_loss_context_manager():
                found = head.predictions(head.embeddings(model, batch), batch)
            return None, nested_detach(found), batch.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if labeled and (prediction_loss_only or generates):
                loss = self.compute_loss(model, dict(batch), num_items_in_batch=self._items(batch))
            elif labeled:
                loss, outputs = self.compute_loss(
                    model, dict(batch), return_outputs=True, num_items_in_batch=self._items(batch)
                )
            if prediction_loss_only:
                return loss, None, None
            if generates:
                predictions = self._generate(model, batch, gen_kwargs)
            else:
                outputs = self._outputs(model, batch) if outputs is None else outputs
                predictions = self._scores(outputs, batch, ignore_keys)
        labels = [batch[name] for name in head.labels] if labeled else [None]
        return loss, nested_detach(predictions), labels[0] if len(labels) == 1 else tuple(labels)

    def _items(self, batch: Batch) -> Tensor | None:
        """Items of a batch, which a loss of the user's may need; None for others."""
        if not self.has_own_loss():
            return None
        return torch.tensor(self.head.count(batch), device=self.args.device)

    def _outputs(self, model: nn.Module, batch: Batch) -> Any:
        if isinstance(self.head, TextHead) and "decoder_input_ids" not in batch:
            raise ValueError(
                "Got data without labels, and predict_with_generate=False; expected one of them, because a language model has no "
                "logits without targets. Set predict_with_generate=True."
            )
        return model(**batch)

    def _scores(self, outputs: Any, batch: Batch, ignore_keys: list[str] | None) -> Any:
        """Scores of a head, or all outputs of a language model, as plain Trainer gives them."""
        if not isinstance(outputs, dict):  # of a loss of the user's
            return outputs[1:] if len(outputs) != 2 else outputs[1]
        if not isinstance(self.head, TextHead):
            return self.head.predictions(outputs, batch)
        ignored = getattr(self.t5.config, "keys_to_ignore_at_inference", []) if ignore_keys is None else ignore_keys
        scores = tuple(value for name, value in outputs.items() if name not in [*ignored, "loss"])
        return scores[0] if len(scores) == 1 else scores

    def _generate(self, model: nn.Module, batch: Batch, gen_kwargs: dict[str, Any]) -> Tensor:
        """Generate tokens without the start token."""
        given = gen_kwargs or {**getattr(self, "_gen_kwargs", {})}
        given = {name: value for name, value in given.items() if value is not None}
        if not _limit_of(given):
            given |= self._generation_limit
        given["return_dict_in_generate"] = False  # which a generation config may ask for
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        return cast(Any, unwrap_t5(model)).generate(**inputs, **given)[:, 1:]

    _generation_limit: dict[str, int] = {}

    def _limit_generation(self, rows: list[Any]) -> None:
        """Set how many tokens are generated where no argument says so: by the generation config, or as the longest target."""
        t5, head = self.t5, self.head
        if not self.args.predict_with_generate or not isinstance(head, TextHead):
            return
        if self.args.generation_config is not None:
            # transformers gives it to the wrapper, which is not what generates
            t5.generation_config = self.load_generation_config(cast(Any, self.args.generation_config))
        for name in ("max_new_tokens", "max_length"):
            if (most := getattr(t5.generation_config, name)) is not None:
                self._generation_limit = {name: most}
                return
        for data in (rows, self.train_dataset):
            if hasattr(data, "__len__") and not isinstance(data, IterableDataset):
                features = [
                    head.unpad(row) for row in cast(Any, data) if isinstance(row, Mapping) and "input_ids" in row
                ]
                if features and all(map(head.is_labeled, features)):
                    self._generation_limit = {"max_new_tokens": max(len(feature["labels"]) for feature in features)}
                    return
        self._generation_limit = {"max_new_tokens": NEW_TOKENS}

    def _part(self, number: int, indices: list[int], batch: Batch, loss: Any, predictions: Any, labels: Any) -> Part:
        """Keep what a batch gave, in main memory."""
        if predictions is not None and self.preprocess_logits_for_metrics is not None:
            predictions = self.preprocess_logits_for_metrics(predictions, labels)
        ours = not (self.has_own_loss() or self.overrides("prediction_step"))
        return Part(
            number,
            indices,
            None if loss is None else float(loss.mean()),
            self.head.count(batch) if ours and loss is not None else len(indices),
            _numpify(predictions),
            _numpify(labels),
            _numpify(batch.get("input_ids")) if "inputs" in self.args.include_for_metrics else None,
        )

    def _summarize(self, parts: list[Part], rows: int, prefix: str) -> EvalLoopOutput:
        """Put the results of all batches together in the order of the data, and compute the metrics."""
        text = isinstance(self.head, TextHead) and self.args.predict_with_generate
        pad = self.t5.config.pad_token_id if text else IGNORED_LABEL
        predictions = self._in_order(parts, "predictions", pad)
        labels = self._in_order(parts, "labels", pad)
        if text and labels is not None:
            labels = _map(lambda array: np.where(array == IGNORED_LABEL, pad, array), labels)
        metrics: dict[str, Any] = {}
        weight = sum(part.weight for part in parts if part.loss is not None)
        if weight:
            loss = sum(part.loss * part.weight for part in parts if part.loss is not None) / weight
            metrics[f"{prefix}_loss"] = loss
        if (
            isinstance(self.head, EmbeddingHead)
            and not weight
            and isinstance(predictions, tuple)
            and labels is not None
        ):
            batch = {"labels": torch.from_numpy(labels)}
            total = self.head.loss_of(tuple(map(torch.from_numpy, predictions)), batch, PLAIN)
            metrics[f"{prefix}_loss"] = float(total) / len(labels)
        if text and isinstance(predictions, np.ndarray) and self._counts_cut_answers:
            ended = np.isin(predictions, self.t5.config.eos_token_id).any(-1)  # a model may have several
            metrics[f"{prefix}_cut_share"] = 1 - float(ended.mean())
        if self.compute_metrics is not None and predictions is not None and labels is not None:
            wanted = self.args.include_for_metrics
            losses = (
                np.concatenate([np.full(len(part.indices), part.loss) for part in parts]) if "loss" in wanted else None
            )
            inputs = self._in_order(parts, "inputs", IGNORED_LABEL)
            computed = self.compute_metrics(EvalPrediction(predictions, labels, inputs=inputs, losses=losses))
            if not isinstance(computed, Mapping):
                raise ValueError(f"Got {computed!r:.60} from compute_metrics; expected a dictionary. Return one.")
            metrics.update({k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in computed.items()})
        return EvalLoopOutput(predictions, labels, denumpify_detensorize(metrics), rows)

    @property
    def _counts_cut_answers(self) -> bool:
        """Whether predictions are generated tokens up to a number of new tokens."""
        return "max_new_tokens" in (_limit_of(getattr(self, "_gen_kwargs", {})) or self._generation_limit)

    def _in_order(self, parts: list[Part], name: str, pad: int) -> Any:
        """Rows of all batches in the order of the data, or a list of batches where those are not to be concatenated."""
        values = [getattr(part, name) for part in parts]
        if not values or any(value is None for value in values):
            return None
        if not self.args.eval_do_concat_batches:
            return values
        together = _concatenate(values, pad)
        if self._user_sees_batches:
            return together
        order = np.argsort(np.concatenate([part.indices for part in parts]))
        return _map(lambda array: _reorder(array, order), together)


def _limit_of(given: Mapping[str, Any]) -> dict[str, int]:
    """Return the most tokens that arguments of ``generate`` ask for; empty where neither they nor their config say it."""
    for source in (given, vars(given.get("generation_config") or GenerationConfig())):
        found = {name: source[name] for name in ("max_new_tokens", "max_length") if source.get(name) is not None}
        if found:
            return found
    return {}


def _numpify(nested: Any) -> Any:
    return None if nested is None else nested_numpify(nested)


def _map(function: Callable[[np.ndarray], np.ndarray], nested: Any) -> Any:
    if isinstance(nested, tuple | list):
        return type(nested)(_map(function, value) for value in nested)
    if isinstance(nested, dict):
        return {name: _map(function, value) for name, value in nested.items()}
    return function(nested)


def _concatenate(values: list[Any], pad: int) -> Any:
    """Concatenate arrays [B, ..], or each array in tuples, lists and dictionaries; the second axis is padded on the right."""
    first = values[0]
    if isinstance(first, tuple | list):
        return type(first)(_concatenate([value[i] for value in values], pad) for i in range(len(first)))
    if isinstance(first, dict):
        return {name: _concatenate([value[name] for value in values], pad) for name in first}
    arrays = [np.atleast_1d(value) for value in values]
    if arrays[0].ndim < 2:
        return np.concatenate(arrays)
    longest = max(array.shape[1] for array in arrays)
    widths = [[(0, 0), (0, longest - array.shape[1])] + [(0, 0)] * (array.ndim - 2) for array in arrays]
    return np.concatenate([np.pad(a, width, constant_values=pad) for a, width in zip(arrays, widths, strict=True)])


def _reorder(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Put the rows of an array in order, one or several for each example."""
    if len(array) % len(order):
        return array
    return array.reshape(len(order), -1, *array.shape[1:])[order].reshape(array.shape)
