"""Names that other toolkits give to what recipes say: the error for such a key says what it is called here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BATCH = "rollout.prompts_per_step x rollout.samples_per_prompt; micro-batches are update.tokens_per_microbatch"
KEYS = {  # last part of the foreign name -> what to write here
    # TRL and transformers' Trainer
    "beta": "kl.coefficient",
    "num_generations": "rollout.samples_per_prompt",
    "learning_rate": "optimizer.lr",
    "epsilon": "algorithm.options.clip_low and algorithm.options.clip_high",
    "epsilon_high": "algorithm.options.clip_high",
    "max_completion_length": "rollout.max_new_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": "rollout.slots",
    "gradient_accumulation_steps": BATCH,
    "generation_batch_size": BATCH,
    "steps_per_generation": "update.minibatches",
    "num_iterations": "update.epochs",
    "num_train_epochs": "run.steps, in rollout steps (sft.epochs in a cold start)",
    "max_steps": "run.steps",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "loss_type": "algorithm.options.denominator and algorithm.options.surrogate",
    "scale_rewards": "algorithm.options.scale_by_std",
    "reward_funcs": "rewards",
    "reward_weights": "rewards.N.weight",
    "use_vllm": "rollout.engine, as in rollout.engine=vllm",
    "vllm_mode": "rollout.server",
    "eval_steps": "eval.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "report_to": "log.trackers",
    "bf16": "model.dtype, as in model.dtype=bfloat16",
    "attn_implementation": "model.attention",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup_ratio": "optimizer.warmup_steps",
    "max_grad_norm": "optimizer.grad_clip",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "resume_from_checkpoint": "run.resume",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_target_modules": "model.lora.targets",
    "load_in_4bit": "model.quantize, as in model.quantize=4bit",
    "vllm_importance_sampling_cap": "update.mismatch.cap",
    "dataset_name": "data.train.dataset",
    "dataset_config": "data.train.subset",
    # verl
    "n": "rollout.samples_per_prompt",
    "train_batch_size": "rollout.prompts_per_step",
    "max_response_length": "rollout.max_new_tokens",
    "train_files": "data.train.path",
    "val_files": "data.eval.path",
    "prompt_key": "data.train.prompt",
    "adv_estimator": "algorithm.name",
    "kl_coef": "kl.coefficient",
    "kl_loss_coef": "kl.coefficient",
    "kl_loss_type": "kl.estimator",
    "kl_penalty": "kl.estimator",
    "use_kl_in_reward": "kl.placement, as in kl.placement=reward",
    "use_kl_loss": "kl.coefficient, 0 for none",
    "target_kl": "kl.target",
    "clip_ratio": "algorithm.options.clip_low and algorithm.options.clip_high",
    "clip_ratio_low": "algorithm.options.clip_low",
    "clip_ratio_high": "algorithm.options.clip_high",
    "ppo_mini_batch_size": "update.minibatches, the number of optimizer steps in an epoch",
    "ppo_micro_batch_size_per_gpu": "update.tokens_per_microbatch",
    "ppo_max_token_len_per_gpu": "update.tokens_per_microbatch",
    "ppo_epochs": "update.epochs",
    "total_epochs": "run.steps, in rollout steps",
    "total_training_steps": "run.steps",
    "save_freq": "checkpoint.every",
    "test_freq": "eval.every",
    "logger": "log.trackers",
    "project_name": "log.project",
    "experiment_name": "run.dir",
    "enable_gradient_checkpointing": "model.gradient_checkpointing",
    # OpenRLHF
    "init_kl_coef": "kl.coefficient",
    "kl_estimator": "kl.estimator",
    "n_samples_per_prompt": "rollout.samples_per_prompt",
    "rollout_batch_size": "rollout.prompts_per_step",
    "micro_train_batch_size": "update.tokens_per_microbatch",
    "actor_learning_rate": "optimizer.lr",
    "critic_learning_rate": "critic.optimizer.lr",
    "generate_max_len": "rollout.max_new_tokens",
    "prompt_max_len": "data.max_prompt_tokens",
    "eps_clip": "algorithm.options.clip_low and algorithm.options.clip_high",
    "advantage_estimator": "algorithm.name",
    "lambd": "algorithm.options.lam",
    "pretrain": "model.path",
    "prompt_data": "data.train.path",
    "save_path": "run.dir",
    "max_epochs": "update.epochs",
    "num_episodes": "run.steps, in rollout steps",
}


def key_for(name: str, value: Any = None) -> str:
    """Return what a foreign key is called here, "" if it is not known; of a section, the first of its keys that is."""
    here = KEYS.get(name.rpartition(".")[2].replace("-", "_"), "")
    return here or next(filter(None, (key_for(inner) for inner in _leaves(value))), "")


def _leaves(value: Any) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield name
        yield from _leaves(inner)
