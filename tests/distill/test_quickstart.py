"""The main job cut short: every part of it from the shipped recipe to the report."""

import json

import pytest

from distill.cli import main
from distill.recipe.load import prepare
from distill.recipe.schema import TASKS

SHORT = [
    "data.train.scenes.source=scenes:count=64,size=64",
    *(
        f"stages.{stage}.{key}={value}"
        for stage in ("proxy", "fixed", "multires")
        for key, value in {
            "train.steps": 3,
            "train.batch_size": 8,
            "train.warmup": 0,
            "calibration_batches": 2,
        }.items()
    ),
    "validate.train=64",
    "validate.test=64",
]


@pytest.mark.slow
def test_the_quickstart_from_recipe_to_report(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["run", "quickstart", *SHORT, "--run-dir", str(folder)]) == 0
    said = capsys.readouterr().out
    validation = json.loads((folder / "validation.json").read_text())
    rows = validation["rows"]
    assert {row["task"] for row in rows} == set(TASKS)
    roles = {row["model"]: row["role"] for row in rows}
    students = {"multires/vit", "multires/convnext"}
    assert {m for m, role in roles.items() if role == "student"} == students
    assert {m for m, role in roles.items() if role == "teacher"} == {"dinov2", "siglip", "sam"}
    assert roles["proxy/proxy"] == "proxy"
    assert set(validation["untrained_of"]) == {*students, "proxy/proxy"}
    # Students reach the text tower and the mask decoder through the proxy.
    for model in (*students, *validation["untrained_of"].values()):
        for row in rows:
            if row["model"] == model:
                assert row["value"] is not None, row
    # A teacher that lacks what a task needs says so.
    reasons = [row for row in rows if row["model"] == "sam" and row["value"] is None]
    assert {row["task"] for row in reasons} == {
        "knn",
        "attributes",
        "image_retrieval",
        "text_retrieval",
    }
    assert all(row["reason"] for row in reasons)
    page = (folder / "report.html").read_text()
    for name in (*students, "gap closed", "data:image/png;base64,"):
        assert name.lower() in page.lower()
    assert "gap closed" in said
    assert "report:" in said

    assert main(["run", "quickstart", *SHORT, "--run-dir", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quickstart", "ablation"])
def test_shipped_recipes_for_the_built_in_world_have_no_problem(name):
    assert prepare(name).name == name


@pytest.mark.parametrize(("name", "source"), [("folder", "photos"), ("one-gpu", "images")])
def test_shipped_recipes_for_images_of_ones_own(name, source, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    recipe = prepare(name, [f"data.train.{source}.source=folder:{tmp_path}"])
    assert [list(stage.students) for stage in recipe.stages.values()] == [
        ["proxy"],
        ["vit_s", "convnext_t"],
        ["vit_s", "convnext_t"],
    ]
