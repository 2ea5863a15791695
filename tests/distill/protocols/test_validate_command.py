"""`distill validate` from end to end, on the built-in world and on data as people have them."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torchvision.transforms.v2 import functional as F

sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "datasets"))

from launch import on_ranks
from layouts import write_ade20k, write_imagenet, write_nyu, write_spair

from distill.cli import main
from distill.datasets import open_evaluation
from distill.probes.knn import knn
from distill.probes.world import TEST_START, WORLD_SEED
from distill.protocols import depth, registry, segmentation
from distill.protocols import run as running
from distill.protocols.command import validate_command
from distill.protocols.plan import plan_of, read_plan
from distill.recipe.load import from_dict
from distill.runner import run
from distill.scenes.dataset import Scenes
from students import UserError
from teachers import TeacherSpec, load_teacher

WRITERS = {
    "imagenet": write_imagenet,
    "ade20k": write_ade20k,
    "nyu": write_nyu,
    "spair": write_spair,
}
SCENES = "scenes=scenes:size=64,train=64,test=24"
TINY = ["dino=builtin:dinov2-tiny", "sam=builtin:sam-tiny"]
CHEAP = ["knn", "image_retrieval", "affinity", "masks"]


def measure(folder, models=TINY, tasks=CHEAP, **more):
    return validate_command(
        models, data=[SCENES], tasks=tasks, sizes=[64], out=folder, workers=0, quiet=True, **more
    )


def numbers(rows):
    found = {}
    for row in rows:
        if row["value"] is not None:
            found[row["model"], row["task"], row["metric"], row["image_size"]] = row["value"]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return folder, measure(folder)


def test_the_numbers_are_the_tasks_own(measured):
    """kNN again by hand: the scenes, the model, the plain function."""
    folder, rows = measured
    teacher = load_teacher(TeacherSpec("dinov2", "builtin:dinov2-tiny"))
    part = open_evaluation(SCENES.partition("=")[2]).parts["classification"]

    def summaries(split):
        pictures = [split.pictures.read(i) for i in range(len(split.pictures))]
        assert {tuple(picture.shape) for picture in pictures} == {(3, 64, 64)}
        # What the protocol shows: the short side to 73 pixels, the central 64.
        resized = [F.resize(p, [73], F.InterpolationMode.BICUBIC) for p in pictures]
        shown = [F.center_crop(picture, [64]) for picture in resized]
        return teacher(torch.stack(shown).float() / 255, 64).summary.float()

    expected = knn(
        summaries(part.train), part.train.labels, summaries(part.test), part.test.labels, k=10
    )
    assert numbers(rows)["dino", "knn", "accuracy_k10", 64] == pytest.approx(expected, abs=1e-6)
    assert rows == json.loads((folder / "results.json").read_text())["rows"]


def test_what_a_model_cannot_do_is_left_out_with_the_reason(measured):
    _, rows = measured
    reasons = {(row["model"], row["task"]): row.get("reason") for row in rows}
    assert reasons["sam", "knn"] == "sam has no summary features"
    assert reasons["dino", "masks"] == "no teacher has a mask decoder"
    assert all((row["value"] is None) == ("reason" in row) for row in rows)


def test_the_page_has_every_model_and_task(measured):
    text = (measured[0] / "report.html").read_text()
    assert all(word in text for word in ("dino", "sam", "scenes", "affinity", "recall"))
    groups = json.loads((measured[0] / "pictures/pictures.json").read_text())["groups"]
    assert [group["title"] for group in groups] == [
        "scenes: dense features at 64 px",
        "scenes: mask from a point at 64 px",
        "scenes: image retrieval at 64 px",
    ]
    assert groups[0]["columns"] == ["picture", "dino", "sam"]
    assert groups[1]["columns"] == ["truth", "sam"]


@pytest.mark.slow
def test_the_same_command_goes_on(measured, tmp_path, monkeypatch, teacher_calls):
    """Stopped after the third result: what is there is not computed again."""
    _, whole = measured
    done = []
    result = running._result

    def stops(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(result(*arguments))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(running, "_result", stops)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path)
    assert not (tmp_path / "results.json").exists()
    first = len(teacher_calls)
    teacher_calls.clear()
    rows = measure(tmp_path)
    assert numbers(rows) == numbers(whole)
    assert first
    assert teacher_calls
    teacher_calls.clear()
    assert measure(tmp_path) == json.loads((tmp_path / "results.json").read_text())["rows"]
    assert not teacher_calls


def test_two_ranks_measure_what_one_does(measured, tmp_path):
    _, whole = measured
    on_ranks(lambda: measure(tmp_path), seconds=120)
    found = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert numbers(found) == pytest.approx(numbers(whole), rel=1e-5)


def test_a_rank_that_is_late_does_the_same_work(measured, tmp_path, monkeypatch):
    """Nothing is to be had of SAM's summary: the first rank is done with it at once."""
    _, whole = measured
    read = running._read

    def late(path):
        if os.environ["RANK"] == "1":
            time.sleep(0.3)
        return read(path)

    monkeypatch.setattr(running, "_read", late)
    on_ranks(lambda: measure(tmp_path, models=TINY[1:], tasks=["knn", "affinity"]), seconds=60)
    found = json.loads((tmp_path / "results.json").read_text())["rows"]
    expected = {k: v for k, v in numbers(whole).items() if k[:2] in {("sam", "affinity")}}
    assert numbers(found) == pytest.approx(expected, rel=1e-5)


def test_the_curve_of_resolutions(tmp_path):
    rows = measure(tmp_path, models=TINY[:1], tasks=["affinity", "knn"], curve=True)
    sizes = {"affinity": set(), "knn": set()}
    for row in rows:
        sizes[row["task"]].add(row["image_size"])
    assert sizes == {"affinity": {32, 64, 96, 128}, "knn": {64}}


def test_a_student_is_judged_through_its_teachers(tiny, tmp_path):
    """Its spaces come from its folder, their heads from the teachers that the folder names."""
    del tiny["stages"]["multires"]
    for name, teacher in tiny["teachers"].items():
        teacher["weights"] = f"builtin:{name}-tiny"
    tiny["stages"]["proxy"]["image_sizes"] = [64]
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    rows = measure(
        tmp_path / "out",
        models=[str(tmp_path / "run/proxy/proxy")],
        tasks=["masks", "agreement", "zero_shot"],
    )
    by_task = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    assert by_task["masks"][0]["value"] is not None
    metrics = {row["metric"] for row in by_task["agreement"]}
    assert {"dinov2 summary cka", "dinov2 dense cosine", "sam dense cka"} <= metrics
    assert by_task["zero_shot"][0]["reason"] == "no teacher has a text tower"


def test_everything_wrong_is_said_at_once(tmp_path, capsys):
    plan = ["validate", "builtin:dinov2-tiny", "--data", "ade=ade20k:/nowhere", "scens:size=64"]
    assert main([*plan, "--tasks", "knnn", "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "tasks: unknown task 'knnn' (did you mean 'knn'?)" in said
    assert re.search(r"data\.ade: .*/nowhere", said)
    assert re.search(r"data\.\S+: .*'scens' .*did you mean 'scenes'", said)
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_a_task_without_its_data(tmp_path):
    (tmp_path / "ade").mkdir()
    write_ade20k(tmp_path / "ade")
    plan = plan_of(TINY, [f"ade20k:{tmp_path / 'ade'}"], tasks=["landmarks"])
    with pytest.raises(UserError, match="tasks: landmarks needs a data set with landmarks"):
        running.check_plan(plan)


@pytest.mark.parametrize(
    ("models", "data", "says"),
    [
        ([], ["scenes:size=64"], "at least one model"),
        (["a=builtin:dinov2-tiny"], [], "at least one data set"),
        (["a=builtin:dinov2-tiny", "a=builtin:sam-tiny"], ["scenes:size=64"], "'a' is there twice"),
    ],
)
def test_what_a_command_has_to_name(models, data, says):
    with pytest.raises(UserError, match=re.escape(says)):
        plan_of(models, data)


@pytest.fixture
def published(tmp_path, teacher_folders, monkeypatch):
    """Overrides that put random weights and tiny data in the place of the published ones."""
    changes = ["sizes=[32]", "dense_sizes=[32]", "workers=0", "batch=2"]
    for name, write in WRITERS.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        changes.append(f"data.{name}={name}:{tmp_path / name}")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    save_for_hf(model, str(tmp_path / "timm"), model_args=arguments, safe_serialization=True)
    for module, protocol in ((segmentation, "SegmentationProtocol"), (depth, "DepthProtocol")):
        task = getattr(module, protocol)(steps=2, batch=2).task()
        monkeypatch.setitem(registry.TASKS, task.name, task)
    for name in read_plan("published", changes).models:
        family = "dinov2" if name.startswith("dinov2") else "timm"
        folder = {"dinov2": teacher_folders / "dinov2", "timm": tmp_path / "timm"}[family]
        changes.append(f"models.{name}={{family: {family}, weights: {folder}}}")
    return changes


@pytest.mark.slow
def test_the_published_models_go_the_whole_way(published, tmp_path):
    """recipes/published.yaml with random weights, on tiny data in the published layouts."""
    rows = validate_command(["published", *published], out=tmp_path / "out", quiet=True)
    measured = {row["task"] for row in rows if row["value"] is not None}
    assert {"linear", "segmentation", "depth", "correspondence"} <= measured
    reasons = {row["reason"] for row in rows if row["task"] == "zero_shot"}
    assert reasons == {"no teacher has a text tower"}
    shown = {(row["model"], row["task"]): row for row in rows if "published" in row}
    assert shown["dinov2-b", "segmentation"]["published"] == 47.3
    assert shown["eupe-b", "depth"]["published_source"].startswith("EUPE, arXiv 2603.22387")
    assert "47.3" in (tmp_path / "out/report.html").read_text()
    drawn = json.loads((tmp_path / "out/pictures/pictures.json").read_text())["groups"]
    titles = {group["title"] for group in drawn}
    assert {
        "ade20k: segmentation at 32 px",
        "nyu: depth at 32 px",
        "spair: correspondences at 32 px",
        "ade20k: dense features at 32 px",
    } <= titles


def test_a_plan_without_its_data_says_where_to_put_it(capsys):
    assert main(["validate", "published"]) == 2
    assert "data.imagenet: '???' has to be replaced by a value" in capsys.readouterr().err
    assert main(["check", "published"]) == 2
    assert "is no recipe but a plan for `distill validate`" in capsys.readouterr().err


def test_the_pictures_are_the_built_in_scenes(measured):
    """The data set's pictures are the scenes themselves."""
    data = open_evaluation(SCENES.partition("=")[2])
    scenes = Scenes(24, 64, seed=WORLD_SEED, start=TEST_START)
    for index in (0, 23):
        assert torch.equal(data.pictures.read(index), torch.from_numpy(scenes.images[index].copy()))
