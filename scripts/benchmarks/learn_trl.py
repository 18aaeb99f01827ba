"""TRL's GRPOTrainer as a contender in learning: its own training loop, stopped by a callback at the goal."""

from __future__ import annotations

import tempfile
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.learn import Course
from benchmarks.learn_ours import greedy_accuracy, recipe_of
from benchmarks.port import Answer, Port
from rlhf_pg import config
from rlhf_pg.data.stops import eos_ids
from rlhf_pg.models.load import folder_or_name, load_model, load_tokenizer
from rlhf_pg.reward_fns.gsm8k import gsm8k
from rlhf_pg.rollout.engine import build
from rlhf_pg.training.prompts import prompts_of
from rlhf_pg.types import Prompt

MICROBATCH = 32  # rows: the largest that leaves TRL in 24 GB here


def learn(specification: dict[str, Any], port: Port) -> None:
    """Serve one round: train until the goal."""
    port.serve(lambda _: _learn(specification))


def _learn(specification: dict[str, Any]) -> Answer:
    with tempfile.TemporaryDirectory() as out:
        recipe = recipe_of(specification, f"{out}/run")
        tokenizer = load_tokenizer(recipe.model.path)
        prompts = {
            name: source.prompts for name, source in prompts_of(recipe, tokenizer, context=10**6).items()
        }  # the same rows, rendered by the same template
        model = load_model(recipe.model.path)
        stops, _ = eos_ids(tokenizer, model.config, model.generation_config)
        engine = build("native", model, stops, recipe.rollout.slots, {}, dtype="float32", context=10**6)
        course = Course(
            specification["goal"],
            specification["every"],
            specification["limit"],
            lambda: greedy_accuracy(engine, tokenizer, prompts["eval"], recipe.rollout.max_new_tokens),
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=_reward(set(stops)),
            args=_settings(recipe, out),
            train_dataset=Dataset.from_list([_row(prompt) for prompt in prompts["train"]]),
            processing_class=AutoTokenizer.from_pretrained(folder_or_name(recipe.model.path), padding_side="left")
            if recipe.model.path != "tiny"
            else tokenizer,
            callbacks=[UntilTheGoal(course, recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt)],
        )
        trainer.train()
        return course.answer()


def _row(prompt: Prompt) -> dict[str, str]:
    """Return a row of plain text, which TRL tokenizes as it is: what the chat template rendered."""
    return {"prompt": prompt.text, "answer": prompt.columns["answer"]}


def _reward(stops: set[int]) -> Any:
    def gsm8k_reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any):
        finishes = ["stop" if stops & set(ids[-1:]) else "length" for ids in completion_ids]
        return [gsm8k(c, a, f)["reward"] for c, a, f in zip(completions, answer, finishes, strict=True)]

    return gsm8k_reward


def _settings(recipe: config.ResolvedRecipe, out: str) -> GRPOConfig:
    """Return the recipe's rows, optimizer and loss, one optimizer step a rollout; everything else as TRL has it."""
    rollout, optimizer = recipe.rollout, recipe.optimizer
    rows = rollout.prompts_per_step * rollout.samples_per_prompt
    microbatch = min(MICROBATCH, rows)
    return GRPOConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=rows // microbatch,
        num_generations=rollout.samples_per_prompt,
        num_iterations=1,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        loss_type="grpo",
        beta=0.0,
        learning_rate=optimizer.lr,
        lr_scheduler_type="constant",
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.grad_clip,
        max_steps=recipe.run.steps,
        seed=recipe.run.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class UntilTheGoal(TrainerCallback):
    """Counts the trainer's steps and stops it where the course ends."""

    def __init__(self, course: Course, samples: int) -> None:
        self.course, self.samples = course, samples

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = self.course.step_done(self.samples)
