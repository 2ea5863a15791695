"""recipes/from-published-proxy.yaml with a small model of the published kind in its place."""

import json

import pytest

from distill.recipe.load import load_recipe
from distill.recipe.plan import plan
from distill.runner import run
from students import Spaces

SMALL_STUDENT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}
SMALL_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A RADIO of two blocks with random weights, as timm saves models for the Hub."""
    import timm
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("published")
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = timm.create_model("vit_base_patch16_radio_v3", **arguments)
    save_for_hf(
        model,
        folder,
        model_args={k: v for k, v in arguments.items() if k != "num_classes"},
        safe_serialization=True,
    )
    return folder


def test_the_plan_needs_no_file():
    """The published model's sizes are known from timm's table, before anything is fetched."""
    found = plan(load_recipe("from-published-proxy", ["data.train.photos.source=scenes:count=8"]))
    (teacher,) = found.teachers
    assert teacher.summary_dim
    assert teacher.dense_dim == 1280
    assert any("terms of its own (nvidia-open-model-license)" in note for note in found.notes)
    assert [stage.name for stage in found.stages] == ["fixed", "multires"]


@pytest.mark.slow
def test_stages_two_and_three_alone(published, tmp_path):
    stages = ("fixed", "multires")
    short = {"steps": 2, "batch_size": 2, "warmup": 0, "log_every": 1}
    result = run(
        "from-published-proxy",
        overrides=[
            "data.train.photos.source=scenes:count=16,size=96",
            "data.workers=0",
            f"teachers.proxy.weights={published}",
            "teachers.proxy.micro_batch=1",
            f"stages.fixed.students.vit_s.model={json.dumps(SMALL_STUDENT)}",
            f"stages.fixed.students.convnext_t.model={json.dumps(SMALL_CONVNEXT)}",
            *(f"stages.{s}.train.{key}={value}" for s in stages for key, value in short.items()),
            *(f"stages.{s}.calibration_batches=1" for s in stages),
            *(f"stages.{s}.adapter.hidden=16" for s in stages),
            *(f"stages.fixed.{key}=[64]" for key in ("image_sizes", "teacher_sizes")),
            *(f"stages.multires.{key}=[64,96]" for key in ("image_sizes", "teacher_sizes")),
            "validate={sizes: [64], train: 64, test: 64, tasks: [knn, segmentation]}",
        ],
        run_dir=tmp_path / "run",
        quiet=True,
    )
    for name in ("vit_s", "convnext_t"):
        folder = result.student(f"multires/{name}")
        assert [teacher for teacher, _ in Spaces.load(folder).routes()] == ["proxy"]
        listed = json.loads((folder / "adapters.json").read_text())["teachers"]
        assert listed["proxy"]["weights"] == str(published)
    rows = {(row["model"], row["task"]) for row in result.rows}
    assert ("proxy", "segmentation") in rows
    assert ("multires/vit_s", "knn") in rows
    assert (tmp_path / "run/report.html").exists()
