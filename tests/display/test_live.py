import io
import time
from typing import Any

import pytest
from rich.console import Console

from rlhf_pg.display.live import BARS, Curve, LiveView

METRICS: dict[str, Any] = {
    "step": 1,
    "reward/mean": 0.4321,
    "reward/std": 0.25,
    "kl/ref": 0.0123,
    "tokens/generated": 6000,
    "time/rollout_s": 2.0,
    "time/step_s": 3.0,
}
EVAL = {"eval/pass@1": 0.61, "eval/pass@1_low": 0.55, "eval/pass@1_high": 0.66, "eval/pass@8": 0.9, "eval/greedy": 0.8}


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=60, color_system=None)


def lines(steps: int, metrics=lambda step: METRICS, mode: str = "auto") -> list[str]:
    out = console(False)
    with LiveView(steps, mode, out) as view:
        for step in range(1, steps + 1):
            view.start_step(step)
            view.finish_step(metrics(step) | {"step": step}, [])
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined]


def drawn(metrics=METRICS, samples=(), **phase) -> str:
    out = console(True)
    view = LiveView(10, "on", out)
    view.start_step(1)
    view.finish_step(metrics, list(samples))
    if phase:
        view.phase(phase["name"])
        view.progress(phase["done"], phase["total"], phase["tokens"])
    out.print(view.render())
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_away_from_a_terminal_a_line_has_step_reward_kl_and_speed():
    (line,) = lines(1)
    assert "step     1/1" in line and "reward 0.432 sd 0.25" in line and "kl 0.0123" in line
    assert "3.0k tok/s" in line and "3.00s" in line


SFT = {"step": 1, "loss": 0.51237, "entropy": 0.25, "grad_norm": 1.5, "lr": 2e-3}


def test_supervised_fine_tuning_shows_its_loss_and_no_reward():
    (line,) = lines(1, lambda step: SFT)
    assert "loss 0.5124  entropy 0.250  grad norm 1.5  lr 2.00e-03" in line and "reward" not in line
    panel = drawn(SFT)
    assert "loss 0.5124" in panel and "reward" not in panel and "tokens/s" not in panel


@pytest.mark.parametrize("width", [46, 80, 200])
def test_no_figure_is_cut_in_a_narrow_terminal(width):
    out = console(True)
    view = LiveView(10, "on", out)
    view.finish_step(METRICS | {"entropy": 4.432, "grad_norm": 0.793, "clip/fraction": 0.125}, [])
    out.print(view.render(), width=width)
    drawn_lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    text = " ".join(" ".join(drawn_lines).split())
    assert all(figure in text for figure in ("entropy 4.432", "clipped 12.5%", "grad norm 0.793", "KL 0.0123"))
    assert "…" not in text and max(map(len, drawn_lines)) <= width


def test_what_is_said_after_the_end_stands_below_the_panel():
    out = console(True)
    with LiveView(1, "on", out) as view:
        view.finish_step(METRICS, [])
        view.end()
        view.message("report: r.html")
        view.end()
    written = out.file.getvalue()  # type: ignore[attr-defined]
    assert written.rindex("reward") < written.index("report: r.html")
    assert "rlhf_pg" not in written[written.index("report: r.html") :]


def test_fast_steps_are_throttled_but_the_first_the_last_and_evaluated_ones_are_printed():
    printed = lines(50, lambda step: METRICS | (EVAL if step == 20 else {}))
    assert [int(line.split()[1].split("/")[0]) for line in printed] == [1, 20, 50]
    assert "pass@1 0.61 [0.55, 0.66]  pass@8 0.90  greedy 0.80" in printed[1]


def test_the_last_step_is_printed_when_a_run_ends_early():
    out = console(False)
    with LiveView(100, console=out) as view:
        for step in (1, 2, 3):
            view.start_step(step)
            view.finish_step(METRICS, [])
    assert out.file.getvalue().splitlines()[-1].startswith("step     3/100")  # type: ignore[attr-defined]


def test_the_last_step_is_printed_before_what_follows_it():
    out = console(False)
    with LiveView(2, console=out) as view:
        for step in (1, 2):
            view.start_step(step)
            view.finish_step(METRICS, [])
        assert "step     2/2" in out.file.getvalue()  # type: ignore[attr-defined]


def test_off_prints_nothing():
    assert lines(3, mode="off") == []


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="auto, on or off"):
        LiveView(1, "loud")


@pytest.mark.parametrize("terminal", [True, False])
def test_odd_metrics_are_shown_and_never_raise(terminal):
    odd = {
        "reward/mean": float("nan"),
        "reward/std": None,
        "kl/ref": "x",
        "grad_norm": float("inf"),
        "time/step_s": 0.0,
    }
    odd |= {"tokens/generated": 5, "time/rollout_s": 0.0, "entropy": [1, 2], "eval/pass@1": None, "outcome/error": None}
    out = console(terminal)
    with LiveView(0, console=out) as view:
        view.finish_step({}, [])
        view.finish_step(odd, [{}, {"reward": None, "completion": None}, {"reward": float("nan")}])
        out.print(view.render())
    assert "reward nan" in out.file.getvalue()  # type: ignore[attr-defined]


def test_rich_markup_in_a_completion_appears_literally():
    text = drawn(samples=[{"reward": 1.0, "prompt": "[/]", "completion": "[bold red]42[/bold red] :smile: [link=x]y"}])
    assert "[bold red]42[/bold red] :smile: [link=x]y" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_ansi_escapes_in_samples_and_messages_are_neutralised(terminal):
    out = console(terminal)
    with LiveView(2, console=out) as view:
        view.message("saved \x1b[2J\x1b]0;owned\x07")
        view.start_step(1)
        view.finish_step(METRICS, [{"reward": 1.0, "completion": "\x1b[2Jgone\x9b31m\r"}])
        out.print(view.render())
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in text and "\x1b]0" not in text and "\x07" not in text and "\x9b" not in text
    assert "saved \\x1b[2J" in text and "\\x1b[2Jgone\\x9b31m\\x0d" in text


def test_the_panel_shows_phase_rows_metrics_and_the_best_and_worst_sample():
    samples = [{"reward": r, "completion": f"answer {r}"} for r in (0.5, 0.0, 1.0)]
    metrics = METRICS | EVAL | {"completion/truncated": 0.25, "outcome/timeout": 2}
    text = drawn(metrics, samples, name="rollout", done=7, total=64, tokens=900)
    assert "step 1/10" in text and "rollout" in text and "7/64 rows" in text and "tok/s" in text
    assert "reward 0.432 ± 0.25" in text and "truncated 25.0%" in text and "timeout 2" in text
    assert "[0.55, 0.66]" in text
    assert text.index("answer 1.0") < text.index("answer 0.0") and "answer 0.5" not in text


PPO = {"update/steps": 16, "kl/old": 0.0042, "value/explained_variance": 0.718, "clip/fraction": 0.05}
TRPO = {"update/steps": 1, "kl/old": 0.0098, "trust/kl": 0.0098, "trust/accepted": 1.0, "trust/line_search_steps": 2.0}
ON_POLICY = {"step": 1, "reward/mean": 0.5, "update/steps": 1, "kl/old": 0.0}


def test_a_line_has_the_kls_that_the_step_measured_and_no_others():
    def kls(metrics):
        return [word for word in lines(1, lambda step: metrics)[0].split() if word.startswith("kl")]

    assert kls(METRICS) == ["kl"] and kls(METRICS | PPO) == ["kl", "kl/old"]
    assert kls(ON_POLICY | PPO) == ["kl/old"] and kls(ON_POLICY | TRPO) == ["kl/old"]
    assert kls(ON_POLICY) == []  # one gradient step, at the weights that sampled: 0 by construction


def test_a_line_tells_how_good_the_critic_is_and_that_a_step_was_refused():
    (line,) = lines(1, lambda step: METRICS | PPO)
    assert "kl/old 0.0042" in line and "ev 0.72" in line and "refused" not in line
    (line,) = lines(1, lambda step: METRICS | TRPO)
    assert "kl/old 0.0098" in line and "refused" not in line and "ev " not in line
    (line,) = lines(1, lambda step: METRICS | TRPO | {"trust/accepted": 0.0, "trust/kl": 0.0, "kl/old": 0.0})
    assert "refused" in line


def test_the_panel_has_a_row_for_update_critic_and_trust_region_only_where_they_are():
    plain = drawn(ON_POLICY)
    assert not any(word in plain for word in ("KL", "explained", "step taken", "clipped"))
    (first,), (second,) = ([t for t in plain.splitlines() if word in t] for word in ("grad norm", "truncated"))
    assert first.index("grad norm") == second.index("truncated")  # the columns do not move with what is there
    ppo = drawn(METRICS | PPO)
    assert "KL of update 0.0042" in ppo and "explained variance 0.72" in ppo and "clipped 5.0%" in ppo
    assert len(ppo.splitlines()) == len(plain.splitlines()) + 1
    trpo = drawn(METRICS | TRPO)
    assert "KL of update 0.0098" in trpo and "step taken in try 2" in trpo and "explained" not in trpo
    assert "step refused" in drawn(METRICS | TRPO | {"trust/accepted": 0.0})


def test_a_step_costs_less_than_a_millisecond():
    out = console(True)
    samples = [{"reward": float(i), "completion": "x" * 2000} for i in range(8)]
    with LiveView(2000, console=out) as view:
        began = time.thread_time()
        for step in range(1000):
            view.start_step(step)
            view.phase("rollout")
            view.progress(1, 2, 3)
            view.finish_step(METRICS, samples)
        spent = time.thread_time() - began
    assert spent < 1.0


def test_a_log_that_can_no_longer_be_written_does_not_stop_the_run(capsys):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError("gone")

    with LiveView(2, console=Console(file=Gone(), force_terminal=False)) as view:
        view.finish_step(METRICS, [])
        view.finish_step(METRICS, [])
    assert capsys.readouterr().err == "log output stopped: gone\n"


def test_the_time_left_is_the_steps_left_at_the_mean_pace(monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 16.0])  # made; step 1 starts, ends, step 2 ends: 3 s a step
    monkeypatch.setattr("rlhf_pg.display.live.time.monotonic", lambda: next(clock))
    view = LiveView(10, "off")
    for step in (1, 2):
        view.start_step(step)
        view.finish_step({}, [])
    assert view.eta_s() == 24.0


def test_a_sparkline_keeps_the_shape_of_a_series_of_any_length():
    curve = Curve(size=8)
    for value in range(1000):
        curve.add(value)
    curve.add(float("nan"))
    curve.add(None)
    line = curve.sparkline(8)
    assert len(line) <= 8 and len(curve.means) < 8
    assert line[0] == BARS[0] and line[-1] == BARS[-1] and list(line) == sorted(line)
    assert Curve().sparkline() == ""
