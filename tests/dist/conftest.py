from pathlib import Path

import pytest

from tests.dist import plays


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    """The folder of a run of `plays.RUNS` by this process, made once."""
    folders: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp("one")
            plays.in_one_process(folder, plays.recipe(folder, name, plays.RUNS[name] | plays.EVALUATED))
            folders[name] = folder
        return folders[name]

    return run
