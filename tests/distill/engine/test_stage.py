"""A stage against a plain loop written from the formulas."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from distill.data.loader import batches
from distill.data.photometrics import photometrics
from distill.data.sources import open_source
from distill.engine.learner import planned_students
from distill.engine.precision import has_bfloat16
from distill.losses import token_loss
from distill.optim import build_optimiser, learning_rate
from distill.recipe.load import from_dict
from distill.runner import run
from students import Spaces, build_student, load_student, match_grids
from students.keys import draw_size
from students.spaces import Space
from teachers import Teacher, TeacherSpec, load_teacher


def weights_of(folder):
    return {
        name: tensor
        for file in ("model.safetensors", "adapters.safetensors")
        for name, tensor in load_file(folder / file).items()
    }


def test_training_is_the_published_loop(tiny, tmp_path):
    """One stage, one student: normalise over calibration batches, adapt, match, AdamW."""
    del tiny["stages"]["multires"]
    stage = tiny["stages"]["proxy"]
    stage["image_sizes"], stage["train"]["clip"] = [32, 48], None
    stage["students"]["proxy"]["teachers"] = ["sam"]
    recipe = from_dict(tiny)
    result = run(recipe, run_dir=tmp_path / "run", quiet=True)
    config = recipe.stages["proxy"]

    teacher = load_teacher(TeacherSpec("sam", recipe.teachers["sam"].weights, (32, 48), ("dense",)))

    def pixels(step):
        (batch,) = batches(
            {"scenes": (open_source("scenes:count=16,size=32"), 1.0)},
            policy="eupe",
            scale=(0.25, 1.0),
            view_seed=0,
            canvas=48,
            batch_size=4,
            first_step=step,
            steps=1,
            workers=0,
        )
        return photometrics(batch.pixels.float() / 255, batch.draws)

    def target(step):
        return teacher(pixels(step), draw_size([32, 48], 0, "proxy", step, "sam")).dense

    tokens = torch.cat([target(step).flatten(0, 2) for step in range(3)]).double()
    mean, std = tokens.mean(0).float(), tokens.std(0, correction=0).float()

    arch = config.students["proxy"].arch
    student = build_student(
        arch, size=32, overrides=config.students["proxy"].model, proxy=True, seed=0, name=arch
    )
    from students.keys import key

    torch.manual_seed(key("adapter", 0, arch, "sam"))
    space = Space({"dense": (16, 8)}, hidden=8)
    both = torch.nn.ModuleList([student, space.adapters])
    optimiser = build_optimiser(both, config.train)
    for step in range(6):
        size = draw_size([32, 48], 0, "proxy", step, "student")
        ours = space.adapters["dense"](student(pixels(step), size).dense)
        theirs = (target(step) - mean) / std
        losses, _ = token_loss(*match_grids(ours, theirs), {"cosine": 0.9, "smooth_l1": 0.1})
        loss = losses.mean()
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.train)
        optimiser.step()

    trained = load_student(result.student("proxy/proxy"))
    for name, expected in student.model.state_dict().items():
        torch.testing.assert_close(
            trained.model.state_dict()[name], expected, atol=2e-5, rtol=2e-4, msg=name
        )
    kept = Spaces.load(result.student("proxy/proxy")).steps["student", "sam"]
    torch.testing.assert_close(kept.normalisers["dense"].mean, mean)
    torch.testing.assert_close(kept.normalisers["dense"].std, std, rtol=1e-4, atol=1e-5)

    # The calibrated scalar: least squares of scale * prediction to target over the same batches.
    products = squares = 0.0
    with torch.no_grad():
        for step in range(3):
            size = draw_size([32, 48], 0, "proxy", step, "student")
            ours = space.adapters["dense"](student(pixels(step), size).dense)
            ours, theirs = match_grids(ours, (target(step) - mean) / std)
            products += float((ours * theirs).sum())
            squares += float(ours.square().sum())
    assert float(kept.scales["dense"]) == pytest.approx(products / squares, rel=1e-2)


def test_a_run_goes_from_teachers_to_students(recipe, tmp_path):
    result = run(recipe, run_dir=tmp_path / "run", quiet=True)
    for name in ("proxy/proxy", "multires/vit", "multires/convnext"):
        files = {path.name for path in result.student(name).iterdir()}
        assert {
            "config.json",
            "model.safetensors",
            "adapters.safetensors",
            "adapters.json",
            "README.md",
        } <= files
    lines = [
        json.loads(line) for line in (tmp_path / "run/multires/log.jsonl").read_text().splitlines()
    ]
    assert [(line["step"], line["student"]) for line in lines] == [
        (step, name) for step in (2, 4, 6) for name in ("vit", "convnext")
    ]
    for line in lines:
        for kinds in line["teachers"].values():
            for part in kinds.values():
                assert 0 <= part["explained_variance"] <= 1
                assert part["loss"] > 0
    assert set(lines[1]["teachers"]) == {"proxy/proxy", "sam"}
    assert set(lines[1]["teachers"]["sam"]) == {"dense"}

    # A student reaches its proxy's teachers by a chain, and directly what it learnt itself.
    vit = Spaces.load(result.student("multires/vit"))
    assert dict(vit.routes()) == {
        "proxy/proxy": ["proxy/proxy"],
        "dinov2": ["proxy/proxy", "dinov2"],
        "sam": ["proxy/proxy", "sam"],
    }
    convnext = Spaces.load(result.student("multires/convnext"))
    assert dict(convnext.routes())["sam"] == ["sam"]
    about = json.loads((result.student("multires/vit") / "adapters.json").read_text())
    assert set(about["teachers"]) == {"dinov2", "sam"}


def test_a_student_goes_on_from_an_earlier_stage(tiny, tmp_path):
    tiny["stages"]["last"] = {
        "students": {"vit": {"init": "multires/vit", "teachers": ["proxy/proxy"]}},
        "image_sizes": [32],
        "adapter": {"hidden": 8},
        "calibration_batches": 2,
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-12, "weight_decay": 0.0},
    }
    result = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    before, after = (result.student(f"{stage}/vit") for stage in ("multires", "last"))
    for file in ("model.safetensors", "adapters.safetensors"):
        old, new = load_file(before / file), load_file(after / file)
        for name in old:
            if "normalisers" not in name and "scales" not in name:
                torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=1e-6)


def test_students_do_not_disturb_each_other(tiny, tmp_path):
    """A student trained beside another has the weights it would have alone."""
    together = run(from_dict(tiny), run_dir=tmp_path / "both", quiet=True)
    del tiny["stages"]["multires"]["students"]["convnext"]
    alone = run(from_dict(tiny), run_dir=tmp_path / "one", quiet=True)
    a, b = (weights_of(r.student("multires/vit")) for r in (together, alone))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_seeds_are_students_of_their_own(tiny, tmp_path):
    tiny["stages"]["multires"]["students"]["vit"]["seeds"] = [0, 1]
    del tiny["stages"]["multires"]["students"]["convnext"]
    tiny["stages"]["last"] = {
        "students": {"vit": {"init": "multires/vit", "teachers": ["proxy/proxy"], "seeds": [1]}},
        "image_sizes": [32],
        "train": {"steps": 1, "batch_size": 4, "lr": 1e-12, "weight_decay": 0.0},
        "calibration_batches": 1,
    }
    recipe = from_dict(tiny)
    (plan,) = planned_students(recipe, "last")
    assert plan.config.init == "multires/vit.seed1"
    result = run(recipe, run_dir=tmp_path / "run", quiet=True)
    first, second = (weights_of(result.student(f"multires/vit.seed{s}")) for s in (0, 1))
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], second["blocks.0.mlp.fc1.weight"])
    last = weights_of(result.student("last/vit.seed1"))
    torch.testing.assert_close(
        last["blocks.0.mlp.fc1.weight"], second["blocks.0.mlp.fc1.weight"], atol=1e-6, rtol=1e-5
    )


def test_a_teacher_without_sizes_draws_from_the_stages(tiny, tmp_path, monkeypatch):
    del tiny["stages"]["multires"]
    stage = tiny["stages"]["proxy"]
    stage["teacher_sizes"], stage["image_sizes"] = [40, 48], [32]
    seen = {"Dinov2Teacher": set(), "SamTeacher": set()}
    forward = Teacher.forward

    def noted(self, pixels, size=None):
        seen[type(self).__name__].add(size)
        return forward(self, pixels, size)

    monkeypatch.setattr(Teacher, "forward", noted)
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert seen == {"Dinov2Teacher": {40, 48}, "SamTeacher": {32, 48}}


def test_moving_average_is_what_is_exported(tiny, tmp_path):
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["train"]["ema"] = 0.5
    result = run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    path = sorted((tmp_path / "run/proxy/checkpoint").glob("step-*"))[-1]
    raw = load_file(path / "proxy.weights.safetensors")
    averaged = load_file(path / "proxy.ema.safetensors")
    exported = load_file(result.student("proxy/proxy") / "model.safetensors")
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(exported[name], averaged[f"module.student.model.{name}"])
    assert not torch.equal(exported[name], raw[f"student.model.{name}"])


def test_bfloat16_is_left_off_where_the_processor_lacks_it(monkeypatch):
    for able, expected in (({"avx512_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert has_bfloat16(torch.device("cpu")) is expected


def test_teachers_are_neither_trained_nor_in_a_checkpoint(recipe, tmp_path):
    assert Accelerator().num_processes == 1
    run(recipe, run_dir=tmp_path / "run", quiet=True)
    path = sorted((tmp_path / "run/proxy/checkpoint").glob("step-*"))[-1]
    names = [n for f in path.glob("*.safetensors") for n in load_file(f)]
    assert names
    assert not [n for n in names if "vision_encoder" in n or "embeddings" in n]
