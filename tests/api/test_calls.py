"""The toolkit from Python: the same runs as the command line's, with rows and functions as arguments."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rlhf_pg as pg
from rlhf_pg import config
from rlhf_pg.api import arguments

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b), "nested": {"n": a}} for a in range(4) for b in range(4)]
SMALL = {
    "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4},
    "kl": {"coefficient": 0},
    "log": {"live": "off"},
    "run": {"preflight": False},
    "data.train": {"prompt": "prompt", "answer": "answer"},
}


def longer(completion):
    return float(len(completion))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_rows_and_a_function_train_a_model_and_the_run_says_how_it_went():
    run = pg.train(
        model="tiny", data=ROWS, eval_data=ROWS[:2], reward=longer, steps=2, eval={"samples": 1, "k": [1]}, **SMALL
    )
    assert str(run.dir) == "runs/run-1" and repr(run).startswith("Run('runs/run-1': step 2, pass@1 ")
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert {"pass@1", "greedy"} <= run.before.keys() and run.after.keys() == run.before.keys()
    assert (run.model / "config.json").is_file() and run.report() == run.dir / "report.html"
    assert [json.loads(line) for line in (run.dir / "data/train.jsonl").read_text().splitlines()] == ROWS
    assert pg.Run("runs/run-1").metrics == run.metrics
    assert "pass@1" in run._repr_html_()


def test_two_runs_in_one_process_may_differ_in_their_arithmetic_and_have_folders_of_their_own():
    folders = [
        pg.train(model={"path": "tiny", "dtype": dtype}, data=ROWS, reward=longer, steps=1, **SMALL).dir
        for dtype in ("float32", "bfloat16", "float32")
    ]
    assert [str(folder) for folder in folders] == ["runs/run-1", "runs/run-2", "runs/run-3"]
    first, third = (pg.Run(folders[i]).metrics[0]["grad_norm"] for i in (0, 2))
    assert first == third


def test_it_is_the_run_of_the_command_line(tmp_path):
    run = pg.train(model="tiny", data=ROWS, reward=longer, steps=1, dir="a", **SMALL)
    command = [sys.executable, "-m", "rlhf_pg", "train", "a/config.yaml", "run.dir=b"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    subprocess.run(command, check=True, env=environment, timeout=120)
    ours, theirs = run.metrics[0], pg.Run("b").metrics[0]
    assert ours["reward/mean"] == theirs["reward/mean"] and ours["tokens/generated"] == theirs["tokens/generated"]
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)  # threads may differ


def test_what_the_caller_gave_stays_as_it_is():
    recipe = {"model": {"path": "tiny"}, "rewards": [{"fn": longer}], "optimizer": {"lr": 1e-3}}
    reward = {"fn": "length", "weight": 0.5}
    for extra in ({}, {"reward": reward}):
        pg.train(recipe, data=ROWS, steps=1, **extra, **SMALL)
    assert recipe == {"model": {"path": "tiny"}, "rewards": [{"fn": longer}], "optimizer": {"lr": 1e-3}}
    assert reward == {"fn": "length", "weight": 0.5} and "dir" not in SMALL["run"]


def test_a_recipe_is_laid_under_the_arguments():
    recipe = pg.Recipe.load("toy_rloo", "rollout.max_new_tokens=4")
    assert recipe.rollout.max_new_tokens == 4 and recipe.algorithm.name == "rloo"
    run = pg.train(
        recipe, steps=1, dir="r", eval={"samples": 1, "k": [1]}, **{"run.preflight": False, "log.live": "off"}
    )
    written: Any = config.load_saved(run.dir / "config.yaml", config.Recipe)
    assert written.algorithm.name == "rloo" and written.rollout.max_new_tokens == 4
    assert written.optimizer.lr == 5e-4 and written.run.steps == 1


def test_figures_of_a_model_without_a_run():
    figures = pg.evaluate(
        "toy_grpo", model="tiny", eval={"samples": 1, "k": [1]}, **{"data.eval.options": {"count": 2}}
    )
    assert 0 <= figures["pass@1"] <= 1 and not Path("runs").exists()
    alone = pg.evaluate(model="tiny", eval_data=ROWS[:2], reward=longer, **{"eval.samples": 1, "eval.k": [1], **SMALL})
    assert "greedy" in alone


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ({"learning_rate": 1e-5}, "learning_rate: unknown key; here it is optimizer.lr"),
        ({"reward": "gsm8"}, "did you mean 'gsm8k'"),
        ({"model": "runs/nowhere/model"}, "model.path: no folder runs/nowhere/model"),
        ({"algorithm": "grop"}, "did you mean 'grpo'"),
    ],
)
def test_a_wrong_argument_is_said_as_of_a_recipe_and_leaves_nothing_behind(changed, said):
    with pytest.raises(pg.RecipeError) as caught:
        pg.train(**{"model": "tiny", "data": ROWS, "reward": longer, "steps": 1, **SMALL, **changed})
    assert said in str(caught.value) and str(caught.value).startswith("pg.train: 1 problem")
    assert not Path("runs").exists() or not any(Path("runs").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "1", "answer": {1, 2}}], "row 0 cannot be written as JSON"),
        ([3], "row 0 is int, not a dict"),
    ],
)
def test_rows_that_are_none_name_the_row(rows, said):
    with pytest.raises(ValueError, match=said):
        pg.train(model="tiny", data=rows, reward=longer, **SMALL)


def test_other_rows_in_the_folder_of_an_earlier_run_are_refused():
    pg.train(model="tiny", data=ROWS, reward=longer, steps=1, dir="r", **SMALL)
    with pytest.raises(ValueError, match=r"r/data/train.jsonl is an earlier run's and differs.*choose another dir"):
        pg.train(model="tiny", data=ROWS[1:], reward=longer, steps=1, dir="r", **SMALL)
    with pytest.raises(ValueError, match="holds an earlier run"):
        pg.train(model="tiny", data=ROWS, reward=longer, steps=1, dir="r", **SMALL)


def test_a_stopped_run_raises_and_the_same_call_goes_on(monkeypatch):
    whole = pg.train(model="tiny", data=ROWS, reward=longer, steps=3, dir="whole", **SMALL)
    from rlhf_pg.training import loop

    step = loop.train_step

    def stopped(run):
        if run.progress.step == 1:
            run.stop.request("SIGTERM")
        return step(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rlhf_pg.commands.run_training.train_step", stopped)
        pg.train(model="tiny", data=ROWS, reward=longer, steps=3, dir="r", **SMALL)
    resumed = {**SMALL, "run": {"preflight": False, "resume": "auto"}}
    run = pg.train(model="tiny", data=ROWS, reward=longer, steps=3, dir="r", **resumed)
    assert [row["grad_norm"] for row in run.metrics] == [row["grad_norm"] for row in whole.metrics]


def test_a_function_of_a_script_is_judged_in_another_process_without_running_the_script_again():
    script = """
import os
import rlhf_pg as pg
print("ran")
BONUS = 0.5
def where(completion, answer):
    import os
    return {"bonus": BONUS, "process": float(os.getpid())}
rows = [{"prompt": str(n), "answer": str(n)} for n in range(4)]
run = pg.train(
    model="tiny", data=rows, reward=where, steps=1, dir="r", kl={"coefficient": 0}, log={"live": "off"},
    rollout={"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 2},
    **{"run.preflight": False, "data.train.prompt": "prompt", "data.train.answer": "answer"},
)
row = run.metrics[0]
assert row["reward/where/bonus"] == 0.5 and row["reward/where/process"] != os.getpid()
"""
    Path("script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran") == 1
    assert "BONUS = 0.5" in Path("r/rewards/where.py").read_text()


def test_importing_the_package_imports_nothing_heavy_and_help_names_what_there_is():
    code = "import sys, rlhf_pg; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)), dir(rlhf_pg))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("[] ") and all(name in done.stdout for name in pg.__all__)
    assert all(name in (pg.__doc__ or "") for name in ("train", "sft", "evaluate", "Recipe", "Run", "functional"))
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        pg.tarin  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("data", "section"),
    [
        ("arithmetic", {"task": "arithmetic"}),
        ("rows.jsonl", {"path": "rows.jsonl"}),
        (Path("a/rows"), {"path": "a/rows"}),
        ("openai/gsm8k", {"dataset": "openai/gsm8k"}),
        ({"task": "gsm8k"}, {"task": "gsm8k"}),
        ([1], {"rows": [1]}),
    ],
)
def test_what_data_may_be(data, section):
    assert arguments.source_of(data) == section
