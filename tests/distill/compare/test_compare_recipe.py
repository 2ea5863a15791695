"""The shipped recipe of a comparison, and the page that explains the section."""

import re
from pathlib import Path

from omegaconf import OmegaConf

from distill.compare.expansion import expand
from distill.recipe.build import build, hints
from distill.recipe.load import from_dict
from distill.recipe.resolve import survey
from distill.recipe.schema import CompareConfig

ROOT = Path(__file__).parents[3]


def sections(text):
    problems: list[str] = []
    values = OmegaConf.to_container(OmegaConf.create(text))
    config = build(CompareConfig, values.pop("compare"), "compare", problems)
    assert problems == []
    return values, config


def test_the_shipped_recipe_has_seven_small_students_and_three_seeds():
    values, config = sections((ROOT / "recipes/compare-quickstart.yaml").read_text())
    made = expand(from_dict(values), config)
    found = survey(made.recipe)
    assert found.problems == []
    assert len(found.students) == len(made.replicas) == 7
    assert {len(s.seeds) for s in made.recipe.stages["direct"].students.values()} == {3}
    assert all(info.parameter_count < 200_000 for info in found.students.values())


def test_every_key_is_explained():
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(hints(CompareConfig))
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    _, config = sections(block)
    assert config.teachers == ["dinov2", "siglip", "sam"]
