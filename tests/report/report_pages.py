"""Run directories written by hand, and what a browser would see of a report."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []  # contents of script elements: of the data, then of the program
        self.inside = ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += f"{data} "

    def data(self) -> dict[str, Any]:
        """What the page holds for its script."""
        return json.loads(self.scripts[0])

    def titles(self):
        return set(re.findall(r"<h3>([^<]*)</h3>", self.html))


def row(step: int, reward: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"step": step, "reward/mean": reward, "time/step_s": 2.0, "outcome/scored": 10, "outcome/error": 0} | more


def make(path: Path, rows, tail="", config="algorithm:\n  name: grpo\n", summary=None, samples=None) -> Path:
    (path / "rollouts").mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + tail)
    (path / "config.yaml").write_text(config)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    for step, completions in (samples or {}).items():
        text = "".join(json.dumps({"step": step} | s) + "\n" for s in completions)
        (path / f"rollouts/step_{step:08d}.jsonl").write_text(text)
    return path


def recipe(name: str, seed: int = 0, **more: Any) -> str:
    """The text of a config.yaml: an algorithm, a seed, and further sections."""
    return yaml.safe_dump({"run": {"seed": seed}, "algorithm": {"name": name}} | more)


def table(page: Page, title: str) -> dict[str, dict[str, str]]:
    """The table under a heading as {first cell: {column: cell}}."""
    text = re.split(rf"<h2>{re.escape(title)}</h2>", page.html)[1].split("</table>")[0]
    head = re.findall(r"<th>([^<]*)</th>", text)
    rows = [re.findall(r"<td[^>]*>(?:<i[^>]*></i>)?([^<]*)</td>", tr) for tr in text.split("<tr>")[2:]]
    return {cells[0]: dict(zip(head[1:], map(unescape, cells[1:]), strict=True)) for cells in rows}
