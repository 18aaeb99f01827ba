"""Pure tensor functions: every equation of the toolkit, one file per idea.

Submodules load on first use, so that algorithm files (and with them the recipe check) import no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_pg.functional import credit, importance, kl, logprobs, normalize, objectives, pass_at_k, trust_region

__all__ = ["credit", "importance", "kl", "logprobs", "normalize", "objectives", "pass_at_k", "trust_region"]


def __getattr__(name: str):
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
