"""A run's folder: whose it is, what may change when a recipe goes on in it, what it holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.engine.checkpoint import newest_checkpoint
from distill.engine.learner import planned_students
from distill.files import write_whole, writing
from distill.recipe.changes import fixed_changes
from distill.recipe.load import load_recipe, to_yaml
from distill.recipe.schema import Recipe
from students import UserError

_FILES = ("recipe.yaml", "environment.json", "validation.json", "report.html")
"""What lies in a run's folder beside its stages, each written whole."""


class RunFolder:
    """runs/NAME: recipe.yaml, environment.json, stages, validation.json, report.html."""

    def __init__(self, path: Path):
        self.path = path

    def claim(self, recipe: Recipe, environment: dict[str, Any]) -> None:
        """Make the folder this recipe's, or see that it is; clear away what a killed run left.

        A recipe may differ from the one that the folder holds in what does not shape training that
        is done: probes, export, logging, workers, micro-batches, checkpointing; students, teachers
        and stages that are new; more steps of a stage from which no later one has learnt.

        Raises:
            UserError: if it holds a run of a recipe that differs in what shaped its training, or
                cannot be written.
        """
        held = self.path / "recipe.yaml"
        if held.exists():
            changed = fixed_changes(load_recipe(held), recipe, self._settled(recipe))
            if changed:
                shown = "; ".join(changed[:6]) + ("; ..." if len(changed) > 6 else "")
                raise UserError(
                    f"{self.path} belongs to another recipe: {shown}. Give --run-dir another "
                    "folder, or set these keys back"
                )
        elif self.path.exists() and set(self.path.iterdir()) - set(self._leftovers(recipe)):
            raise UserError(
                f"{self.path} is not empty and holds no run: give --run-dir another folder"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in self._leftovers(recipe):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_whole(held, to_yaml(recipe))
        if not (self.path / "environment.json").exists():
            write_whole(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def _leftovers(self, recipe: Recipe) -> list[Path]:
        """What a run that was killed while it wrote has left half written, or had done with."""
        halves = [self.path / f".{name}.new" for name in _FILES]
        found = [path for path in halves if path.exists()]
        for stage in recipe.stages:
            for shape in (".*.new", ".*.old", "checkpoint*/.step-*"):
                found += (self.path / stage).glob(shape)
        return found

    def _settled(self, recipe: Recipe) -> frozenset[str]:
        """The stages from whose students a later one has begun to learn."""
        names = list(recipe.stages)
        begun = [number for number, name in enumerate(names) if (self.path / name).exists()]
        return frozenset(names[: max(begun, default=0)])

    def passes(self, stage: str) -> dict[Path, dict[str, int | None]]:
        """The folder of checkpoints of each pass that trained students of a stage together, with
        those in its newest whole one and at which step each was stopped because its loss was not
        finite any more (None: it was not). The last folder holds none: for those who come now.
        """
        passes: dict[Path, dict[str, int | None]] = {}
        while True:
            number = len(passes) + 1
            name = "checkpoint" if number == 1 else f"checkpoint-{number}"
            found = newest_checkpoint(self.path / stage / name)
            passes[self.path / stage / name] = {} if found is None else found.students
            if found is None:
                return passes

    def validated(self, recipe: Recipe) -> bool:
        """Whether validation.json holds what this recipe asks for."""
        try:
            content = json.loads((self.path / "validation.json").read_text())
        except (OSError, ValueError):
            return False
        return content.get("asked") == _asked(recipe)

    def validation(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The rows of validation.json, and who is whose untrained self."""
        held = json.loads((self.path / "validation.json").read_text())
        return held["rows"], held["untrained_of"]

    def write_validation(
        self, recipe: Recipe, rows: list[dict[str, Any]], untrained_of: dict[str, str]
    ) -> None:
        """Write validation.json: what was asked, the rows, and who is whose untrained self."""
        content = {"asked": _asked(recipe), "untrained_of": untrained_of, "rows": rows}
        write_whole(self.path / "validation.json", json.dumps(content, indent=1) + "\n")

    def write_seconds(self, seconds: dict[str, float]) -> None:
        """Add the wall time of each part of the run to environment.json."""
        path = self.path / "environment.json"
        content = json.loads(path.read_text())
        held = content.setdefault("seconds", {})
        for name, value in seconds.items():
            held[name] = round(held.get(name, 0.0) + value, 1)
        write_whole(path, json.dumps(content, indent=2) + "\n")


def _asked(recipe: Recipe) -> dict[str, Any]:
    """What a validation answers: the probes, and which students after how many steps."""
    assert recipe.validate is not None
    students = {
        f"{name}/{plan.name}": stage.train.steps
        for name, stage in recipe.stages.items()
        for plan in planned_students(recipe, name)
    }
    during_training = {"every", "fast", "fast_scenes"}
    probes = {k: v for k, v in asdict(recipe.validate).items() if k not in during_training}
    return {**probes, "students": students}
