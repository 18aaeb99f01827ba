"""Tiny GGUF files of known weights, written by the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["Ġt", "he", "Ġthe", "12"]  # by the merges below
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]
TOKENS = [*CONTROL, *sorted(ByteLevel.alphabet()), *WORDS]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUANTIZED = "Q8_0"


def write(path: Path, model: PreTrainedModel, dtype: str = "F32", **changes: Any) -> Path:
    """Write `model` (a Llama, or a Qwen2 with a tied head): matrices as `dtype`, vectors in float32.

    changes: licence=None leaves it out; drop=[names] leaves tensors out; architecture=name; extra={name: array} adds
    tensors; scaling=name of how positions are scaled.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = model.config
    architecture = changes.get("architecture", config.model_type)
    writer = GGUFWriter(path, architecture)
    writer.add_name("A tiny model")
    if licence := changes.get("licence", "apache-2.0"):
        writer.add_license(licence)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(TOKENS))
    if scaling := changes.get("scaling"):
        writer.add_string(f"{architecture}.rope.scaling.type", scaling)
        writer.add_float32(f"{architecture}.rope.scaling.factor", 4.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    for name, array in (tensors(model) | changes.get("extra", {})).items():
        if name in changes.get("drop", ()):
            continue
        kind = GGMLQuantizationType[dtype if array.ndim == 2 else "F32"]
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(model: PreTrainedModel, dtype: str) -> dict[str, np.ndarray]:
    """The weights that a file in `dtype` stands for, by transformers' names."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[dtype]
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return {n: quants.dequantize(quants.quantize(w, kind), kind) if w.ndim == 2 else w for n, w in weights.items()}


def tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The weights by GGUF's names; a Llama's queries and keys in the order of llama.cpp's rotation."""
    config, out = model.config, {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for theirs, its in NAMES:
            name = name.replace(theirs, its)
        out[name] = np.ascontiguousarray(array)
    return out


NAMES = (
    ("model.embed_tokens", "token_embd"),
    ("lm_head", "output"),
    ("model.norm", "output_norm"),
    ("model.layers", "blk"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
)
