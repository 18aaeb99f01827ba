"""Gold answers as completions, and what a session's reward makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_pg.rollout.token_texts import hidden_ids, of_text, text_of
from rlhf_pg.training.setup import Session
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
    limit, ends = session.recipe.rollout.max_new_tokens, _ends(session)
    samples = []
    for prompt, answer in answers:
        text = as_sampled(session, answer)
        samples.append(Sample(prompt.text, text, "stop", prompt.columns, of_text(session.tokenizer, text, ends), limit))
    rewards = [next(iter(score.parts.values())) for score in session.scorer.score(samples)]
    return [float("-inf") if value is None else value for value in rewards]


def as_sampled(session: Session, text: str) -> str:
    """Return the text of a completion that has the tokens of `text`: another where the tokenizer drops something."""
    tokens = session.tokenizer.encode(text, add_special_tokens=False)
    return text_of(session.tokenizer, tokens, hidden_ids(session.tokenizer, _ends(session)))


def _ends(session: Session) -> tuple[int, ...]:
    return tuple(getattr(session.engine, "eos_ids", ()))
