"""Gold answers as completions, what a session's reward makes of them, and whether that tells them from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rlhf_pg.rollout.token_texts import hidden_ids, of_text, text_of
from rlhf_pg.training.setup import Session
from rlhf_pg.types import Prompt, Sample, Score

MARGIN = 0.1  # of the range of all values
ACCEPTED = 0.1  # of the wrong answers
NO_ANSWER = "I do not know."


def answer_forms(prompt: Prompt) -> list[str]:
    """Return completions a right model might give: the gold answer in the forms that graders look for, and
    the worked solution."""
    gold, solution = str(prompt.columns["answer"]), prompt.columns.get("solution")
    tagged = "<think>x</think><answer>{}</answer>"
    forms = [gold, f"\\boxed{{{gold}}}", f"#### {gold}", tagged.format(gold), tagged.format(f"\\boxed{{{gold}}}")]
    return [*forms, solution] if isinstance(solution, str) else forms


def wrong_answer(prompts: Sequence[Prompt], forms: Sequence[Sequence[str]], at: int, form: int) -> str:
    """Return the answer of the next row that has another answer, in one form of those in `forms`; or NO_ANSWER."""
    following = [*range(at + 1, len(prompts)), *range(at)]
    gold = prompts[at].columns["answer"]
    other = next((i for i in following if prompts[i].columns["answer"] != gold), None)
    return NO_ANSWER if other is None else forms[other][min(form, len(forms[other]) - 1)]


@dataclass(frozen=True)
class Judgement:
    """What the reward, one function of it or one named part gives to gold answers and to wrong ones, pair by pair.

    None: left out by the function. Right is what is nearer to the median gold answer than to the median wrong one.
    """

    name: str
    gold: list[float | None]  # [n]
    wrong: list[float | None]  # [n]

    @property
    def medians(self) -> tuple[float, float]:
        """Return those of gold and of wrong answers; NaN where all were left out."""
        gold, wrong = ([v for v in values if v is not None] for values in (self.gold, self.wrong))
        return median(gold or [float("nan")]), median(wrong or [float("nan")])

    @property
    def clear(self) -> bool:
        """Return whether the medians are apart by more than MARGIN of the range of all values."""
        values = [v for v in (*self.gold, *self.wrong) if v is not None]
        gold, wrong = self.medians
        return bool(values) and gold - wrong > MARGIN * (max(values) - min(values))

    @property
    def missed(self) -> list[int]:
        """Return the indices of the gold answers that are judged wrong; all of them if the medians are not apart."""
        return [i for i, value in enumerate(self.gold) if not self._is_right(value)]

    @property
    def accepted(self) -> int:
        """Return how many wrong answers are judged right."""
        return sum(map(self._is_right, self.wrong))

    def _is_right(self, value: float | None) -> bool:
        return self.clear and value is not None and value >= sum(self.medians) / 2

    @property
    def tells_apart(self) -> bool:
        """Return whether every gold answer is right and at most ACCEPTED of the wrong ones are."""
        return not self.missed and self.accepted <= ACCEPTED * len(self.wrong)


REWARD = "the reward"  # weighted sum of all functions


def values(score: Score) -> dict[str, float | None]:
    """Return what can be judged by name: the whole reward, each function, each named part."""
    return {REWARD: score.reward, **score.parts}


def best_forms(of_forms: Sequence[Score]) -> dict[str, int]:
    """Return by name which of the forms of one gold answer got most."""
    names = dict.fromkeys(name for score in of_forms for name in values(score))
    amounts = {name: [values(score).get(name) for score in of_forms] for name in names}
    return {name: max(range(len(of)), key=lambda i, of=of: _or_least(of[i])) for name, of in amounts.items()}


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None else value


def judgements(session: Session, prompts: Sequence[Prompt]) -> list[Judgement]:
    """Return a judgement of the whole reward, then of each function and each named part.

    Each takes a gold answer in the form that it gives most to, and another row's answer in the same form.
    """
    forms = [answer_forms(prompt) for prompt in prompts]  # of each prompt
    scores(session, [(prompts[0], forms[0][0]), (prompts[0], forms[0][-1])])  # a function that hangs costs two calls
    flat = iter(scores(session, [(p, text) for p, texts in zip(prompts, forms, strict=True) for text in texts]))
    gold = [[next(flat) for _ in texts] for texts in forms]  # of each form of each prompt
    best = [best_forms(of_forms) for of_forms in gold]
    pairs = list(dict.fromkeys((i, form) for i, of_names in enumerate(best) for form in of_names.values()))
    answers = [(prompts[i], wrong_answer(prompts, forms, i, form)) for i, form in pairs]
    wrong = dict(zip(pairs, scores(session, answers), strict=True))
    judged = []
    for name in dict.fromkeys(name for of_names in best for name in of_names):
        chosen = [(i, of_names.get(name, 0)) for i, of_names in enumerate(best)]
        of_gold = [values(gold[i][form]).get(name) for i, form in chosen]
        of_wrong = [values(wrong[pair]).get(name) if pair in wrong else None for pair in chosen]
        judged.append(Judgement(name, of_gold, of_wrong))
    return judged


def scores(session: Session, answers: Sequence[tuple[Prompt, str]]) -> list[Score]:
    """Return the score of each (prompt, completion).

    The functions see a completion as it would be sampled: as the tokenizer encodes and decodes it.
    """
    limit, ends = session.recipe.rollout.max_new_tokens, _ends(session)
    samples = []
    for prompt, answer in answers:
        text = as_sampled(session, answer)
        samples.append(Sample(prompt.text, text, "stop", prompt.columns, of_text(session.tokenizer, text, ends), limit))
    return session.scorer.score(samples)


def as_sampled(session: Session, text: str) -> str:
    """Return the text of a completion that has the tokens of `text`: another where the tokenizer drops something."""
    tokens = session.tokenizer.encode(text, add_special_tokens=False)
    return text_of(session.tokenizer, tokens, hidden_ids(session.tokenizer, _ends(session)))


def _ends(session: Session) -> tuple[int, ...]:
    return tuple(getattr(session.engine, "eos_ids", ()))
