"""What takes memory in a training process, and when: the peak is the largest phase, not the sum of all parts.

    rollout          sampling, beside everything that lives from step to step
    scoring          passes without gradient: reference, old log-probs, values
    update           the last micro-batch, between its forward and its backward: all its activations are alive
    gradients        the end of that backward: all gradients, one layer's activations
    optimizer step   the optimizer's temporaries
    critic           the update of a critic of its own, which follows the policy's

Gradients live until the next update sets them to None, so through rollout and scoring too. Upper bounds: completions as
long as `rollout.max_new_tokens`, prompts as long as the longest. Letters: T positions and M sampled tokens of a
micro-batch, H hidden, I intermediate, V vocabulary. Only tensors are counted, as the metric `memory/peak_gib` does;
docs/plan.md says what comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_pg.config import Model
from rlhf_pg.data.collate import NO_GRADIENT_FACTOR
from rlhf_pg.estimate.layout import ONE_PROCESS, Layout
from rlhf_pg.estimate.model_size import FLOAT32, ModelSize, arithmetic_bytes
from rlhf_pg.estimate.share import Share
from rlhf_pg.functional.logprobs import CHUNK_LOGITS
from rlhf_pg.functional.trust_region import PRODUCT_VECTORS, SEARCH_VECTORS
from rlhf_pg.rollout import vllm
from rlhf_pg.rollout.native import CHOOSE_ELEMENTS
from rlhf_pg.rollout.sampling import BYTES_PER_LOGIT

Phase = Literal["rollout", "scoring", "update", "gradients", "optimizer step", "critic"]
PHASES: tuple[Phase, ...] = ("rollout", "scoring", "update", "gradients", "optimizer step", "critic")
ALWAYS = frozenset(PHASES)
QUANTIZED = {"4bit": 4.127 / 8, "8bit": 1.0}  # bytes a number: 4 bits and constants of its block, quantized themselves


@dataclass(frozen=True)
class Part:
    """Tensors that come and go together."""

    name: str
    size: int  # bytes
    alive: frozenset[Phase] = ALWAYS
    host: bool = False  # in the host's memory beside a GPU


@dataclass(frozen=True)
class Memory:
    """The memory of one process, in bytes."""

    parts: tuple[Part, ...]

    def at(self, phase: Phase) -> int:
        return sum(part.size for part in self.parts if phase in part.alive and not part.host)

    @property
    def phase(self) -> Phase:
        """The phase that needs most."""
        return max(PHASES, key=self.at)

    @property
    def peak(self) -> int:
        return self.at(self.phase)

    @property
    def host(self) -> int:
        return sum(part.size for part in self.parts if part.host)


def process_memory(
    share: Share, size: ModelSize, critic: ModelSize | None = None, layout: Layout = ONE_PROCESS
) -> Memory:
    """Return what one process of a layout holds; `size` and `critic` as `model_size.sizes_of` returns them."""
    parts = _parts(share, size, critic, layout)
    return Memory(tuple(part for part in parts if part.size))


def largest_budget(
    share: Share, size: ModelSize, critic: ModelSize | None, room: float, layout: Layout = ONE_PROCESS
) -> int:
    """Return the most positions of a micro-batch with which the peak stays within `room` bytes; 0 if none does.

    No more than `share` has in one optimizer step.
    """
    low, high = 0, share.minibatch_positions  # low fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = process_memory(replace(share, budget=middle), size, critic, layout).peak <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _parts(share: Share, size: ModelSize, critic: ModelSize | None, layout: Layout) -> Iterator[Part]:
    recipe = share.recipe
    trust_region = recipe.algorithm.update == "trust_region"
    yield from _state("", size, share, layout, adam=not trust_region)
    if not trust_region and not layout.offload:  # one tensor after the other, or all at once (foreach)
        temporary = 2 * size.largest_tensor if share.device == "cpu" else size.trainable
        yield Part("Adam's temporaries", layout.optimizer(temporary * FLOAT32), frozenset({"optimizer step"}))
    if critic:
        yield from _state("critic: ", critic, share, layout, adam=True)
    if recipe.passes.reference and not recipe.model.lora:
        yield Part("reference copy", layout.weights(size.parameters * FLOAT32))
    if recipe.model.dtype == "bfloat16":
        yield _autocast(share, size, layout)
    yield from _rollout(share, size, layout)
    yield from _update(share, size)
    yield from _scoring(share, size)
    if critic:
        batch = share.micro_batch(math.ceil(share.prompts / recipe.critic.minibatches))
        yield Part("critic: activations", _activations(share, critic, *batch), frozenset({"critic"}))
    if trust_region:
        yield from _trust_region(share, size)


def _state(owner: str, size: ModelSize, share: Share, layout: Layout, adam: bool) -> Iterator[Part]:
    """Yield what a trained model keeps from step to step; `owner` begins the names of the critic's parts."""
    yield Part(f"{owner}weights", layout.weights(_weights(share, size)), host=layout.weights_on_host)
    if layout.stage == 3:
        gathered = 2 * size.layer_parameters * FLOAT32
        yield Part(f"{owner}gathered layers", gathered, frozenset({"scoring", "update", "critic"}))
    several = owner or share.micro_batches > 1  # those of a single micro-batch come while its activations go
    alive = ALWAYS if several else ALWAYS - {"update"}
    trainable = size.trainable * FLOAT32
    yield Part(f"{owner}gradients", layout.gradients(trainable), frozenset(alive), host=layout.offload)
    if layout.stage:
        during = frozenset[Phase]({"update", "gradients", "critic"})
        yield Part(f"{owner}gradient buckets", layout.buckets(trainable), during)
        yield Part(f"{owner}weights of the optimizer", layout.optimizer(trainable), host=layout.offload)
    if adam:
        yield Part(f"{owner}Adam state", layout.optimizer(2 * trainable), host=layout.offload)


def _weights(share: Share, size: ModelSize) -> int:
    bits = share.recipe.model.quantize
    if bits is None:
        return size.parameters * FLOAT32
    return int(size.linear * QUANTIZED[bits] + (size.parameters - size.linear) * FLOAT32)


def _autocast(share: Share, size: ModelSize, layout: Layout) -> Part:
    """Return the copies that autocast makes: of trained weights while it lasts, of frozen ones for the backward."""
    alive: set[Phase] = {"update"}
    if share.recipe.model.lora:
        return Part("bfloat16 copies of weights", 2 * size.linear, frozenset(alive))
    alive |= {"scoring"} if layout.stage == 3 else {"scoring", "rollout"}
    return Part("bfloat16 copies of weights", 2 * (size.linear + size.head), frozenset(alive))


def _rollout(share: Share, size: ModelSize, layout: Layout) -> Iterator[Part]:
    """Yield what the engine holds in this process: nothing where a server samples."""
    rollout, during = share.recipe.rollout, frozenset[Phase]({"rollout"})
    if rollout.server is not None:
        return
    width = arithmetic_bytes(share.recipe.model)
    if rollout.engine == "vllm" or layout.stage == 3:
        copied = width if rollout.engine == "vllm" else FLOAT32
        yield Part("engine's copy of the weights", size.parameters * copied)
    if rollout.engine == "vllm" and not rollout.options.get("sleep"):
        during = ALWAYS  # vLLM keeps its cache
    yield Part("rollout: KV cache", _cache(share, size.cache_per_token * width), during)
    logits = share.rows_at_once * size.vocabulary
    drawing = min(logits, CHOOSE_ELEMENTS) * BYTES_PER_LOGIT
    yield Part("rollout: sampling", logits * FLOAT32 + drawing, during)
    if rollout.overlap:
        yield Part("second process: weights", size.parameters * FLOAT32)
    if rollout.engine == "native":
        copied = size.decode_cast * width if width == 2 else size.decode_copy * FLOAT32 * (share.device == "cpu")
        yield Part("rollout: weights laid out for decoding", copied, during)


def _cache(share: Share, token: int) -> int:
    """Return the bytes of keys and values, of `token` bytes each, in training or evaluation, whichever has more."""
    rollout = share.recipe.rollout
    if rollout.engine == "vllm":
        longest = max(length for _, length in share.generations)
        return vllm.cache_bytes(token, share.rows_at_once, longest, rollout.options.get("cache_gb"))
    return max(rows * length for rows, length in share.generations) * token


def _update(share: Share, size: ModelSize) -> Iterator[Part]:
    """Yield activations and logits of the largest micro-batch."""
    groups, rows = share.micro_batch(share.minibatch_prompts)
    activations = _activations(share, size, groups, rows)
    yield Part("update: activations", activations, frozenset({"update"}))
    logits = _logits(share, size, rows * share.completion_length, gradient=True)
    mlp = share.positions(groups, rows) * 3 * (size.intermediate + size.hidden) * FLOAT32  # its backward's gradients
    yield Part("update: logits", max(logits, mlp), frozenset({"update"}))
    yield Part("update: one layer", activations // max(1, size.layers), frozenset({"gradients"}))


def _scoring(share: Share, size: ModelSize) -> Iterator[Part]:
    """Yield one layer's states or the logits, whichever is larger, of a pass without gradient."""
    passes = share.recipe.passes
    if not passes.of_policy and passes.values != "critic":
        return
    groups, rows = share.micro_batch(share.prompts, NO_GRADIENT_FACTOR)
    positions, scored = share.positions(groups, rows), rows * share.completion_length
    layer = positions * (2 * size.hidden + 3 * size.intermediate) * FLOAT32
    logits = (positions + scored) * size.hidden * FLOAT32 + _logits(share, size, scored, gradient=False)
    yield Part("scoring: one layer, logits", max(layer, logits), frozenset({"scoring"}))


def _activations(share: Share, size: ModelSize, groups: int, rows: int) -> int:
    """Return the bytes kept for the backward pass of a micro-batch's decoder; attention scores are never stored."""
    model, positions = share.recipe.model, share.positions(groups, rows)
    decoder = positions * activations_per_position(size, model, share.recipe.update.share_prompts)
    padded = (1 if model.gradient_checkpointing else size.layers) * _padded_attention(share, size, rows)
    last_norm = positions * (1 if size.fused else 2) * size.hidden * FLOAT32
    scored_states = rows * share.completion_length * size.hidden * FLOAT32
    return decoder + padded + last_norm + scored_states


def activations_per_position(size: ModelSize, model: Model, shared: bool = True) -> int:
    """Return the bytes that all layers keep per position: under checkpointing each layer's input, and one whole layer.

    A layer keeps in float32 its input and the residual between attention and MLP; in the arithmetic's width both normed
    inputs, queries, attention's output, keys and values, the MLP's gate, up and product, and the inner states of
    adapters. Outside the Llama family also what trained norms scale, and the MLP's activation (models/llama_family.py).
    Without `shared` prompts, keys and values are repeated for each query head.
    """
    residual = (2 if model.lora or size.fused else 4) * size.hidden * FLOAT32
    mlp = (3 if size.fused else 4) * size.intermediate
    keys_values = size.key_value_width if shared else 2 * size.query_width
    inner = 2 * size.hidden + 2 * size.query_width + keys_values + mlp + size.adapter_width
    layer = residual + inner * arithmetic_bytes(model)
    return size.layers * size.hidden * FLOAT32 + layer if model.gradient_checkpointing else size.layers * layer


def _padded_attention(share: Share, size: ModelSize, rows: int) -> int:
    """Return the bytes a layer keeps on top where packed rows are padded for their attention, as they are off the CPU:
    each row's keys and values beside a copy of its prompt's, queries and outputs."""
    if share.device == "cpu" or not share.recipe.update.share_prompts:
        return 0
    tokens = 2 * (share.prompt_length + share.completion_length) + 2 * share.completion_length
    return rows * tokens * size.query_width * arithmetic_bytes(share.recipe.model)


def _logits(share: Share, size: ModelSize, scored: int, gradient: bool) -> int:
    """Return the bytes while log-probs of `scored` tokens are taken, one chunk at a time (functional/logprobs.py)."""
    chunk = max(1, CHUNK_LOGITS // size.vocabulary)
    if scored <= chunk:  # exp(z - max z); in the backward its product with the gradient
        return (2 if gradient else 1) * scored * size.vocabulary * FLOAT32
    scaled = share.recipe.rollout.temperature != 1
    return (4 + scaled) * chunk * size.vocabulary * FLOAT32  # logits, log p, p and p log p


def _trust_region(share: Share, size: ModelSize) -> Iterator[Part]:
    """Yield the parts of a natural gradient step: Fisher products of some rows, then the line search over all."""
    trainable, during = size.trainable * FLOAT32, frozenset[Phase]({"optimizer step"})
    yield Part("trust region: weights before", trainable, frozenset({"update", "gradients", "optimizer step"}))
    states = share.rows * share.completion_length * size.hidden * FLOAT32
    yield Part("trust region: old states", states, during)
    options: Any = share.recipe.algorithm.options
    rows = max(1, round(share.rows * options.fisher_fraction))
    rows = min(rows, share.micro_batch(share.prompts)[1])
    activations = _activations(share, size, min(rows, share.prompts), rows)
    product = PRODUCT_VECTORS * trainable + activations + _distributions(share, size, rows)
    searched = share.micro_batch(share.prompts, NO_GRADIENT_FACTOR)[1]
    search = SEARCH_VECTORS * trainable + _distributions(share, size, searched)
    yield Part("trust region: vectors and passes", max(product, search), during)


def _distributions(share: Share, size: ModelSize, rows: int) -> int:
    """Return the bytes while the KL of whole distributions is taken: old and new log p and p, differences, product."""
    logits = rows * share.completion_length * size.vocabulary
    return 6 * min(max(CHUNK_LOGITS, size.vocabulary), logits) * FLOAT32
