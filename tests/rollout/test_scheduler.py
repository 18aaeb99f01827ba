"""Prompts enter longest first, when enough slots are free, in prefills of bounded size."""

from rlhf_pg.rollout.scheduler import PREFILL_TOKENS, Admission, Queue
from rlhf_pg.types import Prompt


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(str(i), "", (1,) * n) for i, n in enumerate(lengths)]


def test_longest_prompts_enter_first_and_fill_the_slots():
    queue = Queue(prompts(3, 9, 5, 9), samples=2, slots=6)
    assert list(queue.waves(used=0)) == [[Admission(1, 0, 2), Admission(3, 0, 2), Admission(2, 0, 2)]]
    assert list(queue.waves(used=6)) == [] and queue
    assert list(queue.waves(used=3)) == [[Admission(0, 0, 2)]] and not queue
    assert list(queue.waves(used=0)) == []


def test_a_group_larger_than_the_slots_enters_in_parts():
    queue = Queue(prompts(4, 2), samples=7, slots=3)
    parts = []
    while queue:
        parts += [wave for wave in queue.waves(used=0)]
    assert parts == [[Admission(i, first, min(3, 7 - first))] for i in (0, 1) for first in (0, 3, 6)]


def test_few_free_slots_wait_for_more_unless_none_is_in_use():
    queue = Queue(prompts(*[1] * 20), samples=1, slots=8)
    assert len(next(queue.waves(used=0))) == 8
    assert list(queue.waves(used=7)) == []
    assert [len(wave) for wave in queue.waves(used=6)] == [2]


def test_one_prefill_is_bounded_padding_included_but_never_empty():
    half = PREFILL_TOKENS // 2
    queue = Queue(prompts(half, half, half - 1, PREFILL_TOKENS + 1), samples=1, slots=8)
    waves = [[admission.prompt for admission in wave] for wave in queue.waves(used=0)]
    assert waves == [[3], [0, 1], [2]]
