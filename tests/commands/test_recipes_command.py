"""`rlhf-pg recipes`: the list, and a copy to edit."""

from pathlib import Path

import pytest

from rlhf_pg import cli
from rlhf_pg.commands.recipes import first_sentence
from rlhf_pg.config import places


def test_the_list_has_every_recipe_under_the_command_that_runs_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if not line.startswith(" ")]
    assert [title.split()[1] for title in titles] == ["train", "sft", "launch"]
    assert sorted(line.split()[0] for line in lines if line.startswith(" ")) == sorted(places.shipped())
    assert max(map(len, lines)) <= 80
    assert lines.index("rlhf-pg sft NAME") < next(i for i, line in enumerate(lines) if "quickstart_sft " in line)


def test_a_copy_is_the_file_and_never_replaces_another(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "copy", "toy_ppo"]) == 0
    assert Path("toy_ppo.yaml").read_text() == (places.SHIPPED / "toy_ppo.yaml").read_text()
    Path("toy_ppo.yaml").write_text("mine")
    assert cli.main(["recipes", "copy", "toy_ppo"]) == 2
    assert Path("toy_ppo.yaml").read_text() == "mine"
    assert cli.main(["recipes", "copy", "accelerate/cpu_ddp", "two.yaml"]) == 0
    assert Path("two.yaml").is_file()
    assert cli.main(["recipes", "copy", "toy_pp"]) == 2
    assert "did you mean 'toy_ppo'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("comment", "sentence"),
    [
        ("# From a_sft.yaml. More.\nrun: {}\n", "From a_sft.yaml."),
        ("# One,\n# and two. Three.\nrun: {}\n", "One, and two."),
        ("run: {}  # not this\n", ""),
    ],
)
def test_the_first_sentence_of_the_opening_comment(comment, sentence):
    assert first_sentence(comment) == sentence
