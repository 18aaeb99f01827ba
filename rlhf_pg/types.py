"""The data passed between the parts: prompts, completions, rollouts, batches. No logic, and no torch at run time.

Letters used in every shape: N prompts, G samples per prompt, B = N * G rows, P prompt length, C completion length,
V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length"]
Outcome = Literal["scored", "unparseable", "truncated", "error", "timeout", "excluded"]


@dataclass(frozen=True)
class Prompt:
    """One query, tokenized. `id` is stable across epochs and processes: random streams are keyed by it."""

    id: str  # "train/17"
    text: str  # after the template, exactly what `tokens` encodes
    tokens: tuple[int, ...]
    columns: dict[str, Any] = field(default_factory=dict)  # the data row: "answer", "question", ... (JSON values)


@dataclass(frozen=True)
class Sampling:
    """How an engine samples. A sample's random stream depends only on (seed, step, prompt id, sample index)."""

    samples: int  # G
    max_new_tokens: int
    temperature: float = 1.0  # 0 = greedy
    seed: int = 0
    step: int = 0
    top_p: float = 1.0  # evaluation only: it makes training ratios wrong
    top_k: int = 0  # 0 = off; evaluation only


@dataclass(frozen=True)
class Completion:
    """One sampled answer: token ids and their log-probs at the sampling temperature, never text."""

    tokens: Tensor  # int64 [c], CPU; the EOS token is the last one iff finish == "stop"
    logp: Tensor  # float32 [c], CPU
    finish: Finish
    version: int  # of the weights that sampled it


@dataclass(frozen=True)
class Sample:
    """What a reward function may look at."""

    prompt: str
    completion: str  # decoded without special tokens
    finish: Finish = "stop"
    columns: dict[str, Any] = field(default_factory=dict)
    token_texts: tuple[str, ...] = ()  # of each sampled token, "" for special ones; () unless a reward asks for it
    max_new_tokens: int = 0  # the limit it was sampled under; 0 = unknown, as for a text from a file
    completion_tokens: int = 0  # sampled tokens, EOS included; 0 = as many as there are `token_texts`


@dataclass(frozen=True)
class Score:
    """The verdict on one sample. `reward` None = leave the sample out of training (never a silent 0)."""

    reward: float | None
    parts: dict[str, float | None]  # per reward function, and per named part ("format_r1", "math_answer/correct")
    outcome: Outcome
    detail: str = ""
    token_rewards: tuple[float, ...] | None = None  # [c], the part of `reward` on single tokens; None = there is none


@dataclass(frozen=True)
class Rollout:
    """One scored sample."""

    prompt: Prompt
    completion: Completion
    text: str
    score: Score


@dataclass(frozen=True)
class Prefix:
    """One prompt, forwarded before its rows. To the rows its tensors are constants, whose gradients are collected."""

    keys_values: Sequence[tuple[Tensor, Tensor]]  # of each layer, [1, heads, P, size] each
    last_state: Tensor  # [1, H], predicts the first token of each row
    sources: Sequence[Tensor]  # the prompt's outputs that these were detached from: keys, values, ..., last state
    length: int  # P


@dataclass(frozen=True)
class Batch:
    """All rows of one step, padded on the right; column t is completion token t."""

    prompt_tokens: Tensor  # int64 [N, P]
    prompt_lengths: Tensor  # int64 [N]
    group: Tensor  # int64 [B], row -> prompt, rows of a group adjacent
    tokens: Tensor  # int64 [B, C]
    mask: Tensor  # bool [B, C], True = sampled by the policy (EOS included)
    reward: Tensor  # float32 [B]
    logp_rollout: Tensor  # float32 [B, C], engine, at sampling
    token_reward: Tensor | None = None  # float32 [B, C], the part of `reward` on single tokens; None = all on the last
    number: Tensor | None = None  # int64 [N], of each prompt among those of all ranks; None = this is the only rank
    sizes: Tensor | None = None  # int64 [prompts of all ranks], rows of each
    prefix: Prefix | None = None  # its one prompt, if that was forwarded already: the rows are part of a large group


@dataclass(frozen=True)
class Signals:
    """Per-token inputs of credit and objective, computed once per step without gradient."""

    token_reward: Tensor  # [B, C], sums to the row's reward, minus the KL penalty if that is placed in the reward;
    # the part of the reward that is not for single tokens is on the row's last sampled one
    logp_old: Tensor | None = None  # [B, C]: trainer at the start of the update; None = on-policy, it is logp
    logp_ref: Tensor | None = None  # [B, C]: frozen reference, None when no KL term uses it
    value: Tensor | None = None  # [B, C]: critic


@dataclass(frozen=True)
class Credit:
    """Who gets how much of the reward."""

    advantage: Tensor  # [B, C]
    returns: Tensor | None = None  # [B, C]: the critic's target
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenLoss:
    """An unreduced loss; only `functional.normalize` divides."""

    loss: Tensor  # [B, C], to minimise
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each [B, C], averaged over sampled tokens for the log


@dataclass(frozen=True)
class Origin:
    """Where a model that is trained comes from, as far as its own files say."""

    name: str = ""  # as its files call it
    hub: str | None = None  # "owner/name"
    licence: str | None = None  # as the hub spells it; None: unknown
    licence_name: str | None = None
    licence_link: str | None = None
    source: str = ""  # which file names the licence
