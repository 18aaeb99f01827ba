"""TRL's GRPOTrainer as a contender: its own training loop, held between steps by a callback."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.port import Port, Timer
from benchmarks.reward import reward
from benchmarks.shapes import Shape, shape_of


def step(specification: dict[str, Any], port: Port) -> None:
    """Serve whole training steps. `options` of the specification are GRPOConfig's, beyond what the comparison fixes."""
    shape, folder = shape_of(specification["shape"]), Path(specification["folder"])
    clock = Clock(port)
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=str(folder / "model"),
            reward_funcs=clock.counted_reward,
            args=_settings(shape, out, specification.get("options", {})),
            train_dataset=load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train", cache_dir=out),
            processing_class=AutoTokenizer.from_pretrained(folder / "model", padding_side="left"),
            callbacks=[clock],
        )
        clock.watch(trainer)
        trainer.train()


def _settings(shape: Shape, out: str, options: dict[str, Any]) -> GRPOConfig:
    """Return the same rows, optimizer and KL in one optimizer step; everything else as TRL has it."""
    return GRPOConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=shape.rows,
        gradient_accumulation_steps=1,
        num_generations=shape.samples,
        num_iterations=1,
        max_completion_length=shape.completion,
        beta=0.04,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )


class Clock(TrainerCallback):
    """Waits for a command where the trainer's loop begins its next step, answers when that step ends.

    A round is everything the loop does from one end of a step to the next: data, generation, reward, reference,
    update, logging.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self.tokens = 0
        self.rollout_s = 0.0
        self.timer = Timer()

    def counted_reward(self, completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        self.tokens += sum(map(len, completion_ids))
        return [*reward(completions)]

    def watch(self, trainer: Any) -> None:
        """Time the trainer's own generation."""
        inner = trainer._generate_single_turn

        def timed(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **named)
            finally:
                self.rollout_s += time.perf_counter() - started

        trainer._generate_single_turn = timed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.port.ready()
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        timing = self.timer.stop()
        self.port.answer(
            {
                **timing,
                "tokens": self.tokens,
                "rollout_s": self.rollout_s,
                "update_s": timing["seconds"] - self.rollout_s,
            }
        )
        self._wait(control)

    def _wait(self, control: Any) -> None:
        if self.port.command() is None:
            control.should_training_stop = True
        self.tokens, self.rollout_s, self.timer = 0, 0.0, Timer()
