"""What several processes print is the product's own, and it says what DeepSpeed reports of itself."""

import json

import pytest
import yaml

from tests.dist import launch, plays


@pytest.mark.parametrize(("configuration", "layout"), [("cpu_zero3", "DeepSpeed ZeRO-3"), ("cpu_ddp", "DDP")])
def test_two_processes_without_a_live_view_print_nothing_and_record_their_layout(tmp_path, configuration, layout):
    file = tmp_path / "recipe.yaml"
    changes = {"run": {"steps": 2, "preflight": True}, "log": {"live": "off"}} | plays.EVALUATED
    file.write_text(yaml.safe_dump(plays.recipe(tmp_path / "run", "grpo", changes)))
    # the launcher imports DeepSpeed too, and is not ours to silence: it is told what it would guess, and say
    process = launch.start(configuration, "rlhf_pg", "train", str(file), DS_ACCELERATOR="cpu")
    status, output = launch.finish(process)
    assert (status, output) == (0, "")
    (ran,) = json.loads((tmp_path / "run" / "run.json").read_text())["launches"]
    assert (ran["layout"], ran["processes"]) == (layout, 2)
    assert ran["command"].startswith("accelerate launch ... -m rlhf_pg train ")
    assert ("deepspeed" in ran["versions"]) == ("ZeRO" in layout)


def test_check_prints_its_table_once_for_all_processes(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plays.recipe(tmp_path / "run", "grpo", {})))
    status, output = launch.finish(launch.start("cpu_ddp", "rlhf_pg", "check", str(file)))
    assert (status, output.count("data.train: "), output.count("engine log probs")) == (0, 1, 1)
