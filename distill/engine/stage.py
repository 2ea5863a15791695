"""One stage: frozen teachers, some students, from the first batch to the exported folders."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
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
from distill.engine.handover import hand_out, take_back
from distill.engine.interruption import Interrupted, StopRequest
from distill.engine.learner import StudentPlan, build_learner, initial_student
from distill.engine.log import StageLog
from distill.engine.masked import draw_visible, masked_learner
from distill.engine.objective import Lesson, Objective, Place
from distill.engine.parts import Part, parts_of
from distill.engine.precision import autocast_dtype
from distill.engine.rows import Roster, Rows
from distill.engine.scales import calibrate_scales
from distill.engine.targets import TargetTeacher, widths
from distill.engine.trainee import Trainee
from distill.engine.watch import Watch
from distill.optim import learning_rate
from distill.progress import Progress
from distill.recipe.schema import Recipe
from students import Features
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
        self.canvas = recipe.data.views.canvas or max(self.config.all_sizes())
        self.autocast = autocast_dtype(self.config.train.precision, self.device)
        shares = {teacher: target.batch_share for teacher, target in teachers.items()}
        self.roster = Roster(recipe, self.config, shares, accelerator.num_processes)
        self.objective = Objective(self)

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
            take_back(self.teachers, trainees)
            self.share_normalisers(trainees)
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
        if self.config.objective == "masked":
            learner = masked_learner(learner, self.config.masked.depth, plan.seed, student.arch)
        weights = {name: self.teachers[name].weight for name in learner.teachers}
        return Trainee.prepare(plan, learner, self.name, self.config, weights, self.accelerator)

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
                        yield step, part, self.roster.of(part.positions)
                    bar.advance()

            calibrate(
                self.teachers.values(),
                stream(),
                seed=self.recipe.seed,
                stage=self.name,
                accelerator=self.accelerator,
            )

    def share_normalisers(self, trainees: list[Trainee]) -> None:
        """Give each student its teachers' normalisers, and say to caches what they are."""
        hand_out(self.teachers, trainees)
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

        Where it goes through part by part, gradients add up, and the update comes with the last.
        """
        rate = learning_rate(step, self.config.train)
        lessons: Iterable[Lesson] = self.lessons(step, batch, pixels)
        rehearsed: dict[str, list[dict[Place, Tensor]]] = {}
        if self.objective.rehearsed:
            lessons = list(lessons)
            for trainee in trainees:
                rehearsed[trainee.plan.name] = self.objective.rehearse(trainee, step, lessons)
        for number, lesson in enumerate(lessons):
            for trainee in trainees:
                gradients = rehearsed.get(trainee.plan.name)
                self.learn(trainee, step, lesson, None if gradients is None else gradients[number])
                if lesson.last:
                    trainee.update(rate, self.config.train)
        followed = [teacher.follow(self.accelerator) for teacher in self.teachers.values()]
        if any(followed):
            hand_out(self.teachers, trainees, running=True)

    def lessons(self, step: int, batch: Batch, pixels: Tensor) -> Iterator[Lesson]:
        """The parts of a batch with what the teachers say of each, one after the other."""
        parts = self.parts(batch, pixels)
        for number, part in enumerate(parts):
            rows = self.roster.of(part.positions)
            yield Lesson(part, rows, self.targets(step, part, rows), number + 1 == len(parts))

    def learn(
        self,
        trainee: Trainee,
        step: int,
        lesson: Lesson,
        gradients: dict[Place, Tensor] | None = None,
    ) -> None:
        """One student forward and backward on a part of a batch; `gradients` as of
        Objective.losses."""
        with trainee.accumulating(lesson.last):
            predictions = self.answer(trainee, step, lesson)
            losses = self.objective.losses(trainee, step, lesson, predictions, gradients)
            if trainee.balance.measures_conflicts(step):
                trainee.balance.note_gradients(losses, trainee.learner.student.model)
            torch.stack(list(losses.values())).sum().backward()

    def show(self, step: int, batch: Batch, pixels: Tensor) -> None:
        """A batch to the teachers alone, so that a cache holds what they say of it."""
        for _ in self.lessons(step, batch, pixels):
            pass

    def parts(self, batch: Batch, pixels: Tensor) -> list[Part]:
        """The parts of a rank's batch that go through one after the other."""
        cached = any(teacher.cached is not None for teacher in self.teachers.values())
        split = self.roster.split(batch.positions)
        return list(parts_of(batch, pixels, self.config.train.micro_batch, cached, split))

    def targets(self, step: int, part: Part, rows: dict[str, Rows]) -> dict[str, Features]:
        """Targets of each teacher that sees any row."""
        found = {}
        for name, teacher in self.teachers.items():
            features = teacher.features(part, rows[name], self.recipe.seed, self.name, step)
            if features is not None:
                found[name] = teacher.targets(features)
        return found

    def answer(self, trainee: Trainee, step: int, lesson: Lesson) -> dict[str, Features]:
        """Predicted targets of a lesson, as a student in training gives them: torch's global state,
        which dropout and stochastic depth draw from, is made of keys, and with the objective
        `masked` it sees some patches alone."""
        plan, part = trainee.plan, lesson.part
        torch.manual_seed(key("noise", plan.seed, self.name, step, int(part.positions[0])))
        visible = None
        if self.config.objective == "masked":
            side = self.size(plan, step, part) // trainee.learner.student.stride
            visible = draw_visible(
                plan.seed,
                self.name,
                step,
                part.positions,
                self.config.train.batch_size,
                side * side,
                self.config.masked.visible,
            )
        return self.predict(trainee.wrapped, plan, step, part, lesson.rows, visible)

    def size(self, plan: StudentPlan, step: int, part: Part) -> int:
        """The size at which a student sees a part of a step's batch. It goes with the student's
        seed alone, so that two students of a seed see the same."""
        sizes, drawn_for = self.config.image_sizes, "student"
        if part.partition is not None:
            own = self.config.partitions[part.partition].image_sizes
            sizes, drawn_for = own or sizes, f"student {part.partition}"
        return draw_size(sizes, plan.seed, self.name, step, drawn_for)

    def predict(
        self,
        module: nn.Module,
        plan: StudentPlan,
        step: int,
        part: Part,
        rows: dict[str, Rows],
        visible: Tensor | None = None,
    ) -> dict[str, Features]:
        """Predicted targets of a part of a batch; with `visible` of these patches alone."""
        masks = {} if visible is None else {"visible": visible}
        with torch.autocast(
            self.device.type, self.autocast or torch.float32, enabled=self.autocast is not None
        ):
            return module(part.pixels, self.size(plan, step, part), rows, **masks)

    def save(self, step: int, trainees: list[Trainee]) -> None:
        """Write a checkpoint, on the first rank; the others give their parts of what is sharded."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoints, step, trainees)
        else:
            give_parts(trainees)
        self.accelerator.wait_for_everyone()
