"""A toy world small enough to enumerate: expectations are sums over every sequence or batch, not samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import nan, prod
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.algorithms.base import Algorithm, BoundAlgorithm
from rlhf_pg.functional import normalize
from rlhf_pg.types import Batch, Signals

VOCABULARY, LENGTH, EOS = 3, 3, 0


@dataclass(frozen=True)
class Toy:
    """All K sequences over a few tokens that end at EOS or at full length, under a tabular softmax policy, in float64.

    Everything holds NaN where the mask is False.
    """

    tokens: Tensor  # [K, C]
    mask: Tensor  # bool [K, C]
    state: Tensor  # int64 [K, C]: the number of the prefix before each token
    theta: Tensor  # [S, V] logits, with gradient
    reward: Tensor  # [K, C]: on every sampled token

    def logp(self, theta: Tensor | None = None) -> Tensor:
        """Compute log pi per token [K, C]."""
        table = (self.theta if theta is None else theta).log_softmax(dim=-1)
        return torch.where(self.mask, table[self.state, self.tokens], nan)

    def probability(self, theta: Tensor | None = None) -> Tensor:
        """Compute the exact probability of each sequence [K], with gradient."""
        return torch.where(self.mask, self.logp(theta), 0).sum(dim=1).exp()

    def row_reward(self) -> Tensor:
        return torch.where(self.mask, self.reward, 0).sum(dim=1)

    def length(self) -> Tensor:
        return self.mask.sum(dim=1, dtype=torch.float64)

    def table(self, seed: int) -> Tensor:
        """Draw a random number per state -> [K, C], the same wherever the state is: any function of the state."""
        random = torch.Generator().manual_seed(seed)
        per_state = torch.randn(len(self.theta), dtype=torch.float64, generator=random)
        return torch.where(self.mask, per_state[self.state], nan)

    def other_theta(self, seed: int, distance: float = 1.0) -> Tensor:
        """Return the logits of another policy [S, V]."""
        random = torch.Generator().manual_seed(seed)
        step = torch.randn(self.theta.shape, dtype=torch.float64, generator=random)
        return self.theta.detach() + distance * step

    def true_gradient(self, row_reward: Tensor | None = None) -> Tensor:
        """Compute the gradient of the expected reward [S, V], by differentiating the sum over all sequences."""
        rewards = self.row_reward() if row_reward is None else row_reward
        return self.gradient((self.probability() * rewards).sum())

    def gradient(self, scalar: Tensor) -> Tensor:
        return torch.autograd.grad(scalar, self.theta)[0]

    def expected_gradient(self, loss: Tensor) -> Tensor:
        """Compute the expectation of minus the gradient of a per-token loss: [K, C] -> [S, V]."""
        per_row = torch.where(self.mask, loss, 0).sum(dim=1)
        return -self.gradient((self.probability().detach() * per_row).sum())

    def batch(self, rows: list[int]) -> Batch:
        """Return the sequences `rows` as the samples of one prompt."""
        nothing = torch.zeros(1, 1, dtype=torch.int64)
        reward, group = self.row_reward()[rows], torch.zeros(len(rows), dtype=torch.int64)
        filler = torch.full_like(self.reward[rows], nan)
        return Batch(nothing, nothing[0], group, self.tokens[rows], self.mask[rows], reward, filler)

    def signals(self, rows: list[int], old: Tensor | None = None, value: Tensor | None = None) -> Signals:
        """Return rewards on every token, log-probs of the policy `old` [S, V] and a critic's `value` [K, C]."""
        logp_old = self.logp(self.theta.detach() if old is None else old)[rows]
        return Signals(self.reward[rows], logp_old=logp_old, value=None if value is None else value[rows])


def loss_of(
    toy: Toy, algorithm: BoundAlgorithm, rows: list[int], old: Tensor | None = None, value: Tensor | None = None
) -> Tensor:
    """Compute the loss of one batch as the trainer does: credit, standardised if an option says so, objective, mean."""
    batch, signals = toy.batch(rows), toy.signals(rows, old, value)
    credit = algorithm.credit(batch, signals)
    if algorithm.options.standardise:
        credit = type(credit)(normalize.standardise(credit.advantage, batch.mask), credit.returns)
    logp = toy.logp()[rows]
    loss = algorithm.objective(logp, torch.full_like(logp, nan), batch, signals, credit).loss
    how = algorithm.options.denominator
    length = LENGTH if how == "constant" else None
    return normalize.total(loss, batch.mask, how, constant_length=length)


def expected_step(
    toy: Toy, algorithm: Algorithm, samples: int, old: Any = None, value: Any = None, **options: Any
) -> Tensor:
    """Compute the expected step [S, V]: minus a batch's gradient, averaged over all batches of `samples` sequences.

    The batches are sampled from the policy `old` [S, V], by default the present one; `value` [K, C] is the critic's.
    """
    bound = algorithm.bind(options)
    p = toy.probability(old).detach().tolist()
    batches = [list(rows) for rows in product(range(len(p)), repeat=samples)]
    losses = [prod(p[row] for row in rows) * loss_of(toy, bound, rows, old, value) for rows in batches]
    return -toy.gradient(torch.stack(losses).sum())


def build(holed: bool, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Toy:
    """Build the world; if `holed`, the second column is a token that no policy sampled, such as a tool's output."""
    rows = [s for s in product(range(vocabulary), repeat=length)]
    sequences = sorted({s[: s.index(EOS) + 1] if EOS in s else s for s in rows})
    prefixes = sorted({s[:t] for s in sequences for t in range(len(s))})
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    tokens = torch.zeros(len(sequences), length + holed, dtype=torch.int64)
    state = torch.zeros_like(tokens)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            at = t + (holed and t > 0)
            tokens[row, at], state[row, at], mask[row, at] = token, number[sequence[:t]], True
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(len(prefixes), vocabulary, generator=random, dtype=torch.float64).requires_grad_()
    on_action = torch.randn(len(prefixes), vocabulary, generator=random, dtype=torch.float64)  # r(s, a)
    return Toy(tokens, mask, state, theta, torch.where(mask, on_action[state, tokens], nan))
