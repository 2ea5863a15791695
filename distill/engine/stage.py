"""One stage: frozen teachers, some students, from the first batch to the exported folders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.data.bad_samples import Account, BadSamples
from distill.data.loader import Batch, batches
from distill.data.photometrics import photometrics
from distill.data.source import Source
from distill.engine.calibration import calibrate
from distill.engine.checkpoint import (
    damage,
    give_parts,
    load_trainee,
    newest_checkpoint,
    roll_back,
    save_checkpoint,
)
from distill.engine.interruption import Interrupted, StopRequest
from distill.engine.learner import StudentPlan, build_learner, initial_student
from distill.engine.log import StageLog
from distill.engine.objective import compare
from distill.engine.parts import Part, parts_of
from distill.engine.precision import autocast_dtype
from distill.engine.rows import Rows, rows_seen
from distill.engine.scales import calibrate_scales
from distill.engine.targets import TargetTeacher, widths
from distill.engine.trainee import Trainee
from distill.engine.watch import Watch
from distill.optim import learning_rate
from distill.progress import Progress
from distill.recipe.schema import Recipe
from students import TOKEN_KINDS, Features
from students.keys import draw_size, key

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stage:
    """What a stage needs while it runs.

    Args:
        recipe, name: the stage is `recipe.stages[name]`.
        teachers: those that its students learn from, by name.
        sources: opened training sources by name.
        folder: the run's folder.
        checkpoints: the folder of this pass's checkpoints.
        accelerator: Accelerate's, for device, ranks and reductions.
        progress: where a person sees how far it is.
        stop: whether the run has been asked to stop.
        bad_samples: where images that cannot be decoded are counted (None: nowhere).
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        teachers: dict[str, TargetTeacher],
        sources: dict[str, tuple[Source, float]],
        folder: Path,
        checkpoints: Path,
        accelerator: Accelerator,
        progress: Progress,
        stop: StopRequest,
        bad_samples: BadSamples | None = None,
    ):
        self.recipe, self.name, self.config = recipe, name, recipe.stages[name]
        self.teachers, self.sources = teachers, sources
        self.run, self.folder, self.checkpoints = folder, folder / name, checkpoints
        self.accelerator, self.progress, self.stop = accelerator, progress, stop
        self.bad_samples = bad_samples
        self.device = accelerator.device
        self.canvas = recipe.data.views.canvas or max(self.config.image_sizes)
        self.autocast = autocast_dtype(self.config.train.precision, self.device)

    def train(self, plans: list[StudentPlan]) -> list[Trainee]:
        """Train these students together, going on from the newest checkpoint if it is theirs.

        One that is `stopped` in the end is not trained to the end, and holds its last good state.
        """
        found = newest_checkpoint(self.checkpoints)
        trainees = [self.prepare(plan) for plan in plans]
        first = 0
        if found is not None and all(plan.name in found.students for plan in plans):
            first = found.step
            for line in found.damaged:
                self.progress.say(f"damaged checkpoint {line}; going on from step {first}")
            for trainee in trainees:
                load_trainee(found, trainee)
            self.share_normalisers(trainees, restore=True)
        else:
            if found is None and (fault := damage(self.checkpoints)):
                self.progress.say(f"damaged checkpoint {fault}; none is whole: from step 0")
            self.calibrate_normalisers()
            self.share_normalisers(trainees)
        watch = Watch(self, trainees, first)
        self._loop(trainees, first, watch)
        calibrate_scales(self, [trainee for trainee in trainees if trainee.stopped is None])
        watch.finish()
        return trainees

    def prepare(self, plan: StudentPlan) -> Trainee:
        """A student as it starts, with its heads, on the device, ready for `step`."""
        student, start = initial_student(self.recipe, self.config, plan, self.run)
        learner = build_learner(
            student,
            {name: widths(self.teachers[name].teacher) for name in plan.config.teachers},
            {
                name: next(iter(self.teachers[name].normalisers.values())).kind
                for name in plan.config.teachers
            },
            plan.config.adapter or self.config.adapter,
            seed=plan.seed,
            name=student.arch,
            start=start,
        )
        return Trainee.prepare(plan, learner, self.config, self.accelerator)

    def pixels(self, first: int, steps: int) -> Iterator[tuple[int, Batch, Tensor]]:
        """(step, batch, pixels on the device after colour changes) for some steps."""
        stream = batches(
            self.sources,
            policy=self.recipe.data.views.policy,
            scale=(self.recipe.data.views.scale[0], self.recipe.data.views.scale[1]),
            view_seed=self.recipe.data.view_seed,
            canvas=self.canvas,
            batch_size=self.config.train.batch_size,
            first_step=first,
            steps=steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            workers=self.recipe.data.workers,
            homogeneous=[n for n, source in self.recipe.data.train.items() if source.homogeneous],
            per_sample=self.recipe.data.views.per_sample,
        )
        account = Account(self.bad_samples, self.name, self.accelerator)
        for step, batch in enumerate(stream, first):
            account.saw(batch)
            done = step + 1 - first
            alone = self.accelerator.num_processes == 1
            if done == steps or done % self.config.train.log_every == 0 or (batch.bad and alone):
                account.settle(step + 1)
            pixels = batch.pixels.to(self.device, non_blocking=True)
            pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            yield step, batch, photometrics(pixels, batch.draws)

    def calibrate_normalisers(self) -> None:
        """Measure the teachers' targets over `calibration_batches`, and fit the normalisers."""
        steps = min(self.config.calibration_batches, self.config.train.steps)
        with self.progress.task(f"{self.name}: measuring targets", steps) as bar:

            def stream() -> Iterator[tuple[int, Part, dict[str, Rows]]]:
                for step, batch, pixels in self.pixels(0, steps):
                    for part in self.parts(batch, pixels):
                        yield step, part, self.rows(part.positions)
                    bar.advance()

            calibrate(
                self.teachers.values(),
                stream(),
                seed=self.recipe.seed,
                stage=self.name,
                accelerator=self.accelerator,
            )

    def share_normalisers(self, trainees: list[Trainee], restore: bool = False) -> None:
        """Give each student its teachers' normalisers, or the stage those of the students; and
        say to caches what they are."""
        for trainee in trainees:
            modules = {trainee.learner, trainee.result}
            for name in trainee.learner.teachers:
                for kind, normaliser in self.teachers[name].normalisers.items():
                    for module in modules:
                        held = module.space(name).normalisers[kind]
                        if restore:
                            normaliser.load_state_dict(held.state_dict())
                        else:
                            held.load_state_dict(normaliser.state_dict())
        for teacher in self.teachers.values():
            if teacher.cached is not None:
                teacher.cached.calibrated(teacher.normalisers)

    def fill_cache(self) -> None:
        """Show every batch of the stage to its teachers, so that the cache holds what they say."""
        self.calibrate_normalisers()
        self.share_normalisers([])
        steps = self.config.train.steps
        with self.progress.task(f"{self.name}: filling the cache", steps) as bar:
            for step, batch, pixels in self.pixels(0, steps):
                self.show(step, batch, pixels)
                bar.advance()

    def _loop(self, trainees: list[Trainee], first: int, watch: Watch) -> None:
        """All steps from `first` on.

        Raises:
            Interrupted: after a step that was finished and saved, if the run is asked to stop.
        """
        watch.look(first)  # one that was stopped here may not have come to it
        train, log = self.config.train, StageLog(self, trainees, first)
        bar = self.progress.task(f"{self.name}: training", train.steps, first)
        with bar as task, self.stop.finishing():
            asked = time.perf_counter()
            for step, batch, pixels in self.pixels(first, train.steps - first):
                log.saw(batch, waited=time.perf_counter() - asked)
                running = [trainee for trainee in trainees if trainee.stopped is None]
                self.step(running, step, batch, pixels)
                done, last = step + 1, step + 1 == train.steps
                if done % train.log_every == 0 or last:
                    task.note(log.write(done))
                    self._stop_nonfinite(running, done)
                task.advance()
                leaving = self.stop.asked()
                if done % train.save_every == 0 or last or leaving:
                    log.name_nonfinite(done)
                    self.save(done, trainees)
                if leaving:
                    assert self.stop.signum is not None
                    what = f"interrupted: {self.name} is saved at step {done} of {train.steps}"
                    raise Interrupted(self.stop.signum, what)
                if all(trainee.stopped is not None for trainee in trainees):
                    self.save(done, trainees)
                    break
                log.paused(watch.look(done))
                asked = time.perf_counter()

    def _stop_nonfinite(self, trainees: list[Trainee], step: int) -> None:
        """Stop those with too many steps in a row not finite, at their last good state."""
        for trainee in trainees:
            if trainee.broken(self.config.train):
                roll_back(self.checkpoints, trainee)
                trainee.stopped = step
                self.progress.say(f"{self.name}/{trainee.plan.name} is stopped at step {step}")

    def step(self, trainees: list[Trainee], step: int, batch: Batch, pixels: Tensor) -> None:
        """One batch: each teacher once, then each student forward, backward and update.

        With `micro_batch`, part by part: gradients add up, and the update comes with the last.
        """
        rate = learning_rate(step, self.config.train)
        parts = self.parts(batch, pixels)
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            rows = self.rows(part.positions)
            targets = self.targets(step, part, rows)
            for trainee in trainees:
                self.learn(trainee, step, part, rows, targets, last)
                if last:
                    trainee.update(rate, self.config.train)

    def learn(
        self,
        trainee: Trainee,
        step: int,
        part: Part,
        rows: dict[str, Rows],
        targets: dict[str, Features],
        last: bool,
    ) -> None:
        """One student forward and backward on a part of a batch, `last` if no other follows."""
        self._seed(trainee.plan, step, part.positions)
        with trainee.accumulating(last):
            predictions = self.predict(trainee.wrapped, trainee.plan, step, part.pixels, rows)
            self._loss(trainee, predictions, targets, rows).backward()

    def show(self, step: int, batch: Batch, pixels: Tensor) -> None:
        """A batch to the teachers alone, so that a cache holds what they say of it."""
        for part in self.parts(batch, pixels):
            self.targets(step, part, self.rows(part.positions))

    def parts(self, batch: Batch, pixels: Tensor) -> list[Part]:
        """The parts of a rank's batch that go through one after the other."""
        cached = any(teacher.cached is not None for teacher in self.teachers.values())
        return list(parts_of(batch, pixels, self.config.train.micro_batch, cached))

    def _seed(self, plan: StudentPlan, step: int, positions: Tensor) -> None:
        """Make torch's global state, which dropout and stochastic depth draw from, one of keys."""
        torch.manual_seed(key("noise", plan.seed, self.name, step, int(positions[0])))

    def rows(self, positions: Tensor) -> dict[str, Rows]:
        """The rows that each teacher sees, of some rows at these positions of the stream."""
        size, ranks = self.config.train.batch_size, self.accelerator.num_processes
        return {
            name: rows_seen(positions, teacher.batch_share, size, ranks)
            for name, teacher in self.teachers.items()
        }

    def targets(self, step: int, part: Part, rows: dict[str, Rows]) -> dict[str, Features]:
        """Targets of each teacher that sees any row."""
        found = {}
        for name, teacher in self.teachers.items():
            features = teacher.features(part, rows[name], self.recipe.seed, self.name, step)
            if features is not None:
                found[name] = teacher.targets(features)
        return found

    def predict(
        self,
        module: nn.Module,
        plan: StudentPlan,
        step: int,
        pixels: Tensor,
        rows: dict[str, Rows],
    ) -> dict[str, Features]:
        """Predicted targets of pixels (B, 3, H, W) at this step's size. It goes with the student's
        seed alone, so that two students of a seed see the same."""
        size = draw_size(self.config.image_sizes, plan.seed, self.name, step, "student")
        with torch.autocast(
            self.device.type, self.autocast or torch.float32, enabled=self.autocast is not None
        ):
            return module(pixels, size, rows)

    def _loss(
        self,
        trainee: Trainee,
        predictions: dict[str, Features],
        targets: dict[str, Features],
        rows: dict[str, Rows],
    ) -> Tensor:
        total = torch.zeros((), device=self.device)
        for name, predicted in predictions.items():
            if rows[name].none:
                # Zero, and a gradient of zero for the same weights as where there are rows.
                for kind in TOKEN_KINDS:
                    tokens = predicted.get(kind)
                    if tokens is not None and getattr(self.config.loss, kind):
                        total = total + tokens.float().sum()
                continue
            for kind, (mean, sums) in compare(predicted, targets[name], self.config.loss).items():
                loss = rows[name].weight * mean
                total = total + self.teachers[name].weight * loss
                trainee.count((name, kind), loss.detach(), sums)
        return total

    def save(self, step: int, trainees: list[Trainee]) -> None:
        """Write a checkpoint, on the first rank; the others give their parts of what is sharded."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, step, trainees)
        else:
            give_parts(trainees)
        self.accelerator.wait_for_everyone()
