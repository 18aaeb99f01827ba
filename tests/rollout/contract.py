"""What every rollout engine must keep. An engine is accepted when a subclass of `EngineContract` passes:

    class TestMyEngine(EngineContract):
        def build(self, model, eos_ids): ...   # an engine that samples from `model`'s weights, at version 0

Expected values come from plain full forwards of the model in transformers, and from its `generate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedModel

from rlhf_pg.rollout.engine import Engine
from rlhf_pg.types import Completion, Prompt, Sampling
from tests.random_models import random_model
from tests.tolerance import allowance, in_float64

EOS = (0, 5)
SAMPLING = Sampling(samples=4, max_new_tokens=10, seed=3, step=2)


def ragged_prompts(count: int = 6, vocabulary: int = 23) -> list[Prompt]:
    """Prompts of 1, 4, 7, 2, 5, 8, 3 ... tokens without EOS."""
    g = torch.Generator().manual_seed(1)
    drawn = [torch.randint(6, vocabulary, (1 + 3 * i % 8,), generator=g).tolist() for i in range(count)]
    return [Prompt(f"train/{i}", "", tuple(tokens)) for i, tokens in enumerate(drawn)]


def full_forward(model: PreTrainedModel, prompt: Prompt, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log-probs [c, V] of the whole vocabulary, float32 or wider: one row, no cache, no padding."""
    context = torch.tensor([[*prompt.tokens, *tokens.tolist()]], device=model.device)
    with torch.no_grad():
        logits = model(context).logits[0, len(prompt.tokens) - 1 : -1]
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1).cpu()


def full_forward_logp(model: PreTrainedModel, prompt: Prompt, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probs [c] of the completion's tokens in `full_forward`."""
    return full_forward(model, prompt, tokens, temperature).gather(1, tokens[:, None])[:, 0]


def assert_log_probs(
    model: Any, prompts: list[Prompt], groups: list[list[Completion]], temperature: float = 1.0
) -> None:
    """Assert that the completions' log-probs are as accurate as full forwards of the model.

    The error of both is measured against full forwards in float64; that of the model's own over the whole vocabulary.
    """
    made = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    plain, exact = (
        torch.cat([full_forward(each, prompt, completion.tokens, temperature) for prompt, completion in made])
        for each in (model, in_float64(model))
    )
    tokens, logp = (torch.cat([getattr(completion, name) for _, completion in made]) for name in ("tokens", "logp"))
    error = (logp - exact.gather(1, tokens[:, None])[:, 0]).abs().max()
    assert error <= allowance(plain, exact)


def tokens_of(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.tokens.tolist() for completion in group] for group in groups]


def perturbed(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every weight moved, by less in wider models: their logits, and so their rounding, are as large."""
    g, scale = torch.Generator().manual_seed(7), 0.3 * (32 / model.config.hidden_size) ** 0.5
    return {n: p.detach() + scale * torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}


class EngineContract:
    shape: ClassVar[dict[str, Any]] = {}  # of the models, where an engine cannot serve the smallest
    truncates = True  # whether it can sample with top-p and top-k and report the untruncated log-prob; else it refuses

    def build(self, model: PreTrainedModel, eos_ids: Sequence[int]) -> Engine:
        raise NotImplementedError

    @pytest.fixture(params=["qwen2", "llama"])
    def model(self, request: Any) -> PreTrainedModel:
        return random_model(request.param, **self.shape)

    @pytest.fixture
    def engine(self, model: PreTrainedModel):
        engine = self.build(model, EOS)
        yield engine
        engine.close()

    @pytest.mark.parametrize("temperature", [1.0, 0.6])
    def test_logp_is_that_of_a_full_forward_at_the_sampling_temperature(self, model, engine, temperature):
        prompts = ragged_prompts()
        groups = engine.generate(prompts, replace(SAMPLING, temperature=temperature))
        assert_log_probs(model, prompts, groups, temperature)

    def test_completions_are_in_order_on_the_cpu_with_eos_last_iff_stop(self, engine):
        groups = engine.generate(ragged_prompts(), replace(SAMPLING, samples=8))
        assert [len(group) for group in groups] == [8] * 6
        rows = [completion for group in groups for completion in group]
        for row in rows:
            assert (row.tokens.dtype, row.tokens.device.type) == (torch.int64, "cpu")
            assert (row.logp.dtype, row.logp.shape, row.version) == (torch.float32, row.tokens.shape, 0)
            assert [i for i, t in enumerate(row.tokens.tolist()) if t in EOS] == (
                [len(row.tokens) - 1] if row.finish == "stop" else []
            )
            assert row.finish == "stop" or len(row.tokens) == 10
        assert {row.finish for row in rows} == {"stop", "length"}
        assert {int(row.tokens[-1]) for row in rows if row.finish == "stop"} == set(EOS)

    def test_an_eos_as_the_very_last_token_allowed_is_a_stop(self, engine):
        groups = engine.generate(ragged_prompts(), Sampling(samples=30, max_new_tokens=1))
        ends = {(int(c.tokens[0]) in EOS, c.finish) for group in groups for c in group}
        assert ends == {(True, "stop"), (False, "length")}

    def test_a_sample_is_the_same_whatever_is_generated_beside_it(self, engine):
        prompts = ragged_prompts()
        together = tokens_of(engine.generate(prompts, SAMPLING))
        reverse = tokens_of(engine.generate(prompts[::-1], SAMPLING))
        alone = [tokens_of(engine.generate([prompt], SAMPLING))[0] for prompt in prompts]
        more = tokens_of(engine.generate(prompts, replace(SAMPLING, samples=7)))
        assert together == alone == reverse[::-1] == [group[:4] for group in more]

    def test_a_lower_token_limit_only_cuts(self, engine):
        long = tokens_of(engine.generate(ragged_prompts(), SAMPLING))
        short = tokens_of(engine.generate(ragged_prompts(), replace(SAMPLING, max_new_tokens=4)))
        assert short == [[row[:4] for row in group] for group in long]

    def test_seed_step_prompt_and_index_each_change_the_sample(self, engine):
        first, second = ragged_prompts(2)
        twin = Prompt("train/other", "", first.tokens)
        base = tokens_of(engine.generate([first, twin], SAMPLING))
        assert base == tokens_of(engine.generate([first, twin], SAMPLING))
        assert base[0] != base[1]
        assert len(set(map(tuple, base[0]))) == 4
        assert base != tokens_of(engine.generate([first, twin], replace(SAMPLING, seed=4)))
        assert base != tokens_of(engine.generate([first, twin], replace(SAMPLING, step=3)))
        assert base[0] != tokens_of(engine.generate([second], SAMPLING))[0]

    def test_frequencies_of_pairs_of_tokens_match_the_policy(self):
        """Chi-square over every outcome of two tokens (or EOS at once), against exact probabilities."""
        model, temperature, draws = random_model("llama", vocabulary=5, **self.shape), 2.0, 6000
        prompt, engine = Prompt("x", "", (1, 2, 3)), self.build(model, [4])
        sampling = Sampling(samples=draws, max_new_tokens=2, temperature=temperature)
        seen = Counter(map(tuple, tokens_of(engine.generate([prompt], sampling))[0]))
        engine.close()
        pairs = [(a, b) for a in range(4) for b in range(5)]
        outcomes = [(4,), *pairs]
        expected = [
            draws * float(full_forward_logp(model, prompt, torch.tensor(outcome), temperature).sum().exp())
            for outcome in outcomes
        ]
        assert sum(expected) == pytest.approx(draws, rel=1e-4)
        assert min(expected) > 5 and set(seen) <= set(outcomes)
        statistic = sum((seen[o] - e) ** 2 / e for o, e in zip(outcomes, expected, strict=True))
        assert statistic < 45.3  # 99.9 % of chi-square with 20 degrees of freedom

    def test_temperature_zero_is_transformers_greedy_with_logp_at_temperature_one(self, model, engine):
        prompts = ragged_prompts()
        groups = engine.generate(prompts, replace(SAMPLING, samples=2, temperature=0))
        for prompt, group in zip(prompts, groups, strict=True):
            ids = torch.tensor([prompt.tokens], device=model.device)
            settings = dict(do_sample=False, max_new_tokens=10, eos_token_id=list(EOS), pad_token_id=0)
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            assert [c.tokens.tolist() for c in group] == [expected[0, len(prompt.tokens) :].tolist()] * 2
        assert_log_probs(model, prompts, groups)

    def test_top_k_and_top_p_keep_only_likely_tokens_and_report_the_untruncated_logp(self, model, engine):
        (prompt,) = ragged_prompts(1)
        with torch.no_grad():
            p = model(torch.tensor([prompt.tokens], device=model.device)).logits[0, -1].float().softmax(-1).cpu()
        ranked = p.argsort(descending=True).tolist()
        nucleus = next(k for k in range(1, len(p)) if p[ranked[:k]].sum() >= 0.5)
        one = replace(SAMPLING, samples=200, max_new_tokens=1)
        for sampling, allowed in ((replace(one, top_k=3), 3), (replace(one, top_p=0.5), nucleus)):
            if not self.truncates:
                with pytest.raises(ValueError, match="whole distribution"):
                    engine.generate([prompt], sampling)
                continue
            drawn = engine.generate([prompt], sampling)[0]
            assert {int(c.tokens[0]) for c in drawn} == set(ranked[:allowed])
            assert_log_probs(model, [prompt], [drawn])

    def test_new_weights_change_log_probs_and_version(self, model, engine):
        prompts, weights = ragged_prompts(), perturbed(model)
        before = engine.generate(prompts, SAMPLING)
        engine.load_weights(weights.items(), version=8)
        after = engine.generate(prompts, SAMPLING)
        assert engine.version == 8 and {c.version for group in after for c in group} == {8}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        assert_log_probs(model, prompts, after)
        assert tokens_of(before) != tokens_of(after)

    def test_no_tensors_only_name_the_version(self, engine):
        before = engine.generate(ragged_prompts(2), SAMPLING)
        engine.load_weights([], version=5)
        after = engine.generate(ragged_prompts(2), SAMPLING)
        assert after[0][0].version == 5 and tokens_of(before) == tokens_of(after)

    def test_a_wrong_name_or_shape_is_refused_and_nothing_changes(self, model, engine):
        before = engine.generate(ragged_prompts(2), SAMPLING)
        name, new = next(iter(perturbed(model).items()))
        for wrong in (("no.such.weight", torch.zeros(2)), (name, torch.zeros(2, 3))):
            with pytest.raises(ValueError, match=wrong[0].replace(".", r"\.")):
                engine.load_weights([(name, new), wrong], version=9)
        assert engine.version == 0
        assert tokens_of(engine.generate(ragged_prompts(2), SAMPLING)) == tokens_of(before)

    def test_progress_never_goes_back_and_ends_with_everything(self, engine):
        seen: list[tuple[int, int, int]] = []
        groups = engine.generate(ragged_prompts(), SAMPLING, lambda *place: seen.append(place))
        assert all(a <= b for before, after in pairwise(seen) for a, b in zip(before, after, strict=True))
        assert seen[-1] == (24, 24, sum(len(c.tokens) for group in groups for c in group))
        assert all(0 <= done <= total == 24 for done, total, _ in seen)

    def test_progress_may_raise_and_the_engine_stays_usable(self, engine):
        expected = tokens_of(engine.generate(ragged_prompts(), SAMPLING))

        def leave(done: int, total: int, tokens: int) -> None:
            if tokens > 30:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            engine.generate(ragged_prompts(), SAMPLING, leave)
        assert tokens_of(engine.generate(ragged_prompts(), SAMPLING)) == expected

    def test_every_completion_is_handed_out_once_as_it_is_returned(self, engine):
        seen: list[tuple[int, int, Completion]] = []
        groups = engine.generate(ragged_prompts(), SAMPLING, finished=lambda *given: seen.append(given))
        assert sorted(place for *place, _ in seen) == [[prompt, sample] for prompt in range(6) for sample in range(4)]
        for prompt, sample, given in seen:
            returned = groups[prompt][sample]
            assert torch.equal(given.tokens, returned.tokens) and torch.equal(given.logp, returned.logp)
            assert (given.finish, given.version) == (returned.finish, returned.version)
        assert len({tuple(given.tokens.tolist()) for *_, given in seen}) > 12  # mixed up, they would be seen to differ

    def test_finished_may_raise_and_the_engine_stays_usable(self, engine):
        expected, seen = tokens_of(engine.generate(ragged_prompts(), SAMPLING)), []

        def leave(prompt: int, sample: int, completion: Completion) -> None:
            seen.append(completion)
            if len(seen) == 5:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            engine.generate(ragged_prompts(), SAMPLING, finished=leave)
        assert len(seen) == 5
        assert tokens_of(engine.generate(ragged_prompts(), SAMPLING)) == expected

    def test_requests_that_cannot_be_served_say_why(self, engine):
        prompt = ragged_prompts(1)[0]
        long = Prompt("train/9", "", (6,) * 120)
        with pytest.raises(ValueError, match="no prompts"):
            engine.generate([], SAMPLING)
        with pytest.raises(ValueError, match=r"'train/8' has no tokens"):
            engine.generate([prompt, Prompt("train/8", "", ())], SAMPLING)
        with pytest.raises(ValueError, match=r"'train/9' has 120 tokens.* 10 .*130, .* 128"):
            engine.generate([prompt, long], SAMPLING)
        with pytest.raises(ValueError, match=r"outside the model's vocabulary of 23"):
            engine.generate([Prompt("x", "", (23,))], SAMPLING)
        with pytest.raises(ValueError, match="max_new_tokens"):
            engine.generate([prompt], replace(SAMPLING, max_new_tokens=0))
        assert len(engine.generate([replace(long, tokens=(6,) * 118)], SAMPLING)[0]) == 4

    def test_close_may_be_called_twice(self, engine):
        engine.generate(ragged_prompts(1), SAMPLING)
        engine.close()
        engine.close()
