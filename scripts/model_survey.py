"""Which architectures train here: each of transformers' causal language models, tiny and with random weights, is put
through preflight and two steps of GRPO on the toy task, and the table of docs/models.md is written from what came out.

    python scripts/model_survey.py --write                     # all, about ten minutes on one core
    python scripts/model_survey.py llama opt gemma2            # some, to the terminal

Its own measure, beside the run's: `error`, how far the log-probs that came with the samples are from those of the model
loaded anew with eager attention and given one row at a time.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_pg import config
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.models.packed_attention import base_attention
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.preflight import checks
from rlhf_pg.training import loop
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import Session, build
from tiny_models import MODEL_TYPES, tiny_config, tiny_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- survey -->\n", "<!-- end of survey -->\n"
STEPS, NEW_TOKENS, SECONDS = 2, 24, 40
ROUNDING = 1e-4  # of a log-prob in float32


@dataclass
class Row:
    """What came out for one architecture."""

    model_type: str
    verdict: str  # "trains", "refused", "crash", "not built": no tiny model, or none that reads text alone
    reason: str = ""
    error: float | None = None  # largest, of a sampled token's log-prob
    mismatch: float | None = None  # largest mismatch/kl of the steps
    attention: str = ""
    prompts: str = ""  # "shared" or "with every row"
    decoding: str = ""  # "cached" or "whole rows"
    seconds: float = 0.0


class _NoRunDir:
    def write_rollouts(self, step: int, rows: Any) -> None: ...


def survey(model_type: str, folder: Path, **changes: Any) -> Row:
    """Build, check and train one architecture in `folder`; `changes` are to its configuration."""
    started = time.monotonic()
    try:
        model = tiny_model(tiny_config(model_type, **changes))
        model.eval()(input_ids=torch.arange(2, 12)[None], use_cache=False)
        model.save_pretrained(folder / "model")
        character_tokenizer().save_pretrained(folder / "model")
    except Exception as error:
        return Row(model_type, "not built", _first_line(error))
    row = Row(model_type, "crash")
    try:
        with _time_limit(SECONDS):
            _train(row, folder)
    except (ValueError, checks.RunError) as error:
        row.verdict, row.reason = "refused", str(error)
    except Exception as error:
        row.reason = _first_line(error)
        print(traceback.format_exc(), file=sys.stderr)
    row.seconds = time.monotonic() - started
    return row


def _train(row: Row, folder: Path) -> None:
    session = build(recipe(folder))
    try:
        notes: list[str] = []
        checks.preflight(session, notes.append)
        run = loop.TrainingRun(session, _NoRunDir(), LiveView(STEPS, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
        row.error = _error(session, folder / "model")
        row.mismatch = max(loop.train_step(run)["mismatch/kl"] for _ in range(STEPS))
        row.attention = base_attention(session.model.config.get_text_config())
        policy = session.learner.backend.unwrap(session.learner.policy)
        row.prompts = "shared" if policy.share_prompts else "with every row"
        row.decoding = "cached" if not getattr(session.engine, "uncached", "") else "whole rows"
        right = row.error < ROUNDING and abs(row.mismatch) < ROUNDING
        row.verdict, row.reason = ("trains", "") if right else ("wrong", "log-probs are off")
    finally:
        session.close()


def recipe(folder: Path) -> config.ResolvedRecipe:
    """Return two steps of GRPO on ragged prompts, with fewer slots than rows."""
    return config.parse(
        {
            "run": {"dir": str(folder / "run"), "steps": STEPS},
            "model": {"path": str(folder / "model")},
            "data": {"train": {"task": "arithmetic", "options": {"count": 64}}},
            "rollout": {"prompts_per_step": 3, "samples_per_prompt": 4, "max_new_tokens": NEW_TOKENS, "slots": 5},
            "rewards": [{"fn": f"{ROOT / 'recipes' / 'toy_reward.py'}:sevens"}],
            "kl": {"coefficient": 0.001},
            "optimizer": {"lr": 1e-3},
        },
        config.Recipe,
    )


@torch.no_grad()
def _error(session: Session, folder: Path) -> float:
    """Return the largest difference of the engine's log-probs to those of the model loaded anew, a row at a time."""
    groups = session.engine.generate(session.train_prompts[:3], session.sampling(step=99))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    worst = 0.0
    for prompt, group in zip(session.train_prompts, groups, strict=False):
        for completion in group:
            ids = torch.cat([torch.tensor(prompt.tokens), completion.tokens])[None]
            logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt.tokens) - 1 : -1]
            logp = logits.log_softmax(dim=-1).gather(1, completion.tokens[:, None])[:, 0]
            worst = max(worst, float((logp - completion.logp).abs().max()))
    return worst


@contextmanager
def _time_limit(seconds: int):
    def stop(*_: Any):
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


def rows_of(model_types: list[str]) -> list[Row]:
    """Survey architectures one after the other, quietly."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    rows = []
    for model_type in model_types:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()) as said:
            rows.append(survey(model_type, Path(folder)))
        print(json.dumps(asdict(rows[-1])), flush=True)
        if "--debug" in sys.argv:
            print(said.getvalue())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="default: all")
    parser.add_argument("--write", action="store_true", help="write the table into docs/models.md")
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    options = parser.parse_args()
    rows = rows_of(options.model_types or list(MODEL_TYPES))
    if options.write:
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(before + START + markdown(rows) + END + rest.partition(END)[2])
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in sorted({r.verdict for r in rows})}
    print(counts)


def markdown(rows: list[Row]) -> str:
    """Return a table of the architectures that train, and one of those that do not with the reason."""
    trained = [row for row in rows if row.verdict == "trains"]
    lines = [f"{len(trained)} of {len(rows)} train, with log-probs at rounding level.", ""]
    lines += ["| model type | attention | prompts | decoding | error |", "|---|---|---|---|---|"]
    lines += [f"| {r.model_type} | {r.attention} | {r.prompts} | {r.decoding} | {r.error:.0e} |" for r in trained]
    lines += ["", "| model type | | reason |", "|---|---|---|"]
    others = [row for row in rows if row.verdict != "trains"]
    lines += [f"| {r.model_type} | {r.verdict} | {_in_cell(r.reason)} |" for r in others]
    return "\n".join([*lines, ""])


def _in_cell(reason: str) -> str:
    """Return a reason as one line of a table: no temporary folder's name, of preflight the first that failed."""
    text = " ".join(re.sub(r"/\S*/model: ", "", reason).split()).replace("|", "\\|")
    text = re.sub(r"preflight: .*? - ", "preflight: ", text).partition("; needed")[0]
    return text if len(text) <= 200 else f"{text[:200]}..."


if __name__ == "__main__":
    main()
