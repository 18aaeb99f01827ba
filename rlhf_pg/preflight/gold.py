"""Gold answers as completions, and what a session's reward makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_pg.rollout.token_texts import hidden_ids, of_text, text_of
from rlhf_pg.train.setup import Session
from rlhf_pg.types import Prompt, Sample


def answer_forms(prompt: Prompt) -> list[str]:
    """Return completions a right model might give: the gold answer in the forms that graders look for, and
    the worked solution."""
    gold, solution = str(prompt.columns["answer"]), prompt.columns.get("solution")
    tagged = "<think>x</think><answer>{}</answer>"
    forms = [gold, f"\\boxed{{{gold}}}", f"#### {gold}", tagged.format(gold), tagged.format(f"\\boxed{{{gold}}}")]
    return [*forms, solution] if isinstance(solution, str) else forms


def swapped(
    prompts: Sequence[Prompt], forms: Sequence[Sequence[str]], chosen: Sequence[int]
) -> list[tuple[Prompt, str]]:
    """Return each prompt with the answer of the next row that has another answer, in the prompt's chosen form."""
    pairs = []
    for at, prompt in enumerate(prompts):
        following = [*range(at + 1, len(prompts)), *range(at)]
        other = next((i for i in following if prompts[i].columns["answer"] != prompt.columns["answer"]), None)
        if other is not None:
            pairs.append((prompt, forms[other][min(chosen[at], len(forms[other]) - 1)]))
    return pairs


def values(session: Session, answers: Sequence[tuple[Prompt, str]]) -> list[float]:
    """Return the first reward function's value of each (prompt, completion); -inf where it left the sample out.

    The function sees the completion as it would be sampled: as the tokenizer encodes and decodes it.
    """
    tokenizer, limit = session.tokenizer, session.recipe.rollout.max_new_tokens
    hidden = hidden_ids(tokenizer)
    texts = [text_of(tokenizer, tokenizer.encode(text, add_special_tokens=False), hidden) for _, text in answers]
    samples = [
        Sample(prompt.text, text, "stop", prompt.columns, of_text(tokenizer, text), limit)
        for (prompt, _), text in zip(answers, texts, strict=True)
    ]
    rewards = [next(iter(score.parts.values())) for score in session.scorer.score(samples)]
    return [float("-inf") if value is None else value for value in rewards]
