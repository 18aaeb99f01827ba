"""Which prompts enter the slots next, and when. Pure Python: no tensors, no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_pg.types import Prompt

PREFILL_TOKENS = 16_384  # prompt positions forwarded at once, padding included
REFILL_SHARE = 4  # slots are refilled when this fraction of them (1 / 4) is free


@dataclass(frozen=True)
class Admission:
    """Rows that enter together: samples first .. first + rows - 1 of one prompt."""

    prompt: int
    first: int
    rows: int


class Queue:
    """Prompts waiting for slots, longest first, so that those prefilled together need little padding.

    A group larger than the slots enters in parts, and its prompt is prefilled once for each.
    """

    def __init__(self, prompts: Sequence[Prompt], samples: int, slots: int) -> None:
        self.lengths, self.slots = [len(prompt.tokens) for prompt in prompts], slots
        self.waiting = deque(
            Admission(prompt, first, min(slots, samples - first))
            for prompt in sorted(range(len(prompts)), key=lambda i: -self.lengths[i])
            for first in range(0, samples, slots)
        )

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def waves(self, used: int) -> Iterator[list[Admission]]:
        """Yield what to prefill now, beside `used` rows in use; each wave is one prefill.

        Nothing until enough slots are free for a batch that is worth the interruption, then all that fits.
        """
        free = self.slots - used
        if not self.waiting or (used and free < max(self.waiting[0].rows, self.slots // REFILL_SHARE)):
            return
        while wave := self._take(free):
            free -= sum(admission.rows for admission in wave)
            yield wave

    def _take(self, free: int) -> list[Admission]:
        wave: list[Admission] = []
        while self.waiting and self.waiting[0].rows <= free:
            width = self.lengths[(wave or self.waiting)[0].prompt]  # the first is the longest
            if wave and width * (len(wave) + 1) > PREFILL_TOKENS:
                break
            wave.append(self.waiting.popleft())
            free -= wave[-1].rows
        return wave
