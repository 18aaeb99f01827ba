"""Which of the faster ways to compute a model give its own numbers, found out on a few random tokens.

The measure is the model's eager attention: what its authors wrote. `sdpa` knows no soft-capped scores and no attention
sinks, and a model may do more in its attention than the shared code knows. Architectures of the Llama family are known
to be plain and are not measured.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlhf_pg.models.hidden_states import states_before
from rlhf_pg.models.llama_family import in_llama_family
from rlhf_pg.models.packed_attention import base_attention, enable_packing, supports_packing
from rlhf_pg.types import Batch

LIMIT = 1e-4  # of a log-prob or a state, relative to the largest state, in float32
TOKENS = 20
SHARED_OPTIONS = {
    *("module", "query", "key", "value", "attention_mask", "scaling", "dropout", "is_causal", "position_bias"),
    *("kwargs", "head_mask", "sliding_window", "position_ids", "output_attentions"),
}
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")  # configurations' names
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


UNTRAINABLE = {  # seen by scripts/model_survey.py, and past what preflight looks at
    "deepseek_v4": "log-probs of the same tokens differ by more than rounding from batch to batch",
    "reformer": "its layers have no backward pass without dropout",
}


class Head(NamedTuple):
    """What logits are made of: softcap(scale * (state @ weight + bias)). `direct`: the states are the decoder's own."""

    direct: bool = True
    scale: float = 1.0
    softcap: float | None = None


class HeadInput:
    """A model up to its head: called like its decoder, where the decoder's states are not what the head is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        """Return the head's input [B, T, H] as `last_hidden_state`; the head itself computes a single position."""
        states: list[Tensor] = []

        def keep(head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            states.append(arguments[0])
            return (arguments[0][:, :1], *arguments[1:])

        head: Any = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(keep)
        try:
            self.model(**inputs)
        finally:
            hook.remove()
        (state,) = states
        return SimpleNamespace(last_hidden_state=state)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Be in evaluation mode inside (no dropout; checkpointing would drop the cache); undo that for every submodule."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def possible_attention(config: PretrainedConfig, attention: str) -> str:
    """Return `attention`, or "eager" where transformers has no sdpa for the architecture.

    Raises ValueError for one that cannot be trained here.
    """
    if config.model_type in UNTRAINABLE:
        raise ValueError(
            f"model.path: models of type {config.model_type} cannot be trained here: {UNTRAINABLE[config.model_type]}"
        )
    try:
        model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]  # pyright: ignore[reportPrivateUsage, reportIndexIssue, reportAttributeAccessIssue]
    except KeyError:  # code that comes with the model
        return attention
    return "eager" if attention == "sdpa" and not model_class._supports_sdpa else attention


@torch.no_grad()
def with_exact_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Switch a model from sdpa to eager attention if only that computes all it asks for; return the model."""
    decoder = decoder_of(model)
    if model.config._attn_implementation != "sdpa" or in_llama_family(decoder):
        return model
    if own_options(decoder):
        model.set_attn_implementation("eager")
        return model
    tokens = random_tokens(model)
    model.set_attn_implementation("eager")
    try:
        eager = model(input_ids=tokens, use_cache=False).logits
    except Exception:  # from any model's own code: it has no eager attention, or no forward of text alone
        eager = None
    model.set_attn_implementation("sdpa")
    if eager is not None and not close(model(input_ids=tokens, use_cache=False).logits, eager):
        model.set_attn_implementation("eager")
    return model


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head; `get_decoder` of some models returns the head itself."""
    decoder: Any = model.get_decoder()
    return decoder if isinstance(decoder, PreTrainedModel) else model.base_model  # pyright: ignore[reportReturnType]


def own_options(decoder: nn.Module) -> set[str]:
    """Return what the model's attention asks of its eager function that other attention functions leave out."""
    eager = getattr(sys.modules.get(type(decoder).__module__), "eager_attention_forward", None)
    if eager is None:
        return set()
    options = set(inspect.signature(eager).parameters) - SHARED_OPTIONS
    text: Any = decoder.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if getattr(text, "attn_logit_softcapping", None) is None:
        options -= {"softcap"}
    return options


def random_tokens(model: nn.Module, rows: int = 2) -> Tensor:
    """Return tokens [rows, TOKENS] on the model's device, always the same."""
    embedding: Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, len(embedding), (rows, TOKENS), generator=generator).to(embedding.device)


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two results are the same but for rounding."""
    return bool((a - b).abs().max() <= LIMIT * b.abs().max())


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """Return how a model makes logits, by comparing with its own; if it is none of these ways, preflight refuses it."""
    if in_llama_family(decoder_of(model)):
        return Head()
    text: Any = model.config.get_text_config()
    softcaps = [cap for name in SOFTCAPS if (cap := getattr(text, name, None))]
    named = [value for name in SCALES if isinstance(value := getattr(text, name, None), float | int) and value]
    likely = Head(softcap=softcaps[0] if softcaps else None)
    try:
        with evaluation_mode(model):
            tokens = random_tokens(model)
            states = HeadInput(model)(input_ids=tokens, use_cache=False).last_hidden_state
            decoded = getattr(decoder_of(model)(input_ids=tokens, use_cache=False), "last_hidden_state", None)
            own = model(input_ids=tokens, use_cache=False).logits
    except Exception:  # from any model's own code
        return likely
    direct = decoded is not None and decoded.shape == states.shape and close(decoded, states)
    head: Any = model.get_output_embeddings()
    logits = F.linear(states, head.weight, head.bias)
    for softcap in [*softcaps, None]:  # first those that are named: on small logits a cap hardly shows
        for scale in (1.0, *named, *(1 / value for value in named)):
            capped = softcap * torch.tanh(scale * logits / softcap) if softcap else scale * logits
            if close(capped, own):
                return Head(direct, float(scale), softcap)
    return Head(direct, softcap=likely.softcap)


@torch.no_grad()
def share_if_exact(decoder: PreTrainedModel) -> bool:
    """Enable shared prompts where that gives the states of padded rows; return whether it does."""
    if not supports_packing(decoder) or own_options(decoder):
        return False
    base = base_attention(decoder.config.get_text_config())
    enable_packing(decoder)
    if in_llama_family(decoder):
        return True
    try:
        with evaluation_mode(decoder):
            batch = _random_batch(decoder)
            (packed, _), (padded, _) = states_before(decoder, batch, True), states_before(decoder, batch, False)
        if close(packed, padded):
            return True
    except Exception:  # from any model's own code: attention that is not given the layout
        pass
    decoder.config.get_text_config()._attn_implementation = base
    return False


def _random_batch(decoder: nn.Module) -> Batch:
    """Return two ragged prompts with two ragged rows each."""
    tokens = random_tokens(decoder, rows=4)
    columns = torch.arange(TOKENS // 2, device=tokens.device)
    mask = columns < torch.tensor([[10], [4], [1], [7]], device=tokens.device)
    nothing = torch.zeros(mask.shape, device=tokens.device)
    group, lengths = (torch.tensor(x, device=tokens.device) for x in ([0, 0, 1, 1], [10, 6]))
    return Batch(tokens[:2, :10], lengths, group, tokens[:, 10:], mask, nothing[:, 0], nothing)
