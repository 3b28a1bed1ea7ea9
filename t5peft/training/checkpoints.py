"""Save checkpoints whole, and resume from whole ones that fit the model."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from t5peft.adapters.checkpoints import folder_of, newest_complete, of_another_model, read_run_state, rotate
from t5peft.adapters.manifest import MANIFEST, WEIGHTS, write_manifest
from t5peft.adapters.save import write_portable_base
from t5peft.compat.lock import hold_folder
from t5peft.compat.torch import set_rates
from t5peft.data.content import content_of
from t5peft.methods.activation_cache import Activations
from t5peft.methods.adalora import Reallocation
from t5peft.models.folders import replacing
from t5peft.models.manifest import UNFINISHED, non_finite_names, verify
from t5peft.models.unwrap import unwrap_t5
from t5peft.training.order import ORDER_FILE, RepeatableOrder
from t5peft.training.run_folder import checkpoints

logger = logging.getLogger("t5peft")

ALLOCATOR_STATE = "adalora.pt"


class CheckpointTrainer(Seq2SeqTrainer):
    """A Trainer whose checkpoints are saved atomically, and verified before a run goes on from one."""

    activations: Activations | None = None  # what is cached of a frozen backbone during the training
    reallocation: Reallocation | None = None  # of the ranks of AdaLoRA during the training
    resumed_from: Path | None = None
    # training and validation data, and hashes over their records
    _hashed: tuple[Any, Any, dict[str, Any]] | None = None
    order: RepeatableOrder | None = None  # of the training examples, where it depends on the state of a generator

    @property
    def wrapped_model(self) -> PeftModel | PreTrainedModel:
        """The model, a T5 or a wrapped one."""
        return cast("PeftModel | PreTrainedModel", self.model)

    @property
    def t5(self) -> PreTrainedModel:
        """The T5 inside of the model."""
        return unwrap_t5(cast(nn.Module, self.model))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint: A folder, or True for the newest complete checkpoint in ``output_dir``.
            trial: A trial of a hyperparameter search.
            ignore_keys_for_eval: Outputs of the model to leave out of predictions.

        Raises:
            ValueError: There is nothing to resume from, or the checkpoint is damaged or another model's.
            FloatingPointError: The weights, the loss or a gradient became NaN or infinite.
            FolderInUseError: Another run trains into ``output_dir``.
            DiskError: The disk of ``output_dir`` is full, read-only or broken.
        """
        # A run that saves nothing writes nothing there.
        saves = self.args.save_strategy != "no"
        with hold_folder(self.output_folder) if saves else contextlib.nullcontext():
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: list[str] | None
    ) -> TrainOutput:
        if resume_from_checkpoint is True:
            newest = newest_resumable(self.output_folder)
            if newest is None:
                raise ValueError(
                    f"Got no complete checkpoint to resume from in {self.output_folder}; expected one. Train without "
                    "resume_from_checkpoint=True."
                )
            resume_from_checkpoint = str(newest)
        self.resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.resumed_from is not None:
            self._check_checkpoint(self.resumed_from)
        # An evaluation of the checkpoint again would count against early stopping.
        starts = self.args.eval_on_start
        self.args.eval_on_start = starts and not resume_from_checkpoint
        try:
            output = super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = starts
        self.check_weights()
        return output

    @property
    def output_folder(self) -> Path:
        """The folder of the run."""
        return Path(cast(str, self.args.output_dir))

    @property
    def _is_sharded(self) -> bool:
        """Whether checkpoints have a format of DeepSpeed or FSDP."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _check_checkpoint(self, folder: Path) -> None:
        unfinished = (folder / UNFINISHED).exists() and not (folder / MANIFEST).exists()
        problems = ["its save was not finished"] if unfinished else verify(folder)
        if not folder.is_dir():
            problems = ["there is no such folder"]
        if not problems and not self._is_sharded:
            problems = of_another_model(folder, self.wrapped_model)
        if not problems and not (folder / TRAINER_STATE_NAME).is_file():
            problems = [f"it has no {TRAINER_STATE_NAME}, as an adapter has none that was saved by itself"]
        if problems:
            raise ValueError(
                f"Got the checkpoint {folder}, which cannot be resumed from: {'; '.join(problems)}; expected a complete one, and "
                "the same model as when it was saved. Create that model again, or train into another folder."
            )
        if not self._is_sharded and not (folder / OPTIMIZER_NAME).is_file():
            logger.warning(
                "%s has no optimizer: its state and the learning rate schedule start from the beginning.", folder
            )
        own = self._data_order()
        changed = {name: (old, own[name]) for name, old in read_run_state(folder).items() if old != own.get(name, old)}
        if "examples" in changed:
            changed.pop("content", None)
        if changed.pop("validation", None) and self.args.metric_for_best_model is not None:
            logger.warning(
                "The checkpoint %s is from a run with other validation data: the best checkpoint and early stopping compare scores "
                "of different records. Resume with the data of that run, or train into another folder.",
                folder,
            )
        if changed:
            logger.warning(
                "The checkpoint %s is from a run with other training data (%s): its steps are skipped in another order, "
                "so some examples are seen twice and others never. Resume with the data of that run, or train into another folder.",
                folder,
                ", ".join(f"{name} {now}, not {old}" for name, (old, now) in changed.items()),
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Make the scheduler, after a check that the state in a checkpoint is of such an optimizer.

        Args:
            num_training_steps: Steps of the run.
            optimizer: The optimizer; None for that of the Trainer.

        Raises:
            ValueError: The checkpoint was saved of another optimizer.
        """
        stored = None if self.resumed_from is None or self._is_sharded else self.resumed_from / OPTIMIZER_NAME
        if stored is not None and stored.is_file() and (made := optimizer or self.optimizer) is not None:
            _check_optimizer(stored, made)
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, and set the rate of the schedule of this run, which may have more steps than the one that was saved."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self._is_sharded:
            set_rates(getattr(self.lr_scheduler, "scheduler", self.lr_scheduler))

    def _data_order(self) -> dict[str, Any]:
        """Return what decides the order of the training examples, and hashes; empty for a stream, or for a loader of the user's."""
        if not hasattr(self.train_dataset, "__len__"):
            return {}
        training, validation = self.train_dataset, self.eval_dataset
        if self._hashed is None or self._hashed[0] is not training or self._hashed[1] is not validation:
            parts = validation.items() if isinstance(validation, dict) else [("", validation)]
            hashes = {"content": content_of(training), "validation": {name: content_of(part) for name, part in parts}}
            self._hashed = (training, validation, hashes)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        known = {name: found for name, found in self._hashed[2].items() if found and found != {"": None}}
        return {"examples": len(cast(Any, training)), "seed": seed} | known

    def check_weights(self) -> None:
        """Check that a step has left numbers in the trained weights.

        Raises:
            FloatingPointError: It has not.
        """
        trained = ((name, p.data) for name, p in self.wrapped_model.named_parameters() if p.requires_grad)
        if broken := non_finite_names(trained):
            raise FloatingPointError(
                f"After step {self.state.global_step} these weights contain NaN or infinity: {broken[:5]}. Training stops, and "
                "they are not saved, so that the last checkpoint is kept. Lower the learning rate, or clip gradients "
                "(max_grad_norm)."
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, then its manifest, and only then delete an older one.

        Raises:
            FloatingPointError: The weights contain NaN or infinity; nothing is saved or deleted.
        """
        self.check_weights()
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save and folder.is_dir() and not (folder / MANIFEST).is_file():
            shutil.rmtree(folder)  # what a save that was interrupted has left
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / UNFINISHED).touch()
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.activations is not None:
            self.activations.save_batches(self.batches_file(folder))
        if self.reallocation is not None and self.args.should_save:
            torch.save(self.reallocation.state(), folder / ALLOCATOR_STATE)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if self.order is not None and self.state.epoch % 1 != 0:
                torch.save(self.order.drawn_from, folder / ORDER_FILE)
            write_manifest(folder, cast(PreTrainedModel, self.model), self._data_order())
            (folder / UNFINISHED).unlink()
            rotate(folder.parent, limit, self.state.best_model_checkpoint)

    def batches_file(self, checkpoint: Path) -> Path:
        """Return the file for the batches that filled the activation cache of this process.

        Args:
            checkpoint: The folder of a checkpoint.

        Returns:
            A path that names the number of processes, as with another number the batches are others.
        """
        return checkpoint / f"activation_batches_{self.args.process_index}_of_{self.args.world_size}.pt"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, of a wrapped one only the adapter, with a manifest that ``load_backbone`` and ``load_adapter`` verify.

        What is saved is complete or not there, whenever the process is killed. Other files in the folder stay.

        Args:
            output_dir: Where to save it; None for ``args.output_dir``.
        """
        if _internal_call or self._is_sharded or not self.args.should_save:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.output_folder)
        with replacing(folder, keep_others=True) as staging:
            if (folder / "README.md").is_file():  # which peft adds to
                shutil.copy(folder / "README.md", staging)
            super().save_model(str(staging), _internal_call=True)
            write_manifest(staging, self.wrapped_model)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the model, of a wrapped one only the adapter.

        A manifest of what was there before is deleted: it would call the new files damaged. The embedded backbone is named, as
        its path is that of this machine.
        """
        folder = Path(output_dir or self.output_folder)
        if self.args.should_save:
            (folder / MANIFEST).unlink(missing_ok=True)
        if not isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
            for name in self.model.peft_config:
                write_portable_base(folder_of(folder, name))
            if self.processing_class is not None:
                self.processing_class.save_pretrained(str(folder))
            torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of keys that a checkpoint lacks, but not of tied weights."""
        tied = self.t5.all_tied_weights_keys
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        """Load the best checkpoint into the adapters that are trained."""
        if not isinstance(self.model, PeftModel) or self._is_sharded:
            super()._load_best_model()
        else:
            _load_adapters(self.model, Path(cast(str, self.state.best_model_checkpoint)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint into all active adapters, and leave them active and trained as they were."""
        model = cast(nn.Module, self.model) if model is None else model
        if not isinstance(model, PeftModel) or self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        _load_adapters(model, Path(resume_from_checkpoint))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _check_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Refuse the state of another optimizer, which torch would take, and fail at the next step."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # inside of that of accelerate
    groups = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["param_groups"]
    missing = sorted({name for group in optimizer.param_groups for name in group if name not in groups[0]})
    if missing or len(groups) != len(optimizer.param_groups):
        reason = f"it has no {', '.join(missing)}" if missing else f"it has {len(groups)} groups of parameters"
        raise ValueError(
            f"Got {path} of another optimizer than {type(optimizer).__name__} with {len(optimizer.param_groups)} groups "
            f"({reason}); expected the optimizer that the run began with. Resume with the same optim and lora_plus_ratio, or begin "
            "another run from its weights."
        )


def _load_adapters(model: PeftModel, checkpoint: Path) -> None:
    for name in model.active_adapters:
        folder = folder_of(checkpoint, name)
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"Got the checkpoint {checkpoint} without weights of the adapter {name!r}; expected {WEIGHTS} in {folder}. "
                "Use a checkpoint of this model."
            )
        model.load_adapter(str(folder), name)


def restore_callbacks(callbacks: Iterable[Any], state: TrainerState) -> None:
    """Give callbacks what a checkpoint holds of them, such as how long the metric of early stopping has not improved.

    transformers forgets it by default. ``restore_callback_states_from_checkpoint`` would also put their arguments back, so that
    a new patience did nothing.
    """
    # one state by name of the class, or a list of them
    exported = cast("dict[str, Any]", state.stateful_callbacks or {})
    stored = {name: list(found) if isinstance(found, list) else [found] for name, found in exported.items()}
    for callback in callbacks:
        if isinstance(callback, ExportableState) and stored.get(type(callback).__name__):
            for name, value in stored[type(callback).__name__].pop(0)["attributes"].items():
                setattr(callback, name, value)


def newest_resumable(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, by its manifest or, where there is none at all, of plain Trainer's."""
    if any(run_folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{MANIFEST}")):
        return newest_complete(run_folder)
    for folder in reversed(checkpoints(run_folder)):
        if _is_complete_without_manifest(folder):
            return folder
        logger.warning("Skipping %s: its save was not finished.", folder)
    return None


def _is_complete_without_manifest(folder: Path) -> bool:
    """Whether plain Trainer finished saving a checkpoint: its state, the last file, is there, and each file can be opened.

    That state is not the last file of this Trainer's checkpoints.
    """
    if (folder / UNFINISHED).exists():
        return False
    try:
        step = json.loads((folder / TRAINER_STATE_NAME).read_text())["global_step"]
        weights = set(folder.rglob("*.safetensors"))
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
        for path in weights:
            with safe_open(path, "pt"):  # which compares the size of the file with its header
                pass
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return False
    archives = [folder / name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if (folder / name).exists()]
    return (
        bool(weights)
        and str(step) == folder.name.split("-")[-1]
        and {folder / name for name in named} <= weights
        and all(map(zipfile.is_zipfile, archives))
    )
