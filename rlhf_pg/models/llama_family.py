"""The models whose layers transformers writes as it writes Llama's: our own code for such layers is right for these."""

from __future__ import annotations

from torch import nn

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # `model_type` in their configurations
_FILES = frozenset(f"transformers.models.{name}.modeling_{name}" for name in MODEL_TYPES)


def in_llama_family(module: nn.Module) -> bool:
    """Return whether transformers defines the module's class for one of these models; a subclass elsewhere is not."""
    return type(module).__module__ in _FILES
