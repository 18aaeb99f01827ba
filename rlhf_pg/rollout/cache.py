"""Keys and values of rows of different lengths in one preallocated block, in the shape transformers' models expect.

The rows in use are always the first ones. A row's new key is written at its own length; attention reads one view, cut
at the longest row, and a mask hides what lies beyond each row's length. Nothing is concatenated and nothing reallocated
while tokens are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer


class SlotCache:
    """The block. keys [layers, slots, heads, length, key size]; values likewise with their own size.

    Zero-filled: attention multiplies hidden columns by 0, which only finite numbers survive.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], slots: int, length: int) -> None:
        self.keys, self.values = (
            tensor.new_zeros(len(like), slots, tensor.shape[1], length, tensor.shape[3]) for tensor in like[0]
        )
        self.layers = [SlotLayer(keys, values) for keys, values in zip(self.keys, self.values, strict=True)]
        self.for_model = Cache(layers=list(self.layers))

    def fill(self, first: int, prefilled: Sequence[tuple[Tensor, Tensor]], source: Tensor, columns: Tensor) -> None:
        """Copy prompts into the rows from `first` on.

        prefilled: per layer keys and values [prompts, heads, P, size]; source [m]: the prompt of each new row;
        columns [m, P]: which column of the prefill stands at each column of the row.
        """
        rows, width = slice(first, first + len(source)), columns.shape[1]
        for layer, (keys, values) in enumerate(prefilled):
            for block, new in ((self.keys, keys), (self.values, values)):
                block[layer, rows, :, :width] = new[source[:, None], :, columns].transpose(1, 2)  # [m, heads, P, size]

    def move(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy rows `source` [m] over rows `target` [m], up to column `length`."""
        for block in (self.keys, self.values):
            block[:, target, :, :length] = block[:, source, :, :length]

    def aim(self, position: Tensor, longest: int) -> None:
        """Prepare the forward of one token of each of the first n rows: row i's at position[i] [n], all < longest."""
        _, _, heads, length, _ = self.keys.shape
        row_head = torch.arange(len(position) * heads, device=position.device)  # [n * heads]
        at = row_head * length + position.repeat_interleave(heads)
        for layer in self.layers:
            layer.at, layer.rows, layer.longest = at, len(position), longest


def prefilled_states(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Return, per layer, the keys and values [prompts, heads, P, size] that a forward left in an empty DynamicCache.

    Raises ValueError for a model whose layers do not all keep them, in one shape.
    """
    states = [
        (layer.keys, layer.values)
        for layer in cache.layers
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    ]
    shapes = {(keys.shape, values.shape) for keys, values in states}
    if len(states) != len(cache.layers) or len(shapes) != 1:
        raise ValueError("the native engine needs a model whose layers all keep keys and values of one shape")
    return states


class SlotLayer(CacheLayerMixin):
    """One layer of a `SlotCache`, as transformers' attention modules see it."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys: Tensor = keys  # [slots, heads, length, size]
        self.values: Tensor = values
        self.flat_keys, self.flat_values = keys.view(-1, keys.shape[-1]), values.view(-1, values.shape[-1])
        self.is_initialized = True
        self.at = torch.empty(0, dtype=torch.int64, device=keys.device)  # [rows * heads] into flat_keys
        self.rows = self.longest = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write one key and value per row [n, heads, 1, size]; return views [n, heads, longest, size]."""
        return self.write(key_states.to(self.keys.dtype), value_states.to(self.values.dtype))  # autocast: bfloat16

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same from [n, heads, size] (or [n, heads, 1, size]) in the cache's dtype."""
        self.flat_keys.index_copy_(0, self.at, keys.reshape(-1, keys.shape[-1]))
        self.flat_values.index_copy_(0, self.at, values.reshape(-1, values.shape[-1]))
        return self.keys[: self.rows, :, : self.longest], self.values[: self.rows, :, : self.longest]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("a slot layer is made with its memory")

    def get_seq_length(self) -> int:
        return self.longest - 1  # columns before this token's

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.longest, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]
