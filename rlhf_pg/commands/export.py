"""What a run leaves behind at its end: the model in Hugging Face format, the summary and the report."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlhf_pg.models.adapter import save_adapter
from rlhf_pg.models.export import export_dtype, save_model
from rlhf_pg.report import write_report
from rlhf_pg.storage.run_dir import RunDir
from rlhf_pg.training.resume import Progress
from rlhf_pg.training.setup import Session


def export(
    session: Session,
    folder: RunDir,
    progress: Progress,
    after: dict[str, float] | None,
    message: Callable[[str], None],
) -> None:
    """Write what a run leaves behind. All ranks call it, the first one writes. `after`: the last evaluation."""
    backend = session.learner.backend
    gathered = backend.weights_to_save(session.model) if backend.sharded else None
    with backend.ranks.independently("the export"):
        if not backend.ranks.first:
            return
        dtype = export_dtype(session.recipe.model.export_dtype)
        written = save_model(session.model, session.tokenizer, folder.path / "model", gathered, dtype)
        save_adapter(session.model, folder.path / "adapter")
        summary = {
            "algorithm": session.recipe.algorithm.name,
            "before": progress.before,
            "after": after,
            "steps": progress.step,
            "samples": progress.samples,
            "wall_s": round(progress.elapsed_s, 1),
            "launches": folder.launches,
        }
        folder.write_json("summary.json", summary)
        if after:
            message(f"after: {headline(after)}")
        if written != torch.float32:
            message(
                f"model: weights rounded to {str(written).removeprefix('torch.')} (model.export_dtype: "
                f"{session.recipe.model.export_dtype}); what was measured are the float32 ones that were trained"
            )
        message(f"report: {write_report.write([folder.path])}")


def headline(measured: dict[str, float]) -> str:
    """Say an evaluation in one line: pass@1 0.43 [0.39, 0.47]  pass@8 0.86 [0.82, 0.90]  greedy 0.55 [0.48, 0.62]"""
    names = [name for name in measured if f"{name}_low" in measured]
    return "  ".join(f"{n} {measured[n]:.2f} [{measured[f'{n}_low']:.2f}, {measured[f'{n}_high']:.2f}]" for n in names)
