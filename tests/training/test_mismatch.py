"""The distance between engine and trainer: measured by hand, and what each action does with a step that is too far."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf_pg.config import Mismatch, Update
from rlhf_pg.errors import RunError
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.training import mismatch
from tests.random_models import random_batch
from tests.training.small_run import final_weights, run
from tests.training.test_gradient_step import gradient

MASK = torch.tensor([[True, True, False], [True, True, True]])
OLD = torch.tensor([[0.5, 0.2, 0.9], [0.3, 0.4, 0.1]], dtype=torch.float64).log()
RATIO = torch.tensor([[2.0, 1.0, 1.0], [0.5, 0.8, 1.25]], dtype=torch.float64)


def batch():
    made = random_batch(prompts=1, samples=2)
    rollout = torch.where(MASK, OLD - RATIO.log(), math.nan)
    return replace(made, tokens=torch.zeros(2, 3, dtype=torch.int64), mask=MASK, logp_rollout=rollout)


def averaged(metrics, update):
    means = {name: float(torch.where(MASK, value, 0).sum() / MASK.sum()) for name, value in metrics.items()}
    return mismatch.finished(means, update)


def test_kl_effective_share_and_worst_token_by_hand_without_any_weights():
    weight, metrics = mismatch.of_tokens(batch(), OLD, Update())
    found = averaged(metrics, Update())
    ratios = [2.0, 1.0, 0.5, 0.8, 1.25]
    assert weight is None and "mismatch/alarm" not in found
    assert found["mismatch/kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 5)
    assert found["mismatch/ess"] == pytest.approx(sum(ratios) ** 2 / (5 * sum(r * r for r in ratios)))
    assert float(mismatch.worst(batch(), OLD)) == pytest.approx(math.log(2))


def test_truncated_and_masked_weights_by_hand():
    cut, metrics = mismatch.of_tokens(batch(), OLD, Update(mismatch=Mismatch(cap=1.5)))
    assert cut is not None and cut[MASK].tolist() == pytest.approx([1.5, 1.0, 0.5, 0.8, 1.25])
    assert averaged(metrics, Update())["mismatch/capped"] == pytest.approx(1 / 5)
    out, metrics = mismatch.of_tokens(batch(), OLD, Update(mismatch=Mismatch(cap=1.5, beyond="mask")))
    assert out is not None and out[MASK].tolist() == pytest.approx([0.0, 1.0, 0.0, 0.8, 1.25])
    found = averaged(metrics, Update())
    assert found["mismatch/capped"] == pytest.approx(2 / 5)
    assert found["mismatch/ess"] == pytest.approx(3.05**2 / (5 * (1 + 0.64 + 1.5625)))


def test_a_masked_row_is_the_one_above_the_limit_and_is_counted_by_its_tokens():
    means = [(1 - math.log(2)) / 2, sum(r - 1 - math.log(r) for r in (0.5, 0.8, 1.25)) / 3]
    limit = sum(means) / 2
    update = Update(mismatch=Mismatch(limit=limit, action="mask"))
    weight, metrics = mismatch.of_tokens(batch(), OLD, update)
    assert weight is not None and means[0] > limit > means[1]
    assert weight.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert averaged(metrics, update)["mismatch/masked"] == pytest.approx(2 / 5)
    update = Update(mismatch=update.mismatch.model_copy(update={"cap": 1.0}))
    weight, _ = mismatch.of_tokens(batch(), OLD, update)
    assert weight is not None and weight[MASK].tolist() == pytest.approx([0, 0, 0.5, 0.8, 1.0])


@pytest.mark.parametrize(("kl", "alarm"), [(0.1, 0.0), (0.11, 1.0), (math.nan, 1.0)])
def test_the_alarm_is_above_the_limit_or_no_number(kl, alarm):
    means = {"mismatch/kl": kl, mismatch.MEAN_WEIGHT: 1.0, mismatch.MEAN_SQUARE: 1.0}
    for action in ("warn", "mask"):
        found = mismatch.finished({**means}, Update(mismatch=Mismatch(limit=0.1, action=action)))
        assert found["mismatch/alarm"] == alarm
    stop = Update(mismatch=Mismatch(limit=0.1, action="stop"))
    if alarm:
        with pytest.raises(RunError, match=r"above update.mismatch.limit=0\.1"):
            mismatch.finished(means, stop)
    else:
        assert mismatch.finished(means, stop)["mismatch/alarm"] == 0


@pytest.mark.parametrize("tokens", [9, 10_000])
def test_masked_rows_give_no_gradient_but_count_in_the_denominator(tokens):
    near = random_batch()
    near = replace(near, logp_rollout=torch.full_like(near.logp_rollout, -3.0))
    kept = torch.arange(12) % 3 > 0
    far = torch.where(kept[:, None], near.logp_rollout, near.logp_rollout - 30)
    limit = Mismatch(limit=1e4, action="mask")
    masked, found = gradient(replace(near, logp_rollout=far), tokens=tokens, mismatch=limit)
    by_hand, _ = gradient(near, tokens=tokens, dropped=~kept)
    assert (masked - by_hand).norm() / by_hand.norm() < 1e-12
    assert found["mismatch/masked"] == pytest.approx(float(near.mask[~kept].sum() / near.mask.sum()))


class Shifted(NativeEngine):
    """Says of every token that it was more likely than it was."""

    def generate(self, prompts, sampling, progress=None, finished=None):
        def shifted(prompt, place, row):
            row.logp.add_(0.3)
            if finished:
                finished(prompt, place, row)

        return super().generate(prompts, sampling, progress, shifted)


def test_a_run_warns_or_stops_before_it_learns_and_goes_on_when_told_to(tmp_path, capsys):
    engine = {
        "rollout": {"engine": "tests.training.test_mismatch:Shifted"},
        "run": {"dir": str(tmp_path), "preflight": False},
    }
    shift = math.exp(-0.3) - 1 + 0.3
    with pytest.raises(RunError, match="nothing was learned from this step"):
        run(tmp_path, **engine, update={"mismatch": {"limit": 0.01, "action": "stop"}})
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()
    engine["run"] |= {"resume": "auto", "steps": 1}
    log = {"live": "auto"}
    assert run(tmp_path, **engine, update={"mismatch": {"limit": 0.01, "action": "warn"}}, log=log) == 0
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["mismatch/alarm"] == 1 and line["mismatch/worst"] == pytest.approx(0.3, abs=1e-4)
    assert line["mismatch/kl"] == pytest.approx(shift, rel=1e-3)
    assert "step 1: engine and trainer are apart, mismatch/kl" in capsys.readouterr().out
    assert final_weights(tmp_path)
