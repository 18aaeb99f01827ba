"""Read the prompts of a recipe's data sections, for a run or a server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rlhf_pg.config import DataSource, ResolvedRecipe
from rlhf_pg.data import prompts as prompt_data


def prompts_of(
    recipe: ResolvedRecipe, tokenizer: PreTrainedTokenizerBase, context: int
) -> dict[Literal["train", "eval"], prompt_data.Prompts]:
    """Read the prompts of data.train and, if there is one, data.eval."""
    sources: dict[Literal["train", "eval"], DataSource | None] = {"train": recipe.data.train, "eval": recipe.data.eval}
    return {
        name: read_prompts(
            source,
            name,
            tokenizer,
            max_prompt_tokens=recipe.data.max_prompt_tokens,
            context=context,
            max_new_tokens=(name == "eval" and recipe.eval.max_new_tokens) or recipe.rollout.max_new_tokens,
        )
        for name, source in sources.items()
        if source
    }


def longest_request(recipe: ResolvedRecipe, prompts: Mapping[Literal["train", "eval"], prompt_data.Prompts]) -> int:
    """Return the tokens of the longest prompt with the longest completion, over data.train and data.eval."""
    new = {"train": recipe.rollout.max_new_tokens, "eval": recipe.eval.max_new_tokens or recipe.rollout.max_new_tokens}
    return max(len(prompt.tokens) + new[name] for name, source in prompts.items() for prompt in source.prompts)


def read_prompts(
    source: DataSource,
    name: Literal["train", "eval"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    context: int,
    max_new_tokens: int,
) -> prompt_data.Prompts:
    """Read the prompts of one data source of a recipe. Raises ValueError naming the file and line, column or option."""
    rows = prompt_data.load_rows(
        task=source.task,
        path=source.path,
        dataset=source.dataset,
        subset=source.subset,
        split=source.split or {"train": "train", "eval": "heldout"}[name],
        limit=source.limit,
        options=source.options,
    )
    return prompt_data.to_prompts(
        rows,
        tokenizer,
        split_name=name,
        prompt_column=source.prompt,
        answer_column=source.answer,
        template=source.template or "auto",
        instruction=source.instruction,
        template_options=source.template_options,
        max_prompt_tokens=max_prompt_tokens,
        context_length=context,
        max_new_tokens=max_new_tokens,
        task=source.task,
    )


def note(name: str, source: prompt_data.Prompts) -> str:
    """Say in a line what was read for data.`name`."""
    dropped = [source.dropped_note] if source.dropped else []
    details = [f"template {source.template}", *source.remarks, *dropped]
    return f"data.{name}: {len(source.prompts)} prompts, {'; '.join(details)}"
