"""Preflight passes a sound session without a trace, and refuses an engine, reference or forward that is not right."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from rlhf_pg.errors import RunError
from rlhf_pg.models.load import load_model
from rlhf_pg.models.policy import Policy
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.preflight import checks
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.training.precompute import reference
from tests.preflight.sessions import EOS, Wrapped, everything, finding, refused, small_session
from tests.random_models import random_model

# ---- a sound session


def test_a_sound_session_passes_every_check_and_is_left_bit_for_bit_as_it_was(session):
    session.model.model.layers[0].eval()
    session.model.model.layers[1].train()
    for p in list(session.model.parameters())[::2]:
        p.grad = torch.randn_like(p)
    session.learner.optimizer.step()
    before = everything(session)
    assert [f.ok for f in checks.findings(session)] == [True] * 7
    assert everything(session) == before
    assert session.model.model.layers[1].training and not session.model.model.layers[0].training


def test_a_dropout_that_is_on_while_training_is_refused(session):
    attention = session.model.model.layers[0].self_attn.train()
    attention.attention_dropout = 0.5
    assert "engine log probs" in refused(session)


def test_random_streams_that_an_engine_draws_from_are_put_back(session):
    class Draws(Wrapped):
        def generate(self, prompts, sampling, progress=None, finished=None):
            torch.rand(3), np.random.rand(3), random.random()  # pyright: ignore[reportUnusedExpression]
            return super().generate(prompts, sampling, progress, finished)

    session.engine = Draws(session.engine)
    before = everything(session)
    assert refused(session) == set()
    assert everything(session) == before


def test_passing_is_said_in_one_line(session):
    said = []
    checks.preflight(session, said.append)
    assert len(said) == 1 and said[0].startswith("preflight: 7 checks passed in ")


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_model_folder_with_padding_equal_to_eos_passes(kind, scorer, tmp_path):
    tokenizer = character_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    random_model(kind, vocabulary=99).save_pretrained(tmp_path / "model")
    changed = small_session(
        scorer,
        tmp_path,
        model={"path": str(tmp_path / "model")},
        data={"train": {"task": "arithmetic", "options": {"count": 64}}},
        rollout={"max_new_tokens": 3},
        **{} if kind == "qwen2" else {"update": {"share_prompts": False}},
    )
    assert refused(changed) == set()


def test_a_lora_policy_passes_although_its_second_matrices_are_zero_and_a_stale_copy_of_it_does_not(scorer, tmp_path):
    session = small_session(scorer, tmp_path, model={"path": "tiny", "lora": {"rank": 2}})
    assert refused(session) == set()
    session.engine = NativeEngine(copy.deepcopy(session.model), [EOS])
    assert refused(session) == {"weights reach engine"}


@pytest.fixture
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_in_bfloat16_a_sound_session_passes_and_a_stale_engine_does_not(fresh_accelerator, scorer, tmp_path):
    session = small_session(scorer, tmp_path, model={"path": "tiny", "dtype": "bfloat16"})
    assert refused(session) == set()
    session.engine = NativeEngine(copy.deepcopy(session.model), [EOS])
    assert refused(session) == {"weights reach engine"}


# ---- engine log probs


class OtherTemperature(Wrapped):
    def generate(self, prompts, sampling, progress=None, finished=None):
        hotter = replace(sampling, temperature=sampling.temperature * 1.1)
        return self.engine.generate(prompts, hotter, progress, finished)


class Noisy(Wrapped):
    noise = 0.0

    def generate(self, prompts, sampling, progress=None, finished=None):
        groups = self.engine.generate(prompts, sampling, progress, finished)
        return [[replace(c, logp=c.logp + self.noise) for c in group] for group in groups]


def test_an_engine_at_another_temperature_is_refused_with_what_to_do(session):
    session.engine = OtherTemperature(session.engine)
    assert "engine log probs" in refused(session)
    with pytest.raises(
        RunError, match=r"(?s)engine log probs: max \|difference\| .* needed: .*Compare the temperature"
    ):
        checks.preflight(session, pytest.fail)


def test_log_probs_off_by_more_than_rounding_are_refused(session):
    session.engine = Noisy(session.engine)
    session.engine.noise = 1e-5
    assert refused(session) == set()
    session.engine.noise = 2e-3
    assert "engine log probs" in refused(session)


def test_a_check_that_raises_has_failed_and_the_others_still_run(session):
    class Broken(Wrapped):
        def generate(self, prompts, sampling, progress=None, finished=None):
            raise FloatingPointError("not finite")

    session.engine = Broken(session.engine)
    assert refused(session) == {"engine log probs", "weights reach engine", "reference kl", "prompt sharing"}
    assert "FloatingPointError: not finite" in finding(session, "engine log probs").figure


# ---- reference kl


def test_a_reference_from_another_seed_is_refused(session):
    other = Policy(load_model("tiny", seed=1), temperature=0.8)
    session.reference, session.reference_policy = reference(other, session.learner.update)
    assert refused(session) == {"reference kl"}


def test_the_reference_is_not_asked_for_where_there_is_none_nor_after_a_resume(session):
    session.learner.updates = 3
    with torch.no_grad():
        session.model.lm_head.weight.mul_(2.0)
    resumed = finding(session, "reference kl")
    assert resumed.ok is None and "moved in 3 optimizer steps" in resumed.figure
    session.reference = None
    said = []
    checks.preflight(session, said.append)
    assert "6 checks passed" in said[0] and "reference kl skipped, no KL term" in said[0]


# ---- prompt sharing


def on_shared_path(session, change):
    """Break the forward of packed prompts and rows: the only one that is given a layout."""

    def hook(module, args, kwargs):
        if "packed" in kwargs:
            change(kwargs)
        return args, kwargs

    session.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)


def shift_rows(kwargs):
    kwargs["position_ids"] = kwargs["position_ids"].clone()
    kwargs["position_ids"][:, kwargs["packed"].rows_start :] += 1


def show_another_prompt(kwargs):
    kwargs["packed"] = replace(kwargs["packed"], row_spans=kwargs["packed"].row_spans[::-1])


@pytest.mark.parametrize("change", [shift_rows, show_another_prompt])
def test_shared_prompts_with_wrong_positions_or_of_other_rows_are_switched_off_with_a_warning(session, change):
    on_shared_path(session, change)
    said: list[str] = []
    assert {f.name for f in checks.findings(session, said.append) if f.ok is False} == set()
    (warning,) = said
    assert "prompts are forwarded with every row from here on" in warning
    assert not session.learner.policy.share_prompts and not session.reference_policy.share_prompts


def test_shared_prompts_that_agree_stay_shared_without_a_word(session):
    said: list[str] = []
    checks.findings(session, said.append)
    assert said == [] and session.learner.policy.share_prompts


def test_without_prompt_sharing_only_the_path_in_use_is_judged(scorer, tmp_path):
    session = small_session(scorer, tmp_path, update={"share_prompts": False})
    on_shared_path(session, shift_rows)
    assert refused(session) == set()
    assert "shared" not in finding(session, "prompt sharing").figure


def test_a_model_that_scales_its_logits_after_the_head_is_refused(session):
    forward = session.model.forward

    def scaled(*args, **kwargs):
        made = forward(*args, **kwargs)
        made.logits = made.logits * 0.9
        return made

    session.model.forward = scaled
    assert {"engine log probs", "prompt sharing"} <= refused(session)
    assert "the model's own logits: max |difference|" in finding(session, "prompt sharing").figure
