"""Every argument and public method of transformers' Trainer that is not refused, by what becomes of it.

Each of the pinned version stands in exactly one table here, or in that of what is refused in ``t5peft/training/served.py``.
"""

from __future__ import annotations

# fmt: off
SERVED_ARGUMENTS = frozenset(
    {
        "accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "adam_beta1",
        "adam_beta2", "adam_epsilon", "auto_find_batch_size", "average_tokens_across_devices", "bf16", "data_seed",
        "dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context",
        "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
        "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "debug", "deepspeed", "disable_tqdm",
        "do_eval", "do_predict", "do_train", "enable_jit_checkpoint", "eval_accumulation_steps", "eval_delay",
        "eval_do_concat_batches", "eval_on_start", "eval_steps", "eval_strategy", "eval_use_gather_object", "fsdp",
        "fsdp_config", "full_determinism", "generation_config", "generation_max_length", "generation_num_beams",
        "gradient_accumulation_steps", "gradient_checkpointing", "gradient_checkpointing_kwargs",
        "greater_is_better", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy",
        "hub_token", "ignore_data_skip", "include_for_metrics", "include_num_input_tokens_seen", "label_names",
        "label_smoothing_factor", "learning_rate", "length_column_name", "load_best_model_at_end", "local_rank",
        "log_level", "log_level_replica", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter",
        "logging_steps", "logging_strategy", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm",
        "max_steps", "metric_for_best_model", "num_train_epochs", "optim_args", "optim_target_modules",
        "output_dir", "per_device_eval_batch_size", "per_device_train_batch_size", "predict_with_generate",
        "prediction_loss_only", "project", "push_to_hub", "remove_unused_columns", "report_to",
        "restore_callback_states_from_checkpoint", "resume_from_checkpoint", "run_name", "save_on_each_node",
        "save_only_model", "save_steps", "save_strategy", "save_total_limit", "seed", "skip_memory_metrics", "tf32",
        "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps",
        "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id", "train_sampling_strategy", "use_cache",
        "use_cpu", "warmup_steps", "weight_decay",
    }
)
"""Arguments that do what transformers documents. ``logging_nan_inf_filter`` has nothing to filter, as training stops first;
``label_names`` may name the labels of the model's head."""

CALLED_METHODS = frozenset(
    {
        "autocast_smart_context_manager", "call_model_init", "compute_loss", "compute_loss_context_manager",
        "create_accelerator_and_postprocess", "create_optimizer", "create_scheduler", "evaluate", "evaluation_loop",
        "floating_point_ops", "get_batch_samples", "get_cp_size", "get_decay_parameter_names",
        "get_eval_dataloader", "get_optimizer_cls_and_kwargs", "get_sp_size", "get_test_dataloader",
        "get_total_train_batch_size", "get_tp_size", "get_train_dataloader", "is_local_process_zero",
        "is_world_process_zero", "load_generation_config", "log", "num_examples", "predict", "prediction_step",
        "save_model", "set_initial_training_values", "store_flos", "train", "training_step",
    }
)
"""Public methods whose override in a subclass is called where transformers' Trainer calls it."""

UNCHANGED_METHODS = frozenset(
    {
        "add_callback", "create_model_card", "create_optimizer_and_scheduler", "end", "get_learning_rates",
        "get_num_trainable_parameters", "get_optimizer_group", "hyperparameter_search", "init_hf_repo",
        "log_metrics", "metrics_format", "pop_callback", "push_to_hub", "remove_callback", "save_metrics",
        "save_state",
    }
)
"""Public methods that are the user's to call, and transformers' own."""
# fmt: on
