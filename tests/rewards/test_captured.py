"""A function of a script or notebook becomes a file with all that it uses."""

import linecache
import re
import textwrap
from typing import Any

import pytest

from rlhf_pg.rewards import captured, plugin


def cell(source: str) -> dict:
    """What a notebook has after this cell: names of `__main__`, whose source linecache knows."""
    text = textwrap.dedent(source)
    file = f"<cell {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), names)
    return names


def reward_of(source: str, name: str, tmp_path):
    """The function that a worker process loads, and its file's text."""
    named, text = captured.reference(cell(source)[name])
    file = tmp_path / f"{named}.py"
    file.write_text(text)
    return plugin.load(str(file), named), text


def test_it_brings_imports_functions_constants_and_patterns(tmp_path):
    source = """
        import math as m
        import re
        from fractions import Fraction
        UNUSED = 3
        BEST, WEIGHTS = 2.0, {"a": [1, 2], "b": None}
        NUMBER = re.compile(r"-?\\d+", re.ASCII)
        def last(text: str) -> str:
            return NUMBER.findall(text)[-1]
        def right(completion, answer, scale=BEST):
            return m.floor(scale * float(Fraction(last(completion)) == Fraction(answer))) + WEIGHTS["a"][0]
    """
    function, text = reward_of(source, "right", tmp_path)
    assert function(completion="so 3 or 12", answer="12") == 3
    assert function(completion="so 3 or 13", answer="12") == 1
    assert "UNUSED" not in text


def test_functions_that_call_each_other_and_attributes_come_along(tmp_path):
    source = """
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
        def warm_up():
            odd(3)
        def length_is_even(completion):
            return float(even(len(completion)))
        length_is_even.on_limit = 0.25
        length_is_even.setup = warm_up
    """
    function, _ = reward_of(source, "length_is_even", tmp_path)
    assert (function("abcd"), function("abc"), function.on_limit) == (1.0, 0.0, 0.25)
    assert function.setup.__name__ == "warm_up"


def test_a_decorated_function_keeps_its_decorator(tmp_path):
    source = """
        import functools
        def doubled(function):
            @functools.wraps(function)
            def wrapper(**arguments):
                return 2 * function(**arguments)
            return wrapper
        @doubled
        def one(completion):
            return 1.0
    """
    function, _ = reward_of(source, "one", tmp_path)
    assert function(completion="") == 2.0


def test_an_imported_function_goes_by_its_name():
    assert captured.reference(textwrap.dedent) == ("textwrap:dedent", "")


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("judge = open('/dev/null')\ndef f(completion):\n    return judge.read()", "f", "uses judge, a TextIOWrapper"),
        (
            "def make(bonus):\n    def f(completion):\n        return bonus\n    return f\nf = make(1)",
            "f",
            "uses bonus of the function that made it",
        ),
        ("f = lambda completion: 1.0", "f", "a lambda has no name"),
        ("class F:\n    def __call__(self, completion):\n        return 1.0\nf = F()", "f", "an instance of F"),
    ],
)
def test_what_cannot_travel_is_named(source, name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        captured.reference(cell(source)[name])


def test_a_function_without_source_says_what_to_do():
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(completion):\n    return 1.0", names)
    with pytest.raises(ValueError, match=r"the source of typed is not to be had .*put the function into a file"):
        captured.reference(names["typed"])
