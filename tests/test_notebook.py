"""docs/first_run.ipynb runs from top to bottom, and its two models learn."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_the_first_run_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(ROOT / "docs" / "first_run.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, last = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert float(last["data"]["text/plain"]) > 0.5  # the mean reward of 16 rows; random weights give 0.01
    rewards = [
        float(output["text"].partition("reward ")[2].split()[0])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("text", "").startswith("step ")
    ]
    assert rewards[-1] > 0.5 > rewards[0]
    assert (tmp_path / "runs" / "run-1" / "report.html").is_file()
