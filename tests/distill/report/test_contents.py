import json

import fake_run
import numpy as np
from safetensors.numpy import save_file

from distill.report.contents import RunContents


def test_a_step_that_was_logged_twice_counts_once_and_its_last_line_holds(tmp_path):
    run = fake_run.write_run(tmp_path / "run")
    lines = [
        {"step": step, "student": student, "loss": loss}
        for step, student, loss in ((20, "a", 1.0), (20, "b", 2.0), (40, "a", 3.0), (20, "a", 4.0))
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (run / "proxy" / "log.jsonl").write_text(text + '\n{"step": 60, "student": "a", "lo')
    log = RunContents.read(run).logs["proxy"]
    assert [(line["student"], line["step"], line["loss"]) for line in log] == [
        ("a", 20, 4.0),
        ("b", 20, 2.0),
        ("a", 40, 3.0),
    ]


def test_students_come_in_the_recipes_order_and_seeds_with_their_student(tmp_path):
    run = fake_run.write_run(tmp_path / "run")
    stage = run / fake_run.STAGE
    for name in ("vit.seed1", "another", "vit.seed0"):
        (stage / name).mkdir()
        save_file({"w": np.zeros(3, np.float32)}, stage / name / "model.safetensors")
    (stage / "checkpoint").mkdir()
    names = [each.name for each in RunContents.read(run).students]
    expected = ["vit", "vit.seed0", "vit.seed1", fake_run.IMAGE, "another"]
    assert names == ["proxy/proxy", *(f"{fake_run.STAGE}/{name}" for name in expected)]
    sizes = {each.name: each.parameters for each in RunContents.read(run).students}
    assert sizes[f"{fake_run.STAGE}/vit.seed0"] == 3


def test_recipe_and_the_rest_are_as_written(tmp_path):
    run = fake_run.write_run(tmp_path / "run", validation=False)
    contents = RunContents.read(run)
    assert contents.name == fake_run.SCRIPT
    assert contents.recipe == (run / "recipe.yaml").read_text()
    assert list(contents.logs) == ["proxy", fake_run.STAGE]
    assert contents.validation is None
    assert contents.pictures == json.loads((run / "pictures" / "pictures.json").read_text())
