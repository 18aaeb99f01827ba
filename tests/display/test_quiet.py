"""What a library says below an error is hidden, what the user's own code says is not."""

import logging
import os
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from rlhf_pg.display import quiet
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.training import small_run

ROOT = Path(__file__).parents[2]

LIBRARY = """
import logging, warnings
from tqdm.auto import tqdm
def speak():
    log = logging.getLogger("noisy")
    handler = logging.StreamHandler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.info("library info"); log.warning("library warning"); log.error("library error")
    warnings.warn("deprecated in the library", FutureWarning, stacklevel=1)
    warnings.warn("deprecated by its caller", FutureWarning, stacklevel=2)
    logging.getLogger("bare").warning("library without a handler")
    for _ in tqdm(range(3), desc="library bar"): pass
"""
PROGRAM = """
import logging, sys, warnings
from rlhf_pg.display import quiet
with quiet.libraries(shown="debug" in sys.argv):
    import noisy
    with quiet.prints_logged():
        print("library print")
    noisy.speak()
    logging.getLogger("rlhf_pg.storage").warning("our warning")
    logging.getLogger("plugin").warning("user's warning")
    warnings.warn("the user's own", UserWarning)
    print("our line")
"""
OF_LIBRARY = ("info", "warning", "without a handler", "bar", "print")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a program and a library in site-packages print, by the arguments of the program."""
    root = tmp_path_factory.mktemp("quiet")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "noisy.py").write_text(textwrap.dedent(LIBRARY))
    (root / "program.py").write_text(textwrap.dedent(PROGRAM))

    def run(*arguments: str) -> str:
        path = f"import sys; sys.path.insert(0, {str(root / 'site-packages')!r})"
        code = f"{path}; import runpy; runpy.run_path({str(root / 'program.py')!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return {"quiet": run(), "debug": run("debug")}


def test_a_librarys_prints_logs_warnings_and_bars_are_hidden(said):
    assert not [what for what in OF_LIBRARY if f"library {what}" in said["quiet"]]
    assert "deprecated in the library" not in said["quiet"]


def test_a_librarys_error_and_what_the_users_own_code_is_told_are_shown(said):
    for text in ("library error", "our warning", "user's warning", "the user's own", "our line"):
        assert text in said["quiet"], text
    assert "deprecated by its caller" in said["quiet"]  # the caller is the user's file


def test_debug_shows_everything(said):
    for what in OF_LIBRARY:
        assert f"library {what}" in said["debug"], what
    assert "deprecated in the library" in said["debug"]


def test_afterwards_logging_warnings_and_environment_are_as_before():
    before = logging.Logger.callHandlers, warnings.showwarning, dict(os.environ)
    with pytest.raises(KeyError), quiet.libraries(shown=False):
        assert logging.Logger.callHandlers is not before[0]
        raise KeyError
    assert (logging.Logger.callHandlers, warnings.showwarning, dict(os.environ)) == before


def test_what_a_library_printed_before_it_failed_is_logged_as_an_error(caplog):
    with quiet.libraries(shown=False), pytest.raises(RuntimeError), quiet.prints_logged():
        print("ninja: no compiler")
        raise RuntimeError
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "ninja: no compiler")]


def command(folder, *arguments: str) -> tuple[int, str]:
    """(exit status, stdout and stderr) of `python -m rlhf_pg` in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name not in quiet.QUIET}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "rlhf_pg", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["native", "vllm"])
def test_a_run_without_a_live_view_prints_nothing(tmp_path, engine):
    if engine == "vllm" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    save_model(
        tiny_model(seed=0, vocabulary=len(character_tokenizer())), character_tokenizer(), tmp_path / "start"
    )  # weights that are loaded, with a bar
    held_out = {"task": "arithmetic", "options": {"count": 4}}
    sections = {"data": {"train": held_out, "eval": held_out}, "run": {"steps": 2}}
    mapping = small_run.mapping(tmp_path / "run", **sections, model={"path": "start"})
    mapping["rollout"]["engine"] = engine
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(mapping))
    assert command(tmp_path, "train", "recipe.yaml") == (0, "")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_run_shows_its_libraries_bars_in_debug(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_run.mapping(tmp_path / "run", run={"steps": 1})))
    status, output = command(tmp_path, "train", "recipe.yaml", "--debug")
    assert status == 0 and "Writing model shards" in output
