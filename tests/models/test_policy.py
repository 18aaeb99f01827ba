"""The wrapped policy gives the model's own log-probs, however prompts are shared."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BioGptConfig, LlamaConfig, OPTConfig

from rlhf_pg.models.load import switch_off_dropout
from rlhf_pg.models.policy import Policy
from tests.random_models import SHAPE, random_batch, random_model
from tests.tolerance import allowance, in_float64


def slow_log_probs(model, batch, temperature):
    """One row and one token at a time, from the model's own logits: the oracle. In float64 where the model is."""
    rows, width = batch.tokens.shape
    logp, entropy = (torch.zeros(rows, width, dtype=torch.float64) for _ in range(2))
    for b in range(rows):
        n = int(batch.group[b])
        prompt = batch.prompt_tokens[n, : int(batch.prompt_lengths[n])].tolist()
        for t in range(width):
            if batch.mask[b, t]:
                context = torch.tensor([prompt + batch.tokens[b, :t].tolist()])
                p = torch.softmax(model(context).logits[0, -1].double() / temperature, dim=-1)
                logp[b, t] = p[batch.tokens[b, t]].log()
                entropy[b, t] = -(p * p.log()).sum()
    return logp, entropy


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("holes", [False, True], ids=["", "tool tokens"])
def test_log_probs_and_entropy_are_the_models_own_at_the_sampling_temperature(kind, share, holes):
    model, batch = random_model(kind), random_batch(holes=holes)
    policy = Policy(model, temperature=0.7, share_prompts=share)
    with torch.no_grad():
        logp, entropy = policy(batch)
        plain, exact = (slow_log_probs(each, batch, 0.7) for each in (model, in_float64(random_model(kind))))
    for found, usual, expected in zip((logp, entropy), plain, exact, strict=True):
        assert (found - expected).abs().max() <= allowance(usual, expected)


def test_padding_positions_carry_neither_value_nor_gradient():
    model, batch = random_model(), random_batch()
    logp, entropy = Policy(model)(batch)
    assert (logp[~batch.mask] == 0).all() and (entropy[~batch.mask] == 0).all()
    logp[~batch.mask].sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_a_prompt_is_forwarded_once_however_many_samples_it_has_and_no_padding():
    model, batch = random_model(), random_batch(prompts=2, samples=5)
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    Policy(model)(batch)
    assert seen == [(1, int(batch.prompt_lengths.sum()) + int(batch.mask.sum()) - 10)]  # no row's last token


def test_groups_may_be_uneven_and_out_of_order():
    model, batch = random_model(), random_batch()
    from rlhf_pg.data.collate import select

    rows = torch.tensor([11, 0, 5, 1, 9])
    with torch.no_grad():
        part = select(batch, rows)
        logp = Policy(model)(part)[0]
        plain, exact = (
            Policy(each, share_prompts=False)(batch)[0][rows, : part.tokens.shape[1]]
            for each in (model, in_float64(random_model()))
        )
    assert (logp - exact).abs().max() <= allowance(plain, exact)


def test_a_model_with_sliding_window_attention_is_scored_by_whole_rows():
    from transformers import MistralConfig, MistralForCausalLM

    from tests.random_models import SHAPE

    model = MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=23, sliding_window=3))
    assert not Policy(model).share_prompts


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="temperature above 0"):
        Policy(random_model(), temperature=0.0)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, vocab_size=23, attention_dropout=0.5),
        OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=23, dropout=0.5),
        OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=23, layerdrop=0.5),
        BioGptConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=23,
            attention_probs_dropout_prob=0.5,  # read from the configuration at every forward
        ),
    ],
    ids=["llama", "opt", "opt layerdrop", "biogpt"],
)  # fmt: skip
def test_dropout_is_switched_off_so_that_two_forwards_of_the_same_weights_agree(config):
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).train()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    batch = random_batch()
    policy = Policy(model, share_prompts=False)
    first, second = policy(batch)[0], policy(batch)[0]
    assert not torch.equal(first, second)
    switch_off_dropout(model)
    assert torch.equal(policy(batch)[0], policy(batch)[0])


def test_layers_still_recompute_their_activations_after_dropout_is_switched_off():
    model = random_model("llama")
    switch_off_dropout(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    Policy(model)(random_batch())[0].sum().backward()
    assert len(calls) == 2
