"""Arguments that a recipe gives to a reward function: checked against its signature, the same in every call."""

import pytest

from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.arguments import check_rows, replaced_columns
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def scaled(completion, scale, offset=0.0): return len(completion) * scale + offset\n"
        "def batch(completions, scale): return [len(c) * scale for c in completions]\n"
        "async def later(completion, scale): return len(completion) * scale\n"
        "def rest(completion, **kwargs): return sum(v for k, v in kwargs.items() if k in ('a', 'b'))\n"
        "def plain(completion): return 1.0\n"
    )
    return tmp_path / "mine.py"


def resolve(file, function, option="rewards.0.{}", name=None, **args):
    return plugin.resolve(f"{file}:{function}", option=option, args=args, name=name)


def scores(rewards, *samples):
    with Scorer(rewards, workers=1) as scorer:
        return scorer.score(samples)


def sample(completion, **columns):
    return Sample("p", completion, "stop", columns)


@pytest.mark.parametrize("function", ["scaled", "batch", "later"])
def test_an_argument_has_its_value_in_every_call_of_every_kind_of_function(file, function):
    rewards = [resolve(file, function, scale=2)]
    check_rows(rewards, [("row 1", {"answer": "4"})])
    assert [s.reward for s in scores(rewards, sample("abc"), sample("a"))] == [6.0, 2.0]


def test_a_default_is_replaced_and_a_column_of_that_name_is_not_used(file):
    rewards = [resolve(file, "scaled", scale=2, offset=100)]
    (score,) = scores(rewards, sample("abc", scale=50, offset=7))
    assert score.reward == 106.0
    assert replaced_columns(rewards, ["scale", "answer"]) == [
        "rewards.0.args.scale: used in place of the data's column 'scale'"
    ]


def test_kwargs_take_any_argument_in_place_of_a_column(file):
    (score,) = scores([resolve(file, "rest", a=1)], sample("x", a=10, b=5))
    assert score.reward == 6.0


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (
            "scaled",
            {"scal": 1},
            r"rewards\.0\.args\.scal: .* has no argument 'scal'; it takes scale, offset; did you mean 'scale'\?",
        ),
        ("plain", {"scale": 1}, r"args\.scale: .* has no argument 'scale'; it takes none but those of a sample"),
        ("scaled", {"completion": "x"}, r"args\.completion: comes with every sample"),
        ("rest", {"answer": "x"}, r"args\.answer: comes with every sample"),
        ("scaled", {"scale": {1, 2}}, r"args\.scale: Object of type set is not JSON serializable"),
    ],
)
def test_what_cannot_be_an_argument_is_named_by_its_key(file, function, args, message):
    with pytest.raises(ValueError, match=message):
        resolve(file, function, **args)


@pytest.mark.parametrize(
    ("option", "how"), [("rewards.3.{}", "rewards.3.args.scale=..."), ("--{}", "--args scale=...")]
)
def test_an_argument_that_neither_data_nor_args_have_names_both_ways(file, option, how):
    with pytest.raises(ValueError, match="asks for argument 'scale', which the data does not have") as caught:
        check_rows([resolve(file, "scaled", option=option)], [("row 1", {"answer": "4"})])
    assert str(caught.value).endswith(f"by {how}")


def test_one_function_twice_with_other_arguments_has_two_names(file):
    rewards = [resolve(file, "scaled", scale=1), resolve(file, "scaled", name="doubled", scale=2)]
    (score,) = scores(rewards, sample("abc"))
    assert (score.reward, score.parts) == (9.0, {"scaled": 3.0, "doubled": 6.0})
    with pytest.raises(ValueError, match=r"reward/mean is a statistic .*another name by rewards\.0\.name"):
        plugin.require_free_names([resolve(file, "scaled", name="mean", scale=3)])
    with pytest.raises(ValueError, match=r"two reward functions are called 'scaled'.*rewards\.0\.name"):
        plugin.require_distinct_names([rewards[0], resolve(file, "scaled", scale=3)])
