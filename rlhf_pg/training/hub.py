"""Whether the models and data sets of a recipe can be had from the hub, asked once and before anything heavy is loaded.

The hub's own clients try again for a minute or so where there is no network, and then do not know which key was wrong.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlhf_pg.config import Recipe, ResolvedRecipe, SftRecipe, places
from rlhf_pg.config.recipe import dataset_of, sources
from rlhf_pg.errors import RecipeError
from rlhf_pg.names import nearest_model

PATIENCE_S = 5.0  # for an answer of a few kB
CACHED_FILES = {
    "model": ("config.json", "tokenizer_config.json", "tokenizer.json", "params.json"),
    "dataset": ("README.md", ".gitattributes", "dataset_infos.json"),
}
LACKING = {
    "model": "no folder {} here, and no model of that name was downloaded before",
    "dataset": "the data set {} was not downloaded before",
}
OFFLINE = "HF_HUB_OFFLINE"

Kind = Literal["model", "dataset"]


class Unreachable(Exception):
    """Says why the hub gives no answer."""


def require(recipe: ResolvedRecipe | Recipe | SftRecipe, source: str = "recipe", *, data: bool = True) -> None:
    """Raise RecipeError, opening with `source`, for a hub name of the recipe that neither the hub nor the cache has.

    `data` False: data sets are not needed. Where the hub cannot be reached and the cache has all, a line on stderr says
    so, and this process uses the cache only.
    """
    written = recipe.written if isinstance(recipe, ResolvedRecipe) else recipe
    keys: dict[tuple[Kind, str], list[str]] = {}
    for key, kind, name in _names(written, data):
        keys.setdefault((kind, name), []).append(key)
    problems, silence = [], ""
    for (kind, name), of_name in keys.items():
        where, hint = " and ".join(of_name), _hint(kind, name, of_name[0])
        try:
            if silence:  # one answer is enough
                raise Unreachable(silence)
            _ask(kind, name)
        except Unreachable as error:
            silence = str(error)
            if not _is_cached(kind, name):
                problems.append(
                    f"{where}: {LACKING[kind].format(name)}, and the hub cannot be reached ({silence}){hint}"
                )
        except LookupError as error:
            problems.append(f"{where}: {error}{hint}")
    if problems:
        raise RecipeError(source, problems)
    if silence:
        _use_the_cache_only(silence)


def _names(recipe: Recipe | SftRecipe, data: bool) -> Iterator[tuple[str, Kind, str]]:
    """Yield (key, kind, hub name) for what is no file or folder of this machine."""
    models = {"model.path": recipe.model.path, "model.tokenizer": recipe.model.tokenizer}
    if isinstance(recipe, Recipe) and recipe.critic.backbone != "copy":
        models["critic.backbone"] = recipe.critic.backbone
    for key, path in models.items():
        if path and not _is_of_this_machine(path):
            yield key, "model", path
    for key, source in sources(recipe) if data else ():
        if dataset := dataset_of(source):
            yield f"{key}.dataset", "dataset", dataset


def _is_of_this_machine(path: str) -> bool:
    """Return whether a model path names no model of the hub: a file, a folder, also one that is missing."""
    named = path in places.NOT_FILES or path.lower().endswith(".gguf")
    return named or Path(path).is_dir() or places.is_missing_folder(path)


def _hint(kind: Kind, name: str, key: str) -> str:
    if kind == "model":
        return nearest_model(name)
    path = key.replace("dataset", "path")
    return f"; it is a file here: give it as {path}" if os.path.exists(name) else f"; a file of rows is given as {path}"


@cache  # of what is there; exceptions are not kept
def _ask(kind: Kind, name: str) -> None:
    """Return if the hub has a model or data set, or does not say. Raises LookupError if not, Unreachable if it cannot
    be asked within PATIENCE_S."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    if constants.is_offline_mode():
        raise Unreachable(f"{OFFLINE} is set")
    api = HfApi()
    try:
        _within_patience(lambda: (api.model_info if kind == "model" else api.dataset_info)(name, timeout=PATIENCE_S))
    except HFValidationError as error:
        raise LookupError(f"no folder {name}, and no name of the hub") from error
    except RepositoryNotFoundError as error:
        what = "model" if kind == "model" else "data set"
        here = f" and no folder {name} here" if kind == "model" else ""
        raise LookupError(f"no {what} {name} on the hub{here}; if it is private, log in (hf auth login)") from error
    except HfHubHTTPError:
        return  # the hub is there: those who fetch from it say what is wrong
    except Exception as error:  # whatever its HTTP library raises without a network
        why = " ".join(str(error).split()) or type(error).__name__
        raise Unreachable(f"{constants.ENDPOINT}: {why[:120]}") from error


def _within_patience(ask: Callable[[], Any]) -> None:
    """Call `ask` in a thread, which is left behind if it takes too long: a resolver of names takes no time limit."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
    if errors:
        raise errors[0]


def _is_cached(kind: Kind, name: str) -> bool:
    """Return whether some file of a model or data set was downloaded before."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        files = [try_to_load_from_cache(name, file, repo_type=kind) for file in CACHED_FILES[kind]]
    except ValueError:
        return False
    prepared = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    folder = Path(prepared) / name.replace("/", "___")
    return any(isinstance(file, str) for file in files) or (kind == "dataset" and folder.is_dir())


def _use_the_cache_only(why: str) -> None:
    """Let the hub's clients in this process, and those it starts, not ask the hub again."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    print(f"The hub cannot be reached ({why}): what was downloaded before is used ({OFFLINE}=1).", file=sys.stderr)
