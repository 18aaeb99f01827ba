"""What a run is told while it goes on: hand-made lines of metrics.jsonl, and the words that must or must not come."""

import pytest

from rlhf_pg.display.notices import Watch


def row(step: int, mean: float = 0.4, std: float = 0.49, **more) -> dict:
    """A healthy step of 64 samples; `more`: metrics with "/" written "__"."""
    values = {"reward/zero_std_groups": 0.3, "completion/truncated": 0.02, "entropy": 0.5, "kl/ref": 0.01}
    values |= {"outcome/scored": 64, "samples/excluded": 0}
    named = {name.replace("__", "/"): value for name, value in more.items()}
    return {"step": step, "reward/mean": mean, "reward/std": std} | values | named


def said(rows, watch: Watch | None = None, cause: str = "") -> dict[int, list[str]]:
    """The notices by the step after which they came."""
    watch = watch or Watch()
    return {r["step"]: texts for r in rows if (texts := [n.text for n in watch.step(r, cause)])}


NOTHING = {"mean": 0.0, "std": 0.0, "reward__zero_std_groups": 1.0}


def test_a_healthy_run_is_told_nothing():
    assert said([row(i, mean=0.3 + i / 100) for i in range(1, 60)]) == {}


def test_no_reward_and_cut_off_completions_are_said_after_the_second_step_and_only_once():
    rows = [row(i, **NOTHING, completion__truncated=0.97) for i in range(1, 9)]
    first = said(rows)
    assert list(first) == [2]
    none, cut = first[2]
    assert none.startswith("Every reward of steps 1 to 2 was 0: there was nothing to learn from. Easier problems")
    assert "rlhf-pg sft" in none and "reward for the form" in none
    assert cut == "97% of the completions of steps 1 to 2 were cut off: raise rollout.max_new_tokens."


def test_a_reward_that_ignores_the_end_is_not_told_to_raise_the_limit():
    assert said([row(i, completion__truncated=1.0) for i in range(1, 9)]) == {}
    assert said([row(i, completion__truncated=0.97, completion__truncation_cost=-0.1) for i in range(1, 9)]) == {}


def test_a_cost_that_two_completions_may_have_by_chance_is_none():
    few = {"completion__truncated": 0.96, "completion__truncation_cost": 0.4, "outcome__scored": 16}
    assert said([row(i, **few) for i in range(1, 9)]) == {}  # 0.04 x 16 x 3: two that ended


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"completion__truncation_cost": 0.4}, "cut off, and earned 0.4 less than the others: raise"),
        ({"outcome__scored": 44, "outcome__truncated": 20}, "cut off, most of them before an answer: raise"),
    ],
)
def test_being_cut_off_is_said_where_it_costs_reward(more, why):
    (texts,) = said([row(i, completion__truncated=0.4, **more) for i in range(1, 9)]).values()
    assert len(texts) == 1 and texts[0].startswith("40% of the completions") and why in texts[0]


def test_groups_without_signal_are_told_by_what_their_rewards_are():
    flat = {"reward__zero_std_groups": 0.95}
    (hard,) = said([row(i, mean=0.01, std=0.1, **flat) for i in (1, 2)])[2]
    assert hard.startswith("95% of the groups of steps 1 to 2 had equal rewards (mean 0.01)") and "Easier" in hard
    (easy,) = said([row(i, mean=0.99, std=0.1, **flat) for i in (1, 2)])[2]
    assert "harder problems" in easy and "Easier" not in easy
    learned = [row(i, mean=min(0.99, i / 20), std=0.1, **(flat if i > 20 else {})) for i in range(1, 40)]
    assert said(learned) == {}  # what there was to learn was learned
    a_tenth_has_signal = {"reward__zero_std_groups": 0.88}
    assert said([row(i, mean=0.01, std=0.1, **a_tenth_has_signal) for i in (1, 2, 3)]) == {}


def test_a_failing_reward_is_said_at_once_with_its_first_cause():
    failing = {"outcome__scored": 61, "outcome__error": 3, "samples__excluded": 3}
    first = said([row(1), row(2, **failing), row(3, **failing)], cause="gsm8k, sample 7: ValueError: boom\x1b[2J")
    (text,) = first.pop(2)
    assert text == (
        "3 samples of step 2 (4.7%): the reward function failed; they were left out of training. "
        "The first: gsm8k, sample 7: ValueError: boom\\x1b[2J"
    )
    assert first == {}


def test_a_timeout_that_counts_as_a_reward_is_not_called_left_out():
    late = {"outcome__scored": 60, "outcome__timeout": 4}
    (text,) = said([row(1, **late)])[1]
    assert "took too long; they got the reward it sets for that" in text
    (text,) = said([row(1, **late, samples__excluded=4)])[1]
    assert "took too long; they were left out of training" in text


def test_samples_that_the_reward_function_leaves_out_are_its_own_business_unless_they_are_most():
    assert said([row(i, outcome__scored=50, outcome__excluded=14, samples__excluded=14) for i in (1, 2)]) == {}
    most = said([row(i, outcome__scored=14, outcome__excluded=50, samples__excluded=50) for i in (1, 2)])
    assert "asked to leave them out" in most[1][0]


def test_a_leap_of_kl_is_said_in_its_step():
    rows = [row(i, kl__ref=3.0 if i == 20 else 0.01) for i in range(1, 30)]
    first = said(rows)
    assert list(first) == [20] and "leapt in 1 step, highest 3 in step 20" in first[20][0]


def test_entropy_that_collapses_or_explodes_is_said_unless_the_reward_rose_with_it():
    falling = [row(i, mean=0.4, entropy=0.5 * 0.6**i) for i in range(1, 20)]
    (texts,) = said(falling).values()
    assert texts[0].startswith("Entropy fell from ")
    learning = [row(i, mean=0.1 + i / 25, entropy=0.5 * 0.6**i) for i in range(1, 20)]
    assert said(learning) == {}
    (texts,) = said([row(i, mean=0.4 - i / 50, entropy=0.2 * 1.3**i) for i in range(1, 20)]).values()
    assert texts[0].startswith("Entropy rose from ")


def test_what_was_said_before_a_resume_is_not_said_again():
    rows = [row(i, **NOTHING) for i in range(1, 9)]
    assert list(said(rows[:4])) == [2]
    assert said(rows[4:], Watch(rows[:4])) == {}
    assert list(said(rows[4:], Watch([row(i) for i in range(1, 5)]))) == [7]  # three steps, of which none has signal


def test_odd_values_are_no_notice():
    odd = {"reward__mean": None, "reward__std": float("nan"), "completion__truncated": "x", "kl__ref": None}
    assert said([row(i) | {k.replace("__", "/"): v for k, v in odd.items()} for i in range(1, 9)]) == {}
    assert said([{"step": i} for i in range(1, 9)]) == {}
