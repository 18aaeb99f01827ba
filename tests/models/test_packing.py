"""Packed rows give what padded rows give: log-probs, values and gradients, to the last digits of float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from rlhf_pg.config import Update
from rlhf_pg.data import collate
from rlhf_pg.models import packed_attention
from rlhf_pg.models.critic import Critic
from rlhf_pg.models.packing import pack
from rlhf_pg.models.policy import Policy
from rlhf_pg.training.gradient_step import micro_batches
from rlhf_pg.types import Batch
from tests.random_models import random_batch, random_model
from tests.tolerance import allowance, in_float64, rounding


def exact_model(kind: str = "qwen2", **changes) -> PreTrainedModel:
    return in_float64(random_model(kind, **changes))


def gradients(policy: nn.Module, batch: Batch, tokens: int = 10_000, shared: bool = True) -> tuple[torch.Tensor, ...]:
    """(log-probs and entropies [2, B, C], gradient [n] of a sum that weighs every one of them differently)."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    for p in trained:
        p.grad = None
    weights = torch.randn(2, *batch.mask.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    seen = torch.zeros(2, *batch.mask.shape, dtype=torch.float64)
    update = Update(tokens_per_microbatch=tokens, share_prompts=shared)
    for rows, part in micro_batches(policy, batch, torch.arange(len(batch.group)), update):
        outputs = torch.stack(policy(part))
        (outputs * weights[:, rows, : part.mask.shape[1]]).sum().backward()
        seen[:, rows, : part.mask.shape[1]] = outputs.detach().double()
    return seen, torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def assert_close_to(actual: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], limit: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).norm() <= limit * b.norm()


BATCHES = {
    "ragged": random_batch(prompts=4, samples=4),
    "holes": random_batch(prompts=3, samples=4, holes=True),
    "one sample": random_batch(prompts=4, samples=1, seed=3),
    "out of order": collate.select(random_batch(prompts=4, samples=4, seed=1), torch.tensor([11, 0, 5, 15, 1, 9, 4])),
    "a row without": replace(
        (ragged := random_batch(prompts=3, samples=3, seed=2)),
        mask=ragged.mask & (torch.arange(9) != 4)[:, None],
    ),
    "one token": replace(
        (uncut := random_batch(prompts=2, samples=3)),
        tokens=uncut.tokens[:, :1],
        mask=uncut.mask[:, :1],
        logp_rollout=uncut.logp_rollout[:, :1],
    ),
}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("tokens", [1, 7, 14, 30, 10_000])
def test_log_probs_and_gradient_are_those_of_whole_padded_rows_in_any_micro_batches(kind, name, tokens):
    batch = BATCHES[name]
    model = exact_model(kind)
    expected = gradients(Policy(model, 0.8, share_prompts=False), batch, shared=False)
    assert_close_to(gradients(Policy(model, 0.8), batch, tokens), expected, 1e-12)


@pytest.mark.parametrize("tokens", [9, 10_000])
def test_in_float32_they_agree_to_its_rounding(tokens):
    model, batch = random_model("llama"), random_batch(prompts=5, samples=6)
    plain = gradients(Policy(model, share_prompts=False), batch, shared=False)
    exact = gradients(Policy(exact_model("llama"), share_prompts=False), batch, shared=False)
    for found, usual, expected in zip(gradients(Policy(model), batch, tokens), plain, exact, strict=True):
        assert (found - expected).abs().max() <= allowance(usual, expected)


@pytest.mark.parametrize("tokens", [9, 10_000])
def test_recomputed_activations_change_nothing(tokens):
    batch = random_batch(prompts=3, samples=4)
    expected = gradients(Policy(exact_model(), share_prompts=False), batch, shared=False)
    model = exact_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_close_to(gradients(Policy(model), batch, tokens), expected, 1e-12)


@pytest.mark.parametrize("tokens", [9, 10_000])
def test_adapters_get_the_gradient_of_whole_rows(tokens):
    def adapted() -> PreTrainedModel:
        torch.manual_seed(1)
        model = get_peft_model(exact_model(), LoraConfig(r=3, target_modules="all-linear")).double()  # pyright: ignore
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(generator=torch.Generator().manual_seed(2))
        return model  # pyright: ignore[reportReturnType]

    batch = random_batch(prompts=3, samples=4)
    expected = gradients(Policy(adapted(), share_prompts=False), batch, shared=False)
    assert_close_to(gradients(Policy(adapted()), batch, tokens), expected, 1e-12)


def test_a_critic_of_its_own_sees_the_same_states():
    batch, decoder = random_batch(prompts=3, samples=4), exact_model().get_decoder()
    shared, plain = Critic(decoder), Critic(decoder, share_prompts=False)
    for critic in (shared, plain):
        nn.init.ones_(critic.head.linear.weight)
    values = [critic(batch) for critic in (shared, plain)]  # their heads are in float32
    width, norm = decoder.config.hidden_size, decoder.get_submodule("norm").get_parameter("weight")
    terms = width * norm.detach().abs().max()  # of a sum of normed states
    assert (values[0] - values[1]).abs().max() <= rounding(torch.float32, terms, operations=width)
    assert values[0].abs().sum() > 1


@pytest.mark.parametrize("name", BATCHES)
def test_padded_rows_under_a_mask_and_blocks_by_the_fused_kernel_agree(name, monkeypatch):
    """What a CUDA device does, and what eager attention does, with the same layouts."""
    batch, model = BATCHES[name], exact_model()
    expected = gradients(Policy(model), batch, 20)

    def padded(query, key, value, prefix_key, prefix_value, packed, scale):
        prefix = None if prefix_key is None else (prefix_key, prefix_value)
        return packed_attention._padded_attention(query, key, value, packed, prefix, scale, 0.0)

    monkeypatch.setattr(packed_attention._BlockAttention, "apply", padded)
    for tokens in (9, 20, 10_000):
        assert_close_to(gradients(Policy(model), batch, tokens), expected, 1e-12)
    monkeypatch.undo()
    eager = exact_model()
    eager.set_attn_implementation("eager")
    assert_close_to(gradients(Policy(eager), batch, 20), expected, 1e-12)


def test_under_eager_attention_the_policy_can_be_differentiated_twice():
    model, batch = exact_model(), random_batch(prompts=2, samples=2)
    model.set_attn_implementation("eager")
    weight = model.get_decoder().layers[0].self_attn.q_proj.weight  # pyright: ignore
    (first,) = torch.autograd.grad(Policy(model)(batch)[0].sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().max() > 0


def test_a_token_sees_its_prompt_and_its_row_and_nothing_else():
    """Changing a token moves the log-probs of later tokens of its row (or of its prompt's rows), and no others."""
    policy, batch = Policy(exact_model()), random_batch(prompts=2, samples=2, seed=4)
    with torch.no_grad():
        before = policy(batch)[0]
        row = int(batch.mask.sum(dim=1).argmax())
        other = batch.tokens.clone()
        other[row, 1] = (other[row, 1] + 1) % 23
        moved = (policy(replace(batch, tokens=other))[0] - before).abs() > 1e-9
        assert moved[row, 1:][batch.mask[row, 1:]].all() and not moved[row, 0]
        moved[row] = False
        assert not moved.any()
        prompt = batch.prompt_tokens.clone()
        prompt[1, 0] = (prompt[1, 0] + 1) % 23
        moved = (policy(replace(batch, prompt_tokens=prompt))[0] - before).abs() > 1e-9
        assert torch.equal(moved, batch.mask & (batch.group == 1)[:, None])


@pytest.mark.parametrize("tokens", [1, 7, 10_000])
def test_every_position_is_forwarded_once(tokens):
    model, batch = random_model(), random_batch(prompts=4, samples=3)
    seen: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    gradients(Policy(model), batch, tokens)
    assert sum(seen) == int(batch.prompt_lengths.sum()) + int(batch.mask.sum()) - 12


def test_the_layout_of_a_small_batch_written_out():
    batch = Batch(
        prompt_tokens=torch.tensor([[1, 2, 3], [4, 0, 0]]),
        prompt_lengths=torch.tensor([3, 1]),
        group=torch.tensor([1, 0, 1]),
        tokens=torch.tensor([[10, 11, 12], [20, 0, 0], [30, 31, 0]]),
        mask=torch.tensor([[True, False, True], [True, False, False], [True, True, False]]),
        reward=torch.zeros(3),
        logp_rollout=torch.zeros(3, 3),
    )
    packed = pack(batch)
    assert packed.tokens.tolist() == [1, 2, 3, 4, 10, 11, 30]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 1]
    assert (packed.prompt_spans, packed.row_spans) == ([(0, 3), (3, 4)], [(4, 4), (4, 7)])
    assert (packed.row_count, packed.row_width) == (2, 2)
    assert packed.padded_index.tolist() == [0, 1, 2]
    assert packed.state_index.tolist() == [3, 5, 2, 3, 6]  # of tokens 10, 12, 20, 30, 31


def test_a_forward_that_is_not_packed_goes_through_the_models_own_attention():
    model, ids = random_model(), torch.randint(1, 23, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits[mask.bool()]
        Policy(model)
        assert model.config._attn_implementation == "packed_sdpa"
        torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], expected)


def test_a_saved_model_says_nothing_of_packing(tmp_path):
    model = random_model()
    Policy(model)
    model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()


def test_a_model_that_keeps_arguments_from_its_attention_is_refused_with_what_to_do(monkeypatch):
    model = random_model()
    policy = Policy(model)
    for layer in model.get_decoder().layers:  # pyright: ignore
        plain = layer.self_attn.forward
        monkeypatch.setattr(layer.self_attn, "forward", lambda *a, packed=None, plain=plain, **k: plain(*a, **k))
    with pytest.raises(RuntimeError, match=r"update.share_prompts=false"):
        policy(random_batch())
