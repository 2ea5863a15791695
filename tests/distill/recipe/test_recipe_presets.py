"""Presets in a recipe: what they become, and the line that each wrong use gets."""

import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from distill import TeacherConfig
from distill.recipe.load import from_dict, load_recipe, to_yaml
from distill.recipe.plan import plan
from distill.recipe.resolve import problems, survey, teacher_spec
from teachers import preset


@pytest.fixture(autouse=True)
def nothing_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def with_teacher(tiny):
    """with_teacher(weights=..., ...) -> the tiny recipe as a mapping, its dinov2 another teacher;
    the stages' sizes are multiples of every patch."""

    def make(**config):
        tiny["teachers"]["dinov2"] = config
        return tiny

    return make


@pytest.mark.parametrize("family", [{}, {"family": "dinov2"}, {"family": None}])
def test_the_resolved_recipe_holds_family_and_checkpoint(with_teacher, family):
    recipe = from_dict(with_teacher(weights="dinov2-b", sizes=[224], **family))
    assert recipe.teachers["dinov2"] == TeacherConfig(
        family="dinov2", weights="facebook/dinov2-base", sizes=[224]
    )
    assert problems(recipe) == []
    text = to_yaml(recipe)
    assert "    family: dinov2\n    weights: facebook/dinov2-base\n" in text
    assert from_dict(OmegaConf.to_container(OmegaConf.create(text))) == recipe


def test_an_override_may_name_one(with_teacher, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(OmegaConf.to_yaml(with_teacher(family="dinov2", weights="./elsewhere")))
    recipe = load_recipe(path, ["teachers.dinov2.weights=dinov2-s-reg"])
    assert recipe.teachers["dinov2"].weights == "facebook/dinov2-with-registers-small"


def test_a_recipe_made_in_python_may_too(recipe):
    recipe.teachers["dinov2"] = TeacherConfig(weights="dinov2-s")
    assert teacher_spec(recipe.teachers["dinov2"]) == preset("dinov2-s")
    assert survey(recipe).problems == []


def test_the_plan_needs_no_file(with_teacher, tmp_path):
    found = plan(from_dict(with_teacher(weights="dinov2-l", tokens=["dense"])))
    teacher = found.teachers[0]
    assert (teacher.name, teacher.family, teacher.fetched) == ("dinov2", "dinov2", False)
    assert (teacher.parameters, teacher.dense_dim) == (304_368_640, 1024)
    assert teacher.licence == "apache-2.0"
    assert found.stages[0].memory > 2 * 304_368_640
    assert found.stages[0].students[0].adapters is not None
    assert any("facebook/dinov2-large is not fetched yet" in note for note in found.notes)
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"weights": "dinov2-b", "family": "siglip"},
            "teachers.dinov2.family: the preset 'dinov2-b' is of family 'dinov2', not 'siglip'; "
            "leave family out, or name other weights",
        ),
        (
            {"weights": "dinov2b"},
            "teachers.dinov2.family: missing, and weights 'dinov2b' is no preset (did you mean "
            "'dinov2-b'?); give one of clip, ",
        ),
        (
            {"weights": "./a/folder/of/mine"},
            "teachers.dinov2.family: missing, and weights './a/folder/of/mine' is no preset "
            "(`distill teachers` lists them); give one of clip, ",
        ),
        (
            {"weights": "sam-b"},
            "teachers.dinov2.tokens: sam teachers have no summary; give tokens: [dense]",
        ),
        (
            {"weights": "sam-b", "tokens": ["dense"], "sizes": [1000]},
            "teachers.dinov2.sizes[0]: facebook/sam-vit-base: size 1000 is no multiple of SAM's "
            "patch of 16 pixels",
        ),
        (
            {"weights": "dinov2-b", "sizes": [12]},
            "teachers.dinov2.sizes[0]: facebook/dinov2-base: size 12 is smaller than its patch of "
            "14",
        ),
        (
            {"weights": "dinov2-b", "layer": 13},
            "teachers.dinov2.weights: facebook/dinov2-base: layer 13 is not one of 1 to 12",
        ),
    ],
)
def test_one_line_for_what_is_wrong(with_teacher, config, line):
    (found,) = problems(from_dict(with_teacher(**config)))
    assert found.startswith(line)


def test_a_folder_of_a_presets_name_has_to_be_told_apart(with_teacher, tmp_path):
    (tmp_path / "dinov2-b").mkdir()
    (found,) = problems(from_dict(with_teacher(weights="dinov2-b")))
    assert found == (
        "teachers.dinov2.weights: 'dinov2-b' is a preset and a folder here; write ./dinov2-b and "
        "its family for the folder, facebook/dinov2-base and family dinov2 for the preset"
    )
    recipe = from_dict(with_teacher(weights="facebook/dinov2-base", family="dinov2"))
    assert problems(recipe) == []
