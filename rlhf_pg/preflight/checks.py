"""Preflight: is this run set up right? Six checks on the live parts of a run, which they leave exactly as they were.

A check takes the session and `probe()`, a few short completions from the engine, and returns a `Finding`. A check that
raises has failed, and what it raised is its figure. docs/preflight.md says what each one catches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_pg import functional as F
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.data import collate
from rlhf_pg.data.prompts import eos_ids
from rlhf_pg.display.text import visible
from rlhf_pg.errors import RunError
from rlhf_pg.preflight import gold
from rlhf_pg.preflight.probe import (
    SAMPLES,
    Probe,
    closeness,
    own_log_probs,
    perturbed,
    rollout,
    sample,
    trainer_log_probs,
    untouched,
)
from rlhf_pg.train import packing_check
from rlhf_pg.train.gradient_step import shares_prompts
from rlhf_pg.train.setup import Session, build
from rlhf_pg.types import Completion

GOLD_ROWS = 16


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    name: str
    ok: bool | None  # None: the check does not apply to this run; `figure` says why
    figure: str  # measured
    limit: str = ""
    advice: str = ""  # what to do if it failed


def run(recipe: ResolvedRecipe) -> int:
    """`rlhf-pg check`: build the parts of the run, check them, print a table. The run directory is not touched.

    Returns 1 if a check failed, else 0. Raises ValueError for something the recipe names and that cannot be had.
    """
    untracked = recipe.changed(log=recipe.log.model_copy(update={"trackers": []}))
    session = build(untracked)
    try:
        found = findings(session, session.notes.append)
    finally:
        session.close()
    console = Console()
    for note in session.notes:
        console.print(Text(note))
    console.print(table(found))
    return 1 if any(f.ok is False for f in found) else 0


def preflight(session: Session, message: Callable[[str], None]) -> None:
    """Say in one line that the checks passed. Raises RunError: what every failed check measured, and what to do."""
    started = time.monotonic()
    found = findings(session, message)
    failed = [f"- {f.name}: {f.figure}; needed: {f.limit}. {f.advice}" for f in found if f.ok is False]
    if failed:
        heading = f"preflight: {len(failed)} of {len(found)} checks failed (run.preflight=false trains nevertheless)"
        raise RunError("\n".join([heading, *failed]))
    passed = sum(f.ok is True for f in found)
    skipped = "".join(f"; {f.name} skipped, {f.figure}" for f in found if f.ok is None)
    message(f"preflight: {passed} checks passed in {time.monotonic() - started:.1f} s{skipped}")


def findings(session: Session, message: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """All checks, in order. Weights, optimizer, data cursor, random streams and modes are afterwards as before.

    Prompts are shared afterwards only if that gave the log-probs of whole rows; a message says so if not.
    """
    probe = functools.cache(lambda: _probe(session, message))  # by the first check that needs it
    with untouched(session):
        return [_finding(check, session, probe) for check in CHECKS]


def _probe(session: Session, message: Callable[[str], None]) -> Probe:
    """A probe scored by the policy as it will be trained."""
    made = sample(session)
    packing_check.verify(session, made.batch, message)
    return replace(made, trained=trainer_log_probs(session, made.batch))


def table(found: Sequence[Finding]) -> Table:
    """One row per check; what to do only where it failed."""
    made = Table("check", "verdict", "measured", "limit", title="preflight", title_justify="left", show_lines=True)
    verdicts = {True: Text("pass", "green"), False: Text("FAIL", "bold red"), None: Text("skipped", "yellow")}
    failed = any(f.ok is False for f in found)
    if failed:
        made.add_column("what to do")
    for f in found:
        row = [Text(f.name), verdicts[f.ok], Text(visible(f.figure)), Text(f.limit)]
        made.add_row(*row, *([Text(f.advice if f.ok is False else "")] if failed else []))
    return made


def _finding(check: Callable[..., Finding], session: Session, probe: Callable[[], Probe]) -> Finding:
    try:
        return check(session, probe)
    except Exception as error:
        name, raised = check.__name__.replace("_", " "), f"{type(error).__name__}: {error}"
        return Finding(name, False, raised, "the check runs to its end", "Mend what it names; the other checks ran.")


# ---- the checks


def engine_log_probs(session: Session, probe: Callable[[], Probe]) -> Finding:
    """The log-probs that come with the samples are the trainer's, at the configured temperature."""
    near, batch = closeness(session), probe().batch
    gap = near.gap(batch.logp_rollout, probe().trained, batch.mask)
    return Finding(
        "engine log probs",
        gap <= near.limit,
        f"{near.statistic} |difference| {gap:.1e} over {int(batch.mask.sum())} tokens",
        str(near),
        "The engine does not sample from the policy that is trained. Compare the temperature, weights and dtype of the "
        "two; a head that scales or soft-caps its logits is not the plain product the trainer computes.",
    )


def weights_reach_engine(session: Session, probe: Callable[[], Probe]) -> Finding:
    """When the trained weights change, the engine samples from the new ones; when they are put back, from the old ones.

    A stale engine is off by as much as the change moved the trainer, which is the scale to judge by.
    """
    near, version = closeness(session), session.engine.version
    if session.learner.backend.sharded:
        return Finding("weights reach engine", None, "with ZeRO-3 no rank has all weights; check it on one process")
    try:
        with perturbed(session.model):
            session.engine.load_weights((), version=version + 1)  # the training loop's own call
            changed = sample(session, prompts=1, new_tokens=4)
    finally:
        session.engine.load_weights((), version=version)
    restored = sample(session, prompts=1, new_tokens=4)
    mask = changed.batch.mask
    moved = near.gap(changed.trained, trainer_log_probs(session, changed.batch), mask)
    off = near.gap(changed.batch.logp_rollout, changed.trained, mask)
    back = near.gap(restored.batch.logp_rollout, restored.trained, restored.batch.mask)
    counted = (changed.version, restored.version) == (version + 1, version)
    versions = (
        "" if counted else f"; asked for versions {version + 1}, {version}: {changed.version}, {restored.version}"
    )
    return Finding(
        "weights reach engine",
        counted and all(gap <= near.limit and gap < moved / 2 for gap in (off, back)),
        f"changed weights: trainer moved {moved:.1e}, engine off by {off:.1e}; put back: off by {back:.1e}{versions}",
        f"{near}, and under half of the move",
        "The engine samples from weights that `load_weights` does not replace: its own copy, a packed or tied head, or "
        "prompts cached before. If the trainer did not move, the weights under training are not those of the model.",
    )


def reference_kl(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Before the first update the policy is its own reference."""
    name, limit = "reference kl", 1e-6 if session.recipe.model.dtype == "float32" else 1e-4
    if session.reference is None:
        return Finding(name, None, "no KL term in this recipe")
    if session.learner.updates:
        return Finding(name, None, f"the policy has moved in {session.learner.updates} optimizer steps")
    batch = probe().batch
    kl = float(F.kl.k3(probe().trained, session.reference(batch))[batch.mask].mean())
    return Finding(
        name,
        abs(kl) <= limit,
        f"mean k3 {kl:.1e}",
        f"<= {limit:g}",
        "The reference is not the model this run starts from: another seed, path, adapter or temperature, or dropout.",
    )


def prompt_sharing(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Forwarding each prompt once, forwarding whole rows, and the model's own logits give the same log-probs."""
    near, batch, temperature = closeness(session), probe().batch, session.recipe.rollout.temperature
    first = torch.arange(0, len(batch.group), SAMPLES, device=batch.group.device)  # a row of each prompt
    few = collate.select(batch, first)
    trained = probe().trained[first, : few.tokens.shape[1]]
    with session.learner.backend.autocast():
        by_rows = packing_check.plain_log_probs(session, few)
        own = own_log_probs(session.model, few, temperature)
    shared = shares_prompts(session.learner.policy)
    gaps = {
        f"{'shared' if shared else 'trainer'} and plain": near.gap(trained, by_rows, few.mask),
        "plain and the model's own logits": near.gap(by_rows, own, few.mask),
    }
    return Finding(
        "prompt sharing",
        all(gap <= near.limit for gap in gaps.values()),
        ", ".join(f"{pair}: {near.statistic} |difference| {gap:.1e}" for pair, gap in gaps.items()),
        str(near),
        "The model changes its logits after its head (a scale, a soft cap) and cannot be trained here as it is.",
    )


def gold_answers(session: Session, probe: Callable[[], Probe]) -> Finding:
    """The first reward function gives at least 1 to the gold answer in some usual form, and less to another row's."""
    reward, every = session.scorer.rewards[0], max(1, len(session.train_prompts) // GOLD_ROWS)
    prompts = session.train_prompts[::every][:GOLD_ROWS]
    if not {*reward.arguments, *reward.optional} & prompts[0].columns.keys() - {"prompt", "question"}:
        return Finding(
            "gold answers", None, f"reward {reward.name!r} asks for no column by name, so for no gold answer"
        )
    forms = [gold.answer_forms(prompt) for prompt in prompts]  # of each prompt
    gold.values(
        session, [(prompts[0], forms[0][0]), (prompts[0], forms[0][-1])]
    )  # a function that hangs costs two calls
    flat = iter(gold.values(session, [(p, text) for p, texts in zip(prompts, forms, strict=True) for text in texts]))
    values = [[next(flat) for _ in texts] for texts in forms]  # of each form of each prompt
    missed = [p for p, of_forms in zip(prompts, values, strict=True) if max(of_forms) < 1]
    swapped = gold.swapped(prompts, forms, [of_forms.index(max(of_forms)) for of_forms in values])
    accepted = sum(value >= 1 for value in gold.values(session, swapped))
    return Finding(
        "gold answers",
        not missed and accepted <= 0.1 * len(swapped),
        f"gold right {len(prompts) - len(missed)} of {len(prompts)}, other rows' answers {accepted} of {len(swapped)}"
        + "".join(f"; judged wrong: {p.id}, gold {p.columns['answer']!r}" for p in missed[:1]),
        "all gold right, at most 10 % of the others",
        f"Reward {reward.name!r} does not tell right from wrong on this data: see data.train.answer and the form of "
        "answer it expects, try it by `rlhf-pg rewards check`, and list the function that judges answers first.",
    )


def end_of_sequence(session: Session, probe: Callable[[], Probe]) -> Finding:
    """An EOS that the policy samples ends the completion, is learned from, and does not show in the text."""
    tokenizer, prompt = session.tokenizer, session.train_prompts[0]
    stops = tuple(getattr(session.engine, "eos_ids", ())) or eos_ids(
        tokenizer, session.model.config, session.model.generation_config
    )
    eos: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else stops[0]  # pyright: ignore
    token = str(tokenizer.convert_ids_to_tokens(eos))
    text = str(prompt.columns.get("answer", "42"))
    answer = list(tokenizer.encode(text, add_special_tokens=False))
    rows = [torch.tensor([*answer * times, eos]) for times in (1, 3)]  # the first is padded
    mask = collate.collate([rollout(prompt, Completion(row, row * 0.0, "stop", 0)) for row in rows]).mask
    decoded = tokenizer.decode([*answer, eos], skip_special_tokens=True)
    faults = {
        f"the engine stops at {list(stops)}, not at {token!r} ({eos})": eos not in stops,
        f"the prompt ends with token {prompt.tokens[-1]}, which ends a completion": prompt.tokens[-1] in stops,
        f"{token!r} is not a single token": tokenizer.encode(token, add_special_tokens=False) != [eos],
        f"{text!r} + {token!r} decodes as {decoded!r}": decoded != tokenizer.decode(answer),
        f"the collator masks {token!r} away": mask.sum(dim=1).tolist() != [len(row) for row in rows],
    }
    found = [fault for fault, there in faults.items() if there]
    return Finding(
        "end of sequence",
        not found,
        "; ".join(found) or f"{token!r} ({eos}) stops, is learned from, does not show",
        "one token that stops, is learned from, does not show",
        "Completions would not stop, or stopping would not be learned: make eos_token of the tokenizer the special "
        "token that ends an answer, and keep it off the end of the prompt's template.",
    )


CHECKS = (engine_log_probs, weights_reach_engine, reference_kl, prompt_sharing, gold_answers, end_of_sequence)
