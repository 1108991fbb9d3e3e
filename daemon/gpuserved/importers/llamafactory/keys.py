"""Every key of LlamaFactory's inference arguments and what becomes of it. One that is in no table is refused.

Read from LlamaFactory 0.9.6.dev0 (August 2026): `ModelArguments`, `DataArguments`, `FinetuningArguments`,
`GeneratingArguments` and the KTransformers run-time arguments, which together are what `llamafactory-cli api` takes; then keys
of older releases, and those of training and evaluation, which `api` rejects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Fate(str, Enum):
    """What becomes of a key."""

    MAPPED = "mapped"
    """Becomes a setting with the same effect."""
    CHECKED = "checked"
    """Decides whether the file can be served; becomes no setting."""
    WARNED = "warned"
    """Its effect differs, or must be had in another way."""
    UNUSED = "unused"
    """Has no effect on LlamaFactory's vLLM engine either."""
    REFUSED = "refused"
    """Cannot be served; switched off (null, false, "") it does no harm."""


@dataclass(frozen=True)
class Key:
    """One key: the argument class it belongs to, its fate, and why."""

    group: str
    fate: Fate
    reason: str


_QUANTIZED = "LlamaFactory refuses it with vLLM too; serve a checkpoint that is quantised, or use vllm_config: {quantization: ...}"
_MEDIA = "vLLM takes the model's own limits: mm_processor_kwargs in vllm_config sets them, by names that differ from model to model"
_TABLE: dict[tuple[str, Fate, str], str] = {
    ("model", Fate.MAPPED, "model"): "model_name_or_path",
    ("model", Fate.MAPPED, "the adapter takes the name that clients use"): "adapter_name_or_path",
    ("model", Fate.MAPPED, "[vllm] download_dir"): "cache_dir",
    ("model", Fate.MAPPED, "[vllm] dtype"): "infer_dtype",
    ("model", Fate.WARNED, "[vllm] trust_remote_code"): "trust_remote_code",
    ("model", Fate.WARNED, "[vllm] revision and tokenizer_revision"): "model_revision",
    ("model", Fate.WARNED, "a token belongs into the file that hf_token_file names"): "hf_hub_token",
    ("model", Fate.WARNED, "a token belongs into MODELSCOPE_API_TOKEN of the daemon's environment"): "ms_hub_token",
    ("model", Fate.REFUSED, "vLLM downloads from Hugging Face and ModelScope, not from openMind"): "om_hub_token",
    ("model", Fate.CHECKED, "the engine is vLLM"): "infer_backend",
    ("model", Fate.REFUSED, "give the adapter's whole folder as adapter_name_or_path"): "adapter_folder",
    ("model", Fate.REFUSED, "a changed vocabulary must be saved with the model: llamafactory-cli export, then serve that folder"):
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config new_special_tokens split_special_tokens",
    ("model", Fate.REFUSED, "LlamaFactory refuses it with vLLM too; use vllm_config: {hf_overrides: ...}"): "rope_scaling",
    ("model", Fate.REFUSED, "vLLM has no mixture of depths"): "mixture_of_depths",
    ("model", Fate.REFUSED, "there is nothing to serve in a model with random weights"): "train_from_scratch",
    ("model", Fate.WARNED, "vLLM always uses the fast tokenizer where there is one"): "use_fast_tokenizer",
    ("model", Fate.UNUSED, "vLLM loads and runs models in its own way"):
        "low_cpu_mem_usage flash_attn shift_attn use_unsloth use_unsloth_gc enable_liger_kernel use_kv_cache use_cache offload_folder "
        "use_v1_kernels print_param_status init_special_tokens",
    ("model", Fate.UNUSED, "of training alone"):
        "moe_aux_loss_coef disable_gradient_checkpointing use_reentrant_gc upcast_layernorm upcast_lmhead_output",
    ("quantization", Fate.REFUSED, _QUANTIZED): "quantization_bit",
    ("quantization", Fate.UNUSED, "has no effect without quantization_bit"):
        "quantization_method quantization_type double_quantization quantization_device_map",
    ("processor", Fate.WARNED, _MEDIA):
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps "
        "video_maxlen use_audio_in_video audio_sampling_rate image_resolution video_resolution",
    ("export", Fate.UNUSED, "of llamafactory-cli export alone"):
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset export_quantization_nsamples "
        "export_quantization_maxlen export_legacy_format export_hub_model_id",
    ("vllm", Fate.MAPPED, "max_model_len"): "vllm_maxlen",
    ("vllm", Fate.MAPPED, "[vllm] gpu_memory_utilization"): "vllm_gpu_util",
    ("vllm", Fate.MAPPED, "[vllm] enforce_eager"): "vllm_enforce_eager",
    ("vllm", Fate.MAPPED, "[vllm] max_lora_rank"): "vllm_max_lora_rank",
    ("vllm", Fate.MAPPED, "[vllm] dtype, of older releases"): "vllm_dtype",
    ("vllm", Fate.MAPPED, "[vllm], each key for itself; it beats every other key"): "vllm_config",
    ("vllm", Fate.WARNED, "tensor_parallel_size"): "vllm_tensor_parallel_size",
    ("sglang", Fate.UNUSED, "of SGLang alone"):
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
    ("ktransformers", Fate.REFUSED, "vLLM has no KTransformers: all experts must fit on the GPUs"): "use_kt",
    ("ktransformers", Fate.UNUSED, "of KTransformers alone"):
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num "
        "kt_lora_expert_intermediate_size kt_config kt_optimize_rule kt_maxlen kt_use_cuda_graph kt_mode kt_force_think cpu_infer "
        "chunk_size mode",
    ("data", Fate.MAPPED, "vLLM renders the chat template of the model's folder"): "template",
    ("data", Fate.WARNED, "vLLM has no default system prompt of its own"): "default_system",
    ("data", Fate.MAPPED, "[vllm] default_chat_template_kwargs"): "enable_thinking",
    ("data", Fate.WARNED, "the model's chat template decides what stays of earlier thoughts"): "preserve_thinking",
    ("data", Fate.WARNED, "vLLM parses tool calls by a named parser"): "tool_format",
    ("data", Fate.UNUSED, "of training data alone"):
        "dataset eval_dataset dataset_dir media_dir image_dir cutoff_len train_on_prompt mask_history streaming buffer_size mix_strategy "
        "interleave_probs overwrite_cache preprocessing_batch_size preprocessing_num_workers max_samples eval_num_beams "
        "ignore_pad_token_for_loss val_size eval_on_each_dataset packing neat_packing tokenized_path data_shared_file_system split "
        "reserved_label_len dataset_map_batch_size",
    ("finetuning", Fate.CHECKED, "vLLM generates text: sft"): "stage",
    ("finetuning", Fate.CHECKED, "vLLM serves LoRA adapters and whole models"): "finetuning_type",
    ("finetuning", Fate.UNUSED, "of fine-tuning alone; an adapter's own adapter_config.json decides how it is served"):
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules additional_target lora_alpha lora_dropout lora_rank "
        "lora_target loraplus_lr_ratio loraplus_lr_embedding use_rslora use_dora pissa_init pissa_iter pissa_convert create_new_adapter "
        "module_dropout oft_rank oft_block_size oft_target pure_bf16 use_llama_pro use_adam_mini use_mca use_megatron_bridge "
        "use_hyper_parallel hyper_parallel_args hyper_parallel_cp_size use_muon use_dft_loss use_asft_loss asft_alpha use_eaft_loss "
        "eaft_alpha freeze_vision_tower freeze_multi_modal_projector freeze_language_model train_mm_proj_only compute_accuracy "
        "disable_shuffling early_stopping_steps plot_loss include_effective_tokens_per_second",
    ("finetuning", Fate.UNUSED, "of preference training alone"):
        "pref_beta pref_ftx pref_bco_weight pref_loss dpo_beta dpo_ftx dpo_loss dpo_label_smoothing orpo_beta kto_beta kto_ftx "
        "kto_desirable_weight kto_undesirable_weight kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs "
        "ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters ref_model_quantization_bit reward_model "
        "reward_model_adapters reward_model_quantization_bit reward_model_type ld_alpha",
    ("finetuning", Fate.UNUSED, "of an optimiser alone"):
        "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise use_apollo "
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type apollo_scale_type apollo_layerwise "
        "apollo_scale_front use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio "
        "badam_mask_mode badam_verbose",
    ("finetuning", Fate.UNUSED, "of experiment tracking alone"):
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
    ("generating", Fate.MAPPED, "[vllm] override_generation_config"): "temperature top_p top_k repetition_penalty",
    ("generating", Fate.WARNED, "in vLLM such a default would cap every request; requests say max_tokens themselves"):
        "max_new_tokens max_length",
    ("generating", Fate.UNUSED, "LlamaFactory's vLLM engine ignores it too"): "do_sample num_beams length_penalty",
    ("generating", Fate.WARNED, "a request of vLLM says skip_special_tokens itself"): "skip_special_tokens",
}  # fmt: skip

KEYS: dict[str, Key] = {
    name: Key(group, fate, reason)
    for (group, fate, reason), names in _TABLE.items()
    for name in names.split()
}

_TRAINING = """
    output_dir overwrite_output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps warmup_ratio optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm label_smoothing_factor bf16 fp16
    bf16_full_eval fp16_full_eval tf32 gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend
    torch_compile_mode use_liger_kernel liger_kernel_config neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size
    logging_dir logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy evaluation_strategy eval_steps eval_delay per_device_eval_batch_size
    prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics save_only_model save_strategy save_steps save_on_each_node save_total_limit save_safetensors
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
    full_determinism seed data_seed use_cpu no_cuda accelerator_config parallelism_config dataloader_drop_last
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names train_sampling_strategy
    group_by_length length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict
    resume_from_checkpoint local_rank sortish_sampler predict_with_generate generation_max_length generation_num_beams
    generation_config ray_num_workers ray_init_kwargs ray_run_name ray_storage_path ray_storage_filesystem resources_per_worker
    placement_strategy master_addr master_port enable_torch_profiler profiler_output_dir profiler_wait_steps
    profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack
    profile_modules fp8 fp8_backend fp8_enable_fsdp_float8_all_gather tensor_model_parallel_size pipeline_model_parallel_size
    expert_model_parallel_size context_parallel_size virtual_pipeline_model_parallel_size sequence_parallel recompute_granularity
    recompute_method recompute_num_layers use_distributed_optimizer
"""
_EVALUATION = "task task_dir batch_size lang n_shot save_dir download_mode"

FOREIGN: dict[str, str] = {
    **dict.fromkeys(_TRAINING.split(), "training"),
    **dict.fromkeys(_EVALUATION.split(), "evaluation"),
}
"""Keys that `llamafactory-cli api` rejects -> what they belong to."""

PROCESSOR_DEFAULTS = "589824 pixels an image, 65536 a video frame, 2 frames a second, 128 frames"
