"""The plan against the things themselves: models, adapters, counts."""

from io import StringIO

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from distill.engine.learner import build_learner
from distill.recipe.load import RecipeError, from_dict
from distill.recipe.plan import plan
from distill.recipe.render import print_plan
from distill.recipe.resolve import teacher_spec
from students import build_student
from teachers import load_teacher


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_parameters_are_those_of_the_models(tiny, kind):
    tiny["stages"]["multires"]["students"]["convnext"]["adapter"] = {"kind": kind, "hidden": 24}
    recipe = from_dict(tiny)
    planned = plan(recipe)
    teachers = {name: load_teacher(teacher_spec(t)) for name, t in recipe.teachers.items()}
    for teacher in planned.teachers:
        loaded = teachers[teacher.name]
        assert (teacher.summary_dim, teacher.dense_dim) == (loaded.summary_dim, loaded.dense_dim)
    config = recipe.stages["multires"].students["convnext"]
    student = build_student(config.arch, size=32, overrides=config.model)
    proxy = planned.stages[0].students[0]
    proxy_config = recipe.stages["proxy"].students["proxy"]
    width = build_student(proxy_config.arch, size=32, overrides=proxy_config.model).summary_dim
    learner = build_learner(
        student,
        {
            "proxy/proxy": {"summary": width, "dense": width},
            "sam": {"dense": teachers["sam"].dense_dim},
        },
        {"proxy/proxy": "standardise", "sam": "standardise"},
        config.adapter,
        seed=0,
        name="x",
    )
    found = {s.name: s for s in planned.stages[1].students}["convnext"]
    assert found.parameters == count(learner.student)
    assert found.adapters == count(learner.spaces)
    assert found.grids == ((32, 4), (48, 6))
    pixels = torch.rand(1, 3, 48, 48)
    assert learner.student(pixels, 48).dense.shape[1:3] == (6, 6)
    assert proxy.teachers == ("dinov2", "sam")


def test_steps_images_and_epochs(recipe):
    planned = plan(recipe)
    assert planned.images == 16
    (proxy, multires) = planned.stages
    assert (proxy.images_seen, proxy.epochs) == (24, 1.5)
    assert multires.image_sizes == (32, 48)


def test_memory_grows_with_what_needs_it(tiny):
    def memory(**changes):
        stage = tiny["stages"]["multires"]
        before = dict(stage["train"])
        stage["train"] |= changes
        found = plan(from_dict(tiny)).stages[1].memory
        stage["train"] = before
        return found

    states = sum(s.parameters + s.adapters for s in plan(from_dict(tiny)).stages[1].students)
    assert memory() > 16 * states
    assert memory(ema=0.9) - memory() == pytest.approx(4 * states, abs=2)
    twice = memory(batch_size=8) - memory(batch_size=4)
    assert twice > 0
    assert memory(batch_size=12) - memory(batch_size=8) == pytest.approx(twice, rel=1e-3)
    tiny["stages"]["multires"]["students"]["vit"]["seeds"] = [0, 1, 2]
    assert plan(from_dict(tiny)).stages[1].students[0].seeds == 3
    assert memory() > 16 * (states + 2 * plan(from_dict(tiny)).stages[1].students[0].parameters)


def test_what_is_not_fetched_is_not_made_up(tiny):
    tiny["teachers"]["dinov2"]["weights"] = "nobody/no-such-checkpoint"
    planned = plan(from_dict(tiny))
    assert planned.teachers[0].parameters is None
    assert planned.stages[0].students[0].adapters is None
    assert planned.stages[0].memory is None
    assert planned.stages[1].memory is not None
    assert any("not fetched yet" in note for note in planned.notes)


def test_notes(tiny):
    tiny["data"]["views"] = {"canvas": 40}
    tiny["teachers"]["idle"] = dict(tiny["teachers"]["sam"])
    notes = plan(from_dict(tiny)).notes
    assert any(n.startswith("teachers.idle: no student learns") for n in notes)
    assert any(n.startswith("stages.multires: views of 40 pixels") for n in notes)
    licences = [n for n in notes if n.startswith("licence: ")]
    assert len(licences) == len(tiny["teachers"])  # folders without a model card
    assert all("has no known licence" in n for n in licences)
    assert len(notes) == 2 + len(licences)


def test_a_recipe_with_problems_has_no_plan(tiny):
    tiny["stages"]["proxy"]["image_sizes"] = [33]
    with pytest.raises(RecipeError, match="33 is no multiple"):
        plan(from_dict(tiny))


def test_the_print_says_it_all_and_takes_names_literally(tiny):
    tiny["export"] = {"author": "[bold]me[/bold]", "licence": "long" * 60}
    stream = StringIO()
    print_plan(plan(from_dict(tiny)), Console(file=stream, width=80))
    text = stream.getvalue()
    assert OmegaConf.create(text[: text.index("\nteacher ")]).export == tiny["export"]
    assert "author: '[bold]me[/bold]'" in text
    assert "stage proxy: 6 steps of 4 = 24 images, 1.5 epochs over 16; sizes 32; memory" in text
    assert "a rough estimate" in text
    assert "6x6 at 48" in text
    assert "proxy/proxy, sam" in text
