"""A toy world small enough to enumerate: expectations are sums over every sequence, not samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

VOCABULARY, LENGTH, EOS = 3, 3, 0


@dataclass(frozen=True)
class Toy:
    """All K sequences over 3 tokens that end at EOS or at length 3, under a tabular softmax policy, in float64."""

    tokens: Tensor  # [K, C]
    mask: Tensor  # bool [K, C]
    state: Tensor  # int64 [K, C]: the number of the prefix before each token
    theta: Tensor  # [S, V] logits, with gradient
    reward: Tensor  # [K, C]: on every sampled token, NaN on padding

    def logp(self, theta: Tensor | None = None) -> Tensor:
        """log pi per token [K, C], 0 on padding."""
        table = (self.theta if theta is None else theta).log_softmax(dim=-1)
        return torch.where(self.mask, table[self.state, self.tokens], 0)

    def probability(self, theta: Tensor | None = None) -> Tensor:
        """Exact probability of each sequence [K], with gradient."""
        return self.logp(theta).sum(dim=1).exp()

    def row_reward(self) -> Tensor:
        return torch.where(self.mask, self.reward, 0).sum(dim=1)

    def true_gradient(self, row_reward: Tensor | None = None) -> Tensor:
        """Gradient of the expected reward [S, V], by differentiating the sum over all sequences."""
        rewards = self.row_reward() if row_reward is None else row_reward
        return self.gradient((self.probability() * rewards).sum())

    def gradient(self, scalar: Tensor) -> Tensor:
        return torch.autograd.grad(scalar, self.theta)[0]

    def expected_gradient(self, loss: Tensor) -> Tensor:
        """Expectation over sampled sequences of minus the gradient of a per-token loss [K, C] -> [S, V]."""
        per_row = torch.where(self.mask, loss, 0).sum(dim=1)
        return -self.gradient((self.probability().detach() * per_row).sum())


@pytest.fixture
def toy() -> Toy:
    rows = [s for s in product(range(VOCABULARY), repeat=LENGTH)]
    sequences = sorted({s[: s.index(EOS) + 1] if EOS in s else s for s in rows})
    prefixes = sorted({s[:t] for s in sequences for t in range(len(s))})
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    tokens = torch.zeros(len(sequences), LENGTH, dtype=torch.int64)
    state = torch.zeros_like(tokens)
    mask = torch.zeros(len(sequences), LENGTH, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            tokens[row, t], state[row, t], mask[row, t] = token, number[sequence[:t]], True
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(len(prefixes), VOCABULARY, generator=random, dtype=torch.float64).requires_grad_()
    on_action = torch.randn(len(prefixes), VOCABULARY, generator=random, dtype=torch.float64)  # r(s, a)
    reward = torch.where(mask, on_action[state, tokens], torch.nan)
    return Toy(tokens, mask, state, theta, reward)
