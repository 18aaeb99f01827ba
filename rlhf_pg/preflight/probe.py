"""What the preflight checks look with: a few short completions, three ways to score them, and changes that undo
themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_pg.data import collate
from rlhf_pg.models.exact import evaluation_mode
from rlhf_pg.storage import random_state
from rlhf_pg.training.precompute import log_probs
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Batch, Completion, Prompt, Rollout, Sampling, Score

PROMPTS, SAMPLES, NEW_TOKENS = 3, 2, 20  # of a probe: seconds for half a billion parameters on two CPU cores
PROMPT_TOKENS = 48  # of a probe's prompts, at most
CANDIDATES = 64  # prompts looked at for short ones
FLIPPED_BIT = 4  # a perturbed weight moves by 2**-4 of its power of two: by 3 to 6 %


@dataclass(frozen=True)
class Probe:
    """A few completions as the trainer gets them, scored by both sides at one time."""

    batch: Batch  # on the trainer's device; `logp_rollout` is the engine's
    trained: Tensor  # [B, C] log-probs that the gradient would be taken of
    version: int  # of the weights the engine says it sampled from


def sample(session: Session, prompts: int = PROMPTS, new_tokens: int = NEW_TOKENS) -> Probe:
    """Sample completions of the beginnings of training prompts, as training does; the data cursor stays."""
    sampling = Sampling(
        samples=SAMPLES,
        max_new_tokens=min(new_tokens, session.recipe.rollout.max_new_tokens),
        temperature=session.recipe.rollout.temperature,
        seed=session.recipe.run.seed,
    )
    chosen = short_prompts(session.train_prompts, prompts)
    with session.learner.backend.autocast():
        groups = session.engine.generate(chosen, sampling)
    rollouts = [rollout(prompt, c) for prompt, group in zip(chosen, groups, strict=True) for c in group]
    batch = collate.to(collate.collate(rollouts), session.learner.backend.device)
    return Probe(batch, trainer_log_probs(session, batch), rollouts[0].completion.version)


def short_prompts(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return the beginnings of short prompts, of different lengths: only these show a fault in padding or positions.

    Log-probs agree or not whatever the prompt says; the bound keeps the time of the checks off the length of the data.
    """
    shortest = sorted(prompts[:CANDIDATES], key=lambda prompt: len(prompt.tokens))[:count]
    lengths = [min(len(prompt.tokens), PROMPT_TOKENS) * (2 + i) // (1 + count) for i, prompt in enumerate(shortest)]
    return [replace(p, tokens=p.tokens[: max(1, n)]) for p, n in zip(shortest, lengths, strict=True)]


def rollout(prompt: Prompt, completion: Completion) -> Rollout:
    """Return a completion as scored, so that the collator takes it."""
    return Rollout(prompt, completion, "", Score(0.0, {}, "scored"))


def trainer_log_probs(session: Session, batch: Batch) -> Tensor:
    """Compute log-probs [B, C] by the policy under training, as a training step does."""
    return log_probs(session.learner.policy, batch, session.learner.update)


def own_log_probs(model: PreTrainedModel, batch: Batch, temperature: float) -> Tensor:
    """Compute log-probs [B, C] from the model's logits, one unpadded row at a time: shares no code with the policy."""
    logp = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
    with evaluation_mode(model):
        for row, length in enumerate(collate.lengths(batch.mask).tolist()):
            group = int(batch.group[row])
            prompt = batch.prompt_tokens[group, : int(batch.prompt_lengths[group])]
            tokens = batch.tokens[row, :length]  # [c]
            logits = model(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[
                0, -length - 1 : -1
            ]  # [c, V]
            logp[row, :length] = (logits.float() / temperature).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    return logp


@contextmanager
def perturbed(model: nn.Module) -> Iterator[None]:
    """Change every trained weight a little inside; bit for bit what it was afterwards, whatever happens.

    One bit of each weight's mantissa is flipped, and flipped again: exact, and needs no copy. A tensor of zeros (a
    fresh LoRA matrix, a bias) takes 2**-7 everywhere instead, by flipping that number's bits.
    """
    flipped: list[tuple[Tensor, int]] = []
    try:
        for parameter in model.parameters():
            if parameter.requires_grad:
                bits, mask = _bits(parameter)
                bits.bitwise_xor_(mask)
                flipped.append((bits, mask))
        yield
    finally:
        for bits, mask in flipped:
            bits.bitwise_xor_(mask)


def _bits(parameter: Tensor) -> tuple[Tensor, int]:
    """Return the tensor's memory as integers, and which of their bits to flip."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    bits = parameter.detach().view(kind)
    if not bits.any():
        return bits, int(torch.tensor(2.0**-7, dtype=parameter.dtype).view(kind))
    mantissa = -round(math.log2(torch.finfo(parameter.dtype).eps))
    return bits, 1 << (mantissa - FLIPPED_BIT)


@contextmanager
def untouched(session: Session) -> Iterator[None]:
    """Switch off gradients inside; modules stay in the modes they are trained in, so that a dropout shows. Global
    random streams are afterwards as before."""
    saved = random_state.capture()
    try:
        with torch.no_grad():
            yield
    finally:
        random_state.restore(*saved)
