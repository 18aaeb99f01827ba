"""One step's experience: generate groups of completions and score each as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rlhf_pg.rewards.plugin import asks_for
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine, Progress
from rlhf_pg.rollout.token_texts import TokenTexts, hidden_ids, text_of
from rlhf_pg.types import Completion, Prompt, Rollout, Sample, Sampling

Part = Literal["rollout", "reward"]


def rollouts(
    engine: Engine,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    progress: Progress | None = None,
    poll: Callable[[], None] = lambda: None,
    part: Callable[[Part], AbstractContextManager[object]] = nullcontext,
    sampled: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """Return `sampling.samples` scored completions of every prompt, groups adjacent.

    A completion is decoded (without end and padding tokens) and handed to the scorer when it finishes, so reward
    functions work while other rows are still sampled. `part` gives what to be in while "rollout", generating, and then
    "reward", waiting for the rewards that are left. `progress` is called in the first, `sampled` at its end, and
    `poll`, at least every second, in the second; all may raise, to leave at once. Raises ValueError when the engine
    keeps completions back.
    """
    if not prompts:  # a process may have none
        return []
    total = len(prompts) * sampling.samples
    samples: dict[int, Sample] = {}
    sample_of = _Decoder(scorer, tokenizer, sampling.max_new_tokens, getattr(engine, "eos_ids", ()))

    def finished(prompt: int, place: int, completion: Completion) -> None:
        index = prompt * sampling.samples + place
        samples[index] = sample_of(prompts[prompt], completion)
        scoring.add({index: samples[index]})

    def between_steps(done: int, rows: int, tokens: int) -> None:
        if progress is not None:
            progress(done, rows, tokens)
        scoring.pump()

    with scorer.open(total) as scoring:
        with part("rollout"):
            groups = engine.generate(prompts, sampling, between_steps, finished)
            sampled()
        if len(samples) != total:
            raise ValueError(
                f"the engine called `finished` for {len(samples)} of {total} completions: it must for each"
            )
        with part("reward"):
            scores = scoring.finish(poll)
    generated = [(prompt, c) for prompt, group in zip(prompts, groups, strict=True) for c in group]
    return [Rollout(p, c, samples[i].completion, scores[i]) for i, (p, c) in enumerate(generated)]


class _Decoder:
    """Completions sampled under one limit, as reward functions see them. Single tokens are decoded only if one asks."""

    def __init__(
        self, scorer: Scorer, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, ends: Sequence[int]
    ) -> None:
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        needed = any(asks_for(reward, "token_texts") for reward in scorer.rewards)
        self.hidden = hidden_ids(tokenizer, ends)
        self.token_texts = TokenTexts(tokenizer, ends) if needed else None

    def __call__(self, prompt: Prompt, completion: Completion) -> Sample:
        ids = completion.tokens.tolist()
        text = text_of(self.tokenizer, ids, self.hidden)
        split = self.token_texts(ids) if self.token_texts else ()
        return Sample(prompt.text, text, completion.finish, prompt.columns, split, self.max_new_tokens, len(ids))
