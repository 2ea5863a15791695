"""A recipe measured: its stages one after the other in a temporary folder, then its probes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distill.engine.interruption import StopRequest
from distill.engine.learner import planned_students
from distill.engine.memory import stage_memory
from distill.engine.scales import calibrate_scales
from distill.folder import RunFolder
from distill.launch import environment, make_accelerator
from distill.measure.memory import MOST, MemoryLine, largest_by_trying, peak_memory
from distill.measure.probes import looks, measure_look, measure_probes
from distill.measure.steps import StepTimes, loop_seconds, measure_steps
from distill.measure.trial import Trial
from distill.progress import Progress
from distill.recipe.build import join
from distill.recipe.schema import Recipe
from distill.runner import Runner
from students import UserError


@dataclass(frozen=True)
class MeasuredStage:
    """A stage as it was measured.

    `at_once`: images of a step that go through together, as the recipe says; `largest`: the most
    that fit (None where the system does not tell), found by trying if `tried`, else worked out from
    `line` and `limit` bytes. Where the recipe's own number does not fit, steps were measured with
    `largest` as micro_batch. `memory`: peak bytes of the measured steps. `parts`: seconds of the
    whole stage by what is done.
    """

    name: str
    steps: int
    batch_size: int
    step: StepTimes
    memory: int | None
    at_once: int
    largest: int | None
    tried: bool
    line: MemoryLine | None
    limit: int | None
    parts: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether the recipe's own number of images does."""
        return self.largest is None or self.at_once <= self.largest or self.largest == MOST

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Measurement:
    """A recipe as it was measured: seconds of starting, of each stage, and of probes and report
    (None where the recipe has none)."""

    recipe: Recipe
    device: str
    starting: float
    stages: tuple[MeasuredStage, ...]
    probes: float | None

    @property
    def seconds(self) -> float:
        """Of a whole run from nothing."""
        return self.starting + sum(stage.seconds for stage in self.stages) + (self.probes or 0.0)


def measure(recipe: Recipe, progress: Progress, starting: float = 0.0) -> Measurement:
    """Measure a recipe that has been found without fault.

    Loads teachers (and fetches those that a run would fetch), draws the scenes that a run would
    draw, and writes to a temporary folder alone.

    Args:
        recipe: from `distill.recipe.load.prepare`.
        progress: where a person sees how far it is.
        starting: seconds that this process took until here, which a run takes too.

    Raises:
        UserError: in several processes; or if not even one image at once fits.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("check --measure looks at one device: start it without torchrun")
    began = time.perf_counter()
    accelerator = make_accelerator()
    starting += time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="distill-measure-") as home:
        folder = RunFolder(Path(home) / "run")
        folder.claim(recipe, environment(accelerator))
        with StopRequest(accelerator) as stop:
            quiet = Progress(shown=False)
            # A run finds the scenes that are drawn now.
            Runner(recipe, folder, accelerator, quiet, stop).sources()
            began = time.perf_counter()
            runner = Runner(recipe, folder, accelerator, quiet, stop)
            runner.sources()
            starting += time.perf_counter() - began
            stages, probes = [], None
            units = len(recipe.stages) + (recipe.validate is not None)
            with progress.task("measuring", units) as bar:
                for name in recipe.stages:
                    bar.note(f"stage {name}")
                    with stage_memory(recipe, name, accelerator.device):
                        stages.append(measure_stage(runner, name))
                    bar.advance()
                if recipe.validate is not None:
                    bar.note("probes")
                    probes = measure_probes(runner)
                    bar.advance()
        device = accelerator.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    return Measurement(recipe, kind, starting, tuple(stages), probes)


def measure_stage(runner: Runner, name: str) -> MeasuredStage:
    """Measure one stage, and export its students for those that come after it."""
    parts: dict[str, float] = {}
    plans = planned_students(runner.recipe, name)
    with _timed(parts, "loading"):
        stage = runner.stage(name, plans, runner.folder.path / name / "checkpoint")
        trainees = [stage.prepare(plan) for plan in plans]
    config, train = stage.config, stage.config.train
    calibrated = min(config.calibration_batches, train.steps)
    at_once = min(train.micro_batch or train.batch_size, train.batch_size)
    trial = Trial(stage, trainees)
    largest, line, limit = trial.largest_before(at_once)
    if largest == 0:
        ways = ", or ".join(lowering(runner.recipe, name))
        raise UserError(f"stage {name}: not even one image at once fits; {ways}")
    if largest is not None and largest < at_once:
        stage.config = replace(config, train=replace(train, micro_batch=largest))
    parts["calibration"] = loop_seconds(stage, calibrated, stage.calibrate_normalisers)
    stage.share_normalisers(trainees)
    with peak_memory(stage.device) as peak:
        times = measure_steps(stage, trainees)
    parts["steps"] = times.seconds * train.steps
    tried = stage.device.type == "cuda"
    if tried and largest is None:
        largest = largest_by_trying(trial.fits, at_once)
    if (times_probed := looks(runner.recipe, name)) > 0:
        parts["probes"] = times_probed * measure_look(stage, trainees)
    with _timed(parts, "saving"):
        stage.save(train.steps, trainees)
    parts["saving"] *= -(-train.steps // train.save_every)
    parts["scaling"] = loop_seconds(stage, calibrated, lambda: calibrate_scales(stage, trainees))
    with _timed(parts, "export"):
        for trainee in trainees:
            learner = trainee.whole_result()
            assert learner is not None
            runner.export(name, trainee.plan, learner)
    return MeasuredStage(
        name,
        train.steps,
        train.batch_size,
        times,
        peak.bytes,
        at_once,
        largest,
        tried,
        line,
        limit,
        parts,
    )


def lowering(recipe: Recipe, name: str) -> list[str]:
    """What lowers the memory of a stage, beside its micro_batch."""
    stage, path = recipe.stages[name], join("stages", name)
    ways = [] if stage.train.checkpointing else [f"set {path}.train.checkpointing to true"]
    ways.append(f"lower {path}.train.batch_size")
    for teacher in recipe.teachers:
        if any(teacher in student.teachers for student in stage.students.values()):
            ways.append(f"lower {join('teachers', teacher)}.batch_share")
    return ways


@contextmanager
def _timed(parts: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    parts[name] = time.perf_counter() - began
