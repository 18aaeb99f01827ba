"""Faster ways are used only where they give the model's own numbers."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    NemotronConfig,
    Qwen2Config,
)

from rlhf_pg.models.exact import Head, head_of, possible_attention, with_exact_attention
from rlhf_pg.models.load import load_model
from rlhf_pg.models.policy import Policy
from tests.models.test_policy import slow_log_probs
from tests.random_models import SHAPE, random_batch

SMALL: dict[str, Any] = SHAPE | dict(vocab_size=23, max_position_embeddings=128)
GEMMA: dict[str, Any] = SMALL | dict(head_dim=8, query_pre_attn_scalar=8)
FULL = ["full_attention"] * 2


def noisy(config, **loading) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, **loading).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (Gemma2Config(**GEMMA, attn_logit_softcapping=2.0), "eager"),
        (Gemma2Config(**GEMMA, attn_logit_softcapping=None), "sdpa"),
        (GraniteConfig(**SMALL, attention_multiplier=0.7), "sdpa"),
        (LlamaConfig(**SMALL), "sdpa"),
    ],
    ids=["soft cap", "no soft cap", "scale", "llama"],
)
def test_attention_becomes_eager_where_sdpa_leaves_something_out(config, attention):
    model = with_exact_attention(noisy(config, attn_implementation="sdpa"))
    assert model.config._attn_implementation == attention


def test_a_soft_cap_that_hardly_shows_on_small_scores_is_seen_all_the_same():
    config = Gemma2Config(**GEMMA, attn_logit_softcapping=1e6)
    assert with_exact_attention(noisy(config, attn_implementation="sdpa")).config._attn_implementation == "eager"


def test_an_attention_that_sdpa_would_compute_otherwise_becomes_eager(monkeypatch):
    model = noisy(Qwen2Config(**SMALL), attn_implementation="sdpa")
    monkeypatch.setattr("rlhf_pg.models.exact.in_llama_family", lambda module: False)
    from transformers.models.qwen2 import modeling_qwen2

    eager = modeling_qwen2.eager_attention_forward
    doubled = lambda module, *states, scaling, **rest: eager(module, *states, scaling=2 * scaling, **rest)  # noqa: E731
    monkeypatch.setattr(modeling_qwen2, "eager_attention_forward", doubled)
    assert with_exact_attention(model).config._attn_implementation == "eager"


def test_an_architecture_without_sdpa_is_loaded_with_eager_attention(tmp_path):
    config = GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4)
    assert possible_attention(config, "sdpa") == "eager"
    noisy(config, attn_implementation="eager").save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (CohereConfig(**SMALL, logit_scale=0.25, pad_token_id=0), Head(scale=0.25)),
        (GraniteConfig(**SMALL, logits_scaling=8.0), Head(scale=1 / 8)),
        (Gemma3TextConfig(**GEMMA, layer_types=FULL, final_logit_softcapping=3.0), Head(softcap=3.0)),
        (Gemma3TextConfig(**GEMMA, layer_types=FULL), Head()),
        (BertConfig(**SMALL, is_decoder=True), Head(direct=False)),
        (LlamaConfig(**SMALL), Head()),
        (
            Llama4TextConfig(**SMALL, head_dim=8, num_local_experts=2, intermediate_size_mlp=32, moe_layers=[]),
            Head(direct=False),
        ),
    ],
    ids=["multiplied", "divided", "soft cap", "gemma3", "bert", "llama", "llama4"],
)
def test_log_probs_are_the_models_own_whatever_its_head_does(config, head):
    model, batch = noisy(config), random_batch()
    assert head_of(model) == head
    logp, _ = Policy(model, temperature=0.7)(batch)
    with torch.no_grad():
        slow, _ = slow_log_probs(model, batch, 0.7)
    torch.testing.assert_close(logp.double(), slow, rtol=0, atol=2e-5)
    logp.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "q_proj" in name or "query" in name)


@pytest.mark.parametrize(
    ("config", "shared"),
    [
        (Gemma2Config(**GEMMA, layer_types=FULL, attn_logit_softcapping=2.0), False),
        (Gemma2Config(**GEMMA, layer_types=FULL, attn_logit_softcapping=None), True),
        (NemotronConfig(**SMALL, head_dim=8), False),  # does not pass the layout on to its attention
        (Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"], sliding_window=4), False),
    ],
    ids=["soft cap", "no soft cap", "nemotron", "window"],
)
def test_prompts_are_shared_only_where_that_gives_the_states_of_padded_rows(config, shared):
    model, batch = with_exact_attention(noisy(config, attn_implementation="sdpa")), random_batch()
    policy = Policy(model)
    assert policy.share_prompts is shared
    slow, _ = slow_log_probs(model, batch, 1.0)
    torch.testing.assert_close(policy(batch)[0].double(), slow, rtol=0, atol=2e-5)
