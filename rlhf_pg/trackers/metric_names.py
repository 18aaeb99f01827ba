"""The names that TRL's GRPOTrainer gives to the metrics of a run. docs/metrics.md defines every metric.

TRL's callbacks put "train/" before a name in TensorBoard, Weights & Biases and Trackio, and nothing in MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping

TRL = {
    "step": "global_step",
    "reward/mean": "reward",
    "reward/std": "reward_std",
    "reward/zero_std_groups": "frac_reward_zero_std",
    "completion/length_mean": "completions/mean_length",
    "completion/length_min": "completions/min_length",
    "completion/length_max": "completions/max_length",
    "completion/ended_length_mean": "completions/mean_terminated_length",
    "completion/ended_length_min": "completions/min_terminated_length",
    "completion/ended_length_max": "completions/max_terminated_length",
    "completion/truncated": "completions/clipped_ratio",
    "tokens/total": "num_tokens",
    "clip/fraction": "clip_ratio/region_mean",
    "clip/low": "clip_ratio/low_mean",
    "clip/high": "clip_ratio/high_mean",
    "kl/ref": "kl",
    "entropy": "entropy",
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "mismatch/worst": "sampling/sampling_logp_difference/max",
    "time/step_s": "step_time",
}
PART = "reward/"  # opens the name of a reward's part; TRL has "rewards/<name>/mean"


def of_trl(name: str) -> str | None:
    """Return TRL's name of a metric, without "train/"; None where TRL has no such metric."""
    if name.startswith(PART) and name not in TRL:
        return f"rewards/{name.removeprefix(PART)}/mean"
    return TRL.get(name)


def renamed(metrics: Mapping[str, float], prefix: str = "train/") -> dict[str, float]:
    """Return metrics under TRL's names, `prefix` before each; those that TRL has not under their own."""
    names = {name: of_trl(name) for name in metrics}
    return {name if names[name] is None else f"{prefix}{names[name]}": value for name, value in metrics.items()}
