"""Credit assignment: rewards to advantages.

Two kinds: per token along a row (returns, GAE) and per row within a group of samples of one prompt.
`mask` [B, C] is True where the policy sampled the token. The other tokens (padding, tool output) are no actions: they
get 0, and what the inputs hold there, NaN included, is never used. The state after token t is the one at the row's
next True token; after the last True token the episode is over and worth 0, whether it ended by itself or was cut off.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_pg.functional import shapes


def trajectory_return(reward: Tensor, mask: Tensor) -> Tensor:
    """Put the row's undiscounted reward on each of its sampled tokens: [B, C], [B, C] -> [B, C].

    R = sum_t r_t, the return of REINFORCE before causality is used (Williams 1992). ValueError if the shapes differ.
    """
    _check_rows(mask, reward=reward)
    row = torch.where(mask, reward, 0).sum(dim=1, keepdim=True)  # [B, 1]
    return torch.where(mask, row, 0)


def reward_to_go(reward: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Sum the discounted rewards from each sampled token on: [B, C], [B, C] -> [B, C].

    R_t = r_t + gamma * R_t', t' the row's next sampled token (Sutton and Barto 2018, equation 3.9): a token that the
    policy did not sample takes no time. ValueError if the shapes differ or gamma is outside [0, 1].
    """
    _check_rows(mask, reward=reward)
    _check_unit(gamma=gamma)
    reward = torch.where(mask, reward, 0)  # [B, C]
    out = torch.zeros_like(reward)
    later = reward.new_zeros(reward.shape[0])  # [B]: the return at the next sampled token
    for t in reversed(range(reward.shape[1])):
        later = torch.where(mask[:, t], reward[:, t] + gamma * later, later)
        out[:, t] = later
    return torch.where(mask, out, 0)


def gae(reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Estimate generalised advantages (GAE; Schulman et al. 2016, arXiv:1506.02438, equations 11 to 16).

        delta_t = r_t + gamma * V_t' - V_t        A_t = delta_t + gamma * lam * A_t'        t' = the next sampled token

    reward, value, mask [B, C] -> advantage [B, C] and returns = advantage + value [B, C], the critic's target.
    lam = 1 is the return minus the value, lam = 0 the one-step temporal difference. No gradient flows into `value`.
    ValueError if the shapes differ, or gamma or lam is outside [0, 1].
    """
    _check_rows(mask, reward=reward, value=value)
    _check_unit(gamma=gamma, lam=lam)
    reward = torch.where(mask, reward, 0)  # [B, C]
    value = torch.where(mask, value.detach(), 0)  # [B, C]
    advantage = torch.zeros_like(value)
    later_value = value.new_zeros(value.shape[0])  # [B]
    later_advantage = torch.zeros_like(later_value)  # [B]
    for t in reversed(range(value.shape[1])):
        sampled = mask[:, t]
        delta = reward[:, t] + gamma * later_value - value[:, t]
        later_advantage = torch.where(sampled, delta + gamma * lam * later_advantage, later_advantage)
        later_value = torch.where(sampled, value[:, t], later_value)
        advantage[:, t] = later_advantage
    advantage = torch.where(mask, advantage, 0)
    return advantage, advantage + value


def group_advantage(reward: Tensor, group: Tensor, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Compute (r - mean) / (std + eps) within each group: reward [B], group ids [B] -> [B].

    GRPO (arXiv:2402.03300, section 4.1.2). std is the sample's (n - 1). scale=False leaves the division out (Dr.GRPO,
    arXiv:2503.20783). Ids are any integers and rows come in any order. A group with one row or equal rewards has
    advantage exactly 0. Two biases, by design of the paper: the mean holds the row's own reward, which shrinks the
    expected gradient by (n - 1) / n; and the std weights prompts by difficulty, so the direction is not that of the
    expected reward. ValueError if the shapes differ.
    """
    table, present, index, column = _by_group(reward, group)
    size = present.sum(dim=1, keepdim=True)  # [K, 1]
    centred = _centred(table, present, size)  # [K, G]
    if scale:
        variance = centred.square().sum(dim=1, keepdim=True) / (size - 1).clamp(min=1)  # [K, 1]
        centred = torch.where(variance > 0, centred / (variance.sqrt() + eps), 0)
    return centred[index, column].to(reward.dtype)


def leave_one_out(reward: Tensor, group: Tensor, singleton: float | None = None) -> Tensor:
    """Compute r_i minus the mean of the other rewards of its group: reward [B], group ids [B] -> [B].

    RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, equation 8): unbiased, since the baseline is
    independent of the row. The row of a group of one gets `singleton` (0 leaves it out of the gradient). ValueError if
    the shapes differ, or there is such a row and `singleton` is not given.
    """
    table, present, index, column = _by_group(reward, group)
    size = present.sum(dim=1, keepdim=True)  # [K, 1]
    single = size[index, 0] < 2  # [B]
    if singleton is None and single.any():
        raise ValueError(f"group {int(group[single][0])} has one row: leave-one-out needs at least two per prompt")
    compared = (_centred(table, present, size) * size / (size - 1))[index, column]  # [B]
    return torch.where(single, singleton or 0.0, compared).to(reward.dtype)


def by_column(compare: Callable[[Tensor, Tensor], Tensor], returns: Tensor, group: Tensor) -> Tensor:
    """Apply `compare`, one of the two functions above, to each column: returns [B, C], group ids [B] -> [B, C].

    At token t a row's return is compared with the other rows' at their token t: a baseline for every column. Fill
    `returns` with 0, the worth of an ended row, outside the mask. ValueError as in `compare`.
    """
    shapes.dims(2, returns=returns)
    columns = returns.shape[1]
    ids = group[:, None] * columns + torch.arange(columns, device=group.device)  # [B, C]
    return compare(returns.flatten(), ids.flatten()).view_as(returns)


def _by_group(reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay [B] rewards out as one row per group: table [K, G] float64 (0-filled), present [K, G], index [B], column [B].

    Within a row rewards are sorted, so that the sums, to the last bit, do not depend on the order of the batch, and no
    scatter-add is needed, which CUDA does in random order.
    """
    shapes.dims(1, reward=reward, group=group)
    shapes.same(reward=reward, group=group)
    if reward.numel() == 0:
        raise ValueError("reward is empty: no group to compare within")
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)  # [B], [K]
    order = reward.argsort(stable=True)
    order = order[index[order].argsort(stable=True)]  # [B]: by group, then by reward
    start = size.cumsum(0) - size  # [K]
    column = torch.empty_like(index)
    column[order] = torch.arange(len(index), device=index.device) - start[index[order]]
    table = torch.zeros(len(size), int(size.max()), dtype=torch.float64, device=reward.device)
    table[index, column] = reward.double()
    present = torch.arange(table.shape[1], device=index.device) < size[:, None]  # [K, G]
    return table, present, index, column


def _centred(table: Tensor, present: Tensor, size: Tensor) -> Tensor:
    """Subtract the row means [K, G]; exactly 0 where a row's rewards are all equal, whose mean may be rounded."""
    lowest, highest = table[:, :1], table.gather(1, size - 1)  # [K, 1]: rows are sorted
    deviation = table - table.sum(dim=1, keepdim=True) / size
    return torch.where(present & (lowest != highest), deviation, 0)


def _check_rows(mask: Tensor, **tensors: Tensor) -> None:
    shapes.dims(2, mask=mask)
    shapes.boolean(mask=mask)
    shapes.same(mask=mask, **tensors)


def _check_unit(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name}={number}: must be between 0 and 1")
