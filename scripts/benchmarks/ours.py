"""rlhf_pg as a contender: the step of `rlhf-pg train`, and the parts of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.port import Answer, Port
from benchmarks.shapes import Shape, shape_of
from rlhf_pg import config
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import StopRequest
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training import loop
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import Session, build
from rlhf_pg.types import Batch, Sampling

REWARD = Path(__file__).parent / "reward.py"
Take = Callable[[], Answer]


def recipe(shape: Shape, folder: Path, run: Path, **sections: Any) -> config.ResolvedRecipe:
    """Return GRPO with its defaults (AdamW at 1e-6), beta 0.04, one optimizer step per rollout; replace `sections`."""
    raw: dict[str, Any] = {
        "run": {"dir": str(run), "steps": 10**6, "preflight": False},
        "model": {"path": str(folder / "model")},
        "data": {
            "train": {
                "path": str(folder / "prompts.jsonl"),
                "prompt": "prompt",
                "answer": "answer",
                "template": "plain",
            }
        },
        "rollout": {
            "prompts_per_step": shape.prompts,
            "samples_per_prompt": shape.samples,
            "max_new_tokens": shape.completion,
        },
        "rewards": [{"fn": f"{REWARD}:reward"}],
        "kl": {"coefficient": 0.04},
        "log": {"live": "off"},
    }
    return config.parse(raw | sections, config.Recipe)


def open_run(stack: ExitStack, shape: Shape, folder: Path) -> loop.TrainingRun:
    """Build what `rlhf-pg train` holds when the first step of a shape begins; closed with the stack."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
    return open_recipe(stack, recipe(shape, folder, place))


def open_recipe(stack: ExitStack, settings: config.ResolvedRecipe) -> loop.TrainingRun:
    """Build what `rlhf-pg train` holds when its first step begins; closed with the stack."""
    run_dir = stack.enter_context(RunDir.open(settings.run.dir, "never"))
    session = build(settings)
    stack.callback(session.close)
    view = stack.enter_context(LiveView(settings.run.steps, "off"))
    return loop.TrainingRun(session, run_dir, view, StopRequest(), Progress())


def take_step(run: loop.TrainingRun) -> Answer:
    """Take one whole step, its metrics written, as the loop of `rlhf-pg train` does it."""
    metrics = loop.train_step(run)
    loop.record(run, metrics)
    return {
        "tokens": round(metrics["completion/length_mean"] * metrics["samples"]),
        "rollout_s": metrics["time/rollout_s"],
        "update_s": metrics["time/update_s"],
        "metrics": {name: value for name, value in metrics.items() if name.startswith(("time/", "tokens/"))},
    }


def step(specification: dict[str, Any], port: Port) -> None:
    """Whole training steps of one shape."""
    with ExitStack() as stack:
        run = open_run(stack, shape_of(specification["shape"]), Path(specification["folder"]))
        port.serve(lambda _: take_step(run))


def steps(specification: dict[str, Any], port: Port) -> None:
    """Whole training steps of several shapes in one process; a command names its `case`."""
    with ExitStack() as stack:
        runs = {
            case["name"]: open_run(stack, shape_of(case["shape"]), Path(case["folder"]))
            for case in specification["cases"]
        }
        port.serve(lambda command: take_step(runs[command["case"]]))


def rollout(specification: dict[str, Any], port: Port) -> None:
    """Serve generation only, by the engine of a training run, always of the same first N prompts."""
    with ExitStack() as stack:
        shape = shape_of(specification["shape"])
        session = open_run(stack, shape, Path(specification["folder"])).session
        prompts = session.train_prompts[: shape.prompts]

        def take(command: Answer) -> Answer:
            sampling = Sampling(shape.samples, shape.completion, seed=0, step=command["round"])
            groups = session.engine.generate(prompts, sampling)
            return {"tokens": sum(len(c.tokens) for group in groups for c in group)}

        port.serve(take)


def update(specification: dict[str, Any], port: Port) -> None:
    """Serve reference pass, forward, backward and optimizer on fixed random rollouts: a step without its rollout."""
    with ExitStack() as stack:
        shape = shape_of(specification["shape"])
        take = updater(open_run(stack, shape, Path(specification["folder"])).session, shape)
        port.serve(lambda _: take())


def updater(session: Session, shape: Shape) -> Take:
    """Return a function that computes signals, credit and the policy's update as the loop does, on random rollouts."""
    batch = random_batch(session.model.config.vocab_size, shape)

    def take() -> Answer:
        learner = session.learner
        signals = loop.signals(learner, session.reference, batch)
        credit = loop.assign(learner, batch, signals)
        for _ in loop.UPDATES[learner.objective.algorithm.update](learner, batch, signals, credit, 0):
            pass
        return {"tokens": int(batch.mask.sum())}

    return take


def random_batch(vocabulary: int, shape: Shape) -> Batch:
    """Return random tokens, every row as long as can be, rewards drawn once: the same work for everyone."""
    random = torch.Generator().manual_seed(0)
    size = (shape.rows, shape.completion)
    return Batch(
        prompt_tokens=torch.randint(4, vocabulary, (shape.prompts, shape.prompt), generator=random),
        prompt_lengths=torch.full((shape.prompts,), shape.prompt),
        group=torch.arange(shape.prompts).repeat_interleave(shape.samples),
        tokens=torch.randint(4, vocabulary, size, generator=random),
        mask=torch.ones(size, dtype=torch.bool),
        reward=torch.rand(shape.rows, generator=random),
        logp_rollout=torch.full(size, -3.0),
    )
