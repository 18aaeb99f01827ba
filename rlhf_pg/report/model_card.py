"""The card of a model that a run leaves: what it is, what it learned, how it was trained, how to load it.

README.md with metadata as the Hub reads it, and curves.png. What is not known is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from rlhf_pg.display.figures import counted, duration, eval_names, number
from rlhf_pg.display.pictures import BLUE, GREY, ORANGE, panels, png
from rlhf_pg.display.text import visible
from rlhf_pg.report.charts import smooth
from rlhf_pg.report.measures import eval_bounds, eval_points, samples_seen
from rlhf_pg.report.run_record import RunRecord
from rlhf_pg.types import Origin

CARD, CURVES = "README.md", "curves.png"
BUILT = ("tiny", "smollm2")  # models that go by a name of this package
METHODS = {"sft": "supervised fine-tuning on worked solutions"}
UNKNOWN = "unknown"  # the Hub's word, too
UNESCAPED_BAR = re.compile(r"(?<!\\)\|")  # which ends a cell of a table
MARKUP = re.compile(r"([\\`*<>\[\]|]|(?<!\w)[_~]|[_~](?!\w))")


def files(
    run: RunRecord, origin: Origin, *, datasets: Sequence[str] = (), dtype: str = "float32", adapter: bool = False
) -> dict[str, bytes]:
    """Return README.md and, if something was measured step by step, curves.png of a finished run's model.

    `datasets`: names on the hub of what it learned from; `dtype`: of the weights in the folder; `adapter`: the folder
    holds a LoRA adapter and not the model.
    """
    picture = _curves(run)
    return {CARD: text(run, origin, datasets, dtype, adapter, picture is not None).encode(), **(picture or {})}


def text(
    run: RunRecord, origin: Origin, datasets: Sequence[str], dtype: str, adapter: bool, curves: bool = False
) -> str:
    """Return the text of README.md."""
    base, method = _base(run, origin), _method(run)
    kind, title = ("A LoRA adapter for", f"{run.name}, adapter") if adapter else ("This is", run.name)
    figures = "\n".join(_figures(run))
    facts = [f"| {name} | {_cell(value)} |" for name, value in _facts(run, base, dtype, adapter) if value]
    drawn = "loss by step" if method == "sft" else "reward by step, and held-out figures"
    parts = [
        f"---\n{_metadata(run, origin, datasets, adapter).to_yaml()}\n---",
        f"# {_plain(title)}",
        f"{kind} {base}, trained by {_plain(METHODS.get(method, method))} on {_data(run)}.",
        *(
            [f"| held-out problems solved | before | after |\n|---|---|---|\n{figures}", _measured(run, dtype)]
            if figures
            else []
        ),
        *([f"![{drawn}]({CURVES})"] if curves else []),
        "## Use",
        f"```python\n{_code(run, origin, adapter)}\n```",
        _prompts(run),
        "## Training",
        "\n".join(["| what | |", "|---|---|", *facts]),
        *([_recipe(run)] if run.config_text.strip() else []),
        "## Licence",
        _licence(origin, base),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(run: RunRecord, origin: Origin, datasets: Sequence[str], adapter: bool) -> ModelCardData:
    licence: Any = origin.licence or UNKNOWN
    method = _method(run)
    relation: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if origin.hub else {}
    return ModelCardData(
        base_model=origin.hub,
        **relation,
        datasets=list(datasets) or None,
        library_name="peft" if adapter else "transformers",
        license=licence.split(", ") if ", " in licence else licence,
        license_name=origin.licence_name,
        license_link=origin.licence_link,
        pipeline_tag="text-generation",
        tags=["rlhf_pg", method, *([] if method == "sft" else ["reinforcement-learning"])],
    )


def _figures(run: RunRecord) -> Iterator[str]:
    """Yield rows of a table: name, before and after with intervals."""
    before, after = run.evaluation("before"), run.evaluation("after")
    for name in eval_names(before, after):
        yield f"| {_plain(name)} | {_share(before, name)} | {_share(after, name)} |"


def _share(figures: dict[str, Any], name: str) -> str:
    value, low, high = (number(figures, f"{name}{end}") for end in ("", "_low", "_high"))
    interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return "not measured" if value is None else f"{value:.2f}{interval}"


def _measured(run: RunRecord, dtype: str) -> str:
    """Say how the held-out figures were measured."""
    samples, temperature = run.setting("eval.samples"), run.setting("eval.temperature")
    greedy = ", greedy of the most likely completion" if run.setting("eval.greedy") else ""
    rounded = "" if dtype == "float32" else f" Measured on float32 weights; the files hold them rounded to {dtype}."
    return (
        f"Shares with 95 % bootstrap intervals over problems: pass@k of {samples} samples a problem at temperature "
        f"{temperature}{greedy}; right is what {_code_span(_rewards(run)[0])} gives at "
        f"least 1.{rounded}"
    )


def _base(run: RunRecord, origin: Origin) -> str:
    path = _without_home(str(run.setting("model.path", UNKNOWN)))
    if path == "tiny":
        return "the embedded Qwen2 model `tiny` (random weights)"
    if origin.hub:
        known = f"[{_plain(origin.hub)}](https://huggingface.co/{origin.hub})"
        return known if path == origin.hub else f"{known} (given as {_code_span(path)})"
    return f"{_plain(origin.name)} ({_code_span(path)})" if origin.name else f"the model in {_code_span(path)}"


def _data(run: RunRecord) -> str:
    """Name the task and the data learned from."""
    source = run.setting("data.train", {})
    place = source.get("path") or source.get("dataset")
    places = [place] if isinstance(place, str) else place or []
    named = ", ".join(_code_span(_shared(str(each))) for each in places)
    task = f"the task {_code_span(str(source['task']))}" if source.get("task") else ""
    return f"{task} ({named})" if task and named else task or named or "data that is not recorded"


def _method(run: RunRecord) -> str:
    name = run.summary.get("algorithm") or run.setting("algorithm.name")
    return str(name) if name else "sft" if run.setting("sft") is not None else UNKNOWN


def _rewards(run: RunRecord) -> list[str]:
    rewards = run.setting("rewards", [])
    return [_shared(str(reward.get("fn"))) for reward in rewards if isinstance(reward, dict)] or [UNKNOWN]


def _code(run: RunRecord, origin: Origin, adapter: bool) -> str:
    """Return Python that loads the folder."""
    path = _without_home(str(run.setting("model.path", UNKNOWN)))
    place = 'folder = "."  # this folder, or the name of this repository'
    if not adapter:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"{place}\nmodel = AutoModelForCausalLM.from_pretrained(folder)\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)"
        )
    if path in BUILT or path.lower().endswith(".gguf"):  # what was trained are the numbers that the file stands for
        seed = f", seed={run.setting('run.seed')}" if path == "tiny" else ""
        base = f"from rlhf_pg.models.load import load_model\n\n{place}\nbase = load_model({path!r}{seed})"
    else:
        base = (
            f"from transformers import AutoModelForCausalLM\n\n{place}\n"
            f"base = AutoModelForCausalLM.from_pretrained({(origin.hub or path)!r})"
        )
    return f"from peft import PeftModel\n{base}\nmodel = PeftModel.from_pretrained(base, folder)"


def _prompts(run: RunRecord) -> str:
    template = run.setting("data.train.template")
    written = {"plain": "the question and nothing else", "r1": "DeepSeek-R1-Zero's text around the question"}
    said = written.get(str(template), "as `data.train.template` of the recipe below says")
    instruction = run.setting("data.train.instruction")
    told = f", with the instruction {_code_span(str(instruction))}" if instruction else ""
    return f"Prompts in training were {said}{told}; ask as they do."


def _facts(run: RunRecord, base: str, dtype: str, adapter: bool) -> Iterator[tuple[str, str]]:
    """Yield (what, value) of how the model was trained, in Markdown."""
    launch = run.launches[-1] if run.launches else {}
    git, method = launch.get("git"), _method(run)
    lora = run.setting("model.lora")
    yield "base model", base
    yield "algorithm", _plain(METHODS.get(method, method))
    merged = "" if adapter else ", merged"
    yield "trained", f"a LoRA adapter of rank {lora['rank']}{merged}" if isinstance(lora, dict) else "all weights"
    yield "weights in these files", dtype
    yield "data", _data(run)
    yield "reward", "" if method == "sft" else ", ".join(map(_code_span, _rewards(run)))
    yield "steps", _steps(run)
    yield "time", duration(number(run.summary, "wall_s")) if "wall_s" in run.summary else ""
    processes = launch.get("processes", 1)
    yield "hardware", _plain(f"{launch['device']}{f' x {processes}' if processes > 1 else ''}") if launch else UNKNOWN
    yield "layout", _plain(f"{launch['layout']}, {launch['dtype']}, seed {launch['seed']}") if launch else ""
    yield "started", _plain(", then resumed ".join(str(each.get("started")) for each in run.launches))
    yield "command", _code_span(_without_home(str(launch.get("command", ""))))
    commit = f"{git.get('commit')}{', changed since' if git.get('dirty') else ''}" if isinstance(git, dict) else UNKNOWN
    yield "commit", _plain(commit)
    yield "versions", _plain(", ".join(f"{name} {version}" for name, version in launch.get("versions", {}).items()))


def _recipe(run: RunRecord) -> str:
    recipe = _without_home(run.config_text.rstrip())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0))
    return f"<details><summary>The recipe, with its defaults</summary>\n\n{fence}yaml\n{recipe}\n{fence}\n\n</details>"


def _steps(run: RunRecord) -> str:
    prompts, samples = run.setting("rollout.prompts_per_step"), run.setting("rollout.samples_per_prompt")
    steps = counted(run.last_step, "step")
    if prompts is None:
        return f"{steps} of {run.setting('sft.batch_size')} rows"
    seen = run.summary.get("samples") or max(samples_seen(run).values(), default=0)
    return f"{steps} of {prompts} prompts x {samples} samples, {counted(seen, 'sample')} in all"


def _licence(origin: Origin, base: str) -> str:
    if origin.licence is None:
        return f"That of the base model is {UNKNOWN}: neither a card nor another file of {base} names one."
    name = f" ({_plain(origin.licence_name)})" if origin.licence_name else ""
    link = f", {_plain(origin.licence_link)}" if origin.licence_link else ""
    return f"That of the base model: {_plain(origin.licence)}{name}{link}, as {origin.source} says."


def _curves(run: RunRecord) -> dict[str, bytes] | None:
    """Draw the reward (or the loss) of each step, and the held-out figures with intervals; None without any."""
    key, label = ("loss", "loss") if _method(run) == "sft" else ("reward/mean", "reward, mean of the step")
    points = run.series(key)
    lines = [(label, points)] if any(y is not None for _, y in points) else []
    names = [name for name in eval_names(run.evaluation("after")) if len(eval_points(run, name)) > 1]
    if not lines and not names:
        return None
    count = bool(lines) + bool(names)
    figure, axes = panels(1, count, 4.6 * count, 2.9, grid="both")
    for title, values in lines:
        axes[0, 0].plot(*_columns(values), color=GREY, linewidth=1, label="each step")
        axes[0, 0].plot(*_columns(smooth(values)), color=BLUE, linewidth=1.8, label="smoothed")
        axes[0, 0].set(title=title, xlabel="step")
        axes[0, 0].legend(frameon=False, fontsize=8)
    for color, name in zip((BLUE, ORANGE, "#4f9a5b"), names, strict=False):
        values = eval_points(run, name)
        steps, shares = _columns(values)
        bounds = [bound or (share, share) for bound, share in zip(eval_bounds(run, values, name), shares, strict=True)]
        apart = [
            [max(share - low, 0) for (low, _), share in zip(bounds, shares, strict=True)],
            [max(high - share, 0) for (_, high), share in zip(bounds, shares, strict=True)],
        ]
        panel = axes[0, count - 1]
        panel.errorbar(
            steps, shares, apart, color=color, marker="o", markersize=4, capsize=3, linewidth=1.5, label=name
        )
        panel.set(title="held-out problems solved", xlabel="step", ylabel="%")
        panel.legend(frameon=False, fontsize=8, loc="best" if max(shares) < 80 else "lower right")
    return {CURVES: png(figure)}


def _columns(points: Sequence[tuple[float, float | None]]) -> tuple[list[float], list[float]]:
    return [x for x, y in points if y is not None], [y for _, y in points if y is not None]


def _without_home(words: str) -> str:
    """Return text in which the home directory, and with it the name of a person, is ~."""
    home = str(Path.home())
    return words if home == "/" else re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", words)


def _shared(path: str) -> str:
    """Return a path as others know it: the name alone of one that holds on this machine only."""
    return Path(path).name if Path(path).is_absolute() else path


def _plain(words: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return MARKUP.sub(r"\\\1", visible(str(words)))


def _cell(words: str) -> str:
    """Return Markdown as a cell of a table, which a bar would end."""
    return UNESCAPED_BAR.sub(lambda _: "\\|", words)


def _code_span(words: str) -> str:
    """Return text as code in Markdown; "" for none."""
    words = visible(words)
    ticks = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    pad = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{ticks}{pad}{words}{pad}{ticks}" if words else ""
