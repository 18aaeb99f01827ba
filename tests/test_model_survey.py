"""The survey of architectures, on a handful of families: what docs/models.md says of them is so."""

import pytest

from model_survey import ROUNDING, survey

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "phi")
FAMILIES += ("gemma2", "gemma3_text", "mixtral", "mistral", "biogpt", "mamba")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_passes_preflight_and_trains_with_log_probs_at_rounding(model_type, tmp_path):
    row = survey(model_type, tmp_path)
    assert (row.verdict, row.reason) == ("trains", "")
    assert row.error is not None and row.error < ROUNDING
    assert row.mismatch is not None and abs(row.mismatch) < 1e-9


def test_what_cannot_be_trained_is_refused_before_its_weights_are_read_naming_the_type(tmp_path):
    row = survey("reformer", tmp_path)
    assert row.verdict == "refused" and row.reason.startswith("model.path: models of type reformer cannot be trained")


def test_a_model_that_sees_later_tokens_is_refused_by_preflight(tmp_path):
    row = survey("bert", tmp_path, is_decoder=False)
    assert row.verdict == "refused" and "engine log probs" in row.reason
