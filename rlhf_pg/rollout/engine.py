"""What a rollout engine is, how a name in a recipe becomes one, and the checks every engine makes on a request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_pg.names import load_attribute
from rlhf_pg.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, int], None]  # (rows done, rows in all, tokens sampled so far)
Finished = Callable[[int, int, Completion], None]  # (index of the prompt, of its sample, what was sampled)


@dataclass(frozen=True)
class VllmOptions:
    """What `rollout.options` may hold with `rollout.engine: vllm`."""

    cache_gb: float | None = None  # of keys and values; None: what `rollout.slots` rows need, but at most 4 GB
    seeded: bool = True  # False: all samples draw from one stream; faster on a GPU, but they depend on each other
    sleep: bool = False  # True: give the memory of a GPU back between calls


SHIPPED = {
    "native": "rlhf_pg.rollout.native:NativeEngine",
    "scripted": "rlhf_pg.rollout.scripted:ScriptedEngine",
    "vllm": "rlhf_pg.rollout.vllm:VllmEngine",
}
OPTIONS = {"native": (), "scripted": (), "vllm": tuple(field.name for field in fields(VllmOptions))}


@dataclass
class RolloutRequest:
    """Completions that an engine was asked for."""

    prompts: list[Prompt]
    sampling: Sampling
    version: int  # of the weights they are sampled from
    groups: list[list[Completion]] | None = None  # per prompt; None: not all are sampled yet
    seconds: float = 0.0  # that sampling took
    weights: Mapping[str, Tensor] = field(default_factory=dict)  # those that training changes, as they are sampled from

    @property
    def rows(self) -> int:
        """Return the number of completions."""
        return len(self.prompts) * self.sampling.samples

    def is_for(self, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
        """Return whether these are the prompts and the sampling of this request."""
        return sampling == self.sampling and [p.id for p in prompts] == [p.id for p in self.prompts]


class Engine(Protocol):
    """Samples completions from the policy. tests/rollout/contract.py says what every engine must keep.

    An engine in this process needs `version`, `generate`, `load_weights` and `close` only. What follows them is for one
    that samples beside the trainer (`rollout.overlap`): the defaults here are those of an engine that cannot.
    """

    version: int  # of the weights the next `generate` samples from

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """Sample `sampling.samples` completions of every prompt.

        Returns one list per prompt, in the order given; inside, sample j at place j. Sample j of a prompt depends only
        on (weights, seed, step, prompt id, j). `Completion.logp` is that of the untruncated policy at
        `sampling.temperature` (at 1 when the temperature is 0, which takes the most likely token).
        `finished` is called once for every completion, in any order, as soon as it is known: an engine that learns of
        all together calls it for each before it returns. `progress` is called again and again meanwhile, and last when
        all is done. Either may raise, to leave at once: the engine is then as it was before the call.
        What `start` began is waited for instead of being sampled again.
        Raises ValueError for a request that cannot be served, before anything is sampled.
        """
        ...

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Make the named weights those of `version`. Raises ValueError, changing nothing, on a wrong name or shape."""
        ...

    def close(self) -> None:
        """Give memory and processes back. May be called twice."""
        ...

    seconds: float = 0.0  # that the completions of the last `generate` took to sample
    started: RolloutRequest | None = None  # what `start` began, until `generate` has returned it

    def start(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        weights: Mapping[str, Tensor] | None = None,
        version: int | None = None,
    ) -> None:
        """Begin to sample, from the weights as they are now, for a later `generate` of the same; return at once.

        `weights`, with their `version`, stand in for the live ones of the same names. RuntimeError when something is
        started already, or the engine cannot sample while this process goes on.
        """
        raise RuntimeError(f"{type(self).__name__} samples in this process, which waits for it: use `generate`")

    def collect(self, progress: Progress | None = None, finished: Finished | None = None) -> RolloutRequest | None:
        """Wait for what was started, if anything, and return it with its completions.

        Both functions are called as by `generate`. Either may raise, to leave at once: sampling then goes on.
        """
        return self.started

    def look(self) -> RolloutRequest | None:
        """Return what was started, with its completions if all are there: nothing is waited for, no fault is raised."""
        return self.started

    def put_back(self, started: RolloutRequest | None) -> None:
        """Make this what was started. What is being sampled, if it is something else, is dropped."""
        self.started = started


def resolve(name: str) -> Callable[..., Any]:
    """Find an engine's constructor by shipped name ("native") or dotted path ("my_package.my_file:MyEngine").

    Raises ValueError naming the nearest shipped name, or what the dotted path lacks.
    """
    constructor = load_attribute(SHIPPED.get(name, name), None, "rollout engine", list(SHIPPED))
    if not callable(constructor):
        kind = type(constructor).__name__
        raise ValueError(f"rollout engine {name!r} is a {kind}, not something that builds an engine")
    return constructor


def build(
    name: str, model: Any, eos_ids: Sequence[int], slots: int, options: Mapping[str, Any], **facts: Any
) -> Engine:
    """Build the engine `name` on a model.

    `options` are the recipe's; of `facts` about the run (dtype, context, ...) the constructor gets those that it names.
    Raises ValueError for an unknown engine, or an option it does not have.
    """
    constructor = resolve(name)
    parameters = inspect.signature(constructor).parameters
    for option in options:
        if option not in OPTIONS.get(name, parameters) or option in facts:
            raise ValueError(f"rollout.options.{option}: rollout.engine={name} has no such option")
    named = {fact: value for fact, value in facts.items() if fact in parameters}
    return constructor(model, eos_ids, slots=slots, **named, **options)


def check_settings(slots: int, eos_ids: Sequence[int]) -> None:
    """Raise ValueError for an engine that could never decode, or whose completions could never stop."""
    if slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    if not eos_ids:
        raise ValueError("eos_ids is empty: no completion could ever stop; give the tokenizer's EOS id")


def check_request(
    prompts: Sequence[Prompt], sampling: Sampling, context: int | None = None, vocabulary: int | None = None
) -> None:
    """Raise ValueError, saying what to change, for a request an engine of this context and vocabulary cannot serve."""
    if not prompts:
        raise ValueError("generate was called with no prompts")
    if sampling.samples < 1 or sampling.max_new_tokens < 1:
        raise ValueError(f"samples and max_new_tokens must be at least 1: {sampling}")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.top_k < 0:
        raise ValueError(f"temperature must be >= 0, top_p in (0, 1] and top_k >= 0: {sampling}")
    for prompt in prompts:
        if not prompt.tokens:
            raise ValueError(f"prompt {prompt.id!r} has no tokens: give it at least one, such as the tokenizer's BOS")
        if vocabulary is not None and not 0 <= min(prompt.tokens) <= max(prompt.tokens) < vocabulary:
            raise ValueError(f"prompt {prompt.id!r} has a token id outside the model's vocabulary of {vocabulary}")
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    needed = len(longest.tokens) + sampling.max_new_tokens
    if context is not None and needed > context:
        raise ValueError(
            f"prompt {longest.id!r} has {len(longest.tokens)} tokens; with max_new_tokens {sampling.max_new_tokens} "
            f"that is {needed}, more than the model's context of {context}: shorten the prompts or lower max_new_tokens"
        )
