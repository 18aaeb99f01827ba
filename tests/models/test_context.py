"""The number of positions a model has, for every way a configuration writes it down."""

import pytest
from transformers import (  # fmt: skip
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    RobertaConfig,
    XLNetConfig,
)

from rlhf_pg.models.context import UNLIMITED, context_length


def rope(kind, factor, original=None, **more):
    given = {"rope_type": kind, "factor": factor, "rope_theta": 10000.0, **more}
    return given | ({"original_max_position_embeddings": original} if original else {})


SHORT = [1.0] * 48


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (MistralConfig(max_position_embeddings=100, sliding_window=16), 100),
        (GPT2Config(n_positions=64), 64),
        (OPTConfig(max_position_embeddings=64), 64),  # its table has two more rows, for an offset
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), 512),
        (MptConfig(max_seq_len=80), 80),
        (BloomConfig(), UNLIMITED),
        (XLNetConfig(), UNLIMITED),
        (LlamaConfig(max_position_embeddings=100, rope_parameters=rope("yarn", 4.0, 100)), 400),
        (LlamaConfig(max_position_embeddings=400, rope_parameters=rope("yarn", 4.0, 100)), 400),
        (LlamaConfig(max_position_embeddings=100, rope_parameters=rope("linear", 4.0)), 100),
        (LlamaConfig(max_position_embeddings=400, rope_parameters=rope("dynamic", 4.0, 100)), 100),
        (
            LlamaConfig(
                max_position_embeddings=800,
                rope_parameters=rope("llama3", 8.0, 100, low_freq_factor=1.0, high_freq_factor=4.0),
            ),
            800,
        ),
        (
            Phi3Config(
                max_position_embeddings=800,
                original_max_position_embeddings=200,
                pad_token_id=0,
                rope_parameters=rope("longrope", 4.0, 200, short_factor=SHORT, long_factor=SHORT),
            ),
            200,
        ),
    ],
)
def test_positions_by_hand(config, positions):
    assert context_length(config) == positions
