"""The slot cache holds each row's keys and values at the row's own length."""

import torch

from rlhf_pg.rollout.cache import SlotCache


def states(prompts: int, width: int, layers: int = 2, heads: int = 2):
    """Keys (and values, of another size) that name their layer, prompt, head and column."""
    layer, prompt, head, column = torch.meshgrid(
        *map(torch.arange, (layers, prompts, heads, width)), indexing="ij"
    )  # each [layers, prompts, heads, width]
    name = (1000 * layer + 100 * prompt + 10 * head + column).float()[..., None]
    return [
        (keys, -values)
        for keys, values in zip(name.expand(-1, -1, -1, -1, 3), name.expand(-1, -1, -1, -1, 5), strict=True)
    ]


def test_prompts_are_moved_to_column_zero_and_written_after_their_own_length():
    prefilled = states(prompts=2, width=4)
    cache = SlotCache(prefilled, slots=5, length=6)
    lengths = torch.tensor([4, 2])  # prompt 1 stands in columns 2 and 3
    source = torch.tensor([1, 0, 1])
    columns = (torch.arange(4) + (4 - lengths[source])[:, None]).clamp(max=3)
    cache.fill(1, prefilled, source, columns)
    assert cache.keys[1, 1, 0, :2, 0].tolist() == [1102, 1103]
    assert cache.values[0, 2, 1, :4, 4].tolist() == [-10, -11, -12, -13]
    assert cache.keys[:, 0].eq(0).all() and cache.keys[:, 4].eq(0).all()

    cache.move(torch.tensor([3]), torch.tensor([0]), length=4)
    assert torch.equal(cache.keys[:, 0], cache.keys[:, 3])

    position = torch.tensor([2, 2, 4, 2])
    cache.aim(position, longest=5)
    new = 7 + torch.arange(4 * 2).view(4, 2, 1, 1).float()
    keys, values = cache.for_model.update(new.expand(-1, -1, -1, 3), new.expand(-1, -1, -1, 5), 1)
    assert keys.shape == (4, 2, 5, 3) and values.shape == (4, 2, 5, 5)
    for row in range(4):
        assert keys[row, :, position[row], 0].tolist() == [7 + 2 * row, 8 + 2 * row]
        assert values[row, :, position[row], 4].tolist() == [7 + 2 * row, 8 + 2 * row]
    assert keys[1, 0, :2, 0].tolist() == [1102, 1103] and keys[2, 0, :4, 0].tolist() == [1000, 1001, 1002, 1003]
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert not cache.keys[0, :, :, 4:].any()  # the other layer was not written
