"""Tiny models of every architecture that transformers opens as a causal language model: random weights, no network."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
WINDOW = 8  # tokens: the survey's rows are longer, so that a path that ignores windows shows
_NAMES = {  # number -> the names that configurations have for it
    32: "hidden_size d_model n_embd word_embed_proj_dim embedding_size emb_dim attention_hidden_size lru_width"
    " input_embedding_size output_embedding_size embedding_dim backbone_hidden_size hidden_size_per_layer_input"
    " mamba_d_ssm router_hidden_size",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size dff dim_ff d_inner"
    " shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp ffn_hidden_size"
    " feed_forward_size expert_ffn_hidden_size dense_intermediate_size moe_shared_expert_intermediate_size n_inner",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"
    " num_encoder_layers num_key_value_heads n_shared_experts num_experts_per_tok moe_topk num_experts_per_token"
    " moe_k index_n_heads num_ln_in_parallel_attn n_mamba_heads",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads"
    " num_decoder_attention_heads num_encoder_attention_heads num_local_experts n_routed_experts num_experts"
    " moe_num_experts mamba_d_conv qk_rope_head_dim index_topk lora_rank",
    8: "head_dim dim_head d_head qk_nope_head_dim qk_head_dim v_head_dim kv_lora_rank q_lora_rank sliding_window"
    " attention_window_size window_size local_attention sliding_window_size attention_chunk_size kv_channels"
    " global_head_dim index_head_dim query_pre_attn_scalar mamba_d_state ssm_state_size state_size"
    " linear_key_head_dim linear_value_head_dim attention_head_dim keep_window_size",
    99: "vocab_size vocab_size_per_layer_input decoder_vocab_size",
    256: "max_position_embeddings n_positions max_seq_len n_ctx model_max_length original_max_position_embeddings"
    " max_target_positions",
    1: "first_k_dense_replace num_kv_shared_layers n_group topk_group num_dense_layers",
}
SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
LEFT_OUT = ("_name_or_path", "output_attentions")  # of a part's configuration: not accepted back
# What the rule above gets wrong: numbers that hang together in one architecture only.
_MAMBA: dict[str, Any] = dict(mamba_n_heads=4, mamba_d_head=16, mamba_expand=2, mamba_n_groups=1, mamba_chunk_size=4)
_WITHOUT_DEFAULTS: dict[str, Any] = dict(num_key_value_heads=2, head_dim=8)
_KINDS = ("sliding_attention", "full_attention")
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA | dict(attn_layer_indices=[1]),
    "cohere_compass_text": dict(
        layer_types=[*_KINDS], rope_parameters={kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _KINDS}
    ),
    "dots1": dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1),
    "falcon_h1": _MAMBA | dict(mamba_d_ssm=64, lm_head_multiplier=0.5, key_multiplier=0.5),
    "gemma3n_text": dict(
        layer_types=[*_KINDS] * 2,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        intermediate_size=48,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4_text": dict(per_layer_config={"1": {"head_dim": 8}}, num_kv_shared_layers=0, num_global_key_value_heads=2),
    "zamba2": dict(
        attention_hidden_size=64,
        layer_types=["linear_attention", "hybrid"],
        num_hidden_layers=2,
        num_mem_blocks=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        mamba_ngroups=1,
        chunk_size=4,
        attention_head_dim=16,
    ),
    "deepseek_v2": dict(num_experts_per_tok=2, n_routed_experts=4, topk_group=1, n_group=1),
    "codegen": dict(rotary_dim=4),
    "gptj": dict(rotary_dim=4),
    "granite": dict(logits_scaling=4.0, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.5),
    "gemma3_text": dict(final_logit_softcapping=5.0),
    "gemma4_unified_text": dict(num_kv_shared_layers=0, per_layer_config={"1": {"head_dim": 8}}, layer_types=[*_KINDS]),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "granitemoehybrid": _MAMBA | dict(layer_types=["linear_attention", "full_attention"], num_hidden_layers=2),
    "hunyuan_v1_dense": _WITHOUT_DEFAULTS,
    "hunyuan_v1_moe": _WITHOUT_DEFAULTS,
    "kimi_linear": dict(linear_head_dim=8, linear_num_heads=4),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_hidden_layers=2),
    "mamba2": dict(num_heads=4, head_dim=16, n_groups=1, expand=2, chunk_size=4),
    "minicpm3": dict(dim_model_base=16, scale_depth=1.4, scale_emb=2),
    "nemotron_h": dict(chunk_size=4),
    "ministral": _WITHOUT_DEFAULTS,
    "nemotron": _WITHOUT_DEFAULTS,
    "qwen4_exp_text": dict(
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        hc_lowrank=8,
        ple_embed_dim=32,
        ngram_vocab_size_base=100,
        split_ngram_parts=4,
        indexer_compress_ratio=2,
        indexer_budget=4,
    ),
    "reformer": dict(
        axial_pos_embds_dim=(16, 16), axial_pos_shape=(16, 16), attn_layers=["local", "lsh"], attention_head_size=8
    ),
    "roc_bert": dict(pronunciation_vocab_size=99, shape_vocab_size=99),
    "zamba": dict(
        layer_types=["linear_attention", "hybrid"] * 2,
        num_hidden_layers=4,
        attention_hidden_size=64,
        attention_head_dim=16,
        num_key_value_heads=4,
    ),
    "zaya": dict(num_experts_per_tok=1),
}


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """Return the configuration of an architecture at a small size; `changes` are to the decoder's own numbers."""
    return _shrunk(CONFIG_MAPPING[model_type], CHANGES.get(model_type, {}) | changes)


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Build a model with random weights, large enough that distributions are not flat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def _shrunk(kind: type[PretrainedConfig], changes: dict[str, Any]) -> PretrainedConfig:
    default = kind()
    present = {n: _value(default, n) for n in {*vars(default), *kind.attribute_map}}
    fields = getattr(kind, "__dataclass_fields__", {})
    accepted = {*inspect.signature(kind.__init__).parameters, *fields, *present}
    sizes: dict[str, Any] = {name: SIZES[name] for name in accepted & SIZES.keys() if _value(default, name) is not None}
    sizes |= {name: value for name, value in SPECIAL.items() if name in accepted}
    sizes |= {"is_decoder": True} if "is_decoder" in accepted and not _value(default, "decoder_layers") else {}
    layers = _value(default, "layer_types")
    if layers and "layer_types" in fields:
        kinds = list(dict.fromkeys(layers))
        sizes["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
        if _value(default, "mlp_layer_types"):
            sizes["mlp_layer_types"] = [default.mlp_layer_types[-1]] * len(sizes["layer_types"])
    if "qk_rope_head_dim" in sizes:  # keys and values of latent attention: expanded, so one head for each query head
        sizes |= {"head_dim": 4, "qk_head_dim": 12, "num_key_value_heads": 4}
        sizes = {name: size for name, size in sizes.items() if name in accepted}
    if "text_config" not in present:
        sizes |= changes
    for name, part in present.items():
        if isinstance(part, PretrainedConfig):
            of_part = CHANGES.get(part.model_type, {}) | (changes if name == "text_config" else {})
            sizes[name] = {n: v for n, v in _shrunk(type(part), of_part).to_dict().items() if n not in LEFT_OUT}
    return kind(**sizes)


def _value(config: PretrainedConfig, name: str) -> Any:
    """Return an attribute; None where there is none, or one per layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers refuses to read what its layers have several of
        return None
