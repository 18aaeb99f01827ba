"""How many positions a model has: the one number that prompts are dropped by and requests are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

UNLIMITED = 2**31
LIMITS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "model_max_length", "seq_length")
PADDED_POSITIONS = ("roberta", "camembert", "data2vec", "xlm-roberta", "xmod")  # beginnings of model types
STRETCHED = ("linear", "yarn")  # rotary positions whose `factor` multiplies what the model was first made for


def context_length(config: PretrainedConfig) -> int:
    """Return the largest number of positions that the model computes as it was made for; UNLIMITED if it names none.

    A sliding window is no limit: layers attend within it, whatever the length. Rotary positions that change for all
    positions once a row is long (`dynamic`, `longrope`) are used up to that length only: a row would depend on others.
    """
    text: Any = config.get_text_config()
    named = [getattr(text, name, None) for name in LIMITS]
    limits = [int(limit) for limit in named if isinstance(limit, int) and limit > 0]
    limit = min(limits, default=UNLIMITED)
    if str(text.model_type).startswith(PADDED_POSITIONS):
        limit -= int(text.pad_token_id or 0) + 1  # positions begin after the padding's own
    rope = getattr(text, "rope_parameters", None) or {}
    per_layer = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    return min(_with_rope(limit, part) for part in per_layer)


def _with_rope(limit: int, rope: Mapping[str, Any]) -> int:
    kind, original = rope.get("rope_type", "default"), rope.get("original_max_position_embeddings")
    if kind in ("dynamic", "longrope"):
        return min(limit, int(original)) if original else limit
    if kind in STRETCHED and original:
        return max(limit, int(original * rope.get("factor", 1.0)))
    return limit
