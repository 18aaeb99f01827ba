"""The wheel: what it holds, and that it runs in a folder without the project."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rlhf_pg

ROOT = Path(__file__).parents[1]
PARTS = ("rlhf_pg", "recipes", "reward_fns", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 or newer builds the wheel")
    project, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, project / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, project / part)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(project),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
    ]
    subprocess.run(build, check=True, cwd=out, timeout=120)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """Runs `rlhf-pg` of the installed wheel in an empty folder."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*words):
        command = [sys.executable, "-m", "rlhf_pg", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    run.folder, run.site = folder, site
    return run


def test_everything_is_in_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"rlhf_pg"}  # the package and its .dist-info
    shipped = {
        f"rlhf_pg/{part}/{f.relative_to(ROOT / part)}" for part in ("recipes", "reward_fns") for f in files(part)
    }
    assert shipped <= set(names)
    assert {name for name in names if name.endswith((".html", ".css", ".js"))}


def files(part):
    return [f for f in (ROOT / part).rglob("*") if f.is_file() and f.suffix in (".py", ".yaml")]


def test_a_shipped_recipe_trains_by_name_in_an_empty_folder(elsewhere):
    words = ("run.steps=1", "run.preflight=false", "data.eval.options.count=2", "eval.k=[1]", "eval.samples=1")
    done = elsewhere("train", "toy_grpo", *words)
    assert done.returncode == 0, done.stderr
    assert (elsewhere.folder / "runs" / "toy_grpo" / "report.html").is_file()
    config = (elsewhere.folder / "runs" / "toy_grpo" / "config.yaml").read_text()
    assert f"fn: {elsewhere.site}/rlhf_pg/recipes/toy_reward.py:sevens" in config


def test_a_copied_recipe_still_has_its_base_and_shipped_rewards(elsewhere):
    assert elsewhere("recipes", "copy", "gsm8k_rloo", "mine.yaml").returncode == 0
    refused = elsewhere("train", "mine.yaml", "optimizer.lrr=1")
    assert refused.returncode == 2
    assert "optimizer.lrr: unknown key" in refused.stderr and "1 problem" in refused.stderr


def test_the_list_names_every_recipe(elsewhere):
    lines = elsewhere("recipes").stdout.splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted(
        f.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        for f in files("recipes")
        if f.suffix == ".yaml" and f.parent.name != "base"
    )


def test_the_metadata_is_complete(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Author"] and metadata["Summary"] and metadata["Keywords"] and metadata["Requires-Python"]
    assert (metadata["Name"], metadata["Version"]) == ("rlhf_pg", rlhf_pg.__version__)
    assert str(metadata.get_payload()).startswith("# rlhf_pg")
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_the_version_is_one():
    assert f"version: {rlhf_pg.__version__}\n" in (ROOT / "CITATION.cff").read_text()
