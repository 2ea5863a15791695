"""Seconds of a stage's steps: few of them, chosen to stand for all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from distill.engine.learner import planned_students
from distill.engine.log import StageLog
from distill.engine.stage import Stage
from distill.engine.trainee import Trainee
from students.keys import draw_size

ENOUGH_SECONDS = 8.0
"""Steps are measured until they took this long, in PASSES passes at least."""

PASSES = 3
DRAWS = 2000
"""Steps whose drawn sizes are looked at to choose which ones are measured."""


@dataclass(frozen=True)
class StepTimes:
    """Steps of a stage: mean seconds of one with its wait for data, and that wait's share."""

    seconds: float
    data_wait: float
    measured: int


def measure_steps(stage: Stage, trainees: list[Trainee]) -> StepTimes:
    """Time training steps of the loader, the teachers and the students, as a stage runs them.

    The steps are chosen so that the sizes which they draw have the mean of all steps: by quantiles
    of the pixels they come to. A pass runs all of them once; what is returned is the median over
    passes of a pass's mean, so that neither a mixture of sizes nor batches that arrive in bursts
    distort it, nor a single hiccup of the machine.
    """
    workers = stage.recipe.data.workers
    chosen = chosen_steps(stage, trainees, least=max(4, workers))
    log = StageLog(stage, trainees, 0)
    stream = stage.pixels(0, 10**9)
    # What the loader has made ahead hides how slow it is.
    for number in range(2 + 2 * workers):
        _, batch, pixels = next(stream)
        stage.step(trainees, chosen[number % len(chosen)], batch, pixels)
    synchronise(stage.device)
    passes: list[float] = []
    waits: list[float] = []
    began = time.perf_counter()
    while len(passes) < PASSES or time.perf_counter() - began < ENOUGH_SECONDS:
        start, waited = time.perf_counter(), 0.0
        for number in chosen:
            asked = time.perf_counter()
            _, batch, pixels = next(stream)
            waited += time.perf_counter() - asked
            log.saw(batch, waited=0.0)
            stage.step(trainees, number, batch, pixels)
        log.write((1 + len(passes)) * len(chosen))
        synchronise(stage.device)
        passes.append(time.perf_counter() - start)
        waits.append(waited)
    stream.close()  # type: ignore[attr-defined]
    middle = sorted(range(len(passes)), key=passes.__getitem__)[len(passes) // 2]
    return StepTimes(
        passes[middle] / len(chosen), waits[middle] / passes[middle], len(passes) * len(chosen)
    )


def chosen_steps(stage: Stage, trainees: list[Trainee], least: int, most: int = 12) -> list[int]:
    """Numbers of steps whose drawn sizes stand for those of all steps, in a mixed order: as many as
    there are different draws, between `least` and `most`."""
    drawn = sorted(range(min(DRAWS, stage.config.train.steps)), key=lambda s: work(stage, s))
    count = max(least, min(most, len({work(stage, step) for step in drawn})))
    chosen = [drawn[int((i + 0.5) * len(drawn) / count)] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def work(stage: Stage, step: int) -> int:
    """Pixels of an image that teachers and students are shown at a step, the students' threefold:
    forward and backward cost about three times as much as forward."""
    seed, name = stage.recipe.seed, stage.name
    sizes = [
        draw_size(teacher.sizes, seed, name, step, teacher.name)
        for teacher in stage.teachers.values()
    ]
    sizes += [
        draw_size(stage.config.image_sizes, plan.seed, name, step, "student")
        for plan in planned_students(stage.recipe, name)
        for _ in range(3)
    ]
    return sum(size * size for size in sizes)


def loop_seconds(stage: Stage, batches: int, run: Callable[[], None]) -> float:
    """Seconds of one of the stage's loops over `calibration_batches`, from a few of them.

    The first batch waits for the loader, and may be the first that a model sees.
    """

    def few(count: int) -> float:
        before, began = stage.config, time.perf_counter()
        stage.config = replace(before, calibration_batches=count)
        run()
        synchronise(stage.device)
        stage.config = before
        return time.perf_counter() - began

    cold, one = few(1), few(1)
    if batches == 1:
        return cold
    each = max(0.0, few(min(5, batches)) - one) / (min(5, batches) - 1)
    return cold + each * (batches - 1)


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
