"""Where a student comes from: its run, stage, teachers and their licences, data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.export.secrets import without_secrets
from distill.recipe.schema import Recipe
from students import UserError


@dataclass
class Origin:
    """Where a student comes from, for its card: run, stage, teachers and their licences, data."""

    run: str
    name: str
    stage: str
    steps: int
    image_sizes: list[int]
    licence: str
    author: str = ""
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """What adapters.json says of it, without passwords in the sources of the data."""
        return {
            "student": f"{self.stage}/{self.name}",
            "steps": self.steps,
            "teachers": self.teachers,
            "origin": {
                "run": self.run,
                "image_sizes": list(self.image_sizes),
                "licence": self.licence,
                "author": self.author,
                "data": {name: without_secrets(source) for name, source in self.data.items()},
            },
        }


def exported_steps(folder: Path) -> int:
    """Training steps of an exported student, 0 if there is none."""
    try:
        return int(json.loads((folder / "adapters.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, KeyError, ValueError):
        return 0


def read_origin(folder: Path, recipe: Recipe | None) -> Origin:
    """The origin of an exported student, from its own files and its run's recipe where there is
    one: licence and author are those that the recipe says now.

    Raises:
        UserError: if config.json or adapters.json is not that of a student.
    """
    try:
        about = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
        stage, _, name = about["student"].partition("/")
        steps, teachers = int(about["steps"]), dict(about["teachers"])
        sizes = [int(config["input_size"][-1])]
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not the folder of an exported student ({type(error).__name__}: {error})"
        ) from None
    kept = about.get("origin") or {}
    origin = Origin(
        run=kept.get("run") or config.get("tag") or "",
        name=name,
        stage=stage,
        steps=steps,
        image_sizes=kept.get("image_sizes") or sizes,
        licence=kept.get("licence") or config.get("license") or "other",
        author=kept.get("author") or "",
        teachers=teachers,
        data=kept.get("data") or {},
    )
    if recipe is not None and stage in recipe.stages:
        origin.image_sizes = recipe.stages[stage].image_sizes
        origin.licence, origin.author = recipe.export.licence, recipe.export.author
        origin.data = {one: source.source for one, source in recipe.data.train.items()}
    return origin
