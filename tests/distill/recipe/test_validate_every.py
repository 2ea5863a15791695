"""What a recipe may say of the probes while its stages train."""

import pytest
import yaml

from distill.recipe.changes import fixed_changes
from distill.recipe.load import RecipeError, from_dict, shipped_recipes
from distill.recipe.resolve import problems, watched_size
from distill.recipe.schema import ValidateConfig


def with_validate(tiny, **settings):
    return from_dict({**tiny, "validate": {"sizes": [32], **settings}})


def test_what_it_is_by_default():
    config = ValidateConfig()
    assert (config.every, config.fast, config.fast_scenes) == (None, ["knn", "affinity"], 256)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"every": 10, "fast": ["knn", "afinity"]},
            "validate.fast: unknown task 'afinity' (did you mean 'affinity'?)",
        ),
        ({"fast": ["no such"]}, "validate.fast: unknown task 'no such'"),
        ({"every": 10, "fast": ["knn", "knn"]}, "validate.fast: knn is given twice"),
        ({"every": 10, "fast": []}, "validate.fast: is empty; give at least one of knn, attribu"),
    ],
)
def test_a_wrong_task_is_a_line(tiny, settings, line):
    (found,) = problems(with_validate(tiny, **settings))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"every": 0}, "validate.every: 0 must be at least 1"),
        ({"every": "often"}, "validate.every: "),
        ({"fast_scenes": 63}, "validate.fast_scenes: 63 must be at least 64"),
    ],
)
def test_a_wrong_number_is_a_line(tiny, settings, line):
    with pytest.raises(RecipeError) as error:
        with_validate(tiny, **settings)
    (found,) = error.value.problems
    assert found.startswith(line)


def test_nothing_to_run_is_no_fault_where_nothing_is_run(tiny):
    assert problems(with_validate(tiny, fast=[])) == []


def test_masks_need_an_inverse_here_too(tiny):
    tiny["teachers"]["sam"]["normaliser"] = "l2"
    settings = {"tasks": ["knn"], "fast": ["masks"]}
    assert problems(with_validate(tiny, **settings)) == []
    (found,) = problems(with_validate(tiny, every=10, **settings))
    assert found.startswith("teachers.sam.normaliser: 'l2' has no inverse")
    assert "masks (validate.fast)" in found


def test_the_first_size_has_to_fit_the_students_of_all_stages(tiny):
    for stage, patch in (("proxy", 8), ("multires", 4)):
        for student in tiny["stages"][stage]["students"].values():
            if "vit" in student["arch"]:
                student["model"] = {**student["model"], "patch_size": patch}
    tiny["stages"]["multires"]["students"].pop("convnext")
    tiny["teachers"].pop("sam")
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    settings = {"stages": ["multires"], "tasks": ["knn"]}
    # The teacher's patch is 8, but it rounds down; the proxy's is 8 too, and it is not probed.
    assert problems(with_validate(tiny, **settings, sizes=[36])) == []
    (found,) = problems(with_validate(tiny, **settings, sizes=[36], every=10))
    assert found.startswith("validate.sizes[0]: 36 is no multiple of the patch of proxy/proxy (8)")
    assert problems(with_validate(tiny, **settings, sizes=[32, 36], every=10)) == []


def test_the_size_is_the_first_given_or_the_stages_own(tiny):
    tiny["stages"]["multires"]["image_sizes"] = [48, 32]
    for sizes, expected in (([], (32, 48)), ([64, 32], (64, 64))):
        recipe = with_validate(tiny, sizes=sizes)
        found = [watched_size(recipe, recipe.validate, stage) for stage in ("proxy", "multires")]
        assert tuple(found) == expected


def test_it_may_change_when_a_run_goes_on(tiny):
    before = with_validate(tiny)
    now = with_validate(tiny, every=10, fast=["depth"], fast_scenes=99)
    assert fixed_changes(before, now, frozenset({"proxy"})) == []
    assert fixed_changes(now, from_dict(tiny), frozenset({"proxy"})) == []


@pytest.mark.parametrize("name", ["one-gpu", "folder"])
def test_long_recipes_are_watched(name):
    recipe = yaml.safe_load((shipped_recipes() / f"{name}.yaml").read_text())
    steps = [stage["train"]["steps"] for stage in recipe["stages"].values()]
    assert min(steps) >= 10 * recipe["validate"]["every"]
