"""Which models a run probes, and that a row says whose it is."""

import json

import pytest
import torch

from distill.engine.interruption import StopRequest
from distill.folder import RunFolder
from distill.launch import make_accelerator
from distill.progress import Progress
from distill.recipe.load import from_dict
from distill.runner import Runner, run
from distill.validation import probed_models
from students import build_student

CHEAP = {"tasks": ["knn", "affinity"], "sizes": [32], "train": 64, "test": 64}


@pytest.mark.slow
def test_seeds_share_a_name_and_have_an_untrained_self_each(tiny, tmp_path):
    vit = tiny["stages"]["multires"]["students"]["vit"]
    vit["seeds"] = [0, 1]
    tiny["stages"]["multires"]["students"]["twin"] = {**vit, "teachers": ["sam"]}
    tiny["validate"] = CHEAP
    recipe = from_dict(tiny)
    run(recipe, run_dir=tmp_path / "run", quiet=True)
    content = json.loads((tmp_path / "run/validation.json").read_text())
    seeds = {}
    for row in content["rows"]:
        seeds.setdefault((row["role"], row["model"]), set()).add(row["seed"])
    assert seeds == {
        ("teacher", "dinov2"): {0},
        ("teacher", "sam"): {0},
        ("proxy", "proxy/proxy"): {0},
        ("student", "multires/vit"): {0, 1},
        ("student", "multires/twin"): {0, 1},
        ("student", "multires/convnext"): {0},
        # One architecture is one untrained model, whoever trains it; this proxy is of it, too.
        ("untrained", "untrained proxy"): {0, 1},
        ("untrained", "untrained convnext"): {0},
    }
    assert content["untrained_of"] == {
        "proxy/proxy": "untrained proxy",
        "multires/vit": "untrained proxy",
        "multires/twin": "untrained proxy",
        "multires/convnext": "untrained convnext",
    }


def test_untrained_is_where_the_student_started(recipe, tmp_path):
    run(recipe, run_dir=tmp_path / "run", quiet=True)
    recipe.validate = from_dict({**_as_dict(recipe), "validate": CHEAP}).validate
    accelerator = make_accelerator()
    folder = RunFolder(tmp_path / "run")
    runner = Runner(recipe, folder, accelerator, Progress(shown=False), StopRequest(accelerator))
    teachers = {name: runner.teacher(name) for name in recipe.teachers}
    models, untrained_of = probed_models(runner, teachers)
    by_name = {model.name: model for model in models}
    config = recipe.stages["multires"].students["convnext"]
    start = build_student(
        config.arch, size=32, overrides=config.model, seed=recipe.seed, name=config.arch
    )
    probed = by_name[untrained_of["multires/convnext"]].encoder
    for name, tensor in start.model.state_dict().items():
        assert torch.equal(probed.model.state_dict()[name], tensor), name
    # Everything probed is frozen and in eval mode.
    for model in models:
        assert not model.encoder.training
        assert not [p for p in model.encoder.parameters() if p.requires_grad]


@pytest.mark.slow
def test_a_ladder_is_the_reason_and_the_untrained_student_has_none(tiny, tmp_path):
    tiny["stages"]["proxy"]["adapter"] = {"kind": "ladder", "hidden": 8}
    tiny["validate"] = {**CHEAP, "tasks": ["masks"]}
    rows = {row["model"]: row for row in run(from_dict(tiny), run_dir=tmp_path, quiet=True).rows}
    # multires/convnext learns from sam itself.
    for name in ("untrained proxy", "untrained convnext", "multires/convnext"):
        assert rows[name]["value"] is not None
    for name in ("proxy/proxy", "multires/vit"):
        assert rows[name]["value"] is None
        assert rows[name]["reason"].endswith(
            "reads every block of the encoder and serves training only"
        )


@pytest.mark.slow
def test_new_tasks_are_probed_without_training_again(tiny, tmp_path):
    tiny["validate"] = CHEAP
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    weights = (tmp_path / "run/multires/vit/model.safetensors").stat().st_mtime_ns
    tiny["validate"] = {**CHEAP, "tasks": ["knn", "image_retrieval"]}
    result = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert {row["task"] for row in result.rows} == {"knn", "image_retrieval"}
    assert (tmp_path / "run/multires/vit/model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
def test_a_student_that_was_added_is_probed_though_the_run_broke_off_before(
    tiny, tmp_path, monkeypatch
):
    tiny["validate"] = CHEAP
    vit = tiny["stages"]["multires"]["students"].pop("vit")
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    tiny["stages"]["multires"]["students"]["vit"] = vit
    with monkeypatch.context() as patch:
        patch.setattr("distill.runner.validate_run", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    result = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert "multires/vit" in {row["model"] for row in result.rows}


def _as_dict(recipe):
    from dataclasses import asdict

    return asdict(recipe)
