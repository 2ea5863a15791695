"""A run: the stages of a recipe one after the other, then probes and report, in a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cache.account import shown_bytes
from distill.data.bad_samples import BadSamples
from distill.data.source import Source
from distill.data.sources import count_samples, open_sources
from distill.engine.cached import CachedTeacher, most_bytes, open_cache
from distill.engine.interruption import StopRequest
from distill.engine.learner import Learner, StudentPlan, planned_students
from distill.engine.memory import probe_memory, stage_memory
from distill.engine.placement import (
    check_placement,
    check_shared,
    load_placed,
    notes_of_sharding,
)
from distill.engine.sharding import is_sharded
from distill.engine.stage import Stage
from distill.engine.targets import TargetTeacher
from distill.export import Origin, export_student, exported_steps
from distill.files import writing
from distill.folder import RunFolder
from distill.launch import environment, make_accelerator
from distill.lineage import lineage, warnings
from distill.progress import Progress
from distill.recipe.load import prepare
from distill.recipe.resolve import teacher_spec
from distill.recipe.schema import Recipe
from distill.trackers import finish_trackers, start_trackers
from distill.validation import validate_run
from students import Spaces, UserError
from teachers import Teacher, TeacherSpec, load_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Result:
    """What a run left behind: its folder, and of validation.json the rows, and for each student
    the name of its untrained self."""

    folder: Path
    rows: list[dict[str, Any]]
    untrained_of: dict[str, str]

    def student(self, name: str) -> Path:
        """The folder of a student, "stage/student".

        Raises:
            UserError: if the run has none of that name.
        """
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            raise UserError(f"{self.folder} holds no student {name}")
        return folder


def run(
    recipe: Recipe | str | Path,
    *,
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    quiet: bool = False,
    table: bool = True,
) -> Result:
    """Run a recipe, or go on with it where it stopped.

    Args:
        recipe: a Recipe, a file, or the name of a shipped one.
        overrides: "key=value" strings, as on the command line.
        run_dir: the run's folder (default: runs/NAME).
        quiet: no bars, no table.
        table: whether what the probes found is printed in the end.

    Raises:
        RecipeError: with all that is wrong with the recipe, before anything is loaded or written.
        UserError: if the folder belongs to another recipe, a teacher cannot be loaded, or the disk
            or the memory did not do; in the end, if a student was stopped because its loss was not
            finite any more.
        Interrupted: if SIGTERM or Ctrl-C came; the step in hand was finished and saved.
    """
    recipe = prepare(recipe, overrides)
    folder = RunFolder(Path(run_dir) if run_dir is not None else Path("runs") / recipe.name)
    accelerator = make_accelerator(recipe.tracking.to, folder.path)
    check_placement(recipe)
    progress = Progress(shown=accelerator.is_main_process and not quiet)
    if accelerator.is_main_process:
        folder.claim(recipe, environment(accelerator))
    accelerator.wait_for_everyone()
    check_shared(folder.path, accelerator.process_index)
    for line in notes_of_sharding(recipe, accelerator):
        progress.say(line)
    with StopRequest(accelerator) as stop, writing(folder.path):
        start_trackers(accelerator, recipe.tracking, recipe.name, folder.path)
        runner = Runner(recipe, folder, accelerator, progress, stop)
        try:
            for stage in recipe.stages:
                runner.train(stage)
            found = runner.validate()
        finally:
            if runner.cache is not None:
                runner.cache.close()
            finish_trackers(accelerator)
    if runner.stopped:
        raise UserError("\n".join(runner.stopped.values()))
    if not runner.worked:
        progress.say(f"{folder.path} is finished: nothing to do")
    elif table and progress.shown and found[0]:
        from distill.comparison import comparison_table, render_terminal

        progress.console.print(render_terminal(comparison_table(*found), progress.console.width))
    return Result(folder.path, *found)


class Runner:
    """Loads what stages share (sources, teachers) once, and runs them.

    `worked`: whether there was anything to do. `stopped`: for each student that cannot be finished,
    why, one line.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        accelerator: Accelerator,
        progress: Progress,
        stop: StopRequest,
    ):
        self.recipe, self.folder = recipe, folder
        self.accelerator, self.progress, self.stop = accelerator, progress, stop
        self.worked = False
        self.stopped: dict[str, str] = {}
        self.bad_samples = BadSamples(folder.path / "bad_samples.jsonl", recipe.data.max_bad)
        self.cache = open_cache(recipe.cache, progress.say)
        self._teachers: dict[str, Teacher] = {}
        self._sources: dict[str, tuple[Source, float]] = {}
        self.seconds: dict[str, float] = {}

    def teacher(self, name: str) -> Teacher:
        """A frozen teacher: one of the recipe's, or the student of an earlier stage."""
        if name not in self._teachers:
            began = time.perf_counter()
            self._teachers[name] = self._load(name)
            self.seconds["loading"] = self.seconds.get("loading", 0.0) + time.perf_counter() - began
        return self._teachers[name]

    def _load(self, name: str) -> Teacher:
        if name not in self.recipe.teachers:
            return load_teacher(self.spec(name), self.accelerator.device)
        return load_placed(self.spec(name), self.recipe.teachers[name], self.accelerator)

    def spec(self, name: str) -> TeacherSpec:
        """What the recipe says of a teacher."""
        config = self.recipe.teachers.get(name)
        if config is None:
            return TeacherSpec("student", str(self.folder.path / name))
        return teacher_spec(config)

    def sources(self) -> dict[str, tuple[Source, float]]:
        """The opened training sources and their shares."""
        if not self._sources:
            self._sources = open_sources(self.recipe.data)
        return self._sources

    def train(self, name: str) -> None:
        """Train the students of a stage that are not there yet."""
        steps = self.recipe.stages[name].train.steps
        missing = [
            plan
            for plan in planned_students(self.recipe, name)
            if exported_steps(self.folder.path / name / plan.name) < steps
            and f"{name}/{plan.name}" not in self.stopped
            and not self._left_out(name, plan)
        ]
        # Students of one checkpoint go on together; whoever came later starts a pass of its own.
        at_once = self.recipe.stages[name].train.students_at_once
        for checkpoints, saved in (self.folder.passes(name) if missing else {}).items():
            plans = [plan for plan in missing if plan.name in saved or not saved]
            plans = plans if saved else plans[:at_once]
            missing = [plan for plan in missing if plan not in plans]
            stopped = {plan.name: saved.get(plan.name) for plan in plans}
            # One that was stopped stays in the checkpoints of those that go on.
            if None in stopped.values():
                self._begin()
                self._train_together(name, plans, checkpoints)
            for student, step in stopped.items():
                if step is not None:
                    self._stop(name, student, step, checkpoints)
        if missing:
            self.train(name)

    def _begin(self) -> None:
        """Take note that there is something to do; the report is then out of date."""
        self.worked = True
        if self.accelerator.is_main_process:
            (self.folder.path / "report.html").unlink(missing_ok=True)

    def _left_out(self, stage: str, plan: StudentPlan) -> bool:
        """Whether a student needs one that was stopped; takes note of it."""
        needed = [plan.config.init, *plan.config.teachers]
        lost = next((other for other in needed if other in self.stopped), None)
        if lost is not None:
            name = f"{stage}/{plan.name}"
            self.stopped[name] = f"{name} is left out: it needs {lost}"
        return lost is not None

    def _stop(self, stage: str, name: str, step: int, checkpoints: Path) -> None:
        train = self.recipe.stages[stage].train
        samples = self.folder.path / stage / "nonfinite.jsonl"
        self.stopped[f"{stage}/{name}"] = (
            f"{stage}/{name} is stopped at step {step}: the loss or a gradient was not finite in "
            f"{train.max_nonfinite} steps in a row (stages.{stage}.train.max_nonfinite); their "
            f"samples are in {samples}, its last good state in {checkpoints}. Lower "
            f"stages.{stage}.train.lr or set its clip, with another --run-dir"
        )

    def _train_together(self, name: str, plans: list[StudentPlan], checkpoints: Path) -> None:
        with stage_memory(self.recipe, name, self.accelerator.device):
            self._train_pass(name, plans, checkpoints)

    def _train_pass(self, name: str, plans: list[StudentPlan], checkpoints: Path) -> None:
        began = time.perf_counter()
        stage = self.stage(name, plans, checkpoints)
        self.say_cache(stage)
        for trainee in stage.train(plans):
            if trainee.stopped is not None:
                self._stop(name, trainee.plan.name, trainee.stopped, checkpoints)
            else:
                learner = trainee.whole_result()
                if learner is not None and self.accelerator.is_main_process:
                    self.export(name, trainee.plan, learner)
        self.accelerator.wait_for_everyone()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def say_cache(self, stage: Stage) -> None:
        """What the cache will come to with this stage, before its first byte."""
        config = self.recipe.cache
        if config is None or self.cache is None:
            return
        train, views = stage.config.train, self.recipe.data.views.per_sample
        shown = train.steps * train.batch_size
        if views is not None:
            counts = [count_samples(source.source) for source in self.recipe.data.train.values()]
            known = [count for count in counts if count is not None]
            shown = min(shown, views * sum(known)) if len(known) == len(counts) else shown
        most = most_bytes(stage.teachers.values(), shown, config.format)
        self.progress.say(
            f"{stage.name}: at most {shown_bytes(most)} of teachers' features for {shown:,} views "
            f"in {self.cache.folder}, limited to {config.limit_gb:g} GB"
        )

    def stage(self, name: str, plans: list[StudentPlan], checkpoints: Path) -> Stage:
        """A stage with the teachers of these students, loaded, and the opened sources."""
        return Stage(
            self.recipe,
            name,
            {
                teacher: self._target(name, teacher)
                for plan in plans
                for teacher in plan.config.teachers
            },
            self.sources(),
            self.folder.path,
            checkpoints,
            self.accelerator,
            self.progress,
            self.stop,
            self.bad_samples,
        )

    def _target(self, stage: str, name: str) -> TargetTeacher:
        config, settings = self.recipe.teachers.get(name), self.recipe.stages[stage]
        teacher, drawn = self.teacher(name), settings.teacher_sizes
        if config is None:
            sizes = drawn or settings.image_sizes
            target = TargetTeacher.of(
                name, teacher, list(sizes), settings.normaliser or "standardise"
            )
        else:
            target = TargetTeacher.of(
                name,
                teacher,
                list(config.sizes or drawn),
                settings.normaliser or config.normaliser,
                config.weight,
                config.batch_share,
                self.accelerator.device,
                config.momentum,
            )
        if self.cache is not None and not is_sharded(teacher):
            canvas = self.recipe.data.views.canvas or max(settings.all_sizes())
            target.cached = CachedTeacher(self.cache, teacher, name, self.recipe.data, canvas)
        return target

    def export(self, stage: str, plan: StudentPlan, learner: Learner) -> None:
        """Write a student's folder, with its spaces of every teacher that it reaches."""
        spaces: Spaces = learner.own_spaces()
        about = lineage(
            self.recipe, plan, self.folder.path, lambda teacher: self.teacher(teacher).info
        )
        for teacher in learner.teachers:
            if teacher not in self.recipe.teachers:
                spaces = spaces.beyond(teacher, Spaces.load(self.folder.path / teacher))
        config = self.recipe.stages[stage]
        export_student(
            learner.student,
            spaces,
            self.folder.path / stage / plan.name,
            Origin(
                run=self.recipe.name,
                name=plan.name,
                stage=stage,
                steps=config.train.steps,
                image_sizes=config.image_sizes,
                licence=self.recipe.export.licence,
                author=self.recipe.export.author,
                teachers=about,
                data={name: source.source for name, source in self.recipe.data.train.items()},
            ),
        )
        for line in warnings(about):
            self.progress.say(f"licence of {stage}/{plan.name}: {line}")

    def validate(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Probe all models, unless it has been done; write the report. What validation.json holds,
        as of RunFolder.validation."""
        first, asked = self.accelerator.is_main_process, self.recipe.validate is not None
        # All ranks have to call a sharded teacher; the others write nothing.
        if not first and not any(config.shard for config in self.recipe.teachers.values()):
            return [], {}
        if asked and (self.worked or not self.folder.validated(self.recipe)):
            self._begin()
            began = time.perf_counter()
            with probe_memory(self.recipe, self.accelerator.device):
                validate_run(self)
            self.seconds["probes"] = time.perf_counter() - began
            if first:
                self.folder.write_seconds(self.seconds)
        if not first:
            return [], {}
        if not (self.folder.path / "report.html").exists():
            self._report()
        return self.folder.validation() if asked else ([], {})

    def _report(self) -> None:
        from distill.report.page import write_report

        path = write_report(self.folder.path)
        self.progress.say(f"report: {path}")
