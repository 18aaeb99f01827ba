"""What reward functions are shown of a completion, and that single tokens are decoded only for those who ask."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.rewards.plugin import Reward
from rlhf_pg.rollout import collect
from rlhf_pg.types import Completion, Finish, Prompt, Sample, Score


@dataclass
class Watched:
    """A scorer and a tokenizer that note what they are given."""

    rewards: list[Reward]
    samples: list[Sample] = field(default_factory=list)
    decoded: list[list[int]] = field(default_factory=list)

    def score(self, samples, poll):
        self.samples = list(samples)
        return [Score(float(n), {}, "scored") for n in range(len(samples))]

    def decode(self, ids, skip_special_tokens):
        self.decoded.append(list(ids))
        return character_tokenizer().decode(ids, skip_special_tokens=skip_special_tokens)


def completion(text: str, finish: Finish) -> Completion:
    ids = [*character_tokenizer()(text).input_ids, *([1] if finish == "stop" else [])]
    return Completion(torch.tensor(ids), torch.zeros(len(ids)), finish, 0)


def collected(**asked: Any):
    """Two completions, scored by a function that names `completion` and by one with the arguments of `asked`."""
    watched = Watched([Reward("plain", "", "", "", arguments=("completion",)), Reward("other", "", "", "", **asked)])
    prompt = Prompt("train/3", "1+1=", (4, 5), {"answer": "2"})
    generated = [(prompt, completion("2 ", "stop")), (prompt, completion("abc", "length"))]
    rollouts = collect.score(watched, watched, generated, max_new_tokens=9)  # pyright: ignore[reportArgumentType]
    return watched, generated, rollouts


@pytest.mark.parametrize("asked", [{}, {"arguments": ("completion_tokens", "max_new_tokens")}, {"takes_rest": True}])
def test_without_a_wish_for_the_texts_of_tokens_a_completion_is_decoded_once(asked):
    watched, generated, _ = collected(**asked)
    assert watched.decoded == [c.tokens.tolist() for _, c in generated]
    assert watched.samples == [
        Sample("1+1=", "2 ", "stop", {"answer": "2"}, (), 9, 3),
        Sample("1+1=", "abc", "length", {"answer": "2"}, (), 9, 3),
    ]


@pytest.mark.parametrize("kind", ["arguments", "optional"])
def test_a_function_that_asks_gets_the_text_of_each_token(kind):
    watched, _, _ = collected(**{kind: ("token_texts",)})
    assert [s.token_texts for s in watched.samples] == [("2", " ", ""), ("a", "b", "c")]
    assert [(s.completion_tokens, s.max_new_tokens) for s in watched.samples] == [(3, 9), (3, 9)]


def test_scores_stay_with_their_completions():
    _, generated, rollouts = collected()
    assert [(r.prompt, r.completion) for r in rollouts] == generated
    assert [(r.text, r.score.reward) for r in rollouts] == [("2 ", 0.0), ("abc", 1.0)]
