"""The toolkit from Python: the commands as functions, their recipe's keys as arguments, rows and functions as they are.

Whatever a recipe file could not hold is written into the run's folder: rows as data/*.jsonl, functions as rewards/*.py.
So the folder says what ran, and `rlhf-pg train RUN_DIR/config.yaml` runs it again.
"""

from __future__ import annotations

import html
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_pg import config
from rlhf_pg.config import ResolvedRecipe, SftRecipe, places, reading
from rlhf_pg.display import quiet
from rlhf_pg.display.figures import eval_names
from rlhf_pg.names import shipped
from rlhf_pg.report import run_record
from rlhf_pg.rewards import captured
from rlhf_pg.storage import run_dir
from rlhf_pg.storage.atomic_io import write_atomic

Rows = Iterable[Mapping[str, Any]]
Data = str | Path | Mapping[str, Any] | Rows
Reward = str | Callable[..., Any] | Mapping[str, Any]


class Recipe(config.Recipe):
    """A recipe: its sections as attributes, `recipe.optimizer.lr`; `train(recipe)` runs it."""

    @classmethod
    def load(cls, recipe: str | Path, *overrides: str) -> Recipe:
        """Read a recipe by shipped name or file, with overrides ("optimizer.lr=1e-5"). Raises RecipeError."""
        written = config.load(recipe, overrides, makes_model=True).written
        return cls.model_validate(written.model_dump(exclude_unset=True))


class Run:
    """A run's folder, of one that has finished, is going on, or was stopped."""

    def __init__(self, dir: str | Path) -> None:
        """Open the folder. Raises ValueError if no run has written there."""
        self.dir = Path(dir)
        run_record.read(self.dir)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return a dict per step, as in metrics.jsonl: `pandas.DataFrame(run.metrics)` is a table."""
        return run_record.read(self.dir).steps

    @property
    def before(self) -> dict[str, float]:
        """Return the held-out figures before step 1: {"pass@1": 0.1, "pass@1_low": ..., "greedy": ...}, or {}."""
        return run_record.read(self.dir).evaluation("before")

    @property
    def after(self) -> dict[str, float]:
        """Return the held-out figures after the last step, or {}."""
        return run_record.read(self.dir).evaluation("after")

    @property
    def model(self) -> Path:
        """Return the folder of the trained model, for transformers, vLLM and `pg.train(model=...)`."""
        return self.dir / "model"

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page about this run, by default report.html in its folder, and return its path."""
        from rlhf_pg.report import write_report

        return write_report.write([self.dir], Path(out) if out else None)

    def __repr__(self) -> str:
        steps = run_record.read(self.dir).last_step
        return f"Run({str(self.dir)!r}: step {steps}{''.join(f', {line}' for line in self._changes())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<li>{html.escape(line)}</li>" for line in self._changes())
        return f"<b>{html.escape(str(self.dir))}</b>: step {run_record.read(self.dir).last_step}<ul>{rows}</ul>"

    def _changes(self) -> list[str]:
        before, after = self.before, self.after
        names = [name for name in eval_names(after) if name in before]
        return [f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in names]


def train(
    recipe: str | Path | Mapping[str, Any] | config.Recipe | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    data: Data | None = None,
    eval_data: Data | None = None,
    reward: Reward | Sequence[Reward] | None = None,
    steps: int | None = None,
    dir: str | Path | None = None,
    **keys: Any,
) -> Run:
    """Train by reinforcement learning and return the run; `rlhf-pg train` as a function.

    recipe: what the other arguments are laid over: a shipped name, a file, a mapping or a `Recipe`; default: nothing.
    model: `model.path`, or the section.
    data, eval_data: rows (dicts, a data set, a data frame), a file, a task's name, a hub data set, or the section.
    reward: a function, a name as in a recipe, a section of `rewards`, or a list of those. Functions run in processes of
    their own, with time and memory limits; those of a script or notebook travel as source.
    steps: `run.steps`. dir: `run.dir`; default: the first free of runs/run-1, runs/run-2, ...
    keys: any other section or dotted key of a recipe: rollout={"prompts_per_step": 8}, algorithm="ppo",
    **{"optimizer.lr": 1e-5}.

    Raises RecipeError for a wrong key or value, RunError for a run that fails. On Ctrl-C and SIGTERM the run is saved
    and KeyboardInterrupt raised; the same call with run={"resume": "auto"} and its `dir` goes on.
    """
    mapping, source = _mapping(recipe)
    given = _sections(model, data, eval_data, steps, dir, keys)
    if reward is not None:
        given["rewards"] = _rewards(reward)
    with _Written(mapping, given) as written:
        resolved = config.parse(written.mapping, config.Recipe, "pg.train", makes_model=True)
        with quiet.libraries(shown=False):
            from rlhf_pg.commands.run_training import train as run_training

            if run_training(resolved, source or _script()):
                raise KeyboardInterrupt("the run was stopped and saved")
    return Run(resolved.run.dir)


def sft(
    recipe: str | Path | Mapping[str, Any] | SftRecipe | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    data: Data | None = None,
    dir: str | Path | None = None,
    **keys: Any,
) -> Run:
    """Fine-tune on worked solutions and return the run; `rlhf-pg sft` as a function. Arguments as those of `train`."""
    mapping, source = _mapping(recipe)
    with _Written(mapping, _sections(model, data, None, None, dir, keys)) as written:
        resolved = config.parse(written.mapping, SftRecipe, "pg.sft")
        with quiet.libraries(shown=False):
            from rlhf_pg.commands.run_sft import sft as run_sft
            from rlhf_pg.training import hub

            hub.require(resolved, "pg.sft")
            run_sft(resolved, source or _script())
    return Run(resolved.run.dir)


def evaluate(
    recipe: str | Path | Mapping[str, Any] | config.Recipe | None = None, **arguments: Any
) -> dict[str, float]:
    """Measure greedy and pass@k of a model on held-out problems, `data.eval`; nothing is kept. Arguments as of `train`.

    Returns {"pass@1": 0.4, "pass@1_low": 0.3, "pass@1_high": 0.5, "greedy": ...}.
    """
    mapping, _ = _mapping(recipe)
    model, data, eval_data, reward = (arguments.pop(name, None) for name in ("model", "data", "eval_data", "reward"))
    if data is None and "train" not in mapping.get("data", {}):
        data = eval_data  # a recipe has data.train; nothing is read from it here but how rows are read
    with TemporaryDirectory() as folder:
        given = _sections(model, data, eval_data, None, folder, arguments)
        if reward is not None:
            given["rewards"] = _rewards(reward)
        with _Written(mapping, given) as written:
            resolved = config.parse(written.mapping, config.Recipe, "pg.evaluate")
            if resolved.data.eval is None:
                raise config.RecipeError("pg.evaluate", ["eval_data: needed, or data.eval of a recipe"])
            with quiet.libraries(shown=False):
                from rlhf_pg.commands.eval import measure

                return measure(resolved)[0]


# ---- from arguments to a recipe


def _mapping(recipe: Any) -> tuple[dict[str, Any], Path | None]:
    """Return the plain values of a recipe, and its file if it has one."""
    if recipe is None:
        return {}, None
    if isinstance(recipe, config.Recipe | SftRecipe):
        return recipe.model_dump(mode="json", exclude_unset=True), None
    if isinstance(recipe, ResolvedRecipe):
        return reading.parse(config.dump(recipe), "recipe"), None
    if isinstance(recipe, Mapping):
        return dict(recipe), None
    file = places.find(recipe)
    return reading.read(file), file


def _sections(
    model: Any, data: Data | None, eval_data: Data | None, steps: int | None, dir: Any, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments as a recipe's sections; rows stay as they are, under `rows`, for `_Written`."""
    given: dict[str, Any] = {}
    for key, value in keys.items():
        section = {"name": value} if key == "algorithm" and isinstance(value, str) else value
        given = reading.merge(given, _nested(key, section))
    if model is not None:
        given = reading.merge(given, {"model": model if isinstance(model, Mapping) else {"path": str(model)}})
    sources = {name: _source(value) for name, value in (("train", data), ("eval", eval_data)) if value is not None}
    if isinstance(data, Mapping) and data.keys() <= {"train", "eval", "max_prompt_tokens"}:
        sources = {**{name: _source(value) for name, value in data.items()}, **_only(sources, "eval")}
    if sources:
        given = reading.merge(given, {"data": sources})
    run = {name: value for name, value in (("steps", steps), ("dir", dir and str(dir))) if value is not None}
    return reading.merge(given, {"run": run}) if run else given


def _only(sources: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: sources[name]} if name in sources else {}


def _nested(key: str, value: Any) -> dict[str, Any]:
    """Return {"optimizer": {"lr": value}} for "optimizer.lr"."""
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _source(data: Any) -> Any:
    """Return a data source as its section: a task by name, a file, a hub data set, or {"rows": rows}."""
    if isinstance(data, list | tuple) and data and all(isinstance(path, str | Path) for path in data):
        return {"path": [str(path) for path in data]}
    if not isinstance(data, str | Path):
        return data if isinstance(data, Mapping) else {"rows": data}
    text = str(data)
    if text in shipped("rlhf_pg.tasks"):
        return {"task": text}
    is_file = isinstance(data, Path) or Path(text).exists() or Path(text).suffix or "/" not in text
    return {"path": text} if is_file else {"dataset": text}


def _rewards(reward: Any) -> list[Any]:
    several = isinstance(reward, Sequence) and not isinstance(reward, str)
    return [r if isinstance(r, Mapping) else {"fn": r} for r in (reward if several else [reward])]


class _Written:
    """A recipe whose rows and functions were written into the run's folder; taken back if it is refused."""

    def __init__(self, recipe: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.mapping = reading.merge(recipe, given)
        run = self.mapping.setdefault("run", {})
        if isinstance(run, dict) and run.get("dir") is None:
            run["dir"] = str(_free_folder())
        self.dir = Path(run["dir"]) if isinstance(run, dict) else Path("runs")
        self.files: list[Path] = []

    def __enter__(self) -> _Written:
        try:
            sources = self.mapping.get("data")
            for name, source in sources.items() if isinstance(sources, dict) else ():
                if isinstance(source, dict) and "rows" in source:
                    source["path"] = self._write(f"data/{name}.jsonl", _lines(source.pop("rows"), name))
            rewards = self.mapping.get("rewards")
            for reward in rewards if isinstance(rewards, list) else ():
                if isinstance(reward, dict) and callable(reward.get("fn")):
                    reward["fn"] = self._reference(reward["fn"])
        except BaseException:
            self._take_back()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, config.RecipeError):
            self._take_back()

    def _reference(self, function: Callable[..., Any]) -> str:
        name, text = captured.reference(function)
        return f"{self._write(f'rewards/{name}.py', text)}:{name}" if text else name

    def _write(self, name: str, text: str) -> str:
        """Write a file into the run's folder, and return its path. Raises ValueError if it is there and says else."""
        path, content = self.dir / name, text.encode("utf-8", "surrogatepass")
        differs = not path.exists() or path.read_bytes() != content
        if path.exists() and differs and run_dir.is_used(self.dir):
            raise ValueError(f"{path} is an earlier run's and differs from what is given now: choose another dir")
        if differs:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            self.files.append(path)
        return str(path)

    def _take_back(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # folders that hold something else stay
                file.parent.rmdir()
                self.dir.rmdir()


def _free_folder() -> Path:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("dir: needed with several processes, which must write to one folder")
    return next(p for p in (Path(f"runs/run-{n}") for n in range(1, sys.maxsize)) if not p.exists())


def _lines(rows: Any, name: str) -> str:
    """Return rows as lines of JSON. Raises ValueError naming the row that cannot be written."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a data frame iterates over its columns
        rows = rows.to_dict("records")
    lines = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"data.{name}: row {index} is a {type(row).__name__}, not a dict of columns")
        try:
            lines.append(json.dumps(dict(row)) + "\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.{name}: row {index} cannot be written as JSON: {error}") from error
    return "".join(lines)


def _script() -> Path | None:
    """Return the script that runs, whose commit is recorded."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    return script if script and script.is_file() and "ipykernel" not in script.name else None
