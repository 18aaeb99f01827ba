"""Who may import whom. The rules are checked on the sources as they are, and on sources made to break them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_pg"
MIDDLE = ("rewards", "tasks", "data", "rollout", "models")
RARE = ("vllm", "deepspeed", "wandb")  # each in one file, inside a function


@dataclass(frozen=True)
class Import:
    """`from a.b import c` is the import of a.b.c; `lazy` if it runs only when a function is called."""

    target: str
    line: int
    lazy: bool

    def of(self, *modules: str) -> bool:
        return any(self.target == module or self.target.startswith(module + ".") for module in modules)


def imports(source: str, module: str) -> Iterator[Import]:
    """All a file imports at run time, also by importlib with a literal name. `module` is its dotted name."""
    yield from _imports(ast.parse(source), module.split("."), lazy=False)


def _imports(node: ast.AST, path: list[str], lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in _targets(child, path):
            yield Import(target, child.lineno, lazy)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.orelse, []), path, lazy)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, path, lazy or function)


def _targets(node: ast.AST, path: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = path[: len(path) - node.level] if node.level else []
        return [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def broken(source: str, module: str) -> list[str]:
    """What `module` (its dotted name) imports against the rules, one sentence each."""
    part = module.split(".")[1] if "." in module else ""
    return [f"{module}:{i.line} imports {i.target}" for i in imports(source, module) if not allowed(i, part)]


def allowed(found: Import, part: str) -> bool:
    if found.of(*RARE) and not found.lazy:
        return False
    standard = found.target.split(".")[0] in sys.stdlib_module_names
    match part:
        case "functional":
            return standard or found.of("torch", "rlhf_pg.functional")
        case "algorithms":
            return standard or found.of(
                "pydantic", "rlhf_pg.types", "rlhf_pg.names", "rlhf_pg.functional", "rlhf_pg.algorithms"
            )
        case "types" | "errors" | "names":
            return standard
        case "config":
            return not found.of("torch", "transformers", "rlhf_pg.train", "rlhf_pg.cli", "rlhf_pg.functional")
        case "cli" | "__main__":
            return found.lazy or standard or found.of("rlhf_pg.cli", "rlhf_pg.__version__", "rlhf_pg.config")
        case _ if part in MIDDLE:
            return not found.of(*(f"rlhf_pg.{upper}" for upper in ("train", "cli", "config", "algorithms")))
        case _:
            return not found.of("rlhf_pg.cli")


def modules() -> dict[str, str]:
    """Dotted name -> source of each file of the package; an __init__ as `part.__init__`, for relative imports."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(["rlhf_pg", *f.relative_to(PACKAGE).with_suffix("").parts]): f.read_text() for f in files}


def test_every_part_is_walked():
    parts = {name.split(".")[1] for name in modules()}
    assert {"types", "config", "functional", "algorithms", "train", *MIDDLE} <= parts
    assert "rlhf_pg.functional.credit" in modules()


def test_every_file_keeps_to_its_layer():
    assert [fault for name, source in modules().items() for fault in broken(source, name)] == []


def test_each_rare_package_is_imported_in_one_file_at_most():
    for package in RARE:
        users = [name for name, source in modules().items() if any(i.of(package) for i in imports(source, name))]
        assert len(users) <= 1, f"{package} is imported in {users}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("functional.kl", "import transformers"),
        ("functional.kl", "import numpy as np"),
        ("functional.kl", "from rlhf_pg.types import Batch"),
        ("functional.kl", "from rlhf_pg import types"),
        ("functional.kl", "from .. import types"),
        ("functional.kl", "def f():\n    from ..types import Batch"),
        ("algorithms.ppo", "import torch"),
        ("algorithms.ppo", "from rlhf_pg import config"),
        ("algorithms.ppo", "from rlhf_pg.train import loop"),
        ("rewards.score", "from rlhf_pg.config import RewardSpec"),
        ("tasks.gsm8k", "from rlhf_pg import config as c"),
        ("data.prompts", "class A:\n    def f(self):\n        import rlhf_pg.train.loop"),
        ("rollout.native", "import importlib\nimportlib.import_module('rlhf_pg.algorithms.grpo')"),
        ("models.policy", "try:\n    from rlhf_pg.cli import main\nexcept ImportError:\n    pass"),
        ("train.loop", "from rlhf_pg.cli import main"),
        ("debug.checks", "from rlhf_pg import cli"),
        ("config.recipe", "import torch.nn"),
        ("config.contradictions", "def f():\n    import torch"),
        ("types", "from torch import Tensor"),
        ("cli", "import torch"),
        ("cli", "from rlhf_pg.train.loop import train"),
        ("rollout.vllm", "import vllm"),
        ("train.backend", "if True:\n    from deepspeed import zero"),
        ("train.loop", "class A:\n    import wandb"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert broken(source, f"rlhf_pg.{module}") != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("functional.kl", "import math\nimport torch.nn.functional as F\nfrom rlhf_pg.functional import shapes"),
        ("functional.kl", "from . import shapes"),
        ("functional.__init__", "from . import shapes"),
        (
            "algorithms.ppo",
            "from rlhf_pg import functional as F\nfrom rlhf_pg.types import Batch\nfrom .base import Options",
        ),
        ("algorithms.ppo", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("rollout.vllm", "def start():\n    from vllm import LLM"),
        ("train.loop", "from rlhf_pg import config\nfrom rlhf_pg.algorithms.base import resolve\nimport torch"),
        ("cli", "def main():\n    from rlhf_pg.train.loop import train"),
    ],
)
def test_a_permitted_import_passes(module, source):
    assert broken(source, f"rlhf_pg.{module}") == []


@pytest.mark.parametrize("module", ["rlhf_pg.config", "rlhf_pg.algorithms.grpo", "rlhf_pg.types"])
def test_importing_it_loads_no_torch(module):
    """Through everything it imports in turn: what makes a wrong recipe fail within a second."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"
