"""Who may import whom (scripts/layers.py). The rules are checked on the sources, and on sources made to break them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import layers

PACKAGE = Path(__file__).parents[1] / "rlhf_pg"
RARE = ("vllm", "deepspeed", "wandb")  # each in one file, inside a function
LIGHT = ("pydantic", "ruamel", "rlhf_pg")  # beside the standard library, all that a recipe is read with
PACKAGES_OF = {  # folders that keep to few packages; the standard library is always there
    "functional": ("torch", "rlhf_pg"),
    "algorithms": ("pydantic", "rlhf_pg"),
    "config": LIGHT,
    "tasks": LIGHT,
    "types": ("rlhf_pg",),
    "errors": ("rlhf_pg",),
    "names": ("rlhf_pg",),
    "grading": ("sympy", "mpmath", "math_verify", "latex2sympy2_extended", "rlhf_pg"),
    "display": ("rich", "matplotlib", "rlhf_pg"),
    "report": ("jinja2", "numpy", "rich", "matplotlib", "ruamel", "tokenizers", "rlhf_pg"),
}


@dataclass(frozen=True)
class Import:
    """`from a.b import c` is the import of a.b.c."""

    target: str
    line: int
    lazy: bool  # whether it runs only when a function is called
    typing: bool  # whether only type checkers see it

    def of(self, *modules: str) -> bool:
        return any(self.target == module or self.target.startswith(module + ".") for module in modules)


def imports(source: str, module: str) -> Iterator[Import]:
    """All a file imports, also in functions, for type checkers, and by importlib with a literal name.

    `module` is its dotted name, with `__init__` where it is one.
    """
    yield from _imports(ast.parse(source), module.split("."), lazy=False, typing=False)


def _imports(node: ast.AST, path: list[str], lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for target in _targets(child, path):
            yield Import(target, child.lineno, lazy, typing)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(ast.Module(child.body, []), path, lazy, typing=True)
            yield from _imports(ast.Module(child.orelse, []), path, lazy, typing)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, path, lazy or function, typing)


def _targets(node: ast.AST, path: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = path[: len(path) - node.level] if node.level else []
        return [".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def folder_of(target: str) -> str:
    """The folder, or the file beside the folders, of a dotted name under rlhf_pg; "" for the package itself."""
    part = target.split(".")[1] if "." in target else ""
    return part if part in layers.MAY_IMPORT or part in layers.EVERYWHERE else ""


def broken(source: str, module: str) -> list[str]:
    """What `module` (its dotted name) imports against the rules, one sentence each."""
    return [f"{module}:{i.line} imports {i.target}" for i in imports(source, module) if not allowed(i, module)]


def allowed(imported: Import, module: str) -> bool:
    folder, package = folder_of(module), imported.target.split(".")[0]
    if imported.of(*RARE) and not (imported.lazy or imported.typing):
        return False
    if package == "rlhf_pg":
        target = folder_of(imported.target)
        if target in ("", folder):
            return target == folder or not imported.target.startswith("rlhf_pg.") or imported.of("rlhf_pg.__version__")
        if module == "rlhf_pg.__main__":
            return target == "cli"
        if folder in layers.EVERYWHERE:
            return False
        return target in layers.EVERYWHERE or target in layers.MAY_IMPORT.get(folder, ())
    if package in sys.stdlib_module_names or imported.typing:
        return True
    if folder in ("cli", "commands", "") and not module.split(".")[-1].startswith(("run_", "open_run", "export")):
        return imported.lazy  # parsing comes before anything heavy
    return package in PACKAGES_OF[folder] if folder in PACKAGES_OF else True


def modules() -> dict[str, str]:
    """Dotted name -> source of each file of the package; an __init__ as `part.__init__`, for relative imports."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(["rlhf_pg", *f.relative_to(PACKAGE).with_suffix("").parts]): f.read_text() for f in files}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every circle that a walk along the edges comes upon, as the names on it."""
    done: set[str] = set()
    met: list[list[str]] = []

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            met.append([*path[path.index(name) :], name])
        elif name not in done:
            for following in sorted(edges.get(name, ())):
                walk(following, [*path, name])
            done.add(name)

    for name in sorted(edges):
        walk(name, [])
    return met


def file_edges() -> dict[str, set[str]]:
    """Which files of the package each file imports, lazily and for type checkers too."""
    sources = {name.removesuffix(".__init__"): source for name, source in modules().items()}
    edges: dict[str, set[str]] = {}
    for name, source in sources.items():
        path = f"{name}.__init__" if (PACKAGE.parent / Path(*name.split("."), "__init__.py")).exists() else name
        targets = (_file(i.target, sources) for i in imports(source, path))
        edges[name] = {target for target in targets if target and target != name}
    return edges


def _file(target: str, sources: dict[str, str]) -> str | None:
    while target and target not in sources:
        target = target.rpartition(".")[0]
    return target if "." in target else None  # the package's own __init__ has the version only


def folder_edges() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for name, targets in file_edges().items():
        edges.setdefault(folder_of(name), set()).update(map(folder_of, targets))
    return {name: targets - {name, *layers.EVERYWHERE} for name, targets in edges.items() if name in layers.MAY_IMPORT}


def test_every_folder_is_in_the_graph():
    folders = {f.name for f in PACKAGE.iterdir() if f.is_dir() and not f.is_symlink() and f.name != "__pycache__"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert folders | files == {*layers.MAY_IMPORT, *layers.EVERYWHERE}
    assert layers.IDEAS.keys() == layers.MAY_IMPORT.keys()


def test_every_file_keeps_to_its_layer():
    assert [fault for name, source in modules().items() for fault in broken(source, name)] == []


def test_every_arrow_of_the_graph_is_needed_by_an_import():
    assert {name: set(targets) for name, targets in layers.MAY_IMPORT.items()} == folder_edges()


def test_there_is_no_circle_between_folders_or_files():
    assert circles(folder_edges()) == []
    assert circles(file_edges()) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_drawing_in_the_documentation_is_of_this_graph():
    assert layers.drawing() in layers.PAGE.read_text(), "run python scripts/layers.py"


def test_each_rare_package_is_imported_in_one_file_at_most():
    for package in RARE:
        users = [name for name, source in modules().items() if any(i.of(package) for i in imports(source, name))]
        assert len(users) <= 1, f"{package} is imported in {users}"


def test_the_tests_of_a_folder_are_in_a_folder_of_its_name():
    here = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert here - {"dist", "reward_fns", "smollm2"} <= layers.MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("functional.kl", "import transformers"),
        ("functional.kl", "import numpy as np"),
        ("functional.kl", "from rlhf_pg.types import Batch\nfrom rlhf_pg.models import policy"),
        ("functional.kl", "from rlhf_pg import models"),
        ("functional.kl", "from .. import models"),
        ("functional.kl", "def f():\n    from ..models import policy"),
        ("algorithms.ppo", "import torch"),
        ("algorithms.ppo", "from rlhf_pg import config"),
        ("algorithms.ppo", "from rlhf_pg.training import loop"),
        ("rewards.score", "from rlhf_pg.config import RewardSpec"),
        ("rewards.score", "from rlhf_pg.grading import equality"),
        ("tasks.gsm8k", "from rlhf_pg import config as c"),
        ("data.prompts", "class A:\n    def f(self):\n        import rlhf_pg.training.loop"),
        ("rollout.native", "import importlib\nimportlib.import_module('rlhf_pg.algorithms.grpo')"),
        ("models.policy", "try:\n    from rlhf_pg.cli import main\nexcept ImportError:\n    pass"),
        ("models.policy", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlhf_pg.training import loop"),
        ("training.loop", "from rlhf_pg.cli import main"),
        ("training.loop", "from rlhf_pg.preflight import checks"),
        ("preflight.checks", "from rlhf_pg import cli"),
        ("config.recipe", "import torch.nn"),
        ("config.contradictions", "def f():\n    import torch"),
        ("grading.equality", "import torch"),
        ("report.charts", "def f():\n    import torch"),
        ("types", "from torch import Tensor"),
        ("types", "from rlhf_pg.models import packing"),
        ("cli", "import torch"),
        ("cli", "from rlhf_pg.training.loop import train"),
        ("commands.train", "import torch"),
        ("rollout.vllm", "import vllm"),
        ("distributed.backend", "if True:\n    from deepspeed import zero"),
        ("training.loop", "class A:\n    import wandb"),
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
        ("training.loop", "from rlhf_pg import config\nfrom rlhf_pg.algorithms.base import resolve\nimport torch"),
        ("cli", "from rlhf_pg import __version__\nfrom rlhf_pg.commands import train"),
        ("commands.train", "def run():\n    from rlhf_pg.training.loop import train_step"),
        ("commands.run_training", "from rich.console import Console\nfrom rlhf_pg.training.loop import train_step"),
    ],
)
def test_a_permitted_import_passes(module, source):
    assert broken(source, f"rlhf_pg.{module}") == []


@pytest.mark.parametrize("module", ["rlhf_pg.config", "rlhf_pg.algorithms.grpo", "rlhf_pg.types", "rlhf_pg.cli"])
def test_importing_it_loads_no_torch(module):
    """Through everything it imports in turn: what makes a wrong recipe fail within a second."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"
