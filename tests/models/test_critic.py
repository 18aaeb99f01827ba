"""The critic values the state before each token, on a decoder of its own or on the policy's."""

import copy

import pytest
import torch
from torch import nn

from rlhf_pg.models.critic import Critic, ValueHead
from rlhf_pg.models.policy import Policy
from tests.random_models import random_batch, random_model
from tests.tolerance import allowance, in_float64


def random_head(width=32, **options):
    head = ValueHead(width, **options)
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.linear.bias)
    return head


def slow_values(model, head, batch):
    """One row and one token at a time: the head on the last hidden state of prompt + tokens before t.

    Once in the model's dtype, once in float64: what is found must be as near to the second as the first is.
    """
    return values_of(model, head, batch), values_of(in_float64(model), copy.deepcopy(head).double(), batch)


def values_of(model, head, batch):
    out = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    for b in range(len(batch.group)):
        n = int(batch.group[b])
        prompt = batch.prompt_tokens[n, : int(batch.prompt_lengths[n])].tolist()
        for t in range(batch.tokens.shape[1]):
            if batch.mask[b, t]:
                state = model.get_decoder()(torch.tensor([prompt + batch.tokens[b, :t].tolist()])).last_hidden_state[
                    0, -1
                ]
                out[b, t] = state @ head.linear.weight[0] + head.linear.bias[0]
    return out


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
def test_column_t_values_the_state_before_token_t(kind, share):
    model, batch = random_model(kind), random_batch(holes=True)
    critic = Critic(model.get_decoder(), share)
    critic.head = random_head()
    with torch.no_grad():
        plain, exact = slow_values(model, critic.head, batch)
        assert (critic(batch) - exact).abs().max() <= allowance(plain, exact)


def test_a_head_on_the_policy_gives_the_same_values_beside_unchanged_log_probs():
    model, batch = random_model(), random_batch(holes=True)
    policy = Policy(model, value_head=random_head())
    with torch.no_grad():
        logp, entropy, value = policy(batch, value=True)
        plain, exact = slow_values(model, policy.value_head, batch)
        assert (value - exact).abs().max() <= allowance(plain, exact)
        without = policy(batch)
    assert torch.equal(logp, without[0]) and torch.equal(entropy, without[1]) and len(without) == 2


def test_the_first_values_are_zero():
    assert (Critic(random_model().get_decoder())(random_batch()) == 0).all()


def test_the_coefficient_scales_the_gradient_into_the_backbone_and_not_the_heads_own():
    batch, gradients = random_batch(), {}
    for share in (1.0, 0.25, 0.0):
        model = random_model()
        torch.manual_seed(0)
        head = random_head(backbone_gradient=share)
        policy = Policy(model, value_head=head)
        policy(batch, value=True)[2].square().sum().backward()
        backbone = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
        )
        gradients[share] = backbone, head.linear.weight.grad
    assert gradients[1.0][0].norm() > 0
    torch.testing.assert_close(gradients[0.25][0], 0.25 * gradients[1.0][0])
    assert (gradients[0.0][0] == 0).all()
    torch.testing.assert_close(gradients[0.25][1], gradients[1.0][1])
    torch.testing.assert_close(gradients[0.0][1], gradients[1.0][1])


def test_values_without_a_head_are_refused():
    with pytest.raises(ValueError, match="no value head"):
        Policy(random_model())(random_batch(), value=True)


def test_an_adapter_on_the_output_head_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(random_model("llama"), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="output head"):
        Policy(model)  # pyright: ignore[reportArgumentType]
