"""How many students of a comparison fit into memory together."""

from __future__ import annotations

import copy
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from distill.engine.interruption import StopRequest
from distill.engine.learner import planned_students
from distill.folder import RunFolder
from distill.launch import environment, make_accelerator
from distill.measure.memory import memory_limit, peak_memory
from distill.measure.trial import Trial
from distill.progress import Progress
from distill.recipe.schema import CacheConfig, Recipe
from distill.runner import Runner

FEW = 4
"""So many students are trained together without a trial."""


def in_groups(recipe: Recipe, folder: Path, progress: Progress) -> Recipe:
    """The recipe with `train.students_at_once` where not all students of a stage fit at once, and
    then with a cache, so that the second group on does not ask the teachers again.

    What the recipe says itself is kept, and so is what a run in `folder` was begun with. In several
    processes nothing is measured.

    Raises:
        UserError: as a run of the recipe.
    """
    counts = {name: len(planned_students(recipe, name)) for name in recipe.stages}
    open_ones = [
        name
        for name, stage in recipe.stages.items()
        if stage.train.students_at_once is None and counts[name] > FEW
    ]
    if not open_ones or int(os.environ.get("WORLD_SIZE", "1")) > 1 or _finished(recipe, folder):
        return recipe
    fits = students_that_fit(recipe, next(iter(recipe.stages)))
    grouped = [name for name in open_ones if fits is not None and fits < counts[name]]
    if not grouped:
        return recipe
    made = copy.deepcopy(recipe)
    for name in grouped:
        train = replace(made.stages[name].train, students_at_once=fits)
        made.stages[name] = replace(made.stages[name], train=train)
        progress.say(f"{name}: {fits} of {counts[name]} students fit into memory at once")
    return replace(made, cache=made.cache or CacheConfig())


def _finished(recipe: Recipe, folder: Path) -> bool:
    """Whether a run in the folder needs no trial, since all of its students are there."""
    return all(
        (folder / name / plan.name / "model.safetensors").exists()
        for name in recipe.stages
        for plan in planned_students(recipe, name)
    )


def students_that_fit(recipe: Recipe, stage: str) -> int | None:
    """How many students of a stage that learns from the recipe's own teachers fit at once: at least
    1; None where the system does not tell. Worked out from the peaks of a step with one and of a
    step with two of them, the ones with the most teachers."""
    accelerator = make_accelerator()
    with (
        tempfile.TemporaryDirectory(prefix="distill-groups-") as home,
        StopRequest(accelerator) as stop,
    ):
        folder = RunFolder(Path(home) / "run")
        folder.claim(recipe, environment(accelerator))
        runner = Runner(recipe, folder, accelerator, Progress(shown=False), stop)
        plans = planned_students(recipe, stage)
        plans = sorted(plans, key=lambda plan: -len(plan.config.teachers))[:2]
        whole = runner.stage(stage, plans, folder.path / stage)
        train, peaks = whole.config.train, []
        images = min(train.micro_batch or train.batch_size, train.batch_size)
        trainees = []
        for plan in plans:
            trainees.append(whole.prepare(plan))
            trial = Trial(whole, trainees)
            trial.run(images)  # the optimiser's moments come with the first step
            with peak_memory(accelerator.device) as peak:
                trial.run(images)
            peaks.append(peak.bytes)
        limit = memory_limit(accelerator.device)
    return fitting(peaks, limit)


def fitting(peaks: list[int | None], limit: int | None) -> int | None:
    """How many students fit into `limit` bytes, from the peaks with one and with two of them."""
    one, two = peaks
    if one is None or two is None or limit is None:
        return None
    return max(1, int((limit - one) // max(two - one, 1)) + 1)
