"""The modes of the command: who takes part, at which shapes, and which figures come from the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import ladder as ladder_of
from benchmarks import matmul, scaling, summary
from benchmarks.call import Call
from benchmarks.learn import learn
from benchmarks.race import Contender
from benchmarks.shapes import SCORING, SCORING_TINY, SHAPES

OURS = summary.OURS
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # OMP_NUM_THREADS threads, free to move, as everyone else has them
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PARTS = ("sampling_s", "reference_s", "forward_s", "backward_s", "optimizer_s")
Records = list[dict[str, Any]]


def step(call: Call, rounds: int | None = None) -> Records:
    """Whole training steps against TRL's, with its default gradient checkpointing and without."""
    records = []
    for name in call.shapes:
        specification = call.specification(SHAPES[name])
        contenders = call.ours("benchmarks.ours:step", specification)
        if call.has("trl"):
            plain = specification | {"options": {"gradient_checkpointing": False}}
            contenders += [
                Contender("TRL", "benchmarks.trl_step:step", specification),
                Contender("TRL, no checkpointing", "benchmarks.trl_step:step", plain),
            ]
        records.append(call.compare("step", name, contenders, rounds))
    return records


def rollout(call: Call) -> Records:
    """Generation alone, against transformers' and vLLM's."""
    records = []
    for name in call.shapes:
        specification = call.specification(SHAPES[name])
        contenders = call.ours("benchmarks.ours:rollout", specification)
        if call.has("generate"):
            contenders.append(Contender("transformers.generate", "benchmarks.generate:rollout", specification))
        if call.has("vllm"):
            contenders.append(Contender("vllm-cpu", "benchmarks.vllm_rollout:rollout", specification, VLLM))
        records.append(call.compare("rollout", name, contenders))
    return records


def update(call: Call) -> Records:
    """An update's useful arithmetic per second, against this machine's own matrix products, timed in between."""
    records = []
    for name in call.shapes:
        shape = SHAPES[name]
        products, sizes = "matmul", matmul.sizes_of(shape)
        contenders = [
            Contender(OURS, "benchmarks.ours:update", call.specification(shape)),
            Contender(products, "benchmarks.matmul:rates", {"sizes": sizes}),
        ]
        measured = call.places.race(f"update, {name}", contenders)
        if len(measured) < len(contenders):
            continue
        entry = summary.entry(OURS, measured[OURS])
        rates = [
            summary.spread(column) for column in zip(*(r["gflops"] for r in measured[products].rounds[""]), strict=True)
        ]
        records.append({"shape": name, **entry, **matmul.shares(shape, entry["seconds"]["median"], sizes, rates)})
    return records


def overhead(call: Call) -> Records:
    """The share of a whole step outside sampling, reference, forward, backward and optimizer."""
    records = []
    for name in call.shapes:
        specification = call.specification(SHAPES[name])
        measured = call.places.race(f"overhead, {name}", [Contender(OURS, "benchmarks.overhead:step", specification)])
        if not measured:
            continue
        rounds = measured[OURS].rounds[""]
        seconds = {part: summary.spread([r[part] for r in rounds]) for part in ("seconds", *PARTS)}
        outside = summary.share_outside(rounds, PARTS)
        records.append({"shape": name, "seconds": seconds, "share_outside": outside, "rounds": rounds})
    return records


def memory(call: Call) -> dict[str, Any]:
    """Peaks of whole steps (those of `step` if it has run), and of scoring tokens with a large vocabulary."""
    steps = call.records.get("step") or step(call, rounds=2)
    shape = SCORING_TINY if set(call.shapes) == {"tiny"} else SCORING
    specification = {"shape": shape.record()}
    contenders = [
        Contender(OURS, "benchmarks.scoring:ours", specification),
        Contender("full logits", "benchmarks.scoring:full", specification),
        Contender("full logits, logsumexp by row", "benchmarks.scoring:lean", specification),
    ]
    keys = ("name", "seconds", "imported_mb", "loaded_mb", "peak_mb", "peak_above_imports_mb", "peak_above_loaded_mb")
    return {
        "step": [
            {
                "shape": s["shape"],
                "contenders": [{k: e[k] for k in keys} for e in s["contenders"]],
                "ratios": s["ratios"],
            }
            for s in steps
        ],
        "scoring": call.compare("memory", "scoring", contenders, rounds=2) | {"of": shape.record()},
    }


def scale(call: Call) -> Records:
    """How the time of a step grows: one series for each of G, P, C and the size of the model."""
    series = scaling.series(small=set(call.shapes) == {"tiny"})
    shapes = {scaling.name(shape): shape for points in series.values() for shape in points.values()}
    call.build({f"scaling {name}": shape for name, shape in shapes.items()})
    cases = [{"name": name, **call.specification(shape)} for name, shape in shapes.items()]
    contender = Contender(OURS, "benchmarks.ours:steps", {"cases": cases}, cases=list(shapes))
    measured = call.places.race("scaling", [contender])
    if not measured:
        return []
    rounds = measured[OURS].rounds
    return [
        {
            "over": over,
            "points": [
                {"at": at, **{k: summary.spread([r[k] for r in rounds[scaling.name(shape)]]) for k in scaling.KEYS}}
                for at, shape in points.items()
            ],
        }
        for over, points in series.items()
    ]


def ladder(call: Call) -> Records:
    """One update by each algorithm on the same rollouts."""
    call.build({f"ladder {name}": shape for name, shape in ladder_of.SHAPES.items()})
    records = []
    for name, shape in ladder_of.SHAPES.items():
        contender = Contender(
            OURS, "benchmarks.ladder:updates", call.specification(shape), cases=list(ladder_of.VARIANTS)
        )
        measured = call.places.race(f"ladder, {name}", [contender])
        if not measured:
            continue
        rounds = measured[OURS].rounds
        seconds = {case: summary.spread([r["seconds"] for r in answers]) for case, answers in rounds.items()}
        ratios = [
            {"of": above, "to": below, "ratio": seconds[above]["median"] / seconds[below]["median"]}
            for above, below in ladder_of.RATIOS
        ]
        records.append({"shape": name, "seconds": seconds, "ratios": ratios, "rounds": rounds})
    return records


MODES: dict[str, Callable[[Call], Any]] = {
    "step": step,
    "rollout": rollout,
    "update": update,
    "overhead": overhead,
    "memory": memory,
    "scaling": scale,
    "ladder": ladder,
    "learn": learn,
}
