"""SmolLM2's turns: the prompt by hand, and the token that ends an answer: it is learned from, though it also pads."""

from __future__ import annotations

import torch

from rlhf_pg.data.collate import collate
from rlhf_pg.data.prompts import load_rows, to_prompts
from rlhf_pg.data.stops import eos_ids
from rlhf_pg.models.load import load_model
from rlhf_pg.models.policy import Policy
from rlhf_pg.rollout.native import NativeEngine
from rlhf_pg.types import Completion, Prompt, Rollout, Sampling, Score
from tests.rollout.contract import full_forward_logp
from tests.tolerance import allowance, in_float64

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
END = 2  # <|im_end|>


def test_a_question_becomes_the_turns_the_model_was_trained_on(tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "What is 27 plus 48?", "answer": "75"}\n')
    rows = load_rows(path=tmp_path / "rows.jsonl")
    columns = dict(prompt_column="question", answer_column="answer", split_name="train", template="auto")
    made = to_prompts(rows, tokenizer, **columns, max_prompt_tokens=99, context_length=999, max_new_tokens=9)  # pyright: ignore
    (prompt,) = made.prompts
    assert made.template == "chat"
    assert prompt.text == (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\nWhat is 27 plus 48?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    pieces = [tokenizer.decode([token]) for token in prompt.tokens]
    begin, middle = ["<|im_start|>", "system", "\n"], ["<|im_end|>", "\n", "<|im_start|>", "user", "\n"]
    question = ["What", " is", " ", "2", "7", " plus", " ", "4", "8", "?"]
    end = ["<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n"]
    assert pieces[:3] == begin and pieces[-21:] == [*middle, *question, *end]
    assert "".join(pieces[3:-21]) == INSTRUCTION
    assert [i for i, token in enumerate(prompt.tokens) if token in (1, 2)] == [
        0,
        len(pieces) - 21,
        len(pieces) - 19,
        len(pieces) - 6,
        len(pieces) - 4,
    ]


def test_the_end_of_a_turn_is_the_only_stop_and_ends_a_completion(model, tokenizer, prompts):
    assert eos_ids(tokenizer, model.config, model.generation_config, vocabulary=49_152) == ((END,), [])
    groups = NativeEngine(model, [END]).generate(prompts[1:2], Sampling(samples=4, max_new_tokens=12, seed=1))
    ends = [[i for i, t in enumerate(row.tokens.tolist()) if t == END] for row in groups[0]]
    assert [row.finish for row in groups[0]].count("stop") > 0
    assert all(
        end == ([len(row.tokens) - 1] if row.finish == "stop" else []) for end, row in zip(ends, groups[0], strict=True)
    )


def test_the_end_is_learned_from_though_the_same_token_pads(model, tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    prompt = Prompt("test/0", "", (1, 4093, 198, 57, 2, 198, 1, 520, 9531, 198))
    answers = [torch.tensor([504, 3575, END]), torch.tensor([504, END]), torch.tensor([504, 3575, 282, 4649])]
    rollouts = [
        Rollout(prompt, Completion(answer, torch.zeros(len(answer)), "stop", 0), "", Score(1.0, {}, "scored"))
        for answer in answers
    ]
    batch = collate(rollouts)
    assert batch.mask.tolist() == [[True, True, True, False], [True, True, False, False], [True] * 4]
    policy = Policy(load_model("smollm2"))
    logp, entropy = policy(batch)
    exact = in_float64(model)
    for row, answer in enumerate(answers):
        plain, truth = (full_forward_logp(each, prompt, answer, 1.0) for each in (model, exact))
        assert (logp[row, : len(answer)] - truth).abs().max() <= allowance(plain, truth)
    assert not logp[~batch.mask].any() and not entropy[~batch.mask].any()
    probability = lambda: float(full_forward_logp(policy.model, prompt, answers[1], 1.0)[1].exp())  # noqa: E731
    before = probability()
    (-logp[1, 1]).backward()  # what a positive advantage of that token asks for
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter -= 1e-4 * parameter.grad  # pyright: ignore[reportOperatorIssue]
    assert probability() > before
