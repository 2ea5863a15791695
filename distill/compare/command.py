"""`distill compare`: train a student of each subset, probe them, and say what they show."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from distill.compare.answer import Answer, compare, write_answer
from distill.compare.expansion import Comparison, expand
from distill.compare.frontier import Costs
from distill.compare.groups import in_groups
from distill.compare.terminal import render_answer
from distill.progress import Progress
from distill.recipe.load import prepare
from distill.recipe.resolve import teacher_spec
from distill.recipe.schema import CompareConfig, Recipe
from distill.report.page import write_report
from distill.runner import run
from teachers import Teacher, load_teacher

UNIT = "ms an image"
ANSWER = "compare.json"
_IMAGES, _ROUNDS = 8, 5


def expanded(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """What `distill compare` trains: all that is wrong with the recipe and its `compare` section
    is found before anything is loaded.

    Raises:
        UserError, RecipeError: as `distill.recipe.load.prepare` and `expand`.
    """
    recipe = prepare(recipe, overrides)
    return expand(recipe, recipe.compare or CompareConfig())


def compare_teachers(
    recipe: Recipe | str | Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    quiet: bool = False,
) -> Answer | None:
    """Train one student a subset of teachers and seed, probe all of them, and answer which
    teachers are worth learning from; or go on where that stopped.

    The run's folder is that of an ordinary run of the expanded recipe, with compare.json and a
    section of report.html beside. A subset that is added later is trained alone.

    Args:
        recipe, overrides, quiet: as of `distill.runner.run`; without a `compare` section, all
            subsets of its teachers are compared.
        run_dir: default runs/NAME-compare.

    Returns:
        The answer; None on other ranks than the first.

    Raises:
        UserError, RecipeError, Interrupted: as `run` and `expanded`.
    """
    comparison = expanded(recipe, overrides)
    progress = Progress(shown=not quiet)
    folder = (
        Path(run_dir) if run_dir is not None else Path("runs") / f"{comparison.recipe.name}-compare"
    )
    grouped = in_groups(comparison.recipe, folder, progress)
    # The answer says all that the table does, each student in one row.
    result = run(grouped, run_dir=folder, quiet=quiet, table=False)
    if not result.rows:
        return None
    costs = _measured(folder, comparison) or teacher_costs(comparison.recipe)
    answer = compare(comparison, result.rows, result.untrained_of, costs)
    write_answer(folder / ANSWER, answer)
    write_report(folder)
    if progress.shown:
        progress.console.print(render_answer(answer))
    progress.say(f"answer: {folder / ANSWER}, {folder / 'report.html'}")
    return answer


def _measured(folder: Path, comparison: Comparison) -> Costs | None:
    """The costs of an answer that is there already, if it has all of them."""
    try:
        held = json.loads((folder / ANSWER).read_text())
    except (OSError, ValueError):
        return None
    if held["cost_unit"] != UNIT or set(held["costs"]) < set(comparison.recipe.teachers):
        return None
    return Costs(UNIT, held["costs"])


def teacher_costs(recipe: Recipe) -> Costs:
    """Milliseconds an image of each teacher's forward pass on this machine, at the first size that
    it is shown: the median of a few passes in turn, so that a busy moment hits all alike."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teachers: dict[str, Teacher] = {}
    times: dict[str, list[float]] = {}
    for name, config in recipe.teachers.items():
        teachers[name] = load_teacher(teacher_spec(config), device)
        times[name] = []
    for _ in range(_ROUNDS + 1):
        for name, teacher in teachers.items():
            size = next(iter(recipe.teachers[name].sizes), teacher.size)
            pixels = torch.zeros(_IMAGES, 3, size, size, device=device)
            began = time.perf_counter()
            teacher(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append((time.perf_counter() - began) * 1000 / _IMAGES)
    return Costs(UNIT, {name: round(median(taken[1:]), 4) for name, taken in times.items()})
