"""The built-in teachers are specialists: each is the best at its own task, on scenes unseen."""

import json
from pathlib import Path

import pytest

import teachers
from distill.probes.models import ProbedModel
from distill.probes.validate import validate
from teachers import TeacherSpec, describe_teacher, load_teacher

FOLDER = Path(teachers.__file__).parent / "builtin"
FAMILIES = {"dinov2": ("summary", "dense"), "siglip": ("summary", "dense"), "sam": ("dense",)}
TASKS = ("attributes", "segmentation", "depth", "affinity", "masks")


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """(teacher, task, size) to its figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        loaded = {
            family: load_teacher(TeacherSpec(family, f"builtin:{family}-tiny", tokens=tokens))
            for family, tokens in FAMILIES.items()
        }
        models = [
            ProbedModel(name, "teacher", "", 0, teacher, {name: lambda features: features})
            for name, teacher in loaded.items()
        ]
        rows = validate(models, loaded, tasks=TASKS, sizes=[64, 128], train=384, test=384, seed=1)
    return {
        (row["model"], row["task"], row["image_size"]): row["value"]
        for row in rows
        if row["value"] is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128])
def test_each_teacher_is_the_best_at_its_own_task(scores, size):
    def of(task):
        return {name: scores.get((name, task, size)) for name in FAMILIES}

    recall, space, depth, objects = (of(task) for task in TASKS[:4])
    assert recall["siglip"] > 1.3 * recall["dinov2"]
    assert recall["sam"] is None  # it has no summary
    for other in ("siglip", "sam"):
        assert space["dinov2"] > 1.15 * space[other]
        assert depth["dinov2"] < 0.92 * depth[other]
    for other in ("siglip", "dinov2"):
        assert 100 - objects["sam"] < 0.7 * (100 - objects[other])


@pytest.mark.slow
def test_twice_the_size_does_not_hurt_a_teacher(scores):
    for name, task, sign in (
        ("siglip", "attributes", 1),
        ("dinov2", "segmentation", 1),
        ("dinov2", "depth", -1),
        ("sam", "affinity", 1),
        ("sam", "masks", 1),
    ):
        small, large = scores[name, task, 64], scores[name, task, 128]
        assert sign * large > sign * small - 0.03 * abs(small), (name, task, small, large)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_small_and_say_what_they_are(family):
    folder = FOLDER / f"{family}-tiny"
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    log = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in log) >= 1000
    info = describe_teacher(TeacherSpec(family, f"builtin:{family}-tiny", tokens=("dense",)))
    assert info.fetched
    assert info.licence == "apache-2.0"
    assert info.size == 64
