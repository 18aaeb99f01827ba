"""LoRA under every algorithm: the base stays as it was, the adapter alone is learned, saved, resumed and exported."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.interrupt import Stopped, StopRequest
from rlhf_pg.models.adapter import add_adapter, has_adapter, learned, load_learned
from rlhf_pg.models.export import save_model
from rlhf_pg.models.load import load_model, tiny_model
from rlhf_pg.models.tokenizer import character_tokenizer
from rlhf_pg.storage.digest import weights_digest
from rlhf_pg.training import loop, setup
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.variance import _NoRunDir
from tests.random_models import random_model
from tests.tolerance import allowance, in_float64
from tests.training import small_run

LORA = {"path": "tiny", "lora": {"rank": 2}}
IN_REWARD = {"coefficient": 0.05, "placement": "reward", "estimator": "k1"}
CRITIC = {"optimizer": {"lr": 1e-3}}
LADDER = {
    "reinforce": dict(kl=IN_REWARD),
    "reinforce_baseline": dict(kl=IN_REWARD, critic=CRITIC),
    "trpo": dict(critic=CRITIC, optimizer=None, algorithm={"name": "trpo", "options": {"cg_iterations": 3}}),
    "ppo": dict(kl=IN_REWARD, critic=CRITIC),
    "grpo": {},
    "rloo": dict(kl=IN_REWARD),
}


def changes(name):
    return {"model": LORA, "algorithm": {"name": name}} | LADDER[name]


def session_of(folder, **given):
    session = setup.build(small_run.recipe(folder, **given))
    made = loop.TrainingRun(session, _NoRunDir(), LiveView(3, "off"), StopRequest(), Progress())  # pyright: ignore[reportArgumentType]
    return session, made


def base_digest(module):
    return weights_digest({n: p for n, p in module.named_parameters() if "lora_" not in n and "head." not in n})


def of_adapter(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("name", LADDER)
def test_every_algorithm_learns_the_adapter_alone_and_starts_at_its_reference(name, tmp_path):
    session, run = session_of(tmp_path, **changes(name))
    critic = session.learner.critic and session.learner.backend.unwrap(session.learner.critic.module)
    modules = [session.model, *([critic] if critic else [])]
    before, adapters = [base_digest(m) for m in modules], [of_adapter(m) for m in modules]
    rows = [loop.train_step(run) for _ in range(3)]
    session.close()
    assert session.reference_policy is None  # no copy: the adapter switched off
    assert [base_digest(m) for m in modules] == before
    for module, adapter in zip(modules, adapters, strict=True):
        assert any(not torch.equal(p, adapter[n]) for n, p in of_adapter(module).items())
    assert abs(rows[0]["kl/ref"]) < 1e-9
    assert rows[2]["kl/ref"] > 1e-9
    if critic:
        mine, its = {id(p) for p in session.model.parameters()}, {id(p) for p in critic.parameters()}
        assert not mine & its


def test_a_checkpoint_holds_adapters_their_moments_and_the_value_head_and_no_base(tmp_path):
    small_run.run(tmp_path / "lora", **changes("ppo"), checkpoint={"every": 3})
    small_run.run(tmp_path / "full", **changes("ppo") | {"model": {"path": "tiny"}}, checkpoint={"every": 3})
    newest = tmp_path / "lora" / "checkpoints" / "step_00000003"
    model, critic = (load_file(newest / f"{name}.safetensors") for name in ("model", "critic"))
    assert model and all("lora_" in name for name in model)
    assert all("lora_" in name or name.startswith("head.") for name in critic)
    assert sum("lora_" in name for name in critic) == len(model)
    trained = sum(t.numel() for t in model.values())
    moments = load_file(newest / "optimizer.safetensors")
    assert sum(t.numel() for n, t in moments.items() if not n.startswith("step/")) == 2 * trained
    sizes = {
        kind: sum(
            f.stat().st_size for f in (tmp_path / kind / "checkpoints" / "step_00000003").glob("[cmo]*.safetensors")
        )
        for kind in ("lora", "full")
    }
    assert sizes["lora"] < 0.1 * sizes["full"]


@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_a_run_on_an_adapter_that_is_cut_ends_bitwise_where_it_would_have(name, tmp_path, monkeypatch):
    given = changes(name)
    small_run.run(tmp_path / "whole", **given)
    calls, plain = [0], loop.TrainingRun.poll

    def poll(run, *done):
        calls[0] += 1
        if calls[0] == 30:
            raise Stopped
        plain(run, *done)

    monkeypatch.setattr(loop.TrainingRun, "poll", poll)
    assert small_run.run(tmp_path / "cut", **given) == 130
    monkeypatch.undo()
    assert small_run.run(tmp_path / "cut", **given, run={"resume": "auto"}) == 0
    for folder in ("model/model", "adapter/adapter_model"):
        whole, cut = (load_file(tmp_path / name / f"{folder}.safetensors") for name in ("whole", "cut"))
        small_run.assert_bitwise_equal(whole, cut)


def test_a_run_without_kl_still_refuses_to_go_on_over_another_base(tmp_path):
    save_model(tiny_model(seed=1, vocabulary=len(character_tokenizer())), character_tokenizer(), tmp_path / "base")
    given = {"model": {"path": str(tmp_path / "base"), "lora": {"rank": 2}}, "kl": {"coefficient": 0}}
    given |= {"algorithm": {"name": "rloo"}}
    small_run.run(tmp_path / "run", **given, checkpoint={"every": 1})
    save_model(tiny_model(seed=2, vocabulary=len(character_tokenizer())), character_tokenizer(), tmp_path / "base")
    with pytest.raises(ValueError, match="the reference model is not the one this run started from"):
        small_run.run(tmp_path / "run", **given, checkpoint={"every": 1}, run={"resume": "auto", "steps": 4})


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_exported_model_opens_without_peft_and_gives_the_adapters_log_probs(kind, tmp_path):
    adapted = grown(kind)
    before = weights_digest(adapted.named_parameters())
    tokens = torch.randint(0, 23, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = adapted(input_ids=tokens).logits.log_softmax(-1)
    save_model(adapted, character_tokenizer(), tmp_path / "model")
    assert weights_digest(adapted.named_parameters()) == before  # training could go on
    assert torch.equal(adapted(input_ids=tokens).logits.log_softmax(-1), expected)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(opened) is type(adapted.get_base_model())  # pyright: ignore[reportCallIssue]
    exact = in_float64(adapted)(input_ids=tokens).logits.log_softmax(-1)
    assert (opened(input_ids=tokens).logits.log_softmax(-1) - exact).abs().max() <= allowance(expected, exact)
    with adapted.disable_adapter():  # pyright: ignore[reportCallIssue]
        apart = adapted(input_ids=tokens).logits.log_softmax(-1)
    assert (apart - expected).abs().max() > 1e-2
    assert not any(
        "lora" in file.read_text().lower() for file in (tmp_path / "model").glob("*.json") if "token" not in file.name
    )


def test_the_adapter_beside_the_model_opens_in_peft_over_the_untouched_base(tmp_path):
    save_model(tiny_model(seed=1, vocabulary=len(character_tokenizer())), character_tokenizer(), tmp_path / "base")
    small_run.run(tmp_path / "run", model={"path": str(tmp_path / "base"), "lora": {"rank": 2}})
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (2, str(tmp_path / "base"))
    tokens = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(1))
    base = load_model(str(tmp_path / "base"))
    with torch.no_grad():
        plain = base(input_ids=tokens).logits
        whole = load_model(str(tmp_path / "run" / "model"))(input_ids=tokens).logits
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
        beside, exact = (each(input_ids=tokens).logits for each in (adapted, in_float64(adapted)))
    assert (whole - exact).abs().max() <= allowance(beside, exact)
    assert (plain - whole).abs().max() > 1e-4


def test_a_run_without_an_adapter_writes_none(tmp_path):
    small_run.run(tmp_path, run={"steps": 1})
    assert (tmp_path / "model").is_dir() and not (tmp_path / "adapter").exists()


def test_a_checkpoint_of_another_rank_is_refused_before_anything_changes():
    here, other = grown("qwen2"), add_adapter(random_model("qwen2"), Lora(3))
    before = weights_digest(here.named_parameters())
    with pytest.raises(
        ValueError, match=r"another model: 28 tensors differ, such as .*lora_A.* \[3, 48\] \(here \[2, 48\]\)"
    ):
        load_learned(here, learned(other))
    assert weights_digest(here.named_parameters()) == before


def test_an_adapter_on_an_embedding_that_is_the_head_is_refused():
    with pytest.raises(ValueError, match="targets names the embedding, which is also this model's head"):
        add_adapter(random_model("qwen2"), Lora(2, targets=["embed_tokens", "q_proj"]))


def test_fewer_bits_are_refused_where_there_is_no_cuda(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    save_model(tiny_model(seed=1, vocabulary=len(character_tokenizer())), character_tokenizer(), tmp_path / "base")
    given = {"path": str(tmp_path / "base"), "lora": {}, "quantize": "4bit"}
    with pytest.raises(ValueError, match=r"model\.quantize: 4bit weights need a CUDA device"):
        setup.build(small_run.recipe(tmp_path / "run", model=given))


class Lora:
    def __init__(self, rank: int, targets: str | list[str] = "all-linear"):
        self.rank, self.alpha, self.targets = rank, 4.0, targets


def grown(kind):
    """A model with an adapter that has learned something."""
    model = add_adapter(random_model(kind), Lora(2)).eval()
    assert has_adapter(model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model
