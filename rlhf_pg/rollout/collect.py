"""One step's experience: generate groups of completions, decode them, score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_pg.rewards.score import Scorer
from rlhf_pg.rollout.engine import Engine
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
) -> list[Rollout]:
    """Decode and score completions. Texts are decoded without special tokens. `poll` may raise, to leave at once."""
    texts = [str(tokenizer.decode(c.tokens.tolist(), skip_special_tokens=True)) for _, c in generated]
    samples = [
        Sample(prompt.text, text, completion.finish, prompt.columns)
        for (prompt, completion), text in zip(generated, texts, strict=True)
    ]
    scores = scorer.score(samples, poll)
    return [Rollout(p, c, text, score) for (p, c), text, score in zip(generated, texts, scores, strict=True)]
