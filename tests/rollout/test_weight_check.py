"""Weights that arrived pass the check in either arithmetic, however large the model's logits are; stale ones do not."""

from __future__ import annotations

import copy

import pytest
import torch

from rlhf_pg.rollout import weight_check
from rlhf_pg.types import Completion
from tests.random_models import random_model
from tests.rollout.borrowed import nudge
from tests.rollout.contract import full_forward_logp


def steep_model():
    """A Llama that is deeper and whose logits are larger than other tests', as pretrained models' are."""
    model = random_model("llama", vocabulary=200, num_hidden_layers=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # pyright: ignore[reportCallIssue]
    return model


def sampled_in_bfloat16(model):
    """What an engine with its weights in bfloat16 would send of the check's prompts."""
    prompts = weight_check.prompts(200, 128)
    rounded, g = copy.deepcopy(model).bfloat16(), torch.Generator().manual_seed(3)
    groups = []
    for prompt in prompts:
        tokens = prompt.tokens
        for _ in range(weight_check.NEW_TOKENS):
            with torch.no_grad():
                p = rounded(torch.tensor([tokens])).logits[0, -1].float().softmax(-1)
            tokens = (*tokens, int(torch.multinomial(p, 1, generator=g)))
        new = torch.tensor(tokens[len(prompt.tokens) :])
        groups.append([Completion(new, full_forward_logp(rounded, prompt, new, 1.0), "length", 4)])
    return prompts, groups


def test_a_model_that_bfloat16_rounds_a_lot_passes_and_its_stale_weights_do_not():
    model = steep_model()
    prompts, groups = sampled_in_bfloat16(model)
    weight_check.check(model, prompts, groups, "bfloat16", version=4)
    trained = torch.cat([full_forward_logp(model, p, c.tokens, 1.0) for p, (c,) in zip(prompts, groups, strict=True)])
    error = (torch.cat([c.logp for (c,) in groups]) - trained).abs().mean()
    assert error > weight_check.BFLOAT16_LIMIT  # or this test is about nothing
    rounding = weight_check.rounding(model, "bfloat16")
    assert error / 3 < rounding < 3 * error
    nudge(model, 0.05)
    with pytest.raises(RuntimeError, match="weights of version 4 did not reach"):
        weight_check.check(model, prompts, groups, "bfloat16", version=4)


def test_a_flat_model_has_the_plain_limit_and_float32_no_rounding():
    model = random_model("llama", vocabulary=200)
    rounding = weight_check.rounding(model, "bfloat16")
    assert 0 < rounding < weight_check.BFLOAT16_LIMIT / 3
    assert weight_check.Closeness.of("bfloat16", rounding=rounding).limit == 0.03
    assert weight_check.rounding(model, "float32") == 0
    assert weight_check.Closeness.of("float32", rounding=9.0) == weight_check.Closeness("max", 1e-4)
