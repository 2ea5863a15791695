"""`distill cache`: a cache that is filled ahead, and what is said of it."""

import pytest

from distill.cli import main
from distill.recipe.load import from_dict, to_yaml
from distill.runner import run


@pytest.fixture
def recipe(tiny, tmp_path):
    tiny["data"]["views"] = {"per_sample": 1}
    tiny["validate"] = None
    tiny["cache"] = {"folder": str(tmp_path / "cache")}
    del tiny["stages"]["multires"]["students"]["vit"]
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(from_dict(tiny)))
    return path


def test_a_filled_cache_is_all_that_a_run_needs(recipe, tmp_path, capsys, teacher_calls):
    assert main(["cache", str(recipe)]) == 0
    assert "at most" in capsys.readouterr().out
    teacher_calls.clear()
    run(recipe, run_dir=tmp_path / "run", quiet=True)
    # The student of the first stage teaches the second: nobody knew it before.
    assert {call.family for call in teacher_calls} == {"student"}


def test_info_names_teachers_sizes_and_bytes(recipe, capsys):
    assert main(["cache", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["cache", str(recipe), "--info"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("dinov2", "sam", "32", "48", "exact"))


def test_what_is_missing_is_one_line(recipe, tiny, tmp_path, capsys):
    assert main(["cache"]) == 2
    assert "name the recipe" in capsys.readouterr().err
    assert main(["cache", str(recipe), "cache=null"]) == 2
    assert "cache: {}" in capsys.readouterr().err
    assert main(["cache", str(recipe), "--info"]) == 2
    assert "no such folder" in capsys.readouterr().err
