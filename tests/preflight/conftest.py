"""One scorer for all preflight tests of a file: its process starts once."""

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from tests.preflight.sessions import small_session


@pytest.fixture(scope="module")
def scorer():
    with Scorer([plugin.resolve("gsm8k")], workers=1) as made:
        yield made


@pytest.fixture
def session(scorer, tmp_path):
    return small_session(scorer, tmp_path)
