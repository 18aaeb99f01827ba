"""One step's experience: generate groups of completions, decode them, score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_pg.rewards.plugin import asks_for
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
from rlhf_pg.rollout.token_texts import token_texts
from rlhf_pg.types import Completion, Prompt, Rollout, Sample, Sampling


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[tuple[Prompt, Completion]]:
    """`sampling.samples` completions of every prompt, groups adjacent."""
    groups = engine.generate(prompts, sampling, progress)
    return [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]


def score(
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    generated: Sequence[tuple[Prompt, Completion]],
    poll: Callable[[], None] = lambda: None,
    *,
    max_new_tokens: int,
) -> list[Rollout]:
    """Decode and score completions sampled under that limit. Texts are decoded without special tokens.

    Single tokens are decoded only if a reward function asks for them. `poll` may raise, to leave at once.
    """
    ids = [c.tokens.tolist() for _, c in generated]
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
    asked = any(asks_for(reward, "token_texts") for reward in scorer.rewards)
    of_tokens = token_texts(tokenizer, ids) if asked else [()] * len(ids)
    samples = [
        Sample(prompt.text, text, completion.finish, prompt.columns, split, max_new_tokens, len(tokens))
        for (prompt, completion), tokens, text, split in zip(generated, ids, texts, of_tokens, strict=True)
    ]
    scores = scorer.score(samples, poll)
    return [Rollout(p, c, text, score) for (p, c), text, score in zip(generated, texts, scores, strict=True)]
