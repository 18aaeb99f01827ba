"""From the arguments of `pg.train(...)` to a recipe; what no recipe file could hold is written into the run's folder.

Rows become data/*.jsonl, functions of a script or notebook rewards/*.py. So the folder says what ran, and
`rlhf-pg train RUN_DIR/config.yaml` runs it again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_pg import config
from rlhf_pg.config import ResolvedRecipe, SftRecipe, places, reading
from rlhf_pg.names import shipped
from rlhf_pg.rewards import captured
from rlhf_pg.storage import run_dir
from rlhf_pg.storage.atomic_io import write_atomic

Rows = Iterable[Mapping[str, Any]]
Data = str | Path | Mapping[str, Any] | Rows
Reward = str | Callable[..., Any] | Mapping[str, Any]


def plain(recipe: Any) -> tuple[dict[str, Any], Path | None]:
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


def sections_of(
    model: Any, data: Data | None, eval_data: Data | None, steps: int | None, dir: Any, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments as a recipe's sections; rows stay as they are, under `rows`, for `Written`."""
    sections: dict[str, Any] = {}
    for key, value in keys.items():
        section = {"name": value} if key == "algorithm" and isinstance(value, str) else value
        sections = reading.merge(sections, _nested(key, section))
    if model is not None:
        sections = reading.merge(sections, {"model": model if isinstance(model, Mapping) else {"path": str(model)}})
    sources = {name: source_of(value) for name, value in (("train", data), ("eval", eval_data)) if value is not None}
    if isinstance(data, Mapping) and data.keys() <= {"train", "eval", "max_prompt_tokens"}:
        sources = {**{name: source_of(value) for name, value in data.items()}, **_only(sources, "eval")}
    if sources:
        sections = reading.merge(sections, {"data": sources})
    run = {name: value for name, value in (("steps", steps), ("dir", dir and str(dir))) if value is not None}
    return reading.merge(sections, {"run": run}) if run else sections


def _only(sources: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: sources[name]} if name in sources else {}


def _nested(key: str, value: Any) -> dict[str, Any]:
    """Return {"optimizer": {"lr": value}} for "optimizer.lr"."""
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}


def source_of(data: Any) -> Any:
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


def reward_sections(reward: Any) -> list[Any]:
    several = isinstance(reward, Sequence) and not isinstance(reward, str)
    return [r if isinstance(r, Mapping) else {"fn": r} for r in (reward if several else [reward])]


class Written:
    """A recipe whose rows and functions were written into the run's folder; taken back if it is refused."""

    def __init__(self, recipe: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
        self.mapping = _copied(reading.merge(recipe, sections))
        run = self.mapping.setdefault("run", {})
        if isinstance(run, dict) and run.get("dir") is None:
            run["dir"] = str(_free_folder())
        self.dir = Path(run["dir"]) if isinstance(run, dict) else Path("runs")
        self.files: list[Path] = []

    def __enter__(self) -> Written:
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


def _copied(value: Any) -> Any:
    """Return sections and lists of them copied, so that what the caller gave stays as it is."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items() if key != "rows"} | _only(value, "rows")
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


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
            raise ValueError(f"data.{name}: row {index} is {type(row).__name__}, not a dict of columns")
        try:
            lines.append(json.dumps(dict(row)) + "\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.{name}: row {index} cannot be written as JSON: {error}") from error
    return "".join(lines)
