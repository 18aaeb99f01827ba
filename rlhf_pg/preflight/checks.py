"""Preflight: is this run set up right? Seven checks on the live parts of a run, which they leave exactly as they were.

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
from rlhf_pg.data.stops import eos_ids
from rlhf_pg.display.text import visible
from rlhf_pg.errors import RunError
from rlhf_pg.models.export import UNUSABLE, faults
from rlhf_pg.preflight import gold
from rlhf_pg.preflight.probe import (
    CANDIDATES,
    SAMPLES,
    Probe,
    own_log_probs,
    perturbed,
    rollout,
    sample,
    trainer_log_probs,
    untouched,
)
from rlhf_pg.training import packing_check
from rlhf_pg.training.gradient_step import shares_prompts
from rlhf_pg.training.setup import Session, build
from rlhf_pg.types import Completion, Prompt

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
    """Build the parts of a run, check them and print a table (`rlhf-pg check`). The run directory is not touched.

    Returns 1 if a check failed, else 0. Raises ValueError for something the recipe names and that cannot be had.
    """
    untracked = recipe.changed(log=recipe.log.model_copy(update={"trackers": []}))
    session = build(untracked)
    try:
        results = findings(session, session.notes.append)
    finally:
        session.close()
    if session.learner.backend.ranks.first:
        console = Console()
        for note in session.notes:
            console.print(Text(note))
        console.print(table(results))
    return 1 if any(f.ok is False for f in results) else 0


def preflight(session: Session, message: Callable[[str], None]) -> None:
    """Say in one line that the checks passed. Raises RunError: what every failed check measured, and what to do."""
    started = time.monotonic()
    results = findings(session, message)
    failed = [f"- {f.name}: {f.figure}; needed: {f.limit}. {f.advice}" for f in results if f.ok is False]
    if failed:
        heading = f"preflight: {len(failed)} of {len(results)} checks failed (run.preflight=false trains nevertheless)"
        raise RunError("\n".join([heading, *failed]))
    passed = sum(f.ok is True for f in results)
    skipped = "".join(f"; {f.name} skipped, {f.figure}" for f in results if f.ok is None)
    message(f"preflight: {passed} checks passed in {time.monotonic() - started:.1f} s{skipped}")


def findings(session: Session, message: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Run all checks, in order. Weights, optimizer, data cursor, random streams and modes are afterwards as before.

    Prompts are shared afterwards only if that gave the log-probs of padded rows; a message says so if not.
    """
    probe = functools.cache(lambda: _probe(session, message))  # by the first check that needs it
    with untouched(session):
        return [_finding(check, session, probe) for check in CHECKS]


def _probe(session: Session, message: Callable[[str], None]) -> Probe:
    """Sample a probe and score it by the policy as it will be trained."""
    probe = sample(session)
    packing_check.verify(session, probe.batch, message)
    return replace(probe, trained=trainer_log_probs(session, probe.batch))


def table(results: Sequence[Finding]) -> Table:
    """Return a table with a row per check; what to do only where it failed."""
    table = Table("check", "verdict", "measured", "limit", title="preflight", title_justify="left", show_lines=True)
    verdicts = {True: Text("pass", "green"), False: Text("FAIL", "bold red"), None: Text("skipped", "yellow")}
    failed = any(f.ok is False for f in results)
    if failed:
        table.add_column("what to do")
    for f in results:
        row = [Text(f.name), verdicts[f.ok], Text(visible(f.figure)), Text(f.limit)]
        table.add_row(*row, *([Text(f.advice if f.ok is False else "")] if failed else []))
    return table


def _finding(check: Callable[..., Finding], session: Session, probe: Callable[[], Probe]) -> Finding:
    try:
        return check(session, probe)
    except Exception as error:
        name, raised = check.__name__.replace("_", " "), f"{type(error).__name__}: {error}"
        return Finding(name, False, raised, "the check runs to its end", "Mend what it names; the other checks ran.")


# ---- the checks


def engine_log_probs(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that the log-probs that come with samples are the trainer's, at the configured temperature."""
    limit, batch = packing_check.closeness(session), probe().batch
    gap = limit.gap(batch.logp_rollout, probe().trained, batch.mask)
    return Finding(
        "engine log probs",
        gap <= limit.limit,
        f"{limit.statistic} |difference| {gap:.1e} over {int(batch.mask.sum())} tokens",
        str(limit),
        "The engine does not sample from the policy that is trained. Compare the temperature, weights and dtype of the "
        "two, and whether a dropout is on; if prompt sharing fails too, it is the architecture (docs/models.md).",
    )


def weights_reach_engine(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that the engine samples from trained weights as they are: changed, and put back.

    A stale engine is off by as much as the change moved the trainer, which is the scale to judge by.
    """
    limit, version = packing_check.closeness(session), session.engine.version
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
    moved = limit.gap(changed.trained, trainer_log_probs(session, changed.batch), mask)
    off = limit.gap(changed.batch.logp_rollout, changed.trained, mask)
    back = limit.gap(restored.batch.logp_rollout, restored.trained, restored.batch.mask)
    counted = (changed.version, restored.version) == (version + 1, version)
    versions = (
        "" if counted else f"; asked for versions {version + 1}, {version}: {changed.version}, {restored.version}"
    )
    return Finding(
        "weights reach engine",
        counted and all(gap <= limit.limit and gap < moved / 2 for gap in (off, back)),
        f"changed weights: trainer moved {moved:.1e}, engine off by {off:.1e}; put back: off by {back:.1e}{versions}",
        f"{limit}, and under half of the move",
        "The engine samples from weights that `load_weights` does not replace: its own copy, a packed or tied head, or "
        "prompts cached before. If the trainer did not move, the weights under training are not those of the model.",
    )


def reference_kl(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that the policy is its own reference before the first update."""
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
    """Check that packed prompts, padded rows and the model's own logits give the same log-probs."""
    limit, batch, temperature = packing_check.closeness(session), probe().batch, session.recipe.rollout.temperature
    first = torch.arange(0, len(batch.group), SAMPLES, device=batch.group.device)  # a row of each prompt
    rows = collate.select(batch, first)
    trained = probe().trained[first, : rows.tokens.shape[1]]
    with session.learner.backend.autocast():
        padded_logp = packing_check.padded_log_probs(session, rows)
        model_logp = own_log_probs(session.model, rows, temperature)
    shared = shares_prompts(session.learner.policy)
    gaps = {
        f"{'shared' if shared else 'trainer'} and plain": limit.gap(trained, padded_logp, rows.mask),
        "plain and the model's own logits": limit.gap(padded_logp, model_logp, rows.mask),
    }
    return Finding(
        "prompt sharing",
        all(gap <= limit.limit for gap in gaps.values()),
        ", ".join(f"{pair}: {limit.statistic} |difference| {gap:.1e}" for pair, gap in gaps.items()),
        str(limit),
        f"Models of type {session.model.config.model_type} cannot be trained here as they are: their log-probs change "
        "with padding or batch, or their head is none that docs/models.md lists.",
    )


def gold_answers(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that the first reward gives at least 1 to the gold answer in some usual form, and less to another row's."""
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
        + "".join(f"; judged wrong: {p.id}, gold {p.columns['answer']!r}{_changed(session, p)}" for p in missed[:1]),
        "all gold right, at most 10 % of the others",
        f"Reward {reward.name!r} does not tell right from wrong on this data: see data.train.answer and the form of "
        "answer it expects, try it by `rlhf-pg rewards check`, and list the function that judges answers first.",
    )


def _changed(session: Session, prompt: Prompt) -> str:
    """Say which form of the gold answer does not come out of the tokenizer as it went in."""
    forms = ((text, gold.as_sampled(session, text)) for text in gold.answer_forms(prompt))
    return next((f", which the tokenizer makes {out!r} of {text!r}" for text, out in forms if text != out), "")


def end_of_sequence(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that a sampled EOS ends the completion and is learned from."""
    tokenizer, prompt = session.tokenizer, session.train_prompts[0]
    stops = tuple(getattr(session.engine, "eos_ids", ()))
    stops = stops or eos_ids(tokenizer, session.model.config, session.model.generation_config)[0]
    vocabulary: int = session.model.config.get_text_config().vocab_size  # pyright: ignore[reportAssignmentType]
    eos: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else stops[0]  # pyright: ignore
    token = str(tokenizer.convert_ids_to_tokens(eos))
    text = str(prompt.columns.get("answer", "42"))
    answer = list(tokenizer.encode(text, add_special_tokens=False))
    rows = [torch.tensor([*answer * times, eos]) for times in (1, 3)]  # the first is padded
    mask = collate.collate([rollout(prompt, Completion(row, row * 0.0, "stop", 0)) for row in rows]).mask
    faults = {
        f"{token!r} ({eos}), the tokenizer's eos_token, is outside the model's vocabulary of {vocabulary}": eos
        >= vocabulary,
        f"the engine stops at {list(stops)}, not at {token!r} ({eos})": eos not in stops,
        f"the prompt ends with token {prompt.tokens[-1]}, which ends a completion": prompt.tokens[-1] in stops,
        f"{token!r} is not a single token": tokenizer.encode(token, add_special_tokens=False) != [eos],
        f"the collator masks {token!r} away": mask.sum(dim=1).tolist() != [len(row) for row in rows],
    }
    present = [fault for fault, is_there in faults.items() if is_there]
    return Finding(
        "end of sequence",
        not present,
        "; ".join(present) or f"{token!r} ({eos}) stops and is learned from",
        "one token that stops and is learned from",
        "Completions would not stop, or stopping would not be learned: make eos_token of the tokenizer the special "
        "token that ends an answer, and keep it off the end of the prompt's template.",
    )


def export(session: Session, probe: Callable[[], Probe]) -> Finding:
    """Check that configuration and tokenizer can be written, and read again as they were, before hours of training."""
    texts = [prompt.text for prompt in session.train_prompts[:CANDIDATES]]
    wrong = faults(session.model, session.tokenizer, texts, trust_remote_code=session.recipe.model.trust_remote_code)
    return Finding(
        "export",
        not wrong,
        "; ".join(wrong) or f"written and read again; the tokens of {len(texts)} prompts are the same",
        "what is read again is what was written",
        UNUSABLE,
    )


CHECKS = (engine_log_probs, weights_reach_engine, reference_kl, prompt_sharing, gold_answers, end_of_sequence, export)
