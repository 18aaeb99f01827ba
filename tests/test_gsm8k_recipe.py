"""The GSM8K recipe runs unchanged but for paths: real rows, a local Qwen2 and a local Llama with random weights."""

import json
import os
from pathlib import Path

import pytest

from rlhf_pg import cli
from rlhf_pg.models.tokenizer import character_tokenizer
from tests.random_models import random_model

DATA = Path(os.environ.get("RLHF_PG_DATA", "../shared/data")) / "gsm8k"
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"

needs_data = pytest.mark.skipif(
    not (DATA / "train.jsonl").exists(), reason=f"no GSM8K rows at {DATA}; set RLHF_PG_DATA to a folder that has them"
)


def local_model(folder: Path, kind: str, chat: bool) -> Path:
    tokenizer = character_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    model = random_model(kind, vocabulary=len(tokenizer), max_position_embeddings=1024)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


@needs_data
@pytest.mark.parametrize(("kind", "chat"), [("qwen2", True), ("llama", False)])
def test_three_steps_on_real_rows(tmp_path, kind, chat, capsys):
    model = local_model(tmp_path / "model", kind, chat)
    arguments = [
        "recipes/gsm8k_grpo.yaml",
        f"model.path={model}",
        "model.dtype=float32",
        f"data.train.path={DATA / 'train.jsonl'}",
        f"data.eval.path={DATA / 'test.jsonl'}",
        "data.eval.limit=4",
        f"run.dir={tmp_path / 'run'}",
        "run.steps=3",
        "rollout.prompts_per_step=2",
        "rollout.samples_per_prompt=4",
        "rollout.max_new_tokens=12",
        "eval.every=0",
        "checkpoint=null",
    ]
    assert cli.main(["train", *arguments]) == 0
    assert f"template {'chat' if chat else 'r1'}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    sample = json.loads((tmp_path / "run" / "rollouts" / "step_00000001.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("[system]" if chat else "A conversation")
    assert sample["answer"].lstrip("-").isdigit()
    assert {"pass@1", "greedy"} <= json.loads((tmp_path / "run" / "summary.json").read_text())["after"].keys()


@needs_data
@pytest.mark.parametrize("name", ["reinforce", "reinforce_baseline", "trpo", "ppo", "grpo", "rloo"])
def test_every_algorithms_recipe_takes_steps_on_real_rows(tmp_path, name):
    model = local_model(tmp_path / "model", "qwen2", chat=True)
    arguments = [
        f"recipes/gsm8k_{name}.yaml",
        f"model.path={model}",
        "model.dtype=float32",
        f"data.train.path={DATA / 'train.jsonl'}",
        "data.train.limit=50",
        "data.eval=null",
        "eval=null",
        f"run.dir={tmp_path / 'run'}",
        "run.steps=2",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=8",
        "checkpoint=null",
        *(["critic.warmup=1"] if name in ("ppo", "trpo") else []),
    ]
    assert cli.main(["train", *arguments]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["algorithm"] == name
    assert ("value/loss" in rows[1]) == (name in ("reinforce_baseline", "trpo", "ppo"))
