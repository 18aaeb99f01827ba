"""What is wrong with a model folder, before its weights are read, and transformers' own complaints as a paragraph."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from rlhf_pg.names import nearest_folder

LFS = b"version https://git-lfs"  # how a file begins whose content git did not fetch
ADAPTER = "adapter_config.json"
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
TOKENIZER_PATTERNS = ("*.bpe.model", "*.tiktoken", "additional_chat_templates/*.jinja")
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # what an export can be written in
WHY = 400  # characters of another library's message that are shown


def local(path: str, name: str) -> Path | None:
    """Return the folder on this machine that holds a model: `path`, or a hub name's in the cache if it has `name`."""
    if Path(path).is_dir():
        return Path(path)
    try:
        file = cached_file(path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return Path(file).parent if file else None


def check_weights(folder: Path) -> None:
    """Raise ValueError if a folder has no readable config.json or not all of its safetensors weights. Pickles are never
    loaded. A path that is no folder is left to the hub."""
    if not folder.is_dir():
        return
    check_config(folder)
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{folder}: a model with a LoRA adapter beside it ({ADAPTER}), and only one of them can be meant: move the "
            "adapter away to train the model, or merge it by PEFT's merge_and_unload()"
        )
    for file in _shards(folder):
        refuse_pointer(file)
        try:
            with safe_open(file, "pt"):  # reads the header and compares it with the length of the file
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error}): cut off or damaged; fetch it again") from error


def check_config(folder: Path) -> None:
    """Raise ValueError if a folder has no readable config.json, or generation settings that cannot be read."""
    if not folder.is_dir():
        _refuse_no_folder(folder)
        return
    _refuse_adapter(folder)
    if "config.json" not in _names(folder):
        files = sorted(folder.glob("*.gguf"))
        hint = f"; it holds {files[0].name}: name that file" if files else ""
        raise ValueError(
            f"{folder}: no config.json there; model.path must be a Hugging Face model folder or hub name{hint}"
        )
    for name in ("config.json", "generation_config.json"):  # transformers takes no notice of a broken second one
        if (folder / name).exists():
            refuse_pointer(folder / name)
            _read_json(folder / name)


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError if a folder has no tokenizer files that can be read."""
    if not folder.is_dir():
        _refuse_no_folder(folder)
        return
    names = _names(folder)
    vocabularies = [folder / name for name in TOKENIZERS if name in names]
    others = [*folder.glob("*.bpe.model"), *folder.glob("*.tiktoken"), *folder.glob("tokenization_*.py")]
    if not vocabularies and not others:
        _refuse_adapter(folder)
        raise ValueError(
            f"{folder}: no tokenizer files there, such as tokenizer.json: copy them from where the model comes from or "
            "name a folder that has them by model.tokenizer"
        )
    # transformers also reads config.json, which says the kind of tokenizer
    for file in (*vocabularies, *(folder / name for name in (*TOKENIZER_SETTINGS, "config.json"))):
        if file.exists():
            refuse_pointer(file)
            if file.suffix == ".json":
                _read_json(file)


def dtype_of(folder: Path) -> torch.dtype | None:
    """Return the dtype of most of the numbers in a folder's weights; None for a path that is no folder."""
    if not folder.is_dir():
        return None
    numbers: Counter[torch.dtype] = Counter()
    for file in _shards(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, not a dict
                tensor = tensors.get_slice(name)
                if kind := FLOATS.get(tensor.get_dtype()):
                    numbers[kind] += math.prod(tensor.get_shape())
    return numbers.most_common(1)[0][0] if numbers else None


@contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turn whatever transformers raises inside into a ValueError of one paragraph: `what` of `path`, and the cause."""
    try:
        yield
    except Exception as error:  # from hub clients, parsers and models' own code
        cause = " ".join(str(error).split())
        cause = cause if len(cause) <= WHY else f"{cause[:WHY]}..."
        place = ""
        if not Path(path).is_dir():
            place = f" (no folder of that name{nearest_folder(Path(path))}; it was looked for on the hub)"
        hint = ""
        if "trust_remote_code" in cause:
            hint = "; model.trust_remote_code=true runs code that comes with a model: set it only if you trust that"
        raise ValueError(
            f"{path}: the {what} cannot be loaded{place}: {type(error).__name__}: {cause}{hint}"
        ) from error


def _names(folder: Path) -> set[str]:
    try:
        return {file.name for file in folder.iterdir()}
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror}): see its permissions") from error


def _refuse_no_folder(path: Path) -> None:
    """Raise ValueError for a path that is no folder and cannot be a hub name either."""
    if path.is_file():
        raise ValueError(f"{path}: a file; name the folder that it is in, or a .gguf file")
    if not HUB_NAME.fullmatch(str(path)):
        raise ValueError(f"{path}: no such folder{nearest_folder(path)}")


def _refuse_adapter(folder: Path) -> None:
    names = _names(folder)
    if ADAPTER in names and "config.json" not in names:
        base = _read_json(folder / ADAPTER).get("base_model_name_or_path") or "its base"
        raise ValueError(
            f"{folder}: a LoRA adapter, not a model: name the model it was merged into (run.dir/model of its run), or "
            f"merge it into {base} by PEFT's merge_and_unload() and save_pretrained()"
        )


def _shards(folder: Path) -> list[Path]:
    """Return the files that hold the weights. Raises ValueError if there is none, or not all the index names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no *.safetensors weights there; pickle weights are not loaded, convert them first")
    if (folder / "model.safetensors").exists() or not (folder / INDEX).exists():
        return files
    refuse_pointer(folder / INDEX)
    index = _read_json(folder / INDEX)
    names = sorted(set(index.get("weight_map", {}).values()))
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise ValueError(
            f"{folder}: {len(absent)} of {len(names)} files of weights are missing that {INDEX} names, such as "
            f"{absent[0]}; fetch them"
        )
    return [folder / name for name in names]


def refuse_pointer(file: Path) -> None:
    """Raise ValueError for a file that is empty or stands for content that git did not fetch."""
    try:
        with file.open("rb") as opened:
            beginning = opened.read(len(LFS))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    if beginning == LFS:
        raise ValueError(
            f"{file}: only a Git LFS pointer, its content was not fetched: run git lfs pull in {file.parent}"
        )
    if not beginning and file.suffix not in (".txt", ".jinja"):
        raise ValueError(f"{file}: empty; fetch it again")


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: an object is needed, this is a {type(content).__name__}")
    return content
