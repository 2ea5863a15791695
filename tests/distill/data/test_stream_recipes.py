"""Sources that stream, as a recipe names them."""

import io

import pytest
from rich.console import Console
from tar_shards import write_shards

from distill.recipe.load import RecipeError, prepare
from distill.recipe.plan import plan
from distill.recipe.render import print_plan


@pytest.fixture
def pattern(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return write_shards(tmp_path / "data", [3, 4])


def with_source(spec, **fields):
    settings = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return [f'data.train.tars={{source: "{spec}", {settings}}}']


def test_a_command_is_refused_when_the_recipe_is_checked(pattern):
    spec = f"webdataset:pipe:cat {pattern}"
    with pytest.raises(RecipeError) as caught:
        prepare("quickstart", with_source(spec, share=0.5))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("data.train.tars.source: a pipe: source runs")
    recipe = prepare("quickstart", with_source(spec, share=0.5, allow_pipe="true"))
    assert recipe.data.train["tars"].allow_pipe


def test_a_missing_shard_is_a_problem_of_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"data\.train\.tars\.source: .*/0\.tar does not exist"):
        prepare("quickstart", with_source(f"webdataset:{tmp_path}/{{0..3}}.tar"))


def test_a_plan_without_a_count_says_so(pattern):
    recipe = prepare("quickstart", with_source(f"webdataset:{pattern}", homogeneous="true"))
    made = plan(recipe)
    assert made.images is None
    assert {stage.epochs for stage in made.stages} == {None}
    out = io.StringIO()
    print_plan(made, Console(file=out))
    assert "images, epochs not known until all shards are read; sizes" in out.getvalue()
    assert "homogeneous: true" in out.getvalue()
