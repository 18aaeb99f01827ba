"""Hidden states from which each sampled token is predicted, prompts forwarded once per group.

Two exact ways to the same numbers:

- shared: the batch is one packed tree (`tree.py`): each prompt once, then its rows. Nothing is padded.
- plain: each row is forwarded whole, prompt and completion, padded to the longest. Any architecture.

Policy and critic both stand on this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_pg.models.packing import Prefix, Tree, plant
from rlhf_pg.types import Batch


def states_before(decoder: nn.Module, batch: Batch, share_prompts: bool) -> tuple[Tensor, Tensor]:
    """What the decoder (a model without its head) holds just before each sampled token [M, H], and where those tokens
    are, [M] into the flat [B * C]. Heads are applied to these states only."""
    scored = batch.mask.reshape(-1).nonzero().squeeze(1)  # [M]
    if not share_prompts:
        hidden = _plain(decoder, batch)
        return hidden.reshape(batch.mask.numel(), -1).index_select(0, scored), scored
    tree = plant(batch)
    states = _forward(decoder, tree)  # [T, H]
    if tree.prefix:
        states = torch.cat([states, tree.prefix.last])
    return states.index_select(0, tree.before), scored


def prompt_before_rows(decoder: nn.Module, batch: Batch) -> Prefix:
    """The single prompt of a batch, forwarded without its rows, for them to be forwarded in parts."""
    tree = plant(batch, keep=True)
    return Prefix.of(tree, _forward(decoder, tree)[tree.before])


def spread(values: Tensor, scored: Tensor, mask: Tensor) -> Tensor:
    """Values [M, ...] of the sampled tokens back in place, [B, C, ...], 0 elsewhere."""
    rest = values.shape[1:]
    return values.new_zeros(mask.numel(), *rest).index_copy(0, scored, values).view(*mask.shape, *rest)


def _forward(decoder: nn.Module, tree: Tree) -> Tensor:
    """States [T, H] of packed positions."""
    if not len(tree.tokens):  # rows of single tokens: the prompt's last state is all there is
        assert tree.prefix
        return tree.prefix.last[:0]
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tree.tokens.device)  # a mask that is made is not remade
    hidden = decoder(
        input_ids=tree.tokens[None],
        position_ids=tree.positions[None],
        attention_mask=unused,
        use_cache=False,
        tree=tree,
    ).last_hidden_state[0]
    if len(tree.layers) != decoder.config.get_text_config().num_hidden_layers:  # pyright: ignore
        raise RuntimeError(
            f"{type(decoder).__name__} does not hand unknown arguments on to its attention: set "
            "update.share_prompts=false"
        )
    return hidden


def _plain(decoder: nn.Module, batch: Batch) -> Tensor:
    """[B, C, H]"""
    lengths = batch.prompt_lengths[batch.group][:, None]  # [B, 1]
    columns = torch.arange(batch.tokens.shape[1], device=lengths.device)
    whole = torch.cat([batch.prompt_tokens[batch.group], torch.zeros_like(batch.tokens)], dim=1)
    whole = whole.scatter(1, lengths + columns, batch.tokens)  # [B, P + C]: prompt, completion, no gap
    hidden = decoder(input_ids=whole, use_cache=False).last_hidden_state
    at = (lengths + columns - 1)[:, :, None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, at)
