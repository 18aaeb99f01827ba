"""rlhf_pg: the policy-gradient ladder for small language models, on one exact core.

    import rlhf_pg as pg

    def right(completion, answer):
        return float(completion.strip().endswith(answer))

    run = pg.train(model="smollm2", data="train.jsonl", reward=right, steps=50)
    run.metrics, run.before, run.after, run.model, run.report()

train, sft, evaluate   run a recipe, or the same keys as arguments; the command line is `rlhf-pg train RECIPE`
Recipe                 a recipe: Recipe.load("quickstart", "run.seed=1")
Run                    a run's folder, also of one that ran before: Run("runs/quickstart")
functional             every equation as a pure function of tensors, for a training loop of your own
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_pg import functional
    from rlhf_pg.api.calls import Recipe, evaluate, sft, train
    from rlhf_pg.api.runs import Run
    from rlhf_pg.errors import RecipeError, RunError

__version__ = "0.1.0"
__all__ = ["Recipe", "RecipeError", "Run", "RunError", "evaluate", "functional", "sft", "train"]

_HOMES = {"RecipeError": "errors", "RunError": "errors", "Run": "api.runs"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing the package imports no torch."""
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "functional":
        return import_module(f"{__name__}.functional")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api.calls')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
