"""A name in a recipe that nothing has is answered with the closest one, and a dotted path with what it lacks."""

import math

import pytest

from rlhf_pg.names import load_attribute, nearest


def test_the_closest_choice_is_hinted_at_and_nothing_when_none_is_close():
    assert nearest("grop", ["ppo", "grpo", "trpo"]) == "; did you mean 'grpo'?"
    assert nearest("dqn", ["ppo", "grpo", "trpo"]) == nearest("x", []) == ""


def test_a_path_names_an_attribute_or_its_module_has_the_default_one():
    assert load_attribute("math:pi", None, "number") == math.pi
    assert load_attribute("os.path", "sep", "separator") == "/"


@pytest.mark.parametrize(
    ("name", "default", "message"),
    [
        ("tau", "pi", "no number 'tau': shipped are pi, tan; did you mean 'tan'?, or give module:attribute"),
        ("os.path", None, "no number 'os.path': shipped are pi, tan, or give module:attribute"),
        ("math:tau_", None, "number 'math:tau_' cannot be loaded: module 'math' has no attribute 'tau_'"),
        ("no.such", "pi", "number 'no.such' cannot be loaded: No module named 'no'"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(name, default, message):
    with pytest.raises(ValueError) as refused:
        load_attribute(name, default, "number", ["pi", "tan"])
    assert str(refused.value) == message
