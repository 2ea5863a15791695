"""What the pages of docs/ say is what the code does."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from distill.recipe.build import build, hints
from distill.recipe.schema import TeacherConfig
from distill.teachers_command import markdown
from teachers import all_presets

DOCS = Path(__file__).parent.parent / "docs"
TEACHERS = (DOCS / "teachers.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    """The part of teachers.md between <!-- name --> and <!-- /name -->."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEACHERS, re.DOTALL)
    return found


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEACHERS, re.DOTALL)


@pytest.mark.parametrize("page", DOCS.glob("*.md"), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_table_of_families_is_the_commands():
    assert between("families").strip("\n") == markdown(), "run `distill teachers --markdown`"


def test_presets_are_all_listed_and_no_others():
    listed = re.findall(r"`([^`]+)`", between("presets"))
    assert len(listed) == len(set(listed))
    assert set(listed) == set(all_presets())


def test_every_key_of_a_teacher_is_explained():
    explained = set(re.findall(r"`([a-z_]+)(?::[^`]*)?`", TEACHERS))
    assert set(hints(TeacherConfig)) <= explained


def test_the_recipe_is_one():
    for text in blocks("yaml"):
        problems: list[str] = []
        values = OmegaConf.to_container(OmegaConf.create(text))
        teachers = build(dict[str, TeacherConfig], values["teachers"], "teachers", problems)
        assert problems == []
        assert len(teachers) == 3


def test_the_python_runs():
    shown, _ = blocks("python")  # the second is run by tests/teachers/test_entry_points.py
    names = {"pixels": torch.rand(2, 3, 64, 64)}
    exec(shown, names)
    assert names["features"].summary.shape == (2, 96)
    assert names["features"].dense.shape == (2, 8, 8, 96)
    assert names["words"].shape == (1, 96)
