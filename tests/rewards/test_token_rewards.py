"""Reward functions that look at tokens and reward single ones: what they get, and what becomes of what they return."""

import json
import re
from pathlib import Path

import pytest

from rlhf_pg.commands import run_rewards
from rlhf_pg.rewards import plugin
from rlhf_pg.rewards.score import Scorer
from rlhf_pg.types import Sample

PLUGINS = """
def counted(completion_tokens, max_new_tokens, token_texts):
    assert isinstance(token_texts, list)
    return {"reward": 0.0, "tokens": completion_tokens, "limit": max_new_tokens, "seen": len("".join(token_texts))}

def counted_in_batches(completions, completion_tokens, max_new_tokens, token_texts):
    return [{"reward": 0.0, "tokens": n, "limit": limit, "seen": len("".join(texts))}
            for n, limit, texts in zip(completion_tokens, max_new_tokens, token_texts, strict=True)]

def has_defaults(completion, completion_tokens=-1, max_new_tokens=-2, token_texts=None):
    return {"reward": 0.0, "tokens": completion_tokens, "limit": max_new_tokens, "seen": len(token_texts or "abc")}

def has_defaults_in_batches(completions, completion_tokens=None, max_new_tokens=None, token_texts=None):
    return [{"reward": 0.0, "given": [completion_tokens, max_new_tokens, token_texts] != [None] * 3}] * len(completions)

def takes_the_rest(completion, token_texts, **rest):
    return {"reward": len(rest), "texts": len(token_texts), "named": "completion_tokens" in rest}

def digits(token_texts):
    return [float(text.isdigit()) for text in token_texts]

def digits_in_batches(completions, token_texts):
    return [None if text == "none" else 0.5 if text == "whole" else [float(t.isdigit()) for t in texts]
            for text, texts in zip(completions, token_texts)]

def by_text(completion, token_texts):
    values = {"nan": [float("nan"), 0.0], "text": ["1.0", 0.0], "missing": [1.0, None], "nested": [[1.0], [1.0]],
              "huge": [1e308, 1e308], "short": [1.0], "long": [1.0] * 3, "empty": [], "none": None,
              "true": [True, False]}
    if completion == "raise":
        raise KeyError("oops")
    return values.get(completion, (0.25, -1.0))

def of_arrays(token_texts):
    import numpy as np
    return np.arange(len(token_texts), dtype=np.float32)

def ones(completion):
    return [1.0] * len(completion)

def flat(completion):
    return 4.0

def named_parts(completion):
    return {"a": 1e308, "b": 1e308} if completion == "huge" else {"a": 1.0}
"""


@pytest.fixture
def plugin_file(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGINS)
    return tmp_path / "mine.py"


def score(plugin_file: Path, names: str, samples: list[Sample], **weights: float):
    rewards = [plugin.resolve(f"{plugin_file}:{name}", weights.get(name, 1.0)) for name in names.split()]
    with Scorer(rewards) as scorer:
        return scorer.score(samples)


def sample(*texts: str, completion: str | None = None, columns=None) -> Sample:
    return Sample("p", "".join(texts) if completion is None else completion, "stop", columns or {}, texts, 9)


@pytest.mark.parametrize("name", ["counted", "counted_in_batches", "has_defaults"])
def test_a_function_gets_the_tokens_it_names_and_they_win_over_columns(plugin_file, name):
    column = {"completion_tokens": 70, "max_new_tokens": 80, "token_texts": ["a column"]}
    one, two = score(plugin_file, name, [sample("1", "23", "", columns=column), sample("4", columns=column)])
    assert one.parts == {name: 0.0, f"{name}/tokens": 3, f"{name}/limit": 9, f"{name}/seen": 3}
    assert two.parts == {name: 0.0, f"{name}/tokens": 1, f"{name}/limit": 9, f"{name}/seen": 1}


def test_tokens_may_be_counted_without_their_texts(plugin_file):
    (result,) = score(plugin_file, "has_defaults", [Sample("p", "abc", max_new_tokens=9, completion_tokens=2)])
    assert result.parts["has_defaults/tokens"] == 2


def test_a_text_from_a_file_leaves_the_defaults(plugin_file):
    (result,) = score(plugin_file, "has_defaults", [Sample("p", "abc")])
    assert result.parts == {
        "has_defaults": 0.0,
        "has_defaults/tokens": -1,
        "has_defaults/limit": -2,
        "has_defaults/seen": 3,
    }


def test_texts_from_a_file_leave_the_defaults_of_a_batched_function(plugin_file):
    name = "has_defaults_in_batches"
    assert [s.parts[f"{name}/given"] for s in score(plugin_file, name, [Sample("p", "a"), Sample("p", "b")])] == [
        0.0,
        0.0,
    ]
    assert [s.parts[f"{name}/given"] for s in score(plugin_file, name, [sample("a"), sample("b")])] == [1.0, 1.0]


def test_a_function_that_takes_every_column_gets_tokens_only_by_name(plugin_file):
    (result,) = score(plugin_file, "takes_the_rest", [sample("a", "b", columns={"level": 1})])
    assert result.parts == {"takes_the_rest": 3, "takes_the_rest/texts": 2, "takes_the_rest/named": 0}


@pytest.mark.parametrize("name", ["digits", "digits_in_batches"])
def test_a_list_is_one_reward_per_token_and_its_sum_the_value(plugin_file, name):
    one, two = score(plugin_file, name, [sample("1", "a", "2", ""), sample("x", "")])
    assert (one.reward, one.outcome, one.token_rewards) == (2.0, "scored", (1.0, 0.0, 1.0, 0.0))
    assert one.parts == {name: 2.0}
    assert (two.reward, two.token_rewards) == (0.0, (0.0, 0.0))


def test_a_batched_function_may_mix_lists_numbers_and_none(plugin_file):
    texts = [sample("1", "a"), sample("b", completion="whole"), sample("c", completion="none")]
    one, two, three = score(plugin_file, "digits_in_batches", texts)
    assert (one.reward, one.token_rewards) == (1.0, (1.0, 0.0))
    assert (two.reward, two.token_rewards) == (0.5, None)
    assert (three.reward, three.outcome, three.token_rewards) == (None, "excluded", None)


def test_lists_add_up_by_weight_and_numbers_stay_out_of_them(plugin_file):
    samples = [sample("1", "a"), sample("b", "2")]
    one, two = score(plugin_file, "digits by_text flat", samples, digits=2.0, by_text=-3.0, flat=0.5)
    assert one.token_rewards == (2.0 - 3.0 * 0.25, 0.0 + 3.0)
    assert two.token_rewards == (0.0 - 3.0 * 0.25, 2.0 + 3.0)
    assert one.reward == 2.0 * 1.0 - 3.0 * -0.75 + 0.5 * 4.0
    assert one.parts == {"digits": 1.0, "by_text": -0.75, "flat": 4.0}


def test_without_a_list_there_are_no_rewards_of_tokens(plugin_file):
    (result,) = score(plugin_file, "flat", [sample("1", "a")])
    assert (result.reward, result.token_rewards) == (4.0, None)


def test_a_sample_that_one_function_leaves_out_keeps_no_rewards_of_tokens(plugin_file):
    scores, _ = score(plugin_file, "digits by_text", [sample("1", "2", completion="none"), sample("1", "2")])
    assert (scores.reward, scores.outcome, scores.token_rewards) == (None, "excluded", None)
    assert scores.parts == {"digits": 2.0, "by_text": None}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nan", "reward 0 of its list is nan, not a finite number"),
        ("text", "reward 0 of its list is '1.0', not a finite number"),
        ("missing", "reward 1 of its list is None, not a finite number"),
        ("nested", r"reward 0 of its list is \[1.0\], not a finite number"),
        ("huge", "its list sums to no finite number"),
        ("short", "returned 1 rewards for 2 sampled tokens"),
        ("long", "returned 3 rewards for 2 sampled tokens"),
        ("empty", "returned 0 rewards for 2 sampled tokens"),
        ("raise", "KeyError: 'oops'"),
    ],
)
def test_a_faulty_list_excludes_its_sample_by_name_and_no_other(plugin_file, bad, message):
    scores = score(plugin_file, "by_text", [sample("a", "b"), sample("a", "b", completion=bad), sample("a", "b")])
    assert [(s.reward, s.token_rewards) for s in scores] == [(-0.75, (0.25, -1.0)), (None, None), (-0.75, (0.25, -1.0))]
    assert scores[1].outcome == "error"
    assert re.match(f"by_text, sample 1: .*{message}", scores[1].detail)


def test_true_in_a_list_counts_as_one(plugin_file):
    assert score(plugin_file, "by_text", [sample("a", "b", completion="true")])[0].token_rewards == (1.0, 0.0)


def test_arrays_are_lists(plugin_file):
    assert score(plugin_file, "of_arrays", [sample("a", "b", "c")])[0].token_rewards == (0.0, 1.0, 2.0)


def test_a_list_is_held_against_the_number_of_tokens_though_the_function_did_not_ask(plugin_file):
    right = Sample("p", "abc", max_new_tokens=9, completion_tokens=3)
    wrong = Sample("p", "abc", max_new_tokens=9, completion_tokens=4)
    scores = score(plugin_file, "ones", [right, wrong])
    assert (scores[0].reward, scores[1].reward) == (3.0, None)
    assert "returned 3 rewards for 4 sampled tokens" in scores[1].detail


def test_a_list_for_a_text_without_tokens_is_an_error(plugin_file):
    scores = score(plugin_file, "ones", [Sample("p", ""), sample("a")])
    assert (scores[0].reward, scores[0].outcome) == (None, "error")
    assert "returned 0 rewards for this text, which has no sampled tokens" in scores[0].detail


def test_parts_that_sum_to_no_number_are_an_error(plugin_file):
    scores = score(plugin_file, "named_parts", [sample("a", completion="huge"), sample("b")])
    assert [(s.reward, s.outcome) for s in scores] == [(None, "error"), (1.0, "scored")]


def test_long_lists_for_many_samples_come_back_whole(plugin_file):
    """A reply of some megabytes, in many reads."""
    texts = ["7", "x"] * 1000
    scores = score(plugin_file, "digits_in_batches", [sample(*texts) for _ in range(200)])
    assert {s.reward for s in scores} == {1000.0}
    assert {s.token_rewards for s in scores} == {(1.0, 0.0) * 1000}


@pytest.mark.parametrize("argument", ["completion_tokens", "max_new_tokens", "token_texts"])
def test_token_arguments_are_known_where_there_are_tokens_and_refused_where_there_are_none(tmp_path, argument):
    (tmp_path / "one.py").write_text(f"def one(completion, {argument}): return 1.0\n")
    reward = plugin.resolve(str(tmp_path / "one.py"))
    plugin.check(reward, set())
    plugin.check(reward, {argument}, tokens=False)
    with pytest.raises(
        ValueError, match=f"one.py' asks for argument '{argument}', which only a sampled completion has"
    ):
        plugin.check(reward, {"answer"}, tokens=False)


def test_the_commands_refuse_a_function_of_tokens_before_it_runs(plugin_file, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"pred": "1", "answer": "1"}) + "\n")
    assert run_rewards.check(f"{plugin_file}:digits", data) == 1
    assert "'token_texts', which only a sampled completion has" in capsys.readouterr().err.replace("\n", " ")
    assert run_rewards.score(f"{plugin_file}:digits_in_batches", data, "pred", "answer", tmp_path / "out") == 1
    assert "'token_texts', which only a sampled completion has" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_column_of_a_file_stands_in_for_a_token_argument(plugin_file, tmp_path):
    data, out = tmp_path / "d.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps({"pred": "1", "answer": "1", "completion_tokens": 5}) + "\n")
    assert run_rewards.score(f"{plugin_file}:has_defaults", data, "pred", "answer", out) == 0
    assert json.loads(out.read_text())["parts"]["has_defaults/tokens"] == 5
