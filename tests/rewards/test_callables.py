"""Everything that can be called works as a reward; what cannot is refused with the remedy before anything runs."""

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

SOURCE = """
import asyncio, functools

class MyReward:
    on_limit = 0.25
    def __init__(self, scale=2.0): self.scale = scale
    def __call__(self, completion): return self.scale * len(completion)
    def method(self, completion): return self.scale + len(completion)
    @staticmethod
    def static(completion): return 1.0 * len(completion)
    @classmethod
    def of_class(cls, completion): return 3.0 * len(completion)

class Judge:
    async def __call__(self, completion): return 4.0

class NotCallable:
    pass

class Yields:
    def __call__(self, completion): yield 1.0

my_reward, judge, yields = MyReward(), Judge(), Yields()
anonymous = lambda completion: 5.0

def scaled(completion, factor): return factor * len(completion)
scaled.on_limit = 0.5
partial = functools.partial(scaled, factor=6.0)

async def later(completion, factor=1.0):
    await asyncio.sleep(0)
    return factor
partial_later = functools.partial(later, factor=7.0)
partial_instance = functools.partial(my_reward)

def named(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

def unnamed(function):
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

@named
def decorated(completion, answer): return 8.0

@named
async def decorated_later(completion): return 9.0

@named
def decorated_batch(completions, **kwargs): return [10.0] * len(completions)

@unnamed
def hidden(completion): return 1.0

def generator(completion): yield 1.0
async def async_generator(completion): yield 1.0
def positional(completion, /): return 1.0
def positional_with_default(scale=1.0, /, completion=""): return 11.0
"""


@pytest.fixture
def resolve(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    return lambda name: plugin.resolve(f"{tmp_path / 'mine.py'}:{name}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_reward", 6.0), ("my_reward.method", 5.0), ("MyReward.static", 3.0), ("MyReward.of_class", 9.0),
        ("judge", 4.0), ("anonymous", 5.0), ("partial", 18.0), ("partial_later", 7.0), ("partial_instance", 6.0),
        ("decorated", 8.0), ("decorated_later", 9.0), ("decorated_batch", 10.0), ("positional_with_default", 11.0),
    ],
)  # fmt: skip
def test_every_kind_of_callable_is_a_reward(resolve, name, expected):
    with Scorer([resolve(name)], workers=1) as scorer:
        assert [s.reward for s in scorer.score([Sample("p", "abc", "stop", {"answer": "x"})])] == [expected]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("MyReward", r"is a class: write `my_reward = MyReward\(\)` below it and name my_reward"),
        ("NotCallable", r"is a class: give it a method __call__"),
        ("MyReward.method", r"method of the class MyReward without an instance.*name myreward.method"),
        ("hidden", r"\*args, \*\*kwargs.*functools.wraps"),
        ("generator", "is a generator: return the reward"),
        ("async_generator", "is a generator"),
        ("yields", "is a generator"),
        ("positional", "positional-only"),
    ],
)
def test_what_cannot_be_called_says_what_to_do(resolve, name, remedy):
    with pytest.raises(ValueError, match=remedy):
        resolve(name)


def test_asynchronous_callables_run_together_and_attributes_are_seen_through_partial(resolve):
    assert [resolve(n).is_async for n in ("judge", "partial_later", "partial_instance", "decorated")] == [
        True,
        True,
        False,
        False,
    ]
    assert [resolve(n).on_limit for n in ("my_reward", "partial", "anonymous")] == [0.25, 0.5, None]
