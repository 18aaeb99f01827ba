"""Write the tables of keys in docs/recipes.md from the schema: `python scripts/recipe_table.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from rlhf_pg import config
from rlhf_pg.config import messages
from rlhf_pg.config.inheritance import INHERITING

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


def table(schema: type[BaseModel], only: tuple[str, ...] = ()) -> str:
    """Return a Markdown table with a row per key: name, value, default, meaning; of the sections `only`, if named."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in _keys(schema):
        if only and not key.name.startswith(only):
            continue
        kind = messages.words(key.field.annotation)
        cells = (f"`{key.name}`", kind, _default(key), key.field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _keys(schema: type[BaseModel]) -> Iterator[messages.Key]:
    """Yield every key; a section that inherits from another one as a single key."""
    shown: set[str] = set()
    for key in messages.keys(schema):
        section = key.name.rpartition(".")[0]
        if section not in INHERITING:
            yield key
        elif section not in shown:
            shown.add(section)
            parent, _, leaf = section.rpartition(".")
            above = messages.section_of(schema.model_fields[parent].annotation)
            assert above is not None
            yield messages.Key(section, above.model_fields[leaf])


def filled(page: str) -> str:
    """Return the page with both tables as the schema has them now."""
    page = _replace(page, "train", table(config.Recipe))
    return _replace(page, "sft", table(config.SftRecipe, ("sft.", "optimizer.lr")))


def _default(key: messages.Key) -> str:
    if key.field.is_required():
        return "required"
    value = key.field.default
    if value is None or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def _replace(page: str, name: str, text: str) -> str:
    pattern = rf"(<!-- keys: {name} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
