"""Which samples a report shows, and their tokens shaded by how likely each was."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rlhf_pg.display.figures import cut, number, shown
from rlhf_pg.display.text import visible
from rlhf_pg.report.run_record import RunRecord

LATE_FILES, EARLY_FILES = 5, 2
PER_GROUP = 3
CHARACTERS = 4000  # of a completion on the page
TOKENS = 1000


@dataclass(frozen=True)
class Token:
    """One token, shaded by its surprise."""

    text: str
    surprise: float  # 1 - probability, in [0, 1]; 0 when unknown
    title: str


@dataclass(frozen=True)
class Sample:
    """One sample on the page. Without a tokenizer `tokens` is empty, and `strip` shows how likely each token was."""

    step: str
    reward: str
    good: bool
    notes: list[str]
    prompt: str
    answer: str
    completion: str
    tokens: list[Token]
    strip: list[Token]


def choose(run: RunRecord) -> list[tuple[str, list[Sample]]]:
    """Return [(heading, samples)]: best and worst of the last steps, those left out of training, some of the first."""
    late = [row for path in run.rollouts[: -LATE_FILES - 1 : -1] for row in run.rollout_rows(path)]
    early = [row for path in run.rollouts[:-LATE_FILES][:EARLY_FILES] for row in run.rollout_rows(path)]
    scored = [row for row in late if _reward(row) is not None]
    excluded = [row for row in late if _reward(row) is None]
    best = _ranked(scored, -1.0)[: min(PER_GROUP, math.ceil(len(scored) / 2))]
    worst = _ranked([row for row in scored if not any(row is b for b in best)], 1.0)[:PER_GROUP]
    tokenizer = _tokenizer(run)
    groups = [
        ("Best of the last steps", best),
        ("Worst of the last steps", worst),
        ("Left out of training", excluded[:PER_GROUP]),
        ("From the first steps", early[:: max(1, len(early) // PER_GROUP)][:PER_GROUP]),
    ]
    return [(title, [_sample(row, tokenizer) for row in group]) for title, group in groups if group]


def _reward(row: dict[str, Any]) -> float | None:
    reward = number(row, "reward")
    return reward if reward is not None and math.isfinite(reward) else None


def _ranked(scored: list[dict[str, Any]], sign: float) -> list[dict[str, Any]]:
    """Sort by reward, ascending for `sign` 1; of equal rewards, one sample of each prompt before the second of any."""
    seen: Counter[tuple[float, str]] = Counter()
    keys = []
    for row in scored:
        reward, prompt = _reward(row) or 0.0, str(row.get("prompt_id", row.get("prompt")))
        keys.append((sign * reward, seen[reward, prompt]))
        seen[reward, prompt] += 1
    return [row for _, row in sorted(zip(keys, scored, strict=True), key=lambda pair: pair[0])]


def _sample(row: dict[str, Any], tokenizer: Any) -> Sample:
    reward = _reward(row)
    notes = [visible(str(row[k])) for k in ("outcome", "finish", "detail") if row.get(k)]
    parts = row.get("parts")
    if isinstance(parts, dict) and len(parts) > 1:
        notes += [f"{visible(str(name))} {shown(parts, name, '.3g')}" for name in list(parts)[:8]]
    completion = str(row.get("completion", ""))
    tokens = _tokens(row, tokenizer)
    matches = _letters("".join(t.text for t in tokens)).startswith(_letters(visible(completion[:200]))[:100])
    return Sample(
        step=visible(cut(str(row.get("step", "?")), 40)),
        reward="excluded" if reward is None else f"{reward:.3g}",
        good=reward is not None and reward > 0,
        notes=[cut(note, 160) for note in notes],
        prompt=visible(cut(str(row.get("prompt", "")), CHARACTERS // 2), keep="\n"),
        answer=visible(cut(str(row["answer"]), 200)) if row.get("answer") is not None else "",
        completion=visible(cut(completion, CHARACTERS), keep="\n"),
        tokens=tokens if tokenizer is not None and matches else [],
        strip=tokens[:400],
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


def _tokens(row: dict[str, Any], tokenizer: Any) -> list[Token]:
    """Return the row's tokens, [] when ids and log-probs do not match. Their texts are empty without a tokenizer."""
    ids, logps = row.get("tokens"), row.get("logp")
    if not isinstance(ids, list) or not isinstance(logps, list) or len(ids) != len(logps):
        return []
    pairs = [(i, p) for i, p in zip(ids, logps, strict=True) if _is_token(i) and isinstance(p, int | float)]
    pairs = [(i, min(float(p), 0.0) if math.isfinite(p) else 0.0) for i, p in pairs[:TOKENS]]
    texts = _texts(tokenizer, [i for i, _ in pairs]) if tokenizer is not None else [""] * len(pairs)
    return [
        Token(visible(text, keep="\n"), 1 - math.exp(logp), f"p {math.exp(logp):.3f}, logp {logp:.3f}, id {token}")
        for text, (token, logp) in zip(texts, pairs, strict=True)
    ]


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text each token adds; tokens that are only part of a character add nothing until the last of it."""
    from tokenizers.decoders import DecodeStream  # as below

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in ids]


def _tokenizer(run: RunRecord) -> Any:
    """Load the run's `model/tokenizer.json` (data, no code); return None, and count it as unreadable, if damaged."""
    path = run.path / "model" / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer  # heavy, and only a finished run needs it

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing narrower for a damaged file
        run.unreadable["model/tokenizer.json"] = 1
        return None
