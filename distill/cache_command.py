"""`distill cache`: fill a recipe's cache ahead of its runs, or say what it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill.cache import print_info
from distill.engine.cached import cache_of
from distill.engine.interruption import StopRequest
from distill.engine.learner import StudentPlan, planned_students
from distill.folder import RunFolder
from distill.launch import environment, make_accelerator
from distill.progress import Progress
from distill.recipe.load import load_recipe, prepare
from distill.recipe.schema import CacheConfig, Recipe
from distill.runner import Runner
from students import UserError


def print_cache(recipe: str | Path | None, overrides: Sequence[str] = ()) -> None:
    """Print what the cache of a recipe holds; without one, or without a section `cache`, what the
    default folder does.

    Raises:
        UserError: if there is no such recipe or cache.
    """
    config = None if recipe is None else load_recipe(recipe, overrides).cache
    print_info(cache_of(config or CacheConfig()))


def fill_cache(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> None:
    """Show every batch of every stage to the recipe's own teachers, and keep their features.

    The features of earlier stages' students are not known before they are trained, and are kept
    while a run goes. What is in the cache already is not computed again; nothing else is written.

    Raises:
        UserError, RecipeError: as `distill.runner.run`; if the recipe has no cache.
        Interrupted: if SIGTERM or Ctrl-C came; what was computed until then is kept.
    """
    recipe = prepare(recipe, overrides)
    if recipe.cache is None:
        raise UserError("the recipe has no cache to fill: give it a section cache: {}")
    accelerator = make_accelerator()
    progress = Progress(shown=accelerator.is_main_process)
    with (
        tempfile.TemporaryDirectory(prefix="distill-cache-") as home,
        StopRequest(accelerator) as stop,
    ):
        folder = RunFolder(Path(home) / "run")
        folder.claim(recipe, environment(accelerator))
        runner = Runner(recipe, folder, accelerator, progress, stop)
        assert runner.cache is not None
        try:
            for stage_name in recipe.stages:
                plans = [_from_own(recipe, p) for p in planned_students(recipe, stage_name)]
                if any(plan.config.teachers for plan in plans):
                    stage = runner.stage(stage_name, plans, folder.path / stage_name)
                    runner.say_cache(stage)
                    stage.fill_cache()
        finally:
            runner.cache.close()


def _from_own(recipe: Recipe, plan: StudentPlan) -> StudentPlan:
    """A student that learns from those of its teachers that are the recipe's own."""
    own = [teacher for teacher in plan.config.teachers if teacher in recipe.teachers]
    return replace(plan, config=replace(plan.config, teachers=own))
