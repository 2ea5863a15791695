"""Which student is meant: RUN, where it has one, or RUN/STAGE/STUDENT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.recipe.load import load_recipe
from distill.recipe.schema import Recipe
from students import UserError, did_you_mean

WHOLE = ("config.json", "model.safetensors", "adapters.json", "adapters.safetensors")
"""What the folder of a finished student holds, beside its card."""


@dataclass(frozen=True)
class Found:
    """A finished student's folder, and the run that it belongs to with its recipe, if any."""

    folder: Path
    run: Path | None
    recipe: Recipe | None


def is_student(folder: Path) -> bool:
    """Whether a folder is that of a finished student."""
    return all((folder / name).is_file() for name in WHOLE)


def finished_students(run: Path) -> list[str]:
    """The finished students of a run's folder as STAGE/STUDENT, in the order of their stages."""
    stages = list(load_recipe(run / "recipe.yaml").stages)
    found = [
        folder
        for folder in sorted(run.glob("*/*"))
        if not folder.name.startswith(".") and folder.parent.name in stages and is_student(folder)
    ]
    found.sort(key=lambda folder: stages.index(folder.parent.name))
    return [f"{folder.parent.name}/{folder.name}" for folder in found]


def find_student(path: str | Path) -> Found:
    """The student that a path names: its own folder, or that of a run which has just one.

    Raises:
        UserError: if there is no such folder, no finished student in it, or more than one; the
            message lists them, the nearest name first.
    """
    folder = Path(path).expanduser()
    if is_student(folder):
        around = folder.resolve().parent.parent
        if not _is_run(around):
            return Found(folder, None, None)
        return Found(folder, around, load_recipe(around / "recipe.yaml"))
    run = next((one for one in (folder, *folder.parents[:2]) if _is_run(one)), None)
    if run is None:
        what = "holds neither a run nor an exported student" if folder.exists() else "is not there"
        raise UserError(
            f"{folder} {what}: give a run's folder, or RUN/STAGE/STUDENT as in "
            "runs/quickstart/students/vit"
        )
    names = finished_students(run)
    if not names:
        raise UserError(f"{run} has no finished student yet: `distill run` goes on with it")
    if folder != run:
        asked = folder.relative_to(run).as_posix()
        raise UserError(
            f"{run} has no finished student {asked}{did_you_mean(asked, names)}; it has "
            f"{', '.join(names)}"
        )
    if len(names) > 1:
        raise UserError(
            f"{run} has {len(names)} students, name one: "
            + ", ".join(f"{run}/{name}" for name in names)
        )
    return find_student(run / names[0])


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()
