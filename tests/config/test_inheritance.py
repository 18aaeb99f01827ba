"""What a section takes from another one, and what it never does."""

import pytest
from recipe_files import MINIMAL, load, problem, problems, write

from rlhf_pg import config
from rlhf_pg.config import messages, renamed


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


TRAIN = ["data.train.options={count: 50, digits: 2}", "data.train.template=plain", "data.train.limit=7"]


def test_held_out_problems_are_the_tasks_own_with_the_options_that_they_do_not_name():
    held_out = load(*TRAIN, "data.eval.options={count: 9}").data.eval
    assert held_out is not None
    assert (held_out.task, held_out.template) == ("arithmetic", "plain")
    assert held_out.options == {"count": 9, "digits": 2}
    assert held_out.limit is None and held_out.split is None


def test_an_empty_section_takes_everything_but_the_rows_learned_from():
    held_out = load(
        "data.train.dataset=a/b", "data.train.split=train", "data.train.answer=gold", "data.eval={}"
    ).data.eval
    assert held_out is not None
    assert (held_out.dataset, held_out.answer, held_out.split) == ("a/b", "gold", None)


def test_a_file_of_its_own_takes_columns_and_no_place():
    write("{}", "held_out.jsonl")
    held_out = load("data.train.dataset=a/b", "data.train.prompt=p", "data.eval.path=held_out.jsonl").data.eval
    assert held_out is not None
    assert (held_out.prompt, held_out.dataset) == ("p", None)


def test_held_out_problems_take_the_options_of_a_template_with_the_template():
    given = ["data.train.task=gsm8k", "data.train.template_options.enable_thinking=false", "data.eval.limit=5"]
    options = []
    for more in ([], ["data.eval.template=plain"], ["data.eval.template_options={effort: low}"]):
        held_out = load(*given, *more).data.eval
        assert held_out is not None
        options.append(held_out.template_options)
    assert options == [{"enable_thinking": False}, {}, {"effort": "low"}]


def test_held_out_problems_take_the_instruction_with_the_template():
    given = ["data.train.task=gsm8k", "data.train.instruction=Be brief.", "data.eval.limit=5"]
    instructions = []
    for more in ([], ["data.eval.template=plain"], ["data.eval.instruction=''"]):
        held_out = load(*given, *more).data.eval
        assert held_out is not None
        instructions.append(held_out.instruction)
    assert instructions == ["Be brief.", None, ""]


def test_another_task_takes_nothing():
    held_out = load(*TRAIN, "data.eval.task=countdown").data.eval
    assert held_out is not None
    assert held_out.template is None and held_out.options == {}


def test_a_training_file_is_never_the_held_out_one():
    write("{}", "train.jsonl")
    text = MINIMAL.replace("{task: arithmetic}", "{path: train.jsonl}")
    line = problem("data.eval.limit=5", text=text)
    assert line == "data.eval: says not where rows come from; give task, path or dataset"
    held_out = load("data.eval.limit=5", text=text.replace("{path: train", "{task: gsm8k, path: train")).data.eval
    assert held_out is not None and held_out.path is None  # the task's own test set


def test_the_critic_learns_by_the_policys_optimizer_but_for_its_rate():
    given = ["algorithm.name=ppo", "optimizer.betas=[0.8, 0.9]", "optimizer.lr=3e-4", "optimizer.schedule=linear"]
    critic = load(*given, "critic.optimizer.schedule=cosine").critic.optimizer
    assert (critic.betas, critic.lr, critic.schedule) == ((0.8, 0.9), 1e-5, "cosine")


def test_an_inherited_key_is_no_key_without_effect():
    assert load("optimizer.betas=[0.8, 0.9]").critic.optimizer.betas == (0.8, 0.9)  # GRPO has no critic
    assert problem("critic.optimizer.betas=[0.8, 0.9]").startswith("critic.optimizer.betas: has no effect")


def test_a_renamed_key_fails_with_its_new_name():
    old = ["run.deadline_s=5", "update.importance_cap=3", "update.importance=mask"]
    assert problems(*old) == [
        "run.deadline_s: is now run.timeout_s",
        "update.importance_cap: is now update.mismatch.cap",
        "update.importance: is now update.mismatch.beyond",
    ]


def test_the_record_of_a_run_from_before_a_renaming_is_read_under_todays_names():
    text = (
        MINIMAL.replace("dir: runs/x", "dir: runs/x, deadline_s: 5") + "update: {importance_cap: 3, importance: mask}"
    )
    saved = config.load_saved(write(text, "config.yaml"), config.Recipe)
    assert isinstance(saved, config.Recipe)
    assert saved.run.timeout_s == 5
    assert (saved.update.mismatch.cap, saved.update.mismatch.beyond) == (3, "mask")


def test_every_new_name_is_a_key():
    assert {*renamed.RENAMED.values()} <= {key.name for key in messages.keys(config.Recipe)}
