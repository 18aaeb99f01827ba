"""The cold start: imitate worked solutions. Supervised fine-tuning is the score-function objective with advantage 1,
so it runs on the same policy, update and denominator as reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_pg import config
from rlhf_pg import functional as F
from rlhf_pg.algorithms.base import Algorithm, Options
from rlhf_pg.commands.export_card import card_files
from rlhf_pg.config import KL, SftRecipe, Update
from rlhf_pg.data import collate
from rlhf_pg.data.columns import PROMPTS, names, value_at
from rlhf_pg.data.conversation import reply_text
from rlhf_pg.data.rows import Rows
from rlhf_pg.data.stops import check_tokens, check_vocabulary, eos_ids, turn_end
from rlhf_pg.data.templates import continuation
from rlhf_pg.display.figures import counted
from rlhf_pg.display.live import LiveView
from rlhf_pg.distributed.backend import Backend
from rlhf_pg.estimate.microbatch import suitable_positions
from rlhf_pg.models.context import context_length
from rlhf_pg.models.export import UNUSABLE, export_dtype, faults, save_model
from rlhf_pg.models.load import load_config, load_generation, load_model, load_tokenizer
from rlhf_pg.models.policy import Policy
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training import gradient_step, launch_facts
from rlhf_pg.training.learner import Learner, Objective
from rlhf_pg.training.prompts import note, read_prompts, read_rows
from rlhf_pg.training.resume import refuse_another_run
from rlhf_pg.training.setup import adamw, model_notes
from rlhf_pg.types import Batch, Completion, Credit, Prompt, Rollout, Score, Signals, TokenLoss

TEXT = "text"  # the column of texts that are taught whole, as TRL calls it
EXPORTED = 64  # prompts whose tokens an export must keep


def sft(recipe: SftRecipe, source: Path | None = None) -> int:
    """Fine-tune on the data's worked solutions and write `run.dir`/model. Returns the exit status.

    source: the recipe's file, whose commit is recorded.

    With `run.resume=auto` a finished run is left as it is; an unfinished one starts over (a cold start is short).
    """
    if recipe.run.resume != "never" and (recipe.run.dir / "model" / "config.json").exists():
        refuse_another_run(recipe, recipe.run.dir / "config.yaml")
        print(f"{recipe.run.dir / 'model'} is there already: nothing to do")
        return 0
    backend = Backend(recipe.model.dtype).require_one_process("rlhf-pg sft")
    tokenizer = load_tokenizer(
        recipe.model.tokenizer or recipe.model.path, trust_remote_code=recipe.model.trust_remote_code
    )
    examples, notes = _examples(recipe, tokenizer)
    batches = -(-len(examples) // recipe.sft.batch_size) * recipe.sft.epochs
    with RunDir.open(recipe.run.dir, recipe.run.resume) as folder, LiveView(batches, recipe.log.live) as view:
        folder.truncate_after(0)
        folder.write_text("config.yaml", config.dump(recipe))
        for note in [*model_notes(recipe.model.path), *notes]:
            view.message(note)
        learner, model = _learner(recipe, backend, batches)
        texts = [example.prompt.text for example in examples[:EXPORTED]]
        if wrong := faults(model, tokenizer, texts, trust_remote_code=recipe.model.trust_remote_code):
            raise ValueError(f"export, tried before training: {'; '.join(wrong)}. {UNUSABLE}")
        launch = launch_facts.facts(recipe, backend, learner.policy, source)
        folder.add_launch(launch)
        rows = (
            f"{counted(recipe.sft.epochs, 'epoch')} of {counted(len(examples), 'row')}, {recipe.sft.batch_size} a step"
        )
        what = f"supervised fine-tuning of {recipe.model.path}: {rows}"
        opening = [what, launch_facts.placed(launch), launch_facts.software(launch), f"folder: {recipe.run.dir}"]
        view.message("\n".join(opening))
        for step, rows in enumerate(_shuffled(examples, recipe)):
            view.start_step(step + 1)
            view.phase("update")
            batch = collate.to(collate.collate(rows), learner.backend.device)
            ones = Credit(advantage=torch.ones_like(batch.logp_rollout))
            unused = Signals(token_reward=batch.logp_rollout)
            for metrics in gradient_step.optimizer_steps(learner, batch, unused, ones, step):
                row = {"step": step + 1, **{name: metrics[name] for name in ("loss", "entropy", "grad_norm", "lr")}}
                folder.append_metrics(row)
                view.finish_step(row, [])
        card, _ = card_files(recipe, folder, model, {}, view.warning)
        dtype = export_dtype(recipe.model.export_dtype)
        save_model(model, tokenizer, folder.path / "model", dtype=dtype, beside=card)
        view.end()
        view.message(f"model: {folder.path / 'model'}")
    return 0


def _examples(recipe: SftRecipe, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Rollout], list[str]]:
    """Return the data as rollouts of an expert, and what a person should know.

    After the solution comes the token that ends a turn of the chat template, where that is in use, or else EOS.
    """
    model_config = load_config(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    context, vocabulary = context_length(model_config), model_config.get_text_config().vocab_size
    check_vocabulary(tokenizer, vocabulary)
    generation = load_generation(recipe.model.path)
    stops, stop_notes = eos_ids(tokenizer, model_config, generation, vocabulary=vocabulary)
    rows = read_rows(recipe.data.train, "train")
    column = _text_column(recipe, rows)
    if column:
        end = next(i for i in (tokenizer.eos_token_id, *stops) if i in stops)
        examples = [_whole(rows, index, column, tokenizer, end) for index in range(len(rows))]
        said, dropped = _about_texts(rows, column), ""
    else:
        limits = dict(max_prompt_tokens=recipe.data.max_prompt_tokens, context=context, max_new_tokens=1)
        source = read_prompts(recipe.data.train, "train", tokenizer, **limits, rows=rows, needs_answer=False)
        ending = turn_end(tokenizer) if source.template.startswith("chat") else None
        end = next(i for i in (ending, tokenizer.eos_token_id, *stops) if i in stops)
        completion = recipe.sft.completion or _usual_completion(source.prompts[0])
        examples = [_expert(prompt, completion, tokenizer, end) for prompt in source.prompts]
        said, dropped = note("train", source), f" ({source.dropped_note})" if source.dropped else ""
    for example in examples:
        check_tokens(
            (*example.prompt.tokens, *example.completion.tokens.tolist()), example.prompt.id, tokenizer, vocabulary
        )
    fitting = [r for r in examples if len(r.prompt.tokens) + len(r.completion.tokens) <= context]
    too_long = f"longer with their prompt than the model's context of {context} tokens"
    if not fitting:
        raise ValueError(f"all {len(examples)} solutions are {too_long}{dropped}; take shorter ones, or another model")
    notes = [said, *stop_notes]
    if len(fitting) < len(examples):
        notes.append(f"data.train: {len(examples) - len(fitting)} of {len(examples)} solutions dropped: {too_long}")
    return fitting, notes


def _usual_completion(prompt: Prompt) -> str:
    """Return the column that is imitated where the recipe names none: the task's solution, else TRL's name."""
    return "solution" if "solution" in prompt.columns else "completion"


def _text_column(recipe: SftRecipe, rows: Rows) -> str | None:
    """Return the column of texts that are taught whole, None for prompts with completions.

    Raises ValueError for a key that says how prompts are written.
    """
    source, column = recipe.data.train, recipe.sft.completion or TEXT
    if source.task or source.prompt or rows[0].keys() & set(PROMPTS) or column not in rows[0]:
        return None
    for key in ("template", "instruction", "template_options"):
        if getattr(source, key):
            raise ValueError(f"data.train.{key}: has no effect on texts of column {column!r}, which are taught whole")
    return column


def _whole(rows: Rows, index: int, column: str, tokenizer: PreTrainedTokenizerBase, end: int) -> Rollout:
    """Return a text to be taught whole: its first token, or the BOS before it, stands for the prompt."""
    text = rows[index].get(column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{rows.where(index)}: column {column!r} is {str(text)[:60]!r}; text is needed")
    first, *others = tokenizer.encode(text)
    tokens = torch.tensor(others if others[-1:] == [end] else [*others, end])
    prompt = Prompt(f"train/{index}", text, (first,), rows[index])
    completion = Completion(tokens, torch.zeros(len(tokens)), "stop", version=0)
    return Rollout(prompt, completion, text, Score(1.0, {}, "scored"))


def _about_texts(rows: Rows, column: str) -> str:
    told = f"{counted(len(rows), 'text')} of column {column!r}, each taught whole from its second token on"
    return "; ".join([f"data.train: {told}", *rows.remarks()])


def _expert(prompt: Prompt, column: str, tokenizer: PreTrainedTokenizerBase, end: int) -> Rollout:
    try:
        text = value_at(prompt.columns, column)
    except KeyError:
        there = ", ".join(names(prompt.columns))
        raise ValueError(
            f"sft.completion: no column {column!r} in {prompt.id}; there are {there} (or messages that end with the "
            "assistant's turn)"
        ) from None
    try:
        text = reply_text(text)
    except ValueError as error:
        raise ValueError(f"sft.completion: column {column!r} of {prompt.id}: {error}") from error
    if isinstance(text, bool) or not isinstance(text, str | int | float) or not str(text).strip():
        raise ValueError(f"sft.completion: column {column!r} of {prompt.id} is {str(text)[:60]!r}; text is needed")
    written = continuation(prompt.text, str(text), tokenizer)
    tokens = torch.tensor(written if written[-1:] == [end] else [*written, end])
    completion = Completion(tokens, torch.zeros(len(tokens)), "stop", version=0)
    return Rollout(prompt, completion, str(text), Score(1.0, {}, "scored"))


def _shuffled(examples: Sequence[Rollout], recipe: SftRecipe) -> Iterator[list[Rollout]]:
    generator = torch.Generator().manual_seed(recipe.run.seed)
    for _ in range(recipe.sft.epochs):
        for rows in torch.randperm(len(examples), generator=generator).split(recipe.sft.batch_size):
            yield [examples[i] for i in rows.tolist()]


def _learner(recipe: SftRecipe, backend: Backend, total: int) -> tuple[Learner, PreTrainedModel]:
    model = load_model(
        recipe.model.path,
        attention=recipe.model.attention,
        seed=recipe.run.seed,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    model.to(backend.device)  # pyright: ignore[reportArgumentType]
    policy = Policy(model, share_prompts=False)
    prepared, optimizer = backend.prepare(
        policy, adamw(list(model.parameters()), recipe.optimizer), recipe.optimizer.grad_clip
    )
    update = Update(tokens_per_microbatch=suitable_positions(model.config, recipe.model, shared=False))
    imitation = Objective(_IMITATE.bind({}), KL(coefficient=0.0), max_length=1)
    learner = Learner(prepared, optimizer, backend, imitation, update, recipe.optimizer, recipe.run.seed, total)
    return learner, model


def _imitate(logp, entropy, batch: Batch, signals: Signals, credit: Credit, options: Options) -> TokenLoss:
    """Return -log pi of the solution's tokens: REINFORCE with advantage 1."""
    return TokenLoss(F.objectives.score_function(logp, credit.advantage))


_IMITATE = Algorithm("sft", credit=lambda *_: None, objective=_imitate)  # pyright: ignore[reportArgumentType]
