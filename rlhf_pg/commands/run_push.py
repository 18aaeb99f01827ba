"""Put a model's folder on the Hugging Face Hub: its weights, tokenizer, settings and card, and nothing else of a run.

The token is that of `hf auth login` or of HF_TOKEN; it is never on a command line and never recorded.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from rlhf_pg.errors import RunError

CONFIGS = ("config.json", "adapter_config.json")  # one of them makes a folder a model, or an adapter
WEIGHTS, INDEX = "*.safetensors", "model.safetensors.index.json"
CARD = "README.md"
FOLDERS = ("additional_chat_templates",)  # of a model's folder that belong to it
PRIVATE = ("source.json",)  # a path on this machine is in it; the card has what is in it besides
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
ANSWER_S = 15.0  # the hub may take to say who is asking
LISTED = 20  # files that are printed


def push(folder: Path, repo: str, *, private: bool = False, dry_run: bool = False) -> int:
    """Send a model's folder to the hub's repository `repo`, or only say what would be sent. Returns the exit code.

    Raises ValueError for a folder that is no complete model, a name that is none, a card whose metadata the hub would
    refuse; RunError where there is no login, no network, or the hub refuses.
    """
    model = model_folder(folder)
    _check_name(repo)
    sent, left_out = contents(model)
    metadata = _metadata(model)
    _say(folder, model, sent, left_out, metadata)
    visible = "private" if private else "public"
    if dry_run:
        print(f"dry run: nothing was sent to {repo} ({visible})")
        return 0
    with _hub(repo):
        token = _token()
        api = HfApi(token=token)
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise RunError(
                f"{repo} is there already and public: nothing was sent; leave out --private, or name another"
            )
        patterns = [glob.escape(file) for file in sent]
        api.upload_folder(
            repo_id=repo, folder_path=model, allow_patterns=patterns, commit_message="Upload by rlhf-pg push"
        )
    print(f"sent: {constants.ENDPOINT}/{repo}")
    return 0


def model_folder(folder: Path) -> Path:
    """Return the folder of a model: `folder`/model of a run, or `folder` itself.

    Raises ValueError for one that holds none, or not all of its weights.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a run's folder, or a model's")
    places = [place for place in (folder / "model", folder) if any((place / name).is_file() for name in CONFIGS)]
    if not places:
        raise ValueError(
            f"{folder}: no model in it: neither {folder / 'model'} nor the folder itself has a {CONFIGS[0]}. A run "
            "leaves its model when it ends; run.resume=auto goes on with one that was stopped"
        )
    model = places[0]
    parts = _parts(model / INDEX) or ([] if list(model.glob(WEIGHTS)) else [WEIGHTS])
    absent = [part for part in parts if not (model / part).is_file()]
    if absent:
        raise ValueError(f"{model}: its weights are not all there ({', '.join(absent[:3])}): nothing to send")
    return model


def contents(model: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Return what is sent, file -> bytes, and what is left out, name -> why."""
    sent: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for place in sorted(model.iterdir()):
        if place.name.startswith("."):
            left_out[place.name] = "hidden"
        elif place.name in PRIVATE:
            left_out[place.name] = "names a path on this machine"
        elif any(fnmatch(place.name.lower(), pattern) for pattern in PICKLES):
            left_out[place.name] = "a pickle"
        elif place.is_file():
            sent[place.name] = place.stat().st_size
        elif place.name in FOLDERS:
            files = [file for file in sorted(place.rglob("*")) if file.is_file()]
            sent |= {file.relative_to(model).as_posix(): file.stat().st_size for file in files}
        else:
            left_out[f"{place.name}/"] = "no part of a model"
    return sent, left_out


def _parts(index: Path) -> list[str]:
    """Return the files that an index of weights names; [] without one."""
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not a readable index of weights ({error})") from error


def _check_name(repo: str) -> None:
    owner, _, name = repo.partition("/")
    try:
        validate_repo_id(repo)
        if not owner or not name:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        raise ValueError(f"REPO {repo!r}: must be owner/name, as in me/my-model ({error})") from error


def _metadata(model: Path) -> dict[str, Any]:
    """Return the metadata of the model's card, {} without a card. Raises ValueError for what the hub would refuse."""
    file = model / CARD
    if not file.is_file():
        return {}
    try:
        metadata = ModelCard.load(file).data.to_dict()
        bases = metadata.get("base_model") or []
        for base in [bases] if isinstance(bases, str) else bases:
            validate_repo_id(base)
    except Exception as error:  # YAML's errors, the library's, those of bytes that are no text
        raise ValueError(f"{file}: its metadata cannot be used ({' '.join(str(error).split())}): mend it") from error
    if not isinstance(metadata.get("license", ""), str | list) or not isinstance(metadata.get("tags", []), list):
        raise ValueError(f"{file}: in its metadata, license must be text and tags a list: mend it")
    return metadata


def _say(folder: Path, model: Path, sent: dict[str, int], left_out: dict[str, str], metadata: dict[str, Any]) -> None:
    """Print what is sent, what is not, and what the card says."""
    print(f"{model}: {len(sent)} files, {_size(sum(sent.values()))}")
    for file, size in list(sent.items())[:LISTED]:
        print(f"  {_size(size):>9}  {file}")
    if len(sent) > LISTED:
        print(f"             and {len(sent) - LISTED} more")
    if model != folder:
        others = sorted(f"{place.name}{'/' * place.is_dir()}" for place in folder.iterdir() if place != model)
        shown = [name for name in others if not name.startswith(".")]
        print(f"left out of {folder}: {', '.join(shown)}")
        if (folder / "adapter").is_dir():
            print(f"  (the adapter by itself: rlhf-pg push {folder / 'adapter'} REPO)")
    if left_out:
        print(f"left out of {model}: {', '.join(f'{name} ({why})' for name, why in left_out.items())}")
    shown = "; ".join(
        f"{name} {_listed(metadata[name])}" for name in ("base_model", "license", "tags") if name in metadata
    )
    print(f"card: {shown or 'without metadata'}" if (model / CARD).is_file() else f"card: none ({CARD} is missing)")
    base = _adapter_base(model)
    if base and Path(base).is_absolute():
        print(f"warning: adapter_config.json names the base model by a path on this machine, {base}: others have none")


def _adapter_base(model: Path) -> str:
    try:
        return str(json.loads((model / CONFIGS[1]).read_bytes()).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _size(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, _ = size / 1000, units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] in ("B", "kB") else f"{size:.1f} {units[0]}"


def _token() -> str:
    """Return the token of the login, once the hub has said that it knows it. Raises RunError without one."""
    token = get_token()
    if not token:
        raise RunError("no login to the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN, then try again")
    address = f"{constants.ENDPOINT}/api/whoami-v2"  # the library's own question waits without end
    hf_raise_for_status(get_session().get(address, headers=build_hf_headers(token=token), timeout=ANSWER_S))
    return token


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """Turn what the hub and its client raise into one paragraph."""
    try:
        yield
    except RunError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        advice = {
            401: "the hub does not know the token: run `hf auth login` again, or mend HF_TOKEN",
            403: f"this login may not write to {repo}: take a token that may write, or a name of your own",
        }.get(status, "try again later, or see what it says")
        said = " ".join((error.server_message or str(error)).split())
        raise RunError(
            f"{constants.ENDPOINT} refused ({status}: {said[:300]}): {advice}. Nothing is lost here"
        ) from error
    except Exception as error:  # whatever the client raises: no route, no name, a proxy, a timeout, offline mode, ...
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        network = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
        what = f"{constants.ENDPOINT} cannot be reached" if network else f"the upload to {repo} failed"
        hint = "is there a network, and is HF_HUB_OFFLINE unset?" if network else "see what it says."
        raise RunError(f"{what} ({cause}): {hint} Nothing is lost here; try again") from error
