"""What takes memory in a training process, and when: the peak is the largest phase, not the sum of all parts.

    rollout          sampling, beside everything that is kept from step to step
    scoring          passes without gradient: reference, old log-probs, values
    update           the last micro-batch, between its forward and its backward: all its activations are there
    gradients        the end of that backward: all gradients, one layer's activations
    optimizer step   the optimizer's temporaries
    critic           the update of a critic of its own, which follows the policy's

Gradients live until the next update sets them to None, so through rollout and scoring too. Upper bounds: completions as
long as `rollout.max_new_tokens`, prompts as long as the longest. Letters: T positions and M sampled tokens of a
micro-batch, H hidden, I intermediate, V vocabulary. Only tensors are counted; docs/plan.md says what comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_pg.config import Model
from rlhf_pg.estimate.layout import ONE, Layout
from rlhf_pg.estimate.model_size import Size, cache_per_token
from rlhf_pg.estimate.share import Share
from rlhf_pg.functional.logprobs import CHUNK_LOGITS
from rlhf_pg.rollout.native import CHOOSE_ELEMENTS
from rlhf_pg.train.gradient_step import NO_GRADIENT

Phase = Literal["rollout", "scoring", "update", "gradients", "optimizer step", "critic"]
PHASES: tuple[Phase, ...] = ("rollout", "scoring", "update", "gradients", "optimizer step", "critic")
ALWAYS = frozenset(PHASES)
FLOAT32 = 4  # bytes: weights, gradients and optimizer state are float32 whatever `model.dtype`
QUANTIZED = {"4bit": 4.127 / 8, "8bit": 1.0}  # bytes a number: 4 bits and constants of its block, quantized themselves
PRODUCT_VECTORS = 7  # flat, while a Fisher product is taken: gradient, x, r, p, two offsets, a one-sided gradient
SEARCH_VECTORS = 5  # flat, in the line search: gradient, direction, its image, the whole step, the step tried
SAMPLING = 20  # bytes a logit: log-prob and probability float32, then two int64 (rollout/sampling.py)


@dataclass(frozen=True)
class Part:
    name: str
    size: int  # bytes
    alive: frozenset[Phase] = ALWAYS
    host: bool = False  # in the host's memory beside a GPU


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes."""

    parts: tuple[Part, ...]

    def at(self, phase: Phase) -> int:
        return sum(part.size for part in self.parts if phase in part.alive and not part.host)

    @property
    def phase(self) -> Phase:
        """The one that needs most."""
        return max(PHASES, key=self.at)

    @property
    def peak(self) -> int:
        return self.at(self.phase)

    @property
    def host(self) -> int:
        return sum(part.size for part in self.parts if part.host)


def memory(share: Share, size: Size, critic: Size | None = None, layout: Layout = ONE) -> Memory:
    """What one process of a layout holds; `size` and `critic` as `plan_size.sizes_of` has them."""
    recipe = share.recipe
    algorithm = recipe.algorithm
    trust_region = algorithm.update == "trust_region"
    found = [*_state("", size, share, layout, trust_region)]
    if critic:
        found += _state("critic: ", critic, share, layout)
    if recipe.kl.coefficient > 0 and not recipe.model.lora:
        found.append(Part("reference copy", layout.of_reference(size.parameters * FLOAT32)))
    if recipe.model.dtype == "bfloat16":
        found.append(_autocast(share, size, layout))
    found += _rollout(share, size, layout)
    found += _update(share, size)
    if critic:
        found.append(
            Part("critic: activations", _activations(share, critic, *_critic_batch(share)), frozenset({"critic"}))
        )
    if trust_region:
        found += _trust_region(share, size)
    if share.device == "cuda":
        found.append(Part("CUDA context", layout.context))
    return Memory(tuple(part for part in found if part.size))


def largest_tokens(share: Share, size: Size, critic: Size | None, room: float, layout: Layout = ONE) -> int:
    """The most positions of a micro-batch with which the peak stays within `room` bytes; 0 if none does.

    No more than `share` has in one optimizer step.
    """
    most = share.positions(share.per_update, share.per_update * share.samples)

    def fits(tokens: int) -> bool:
        return memory(replace(share, tokens=tokens), size, critic, layout).peak <= room

    low, high = 0, most  # low fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _state(of: str, size: Size, share: Share, layout: Layout, trust_region: bool = False) -> Iterator[Part]:
    """What a trained model keeps from step to step."""
    trained = size.trainable * FLOAT32
    yield Part(f"{of}weights", layout.of_weights(_weights(share, size)), host=layout.weights_on_host)
    if layout.stage == 3:
        yield Part(f"{of}gathered layers", 2 * size.layer * FLOAT32, frozenset({"scoring", "update", "critic"}))
    several = of or share.micro_batches > 1  # of one micro-batch they come while activations go
    alive = ALWAYS if several else ALWAYS - {"update"}
    yield Part(f"{of}gradients", layout.of_gradients(trained), frozenset(alive), host=layout.gradients_on_host)
    if layout.stage:
        yield Part(f"{of}gradient buckets", layout.buckets(trained), frozenset({"update", "gradients", "critic"}))
        yield Part(f"{of}weights of the optimizer", layout.of_optimizer(trained), host=layout.offload)
    if not trust_region:
        yield Part(f"{of}Adam state", layout.of_optimizer(2 * trained), host=layout.offload)
        stepped = frozenset[Phase]({"critic"} if of else {"optimizer step"})
        temporary = (
            2 * size.largest if share.device == "cpu" else size.trainable
        )  # one by one, or all at once (foreach)
        if not layout.offload and not of:
            yield Part("Adam's temporaries", layout.of_optimizer(temporary * FLOAT32), stepped)


def _autocast(share: Share, size: Size, layout: Layout) -> Part:
    """The copies that autocast makes of weights: kept while it lasts where trained, else for the backward pass."""
    alive: set[Phase] = {"update"}
    if share.recipe.model.lora:
        return Part("bfloat16 copies of weights", 2 * size.matrices, frozenset(alive))
    alive |= {"scoring"} if layout.stage == 3 else {"scoring", "rollout"}
    return Part("bfloat16 copies of weights", 2 * (size.matrices + size.head), frozenset(alive))


def _weights(share: Share, size: Size) -> int:
    bits = share.recipe.model.quantize
    if bits is None:
        return size.parameters * FLOAT32
    return int(size.matrices * QUANTIZED[bits] + (size.parameters - size.matrices) * FLOAT32)


def _rollout(share: Share, size: Size, layout: Layout) -> Iterator[Part]:
    recipe, during = share.recipe, frozenset[Phase]({"rollout"})
    width = 2 if recipe.model.dtype == "bfloat16" else FLOAT32
    if recipe.rollout.server is not None:
        return  # all of it is the server's
    if recipe.rollout.engine == "vllm" or layout.stage == 3:
        copied = width if recipe.rollout.engine == "vllm" else FLOAT32
        yield Part("engine's copy of the weights", size.parameters * copied)
    if recipe.rollout.engine == "vllm" and not recipe.rollout.options.get("sleep"):
        during = ALWAYS  # vLLM keeps its cache
    wanted = share.rows if recipe.data.eval is None else recipe.rollout.slots  # evaluation may fill all of them
    slots = min(recipe.rollout.slots, wanted)
    yield Part("rollout: KV cache", slots * (share.prompt + share.completion) * cache_per_token(size) * width, during)
    logits = slots * size.vocabulary
    yield Part("rollout: sampling", logits * FLOAT32 + min(logits, CHOOSE_ELEMENTS) * SAMPLING, during)
    if recipe.rollout.overlap:
        yield Part("second process: weights", size.parameters * FLOAT32)
    if recipe.rollout.engine == "native":
        copied = size.cast * width if width == 2 else size.copied * FLOAT32 * (share.device == "cpu")
        yield Part("rollout: weights laid out for decoding", copied, during)


def _update(share: Share, size: Size) -> Iterator[Part]:
    """Activations and logits of the largest micro-batch, with gradients and, larger, without."""
    groups, rows = share.micro_batch(share.per_update)
    kept, scored = _activations(share, size, groups, rows), rows * share.completion
    yield Part("update: activations", kept, frozenset({"update"}))
    working = _backward(share, size, share.positions(groups, rows))
    yield Part("update: logits", max(_logits(share, size, scored, gradient=True), working), frozenset({"update"}))
    yield Part("update: one layer", kept // max(1, size.layers), frozenset({"gradients"}))
    if _scores(share):
        groups, rows = share.micro_batch(share.prompts, NO_GRADIENT)
        positions, scored = share.positions(groups, rows), rows * share.completion
        layer = positions * (2 * size.hidden + 3 * size.intermediate) * FLOAT32
        states = (positions + scored) * size.hidden * FLOAT32 + _logits(share, size, scored, gradient=False)
        yield Part("scoring: one layer, logits", max(layer, states), frozenset({"scoring"}))


def _scores(share: Share) -> bool:
    """Whether anything is computed without gradient before the update."""
    algorithm = share.recipe.algorithm
    return share.recipe.kl.coefficient > 0 or not share.recipe.update.on_policy or algorithm.needs_critic


def _critic_batch(share: Share) -> tuple[int, int]:
    return share.micro_batch(math.ceil(share.prompts / share.recipe.critic.minibatches))


def _activations(share: Share, size: Size, groups: int, rows: int) -> int:
    """Bytes kept for the backward pass of a micro-batch's decoder; attention scores are never stored."""
    model = share.recipe.model
    positions, padded = share.positions(groups, rows), _padded_attention(share, size, rows)
    layers = 1 if model.gradient_checkpointing else size.layers
    last_norm = positions * (1 if size.light else 2) * size.hidden * FLOAT32
    outside = last_norm + rows * share.completion * size.hidden * FLOAT32  # and the states that are scored
    return positions * kept_per_position(size, model, share.recipe.update.share_prompts) + layers * padded + outside


def kept_per_position(size: Size, model: Model, shared: bool = True) -> int:
    """Bytes all layers keep per position: with checkpointing each layer's input, and one layer whole at a time.

    A layer keeps in float32 its input and the residual between attention and MLP; in the arithmetic's width both normed
    inputs, queries, attention's output, keys and values, the MLP's gate, up and product, and the inner states of
    adapters. Outside the Llama family also what trained norms scale, and the MLP's activation (models/fused.py).
    """
    width = 2 if model.dtype == "bfloat16" else FLOAT32
    wide = (2 if model.lora or size.light else 4) * size.hidden
    keys_values = size.keys_values if shared else 2 * size.queries  # whole rows: repeated for each query head
    narrow = (
        2 * size.hidden
        + 2 * size.queries
        + keys_values
        + (3 if size.light else 4) * size.intermediate
        + size.adapter_width
    )
    layer = wide * FLOAT32 + narrow * width
    return size.layers * size.hidden * FLOAT32 + layer if model.gradient_checkpointing else size.layers * layer


def _padded_attention(share: Share, size: Size, rows: int) -> int:
    """Bytes a layer keeps beside that where packed rows are padded for their attention, as they are off the CPU: each
    row's keys and values beside a copy of its prompt's, queries and outputs."""
    if share.device == "cpu" or not share.recipe.update.share_prompts:
        return 0
    width = 2 if share.recipe.model.dtype == "bfloat16" else FLOAT32
    return rows * (2 * (share.prompt + share.completion) + 2 * share.completion) * size.queries * width


def _backward(share: Share, size: Size, positions: int) -> int:
    """Bytes of one MLP's gradients on the way back: of gate, activation and up, and of three states."""
    return positions * 3 * (size.intermediate + size.hidden) * FLOAT32


def _logits(share: Share, size: Size, scored: int, gradient: bool) -> int:
    """Bytes while log-probs of so many tokens are taken (functional/logprobs.py): one chunk of them at a time."""
    rows = max(1, CHUNK_LOGITS // size.vocabulary)
    warm = share.recipe.rollout.temperature != 1
    if scored <= rows:  # exp(z - max z); in the backward its product with the gradient
        return (2 if gradient else 1) * scored * size.vocabulary * FLOAT32
    return (4 + warm) * rows * size.vocabulary * FLOAT32  # logits, log p, p and p log p


def _trust_region(share: Share, size: Size) -> Iterator[Part]:
    """The gradient is taken first; then Fisher products of some of the rows; then the line search over all of them."""
    trained, later = size.trainable * FLOAT32, frozenset[Phase]({"optimizer step"})
    yield Part("trust region: weights before", trained, frozenset({"update", "gradients", "optimizer step"}))
    yield Part("trust region: old states", share.rows * share.completion * size.hidden * FLOAT32, later)
    options: Any = share.recipe.algorithm.options
    rows = max(1, round(share.rows * options.fisher_fraction))
    rows = min(rows, share.micro_batch(share.prompts)[1])
    kept = _activations(share, size, min(rows, share.prompts), rows)
    product = PRODUCT_VECTORS * trained + kept + _distributions(size, rows * share.completion)
    search = SEARCH_VECTORS * trained + _distributions(
        size, share.micro_batch(share.prompts, NO_GRADIENT)[1] * share.completion
    )
    yield Part("trust region: vectors and passes", max(product, search), later)


def _distributions(size: Size, scored: int) -> int:
    """Bytes while the KL of whole distributions is taken: old and new log p and p, their differences and product."""
    return 6 * min(max(CHUNK_LOGITS, size.vocabulary), scored * size.vocabulary) * FLOAT32
