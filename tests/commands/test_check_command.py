"""`rlhf-pg check` prints what it saw, exits 0 or 1, and leaves the run directory alone."""

from rlhf_pg.preflight import checks
from tests.preflight.sessions import small_recipe


def test_the_command_passes_a_sound_recipe_and_makes_no_run_directory(tmp_path, capsys):
    recipe = small_recipe(tmp_path, log={"trackers": ["tensorboard"]})
    assert checks.run(recipe) == 0
    shown = capsys.readouterr().out
    assert shown.count("pass") == 7 and "64 prompts, template plain" in shown
    assert not (tmp_path / "run").exists()


def test_the_command_fails_and_says_what_to_do(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def mine(completion, answer): return 0.0\n")
    assert checks.run(small_recipe(tmp_path, rewards=[{"fn": f"{path}:mine"}])) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("FAIL") == 1 and "what to do" in shown
