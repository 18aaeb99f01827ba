"""What a recipe may ask of each algorithm: defaults, and contradictions refused by name with the reason."""

import inspect

import pytest
from pydantic import ValidationError

from rlhf_pg.algorithms import base, rloo
from rlhf_pg.config import messages


def problems(name, **options):
    """The lines that the check of a recipe prints."""
    schema = base.resolve(name).options
    with pytest.raises(ValidationError) as error:
        schema.model_validate(options)
    return messages.explain(error.value, schema, "algorithm.options.")


def bound(name, **options):
    record = base.resolve(name)
    return record.bind(options)


def test_the_shipped_algorithms():
    assert base.names() == ["grpo", "ppo", "reinforce", "reinforce_baseline", "rloo", "trpo"]
    for name in base.names():
        assert base.resolve(name).name == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reinforce", dict(denominator="constant", standardise=False, returns="reward_to_go", gamma=1.0)),
        (
            "reinforce_baseline",
            dict(denominator="constant", standardise=False, returns="reward_to_go", gamma=1.0, baseline="critic"),
        ),
        ("rloo", dict(denominator="constant", standardise=False)),
        ("ppo", dict(denominator="token", standardise=True, gamma=1.0, lam=0.95, clip_low=0.2, clip_high=0.2)),
        (
            "trpo",
            dict(denominator="token", standardise=False, gamma=1.0, lam=1.0, max_kl=0.01, damping=0.1, cg_iterations=10)
            | dict(fisher_fraction=0.1, line_search_steps=10, backtrack=0.5),
        ),
        (
            "grpo",
            dict(
                denominator="sequence", standardise=False, scale_by_std=True, std_eps=1e-4, clip_low=0.2, clip_high=0.2
            )
            | dict(surrogate="clip"),
        ),
    ],
)
def test_defaults(name, expected):
    actual = base.resolve(name).options().model_dump()
    assert actual == expected
    assert (
        base.resolve(name).options.model_validate(actual).model_dump() == expected
    )  # as a saved recipe names them all


@pytest.mark.parametrize(
    ("name", "options", "update", "critic", "old", "group"),
    [
        ("reinforce", {}, "gradient", False, False, 1),
        ("reinforce_baseline", {}, "gradient", True, False, 1),
        ("reinforce_baseline", {"baseline": "leave_one_out"}, "gradient", False, False, 2),
        ("reinforce_baseline", {"baseline": "group_mean"}, "gradient", False, False, 2),
        ("rloo", {}, "gradient", False, False, 2),
        ("ppo", {}, "gradient", True, True, 1),
        ("trpo", {}, "trust_region", True, True, 1),
        ("grpo", {}, "gradient", False, True, 2),
    ],
)
def test_what_the_trainer_must_know_follows_from_the_options(name, options, update, critic, old, group):
    actual = bound(name, **options)
    assert (actual.update, actual.needs_critic, actual.needs_old, actual.min_group) == (update, critic, old, group)


@pytest.mark.parametrize("name", ["reinforce", "reinforce_baseline", "rloo", "trpo"])
@pytest.mark.parametrize("key", ["clip_low", "clip_high"])
def test_a_clip_without_a_ratio_is_refused_even_at_the_default_of_ppo(name, key):
    (line,) = problems(name, **{key: 0.2})
    assert line.startswith(f"algorithm.options.{key}: ")
    assert ("use ppo" if name == "trpo" else "no ratio to clip: use ppo or grpo") in line


def test_every_refused_key_gets_its_own_line():
    assert problems("reinforce", clip_low=0.2, clip_high=0.2, lam=0.9) == [
        "algorithm.options.clip_low: REINFORCE has no ratio to clip: use ppo or grpo",
        "algorithm.options.clip_high: REINFORCE has no ratio to clip: use ppo or grpo",
        "algorithm.options.lam: there is no GAE here, the return is not bootstrapped: use ppo or trpo",
    ]


@pytest.mark.parametrize("name", ["reinforce", "reinforce_baseline"])
def test_a_discount_of_the_whole_rows_return_is_refused(name):
    (line,) = problems(name, returns="trajectory", gamma=0.9)
    assert line.startswith("algorithm.options.gamma: returns=trajectory is one sum for the row, not discounted")
    assert bound(name, returns="trajectory", gamma=1.0).name == name


def test_gspo_asks_for_the_sequence_denominator():
    for denominator in ("token", "constant"):
        (line,) = problems("grpo", surrogate="gspo", denominator=denominator)
        assert line.endswith("use denominator=sequence")
        assert line.startswith("algorithm.options.surrogate: ")
    assert bound("grpo", surrogate="gspo").name == "grpo"


def test_an_eps_for_a_std_that_is_left_out_is_refused():
    (line,) = problems("grpo", scale_by_std=False, std_eps=0.01)
    assert line.startswith("algorithm.options.std_eps: ")
    assert bound("grpo", scale_by_std=False).name == "grpo"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reinforce", {"gamma": 1.1}),
        ("reinforce", {"returns": "rewards_to_go"}),
        ("reinforce_baseline", {"baseline": "mean"}),
        *[(name, {key: bad}) for name in ("ppo", "trpo") for key in ("gamma", "lam") for bad in (-0.1, 1.1)],
        ("ppo", {"clip_low": 1.1}),
        ("ppo", {"clip_high": -0.1}),
        ("trpo", {"max_kl": 0}),
        ("trpo", {"damping": -1}),
        ("trpo", {"cg_iterations": 0}),
        ("trpo", {"fisher_fraction": 0}),
        ("trpo", {"fisher_fraction": 1.5}),
        ("trpo", {"backtrack": 1}),
        ("grpo", {"clip_low": 1.1}),
        ("grpo", {"denominator": "row"}),
        ("grpo", {"gamma": 1.0}),
        ("rloo", {"baseline": "leave_one_out"}),
    ],
)
def test_a_value_out_of_range_or_an_unknown_key_is_named(name, options):
    (key,) = options
    (line,) = problems(name, **options)
    assert line.startswith(f"algorithm.options.{key}: ")


def test_rloo_is_at_most_forty_lines():
    assert len(inspect.getsource(rloo).splitlines()) <= 40


def test_a_bound_algorithm_is_its_record_with_the_options_filled_in():
    calls = []
    record = base.Algorithm(
        "mine",
        lambda *call: calls.append(call),  # pyright: ignore[reportArgumentType]
        lambda *call: calls.append(call),  # pyright: ignore[reportArgumentType]
        needs_critic=lambda options: options.standardise,
    )
    mine = record.bind({"standardise": True})
    mine.credit("batch", "signals")  # pyright: ignore[reportArgumentType]
    mine.objective("logp", "entropy", "batch", "signals", "credit")  # pyright: ignore[reportArgumentType]
    assert calls == [
        ("batch", "signals", mine.options),
        ("logp", "entropy", "batch", "signals", "credit", mine.options),
    ]
    assert mine.options.standardise
    assert (mine.needs_critic, record.bind(base.Options()).needs_critic) == (True, False)
    with pytest.raises(ValidationError, match="standardize"):
        record.bind({"standardize": True})
