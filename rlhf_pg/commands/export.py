"""What a run leaves behind at its end: the model in Hugging Face format, the summary and the report."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_pg.commands.export_card import card_files
from rlhf_pg.config import ResolvedRecipe
from rlhf_pg.display.figures import eval_names
from rlhf_pg.display.live import LiveView
from rlhf_pg.display.text import visible
from rlhf_pg.models.adapter import save_adapter
from rlhf_pg.models.export import export_dtype, save_model
from rlhf_pg.report import run_record, write_report
from rlhf_pg.report.notices import notices
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import Session


def export(
    session: Session,
    folder: RunDir,
    progress: Progress,
    after: dict[str, float] | None,
    view: LiveView,
) -> None:
    """Write what a run leaves behind. All ranks call it, the first one writes. `after`: the last evaluation."""
    backend = session.learner.backend
    gathered = backend.weights_to_save(session.model) if backend.sharded else None
    with backend.ranks.independently("the export"):
        if not backend.ranks.first:
            return
        summary = {
            "algorithm": session.recipe.algorithm.name,
            "before": progress.before,
            "after": after,
            "steps": progress.step,
            "samples": progress.samples,
            "wall_s": round(progress.elapsed_s, 1),
            "launches": folder.launches,
        }
        card, adapter_card = card_files(session.recipe, folder, session.model, summary, view.warning)
        dtype = export_dtype(session.recipe.model.export_dtype)
        written = save_model(session.model, session.tokenizer, folder.path / "model", gathered, dtype, card)
        save_adapter(session.model, folder.path / "adapter", adapter_card)
        folder.write_json("summary.json", summary)
        if written != torch.float32:
            view.message(
                f"model: weights rounded to {str(written).removeprefix('torch.')} (model.export_dtype: "
                f"{session.recipe.model.export_dtype}); what was measured are the float32 ones that were trained"
            )
        write_report.write([folder.path])
        for line in closing(folder.path):
            view.message(line)


def closing(run_dir: Path) -> list[str]:
    """Return what a finished run says last: held-out figures, what to know about it, and where things are."""
    run = run_record.read(run_dir)
    before, after = run.evaluation("before"), run.evaluation("after")
    lines = []
    for name in eval_names(after):
        was = f"{before[name]:.2f} -> " if name in before else ""
        lines.append(
            f"held-out {name:7} {was}{after[name]:.2f}  [{after[f'{name}_low']:.2f}, {after[f'{name}_high']:.2f}]"
        )
    lines += [f"{'note' if n.level == 'note' else 'at the end'}: {visible(n.text)}" for n in notices(run)]
    adapter = [f"adapter: {run_dir / 'adapter'}"] if (run_dir / "adapter").is_dir() else []
    return [*lines, f"model: {run_dir / 'model'}", *adapter, f"report: {run_dir / 'report.html'}"]


def is_finished(recipe: ResolvedRecipe, folder: RunDir) -> bool:
    """Return whether a run has been to its end, and its model was exported as the recipe asks for."""
    run = run_record.read(folder.path)
    exported = (folder.path / "model" / "config.json").is_file()
    step = int(folder.resume_from.name.removeprefix("step_")) if folder.resume_from else -1
    if not exported or min(step, run.summary.get("steps", -1)) < recipe.run.steps:
        return False
    return run.setting("model.export_dtype") == recipe.model.export_dtype


def headline(measured: dict[str, float]) -> str:
    """Say an evaluation in one line: pass@1 0.43 [0.39, 0.47]  pass@8 0.86 [0.82, 0.90]  greedy 0.55 [0.48, 0.62]"""
    names = [name for name in measured if f"{name}_low" in measured]
    return "  ".join(f"{n} {measured[n]:.2f} [{measured[f'{n}_low']:.2f}, {measured[f'{n}_high']:.2f}]" for n in names)
