"""Seconds of a run's probes: of those while a stage trains, and of those in the end from small
ones."""

from __future__ import annotations

import time
from dataclasses import replace

from distill.engine.stage import Stage
from distill.engine.trainee import Trainee
from distill.engine.watch import Watch
from distill.probes.world import World
from distill.recipe.resolve import validation_sizes
from distill.recipe.schema import Recipe
from distill.runner import Runner

FEW_SCENES, MORE_SCENES = 64, 192
"""Scenes of each split in the small probes that the time of all of them is worked out from."""


def looks(recipe: Recipe, stage: str) -> int:
    """How often the students of a stage are probed while they train."""
    every = None if recipe.validate is None else recipe.validate.every
    return 0 if every is None else -(-recipe.stages[stage].train.steps // every)


def measure_look(stage: Stage, trainees: list[Trainee]) -> float:
    """Seconds of probing the students of a stage once while they train."""
    watch = Watch(stage, trainees, 0)
    watch.probe(1)  # draws the scenes, and is the first that a model sees of this size
    return watch.probe(2)


def measure_probes(runner: Runner) -> float:
    """Seconds of all probes, pictures and the report: as a line in the number of scenes, through
    two small ones. One that is small is measured as it is."""
    recipe, config = runner.recipe, runner.recipe.validate
    assert config is not None

    def seconds(train: int, test: int) -> float:
        runner.recipe = replace(recipe, validate=replace(config, train=train, test=test))
        for size in validation_sizes(recipe, config):
            World(size, train, test, config.seed)  # a run finds its own drawn
        runner.worked = True
        began = time.perf_counter()
        runner.validate()
        return time.perf_counter() - began

    for size in validation_sizes(recipe, config):
        World(size, config.train, config.test, config.seed)
    first = seconds(FEW_SCENES, FEW_SCENES)
    if config.train + config.test <= 2 * MORE_SCENES:
        return seconds(config.train, config.test)
    more, few = seconds(MORE_SCENES, MORE_SCENES), seconds(FEW_SCENES, FEW_SCENES)
    per_scene = max(0.0, more - few) / (2 * (MORE_SCENES - FEW_SCENES))
    # The first time, modules are imported and decoders loaded.
    once = max(0.0, first - few)
    return once + few + per_scene * (config.train + config.test - 2 * FEW_SCENES)
