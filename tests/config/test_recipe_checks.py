"""Keys against each other, the algorithm and the files they name: each contradiction by its message."""

from pathlib import Path

import pytest
from recipe_files import HELD_OUT, SFT, load, problem, problems, resolve, write

from rlhf_pg import config
from rlhf_pg.config import RecipeError, SftRecipe


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_unknown_algorithm_names_the_nearest():
    line = problem("algorithm.name=grop")
    assert line.startswith("algorithm.name: no algorithm 'grop': shipped are ")
    assert "did you mean 'grpo'?" in line


def test_algorithm_whose_module_breaks_says_how(monkeypatch):
    write("raise KeyError('x')\n", "broken_algorithm.py")
    monkeypatch.syspath_prepend(Path.cwd())
    line = problem("algorithm.name=broken_algorithm:algorithm")
    assert line == "algorithm.name: cannot be loaded: KeyError: 'x'"


def test_unknown_option_names_the_nearest():
    assert problem("algorithm.options.cliphigh=1") == (
        "algorithm.options.cliphigh: unknown key; did you mean algorithm.options.clip_high?"
    )


def test_option_out_of_range():
    assert problem("algorithm.options.clip_low=2") == "algorithm.options.clip_low: must be at most 1, is 2"


def test_option_that_is_not_a_number():
    assert "algorithm.options.clip_high: must be a number, is nan" in problems("algorithm.options.clip_high=.nan")


def test_grpo_with_one_sample_per_prompt():
    assert problem("rollout.samples_per_prompt=1") == (
        "rollout.samples_per_prompt: must be at least 2, is 1: grpo compares the samples of one prompt"
    )


def test_k1_in_the_loss():
    assert problem("kl.estimator=k1").startswith("kl.estimator: k1 in the loss has zero expected gradient")
    assert load("kl.estimator=k1", "kl.placement=reward").kl.estimator == "k1"


@pytest.mark.parametrize("override", ["kl.estimator=k3", "kl.placement=loss"])
def test_kl_details_without_kl(override):
    key = override.partition("=")[0]
    assert problem("kl.coefficient=0", override) == (
        f"{key}: has no effect while kl.coefficient is 0: remove it or set it to null"
    )


def test_eval_keys_without_held_out_data():
    assert problem("eval.every=5") == "eval.every: has no effect without data.eval: remove it or set it to null"
    assert load("eval.every=5", *HELD_OUT).eval.every == 5


def test_more_k_than_samples():
    assert problem(*HELD_OUT, "eval.samples=4") == (
        "eval.k: pass@8 needs at least 8 samples per problem, eval.samples is 4"
    )


def test_same_k_twice():
    assert problem(*HELD_OUT, "eval.k=[1, 2, 1]") == "eval.k: [1, 2, 1] names the same k twice"


def test_importance_weights_of_an_engine_with_the_trainers_own_log_probs():
    assert problem("update.mismatch.cap=2") == (
        "update.mismatch.cap: has no effect with rollout.engine=native in float32, whose log-probs are the trainer's "
        "own: remove it or set it to null"
    )
    assert load("update.mismatch.cap=2", "model.dtype=bfloat16").update.mismatch.cap == 2
    assert load("update.mismatch.cap=2", "rollout.engine=my.engine:Engine").update.mismatch.cap == 2
    assert load("model.dtype=bfloat16").update.mismatch.cap is None
    assert problem("update.mismatch.cap=0.5", "model.dtype=bfloat16") == (
        "update.mismatch.cap: must be at least 1, is 0.5"
    )


def test_overlap_brings_importance_weights_with_it_and_keeps_a_cap_that_is_given():
    recipe = resolve("rollout.overlap=true")
    assert recipe.update.mismatch.cap == 2.0
    assert config.load(write(config.dump(recipe), "again.yaml")) == recipe
    assert load("rollout.overlap=true", "update.mismatch.cap=5").update.mismatch.cap == 5


def test_overlap_where_it_cannot_be():
    assert problem("rollout.overlap=true", "algorithm.name=trpo").startswith(
        "rollout.overlap: trpo bounds the KL on the states that the policy itself visits"
    )
    assert problem("rollout.overlap=true", "rollout.engine=scripted").startswith("rollout.overlap: scripted plays what")
    line = problem("rollout.overlap=true", "model.trust_remote_code=true")
    assert line.startswith("rollout.overlap: code that comes with a model cannot be imported")


def test_more_minibatches_than_prompts():
    assert problem("update.minibatches=33") == (
        "update.minibatches: 33 cannot share out rollout.prompts_per_step=32 prompts"
    )


def test_a_short_trial_of_a_recipe_with_warmup_is_allowed():
    assert load("run.steps=3", "optimizer.warmup_steps=7").optimizer.warmup_steps == 7


def test_flash_attention_in_float32():
    assert problem("model.attention=flash_attention_2") == (
        "model.attention: flash_attention_2 has no float32 kernel; set model.dtype=bfloat16"
    )


@pytest.mark.parametrize(
    ("trackers", "key", "when"),
    [
        ("[]", "log.project=x", "wandb, trackio or mlflow in log.trackers"),
        ("[tensorboard]", "log.project=x", "wandb, trackio or mlflow in log.trackers"),
        ("[mlflow]", "log.entity=team", "wandb in log.trackers"),
        ("[trackio]", "log.tags=[a]", "wandb or mlflow in log.trackers"),
        ("[]", "log.names=trl", "log.trackers"),
    ],
)
def test_keys_of_trackers_without_one_that_reads_them(trackers, key, when):
    assert problem(f"log.trackers={trackers}", key) == (
        f"{key.split('=')[0]}: has no effect without {when}: remove it or set it to null"
    )


def test_keep_without_every():
    assert problem("checkpoint.keep=3") == (
        "checkpoint.keep: has no effect without checkpoint.every: remove it or set it to null"
    )


def test_fewer_bits_go_with_an_adapter_a_model_of_ones_own_and_no_second_process():
    assert problem("model.quantize=4bit", "model.path=a/b") == (
        "model.quantize: weights in 4 bits cannot be trained; add model.lora, or leave it out"
    )
    assert "the embedded model" in problem("model.quantize=8bit", "model.lora={}")
    assert "only the native engine" in problem(
        "model.quantize=4bit", "model.lora={}", "model.path=a/b", "rollout.engine=vllm"
    )
    assert "shares plain weights" in problem(
        "model.quantize=4bit", "model.lora={}", "model.path=a/b", "rollout.overlap=true"
    )


def test_unknown_engine_names_the_nearest():
    line = problem("rollout.engine=nativ")
    assert line.startswith("rollout.engine: no engine 'nativ': shipped are native")
    assert "did you mean 'native'?" in line


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=5",
        "run.preflight=true",
        "model.lora.rank=4",
        "model.quantize=4bit",
        "model.gradient_checkpointing=true",
        "data.eval.task=arithmetic",
        "log.trackers=[wandb]",
        "log.samples=1",
    ],
)
def test_sft_refuses_what_only_rollouts_use(override):
    text = SFT
    with pytest.raises(RecipeError, match="has no effect in `rlhf-pg sft`"):
        config.load(write(text), [override], SftRecipe)


def test_no_data_source():
    assert problem("data.train.task=null") == ("data.train: says not where rows come from; give task, path or dataset")


@pytest.mark.parametrize("template", ["plain", "r1", "Q: {prompt}"])
def test_options_of_a_template_that_has_none(template):
    line = problem(f"data.train.template={template}", "data.train.template_options.enable_thinking=false")
    expected = f"variables of a chat template, and data.train.template is {template!r}"
    assert line == f"data.train.template_options: {expected}"


@pytest.mark.parametrize("template", ["plain", "r1", "Q: {prompt}"])
@pytest.mark.parametrize("instruction", ["Be brief.", "''"])
def test_an_instruction_for_a_template_without_turns(template, instruction):
    line = problem(f"data.train.template={template}", f"data.train.instruction={instruction}")
    assert line == f"data.train.instruction: a turn of a chat template, and data.train.template is {template!r}"


def test_two_data_sources():
    write("{}\n", "rows.jsonl")
    assert problem("data.train.path=rows.jsonl", "data.train.dataset=a/b") == (
        "data.train: has both path and dataset; give one"
    )


def test_unknown_task_names_the_nearest():
    line = problem("data.train.task=arithmetik")
    assert line.startswith("data.train.task: no task 'arithmetik': shipped are ")
    assert "did you mean 'arithmetic'?" in line


def test_unknown_option_of_a_task():
    line = problem("data.train.options.digit=3")
    assert line.startswith("data.train.options: task 'arithmetic' has no option 'digit'")


def test_missing_data_file():
    assert problem("data.train.path=none.jsonl") == f"data.train.path: no file none.jsonl in {Path.cwd()}"
    assert problem("data.eval.path=none.jsonl") == f"data.eval.path: no file none.jsonl in {Path.cwd()}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.train.subset=main"], "data.train.subset: has no effect without data.train.dataset"),
        (
            ["data.train.path=rows.jsonl", "data.train.split=test"],
            "data.train.split: has no effect with data.train.path",
        ),
        (["data.train.path=rows.jsonl", "data.train.options={count: 3}"], "data.train.options: has no effect unless"),
        (["data.train.task=gsm8k", "data.train.options={}"], "data.train.options: has no effect unless"),
    ],
)
def test_source_keys_that_another_kind_of_source_would_use(overrides, expected):
    write("{}\n", "rows.jsonl")
    assert problem(*overrides).startswith(expected)


def test_row_format_without_rows(monkeypatch):
    write(
        "from rlhf_pg.tasks.base import Task\ntask = Task('mine')\n",
        "task_without_rows.py",
    )
    monkeypatch.syspath_prepend(Path.cwd())
    line = problem("data.train.task=task_without_rows:task")
    assert line == (
        "data.train: task 'task_without_rows:task' reads rows but has none of its own; give path or dataset"
    )


@pytest.mark.parametrize("path", ["./none", "/none", "../none", "runs/x/model"])
def test_missing_model_folder(path):
    assert problem(f"model.path={path}") == f"model.path: no folder {path}"
    assert problem(f"model.tokenizer={path}") == f"model.tokenizer: no folder {path}"


def test_a_missing_model_folder_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "runs" / "r" / "model").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    close = f"{tmp_path}/runs/r/model"
    for path in (f"{tmp_path}/runs/r/modle", f"{tmp_path}/run/r/model", f"{tmp_path}/runs/r/models"):
        assert problem(f"model.path={path}") == f"model.path: no folder {path}; did you mean {close!r}?"
    assert problem(f"model.path={tmp_path}/fil") == f"model.path: no folder {tmp_path}/fil"  # a file is no folder


def test_run_folder_that_is_a_file():
    write("", "taken")
    assert problem("run.dir=taken") == "run.dir: taken is a file; a run needs a folder of its own"


def test_unknown_reward_names_the_nearest():
    line = problem("rewards.0.fn=gsm8")
    assert line.startswith("rewards.0.fn: no reward function 'gsm8': there are ")
    assert "did you mean 'gsm8k'?" in line


def test_missing_reward_file_names_the_folder_searched():
    assert problem("rewards.0.fn=mine.py:score") == f"rewards.0.fn: no file mine.py in {Path.cwd()}"


def test_reward_file_is_relative_to_the_current_directory_and_not_imported():
    write("raise RuntimeError\n", "mine.py")
    assert load("rewards.0.fn=mine.py:score").rewards[0].fn == "mine.py:score"


def test_same_reward_twice():
    assert problem("rewards=[{fn: gsm8k}, {fn: gsm8k, weight: 2}]") == (
        "rewards.1.fn: 'gsm8k' is already rewards.0.fn; to use it twice, with other args, give this one a name of its "
        "own: rewards.1.name"
    )
    two = load("rewards=[{fn: length}, {fn: length, name: short, args: {length_budget: 9}}]").rewards
    assert [(r.name, r.args) for r in two] == [(None, {}), ("short", {"length_budget": 9})]
    assert problem("rewards.0.name=a/b") == (
        "rewards.0.name: a name in metrics: letters, digits, '_', '.' and '-', is 'a/b'"
    )


def test_all_weights_zero():
    assert problem("rewards.0.weight=0") == "rewards: every weight is 0, so nothing is rewarded"


CONTRADICTIONS = [
    (["algorithm.name=reinforce", "algorithm.options.clip_low=0.1"], "algorithm.options.clip_low", "no ratio to clip"),
    (["algorithm.name=rloo", "algorithm.options.clip_high=0.1"], "algorithm.options.clip_high", "no ratio to clip"),
    (["algorithm.name=trpo", "algorithm.options.clip_low=0.1"], "algorithm.options.clip_low", "bounds the KL"),
    (["algorithm.name=reinforce", "algorithm.options.lam=0.9"], "algorithm.options.lam", "no GAE"),
    (["algorithm.name=reinforce", "update.epochs=2"], "update", "weighs no ratio"),
    (["algorithm.name=rloo", "update.minibatches=2"], "update", "weighs no ratio"),
    (
        ["algorithm.name=reinforce", "algorithm.options.returns=trajectory", "algorithm.options.gamma=0.9"],
        "algorithm.options.gamma",
        "not discounted",
    ),
    (
        ["algorithm.options.surrogate=gspo", "algorithm.options.denominator=token"],
        "algorithm.options.surrogate",
        "use denominator=sequence",
    ),
    (["critic.epochs=2"], "critic.epochs", "without a critic: grpo"),
    (["critic.optimizer.lr=1e-3"], "critic.optimizer.lr", "without a critic: grpo"),
    (
        ["algorithm.name=reinforce_baseline", "algorithm.options.baseline=group_mean", "critic.epochs=2"],
        "critic.epochs",
        "without a critic: reinforce_baseline with these options",
    ),
    (["algorithm.name=ppo", "critic.backbone=policy", "critic.epochs=2"], "critic.epochs", "critic.backbone=policy"),
    (["algorithm.name=ppo", "critic.backbone=policy", "critic.warmup=2"], "critic.warmup", "critic.backbone=policy"),
    (["algorithm.name=ppo", "critic.coefficient=1"], "critic.coefficient", "does not share the policy's backbone"),
    (["algorithm.name=ppo", "critic.clip=0.2"], "critic.clip", "one optimizer step per rollout"),
    (["algorithm.name=ppo", "critic.backbone=./nowhere"], "critic.backbone", "no folder ./nowhere"),
    (["algorithm.name=ppo", "critic.backbone=polcy"], "critic.backbone", "did you mean 'policy'?"),
    (["algorithm.name=ppo", "critic.minibatches=33"], "critic.minibatches", "cannot share out"),
    (["algorithm.name=ppo", "critic.warmup=100"], "critic.warmup", "would leave none for the policy"),
    (["update.max_kl=0.1"], "update.max_kl", "one optimizer step per rollout"),
    (["algorithm.name=trpo", "update.epochs=2"], "update.epochs", "one step per rollout"),
    (["algorithm.name=trpo", "optimizer.lr=1e-3"], "optimizer.lr", "trust region"),
    (["algorithm.name=trpo", "model.dtype=bfloat16"], "model.dtype", "use float32"),
    (["algorithm.name=trpo", "critic.backbone=policy"], "critic.backbone", "outside its trust region"),
    (["kl.estimator=k3_corrected", "kl.placement=reward"], "kl.estimator", "a reward has none; use k1"),
    (["kl.coefficient=0", "kl.target=0.1"], "kl.target", "set kl.coefficient"),
    (["kl.horizon=5"], "kl.horizon", "without kl.target"),
    (["kl.target=0.1", "kl.horizon=51"], "kl.horizon", "use at least 52"),  # 32 x 8 samples a step
]


@pytest.mark.parametrize(
    ("overrides", "key", "reason"), CONTRADICTIONS, ids=lambda x: x[-1] if isinstance(x, list) else ""
)
def test_what_contradicts_the_algorithm_or_does_nothing_is_refused_with_the_reason(overrides, key, reason):
    line = problem(*overrides)
    assert line.startswith(f"{key}: ") and reason in line


def test_a_group_baseline_with_one_sample_is_refused_and_a_critic_needs_no_second():
    name = "algorithm.name=reinforce_baseline"
    for baseline in ("leave_one_out", "group_mean"):
        line = problem(name, f"algorithm.options.baseline={baseline}", "rollout.samples_per_prompt=1")
        assert line.startswith("rollout.samples_per_prompt: must be at least 2, is 1")
    assert load(name, "rollout.samples_per_prompt=1").rollout.samples_per_prompt == 1


def test_a_saved_recipe_names_the_critic_only_where_there_is_one():
    assert "critic" not in config.dump(resolve())
    assert load("algorithm.name=ppo").critic.backbone == "copy"
    assert "backbone: copy" in config.dump(resolve("algorithm.name=ppo"))


def test_an_option_set_to_null_is_as_if_not_given():
    given = ["algorithm.name=reinforce", "algorithm.options.clip_low=null", "algorithm.options.gamma=null"]
    assert load(*given).algorithm.options == load("algorithm.name=reinforce").algorithm.options
