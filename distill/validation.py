"""Which models of a run are probed: its teachers, its students, and the same untrained."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distill.engine.learner import (
    StudentPlan,
    build_learner,
    origin_of,
    planned_students,
)
from distill.engine.targets import widths
from distill.probes.models import ProbedModel
from distill.probes.validate import validate
from distill.recipe.schema import Recipe
from students import Spaces, Student, build_student, load_student
from teachers import Teacher

if TYPE_CHECKING:
    from distill.runner import Runner


def validate_run(runner: Runner) -> None:
    """Probe everything the recipe asks for; write validation.json. Ranks other than the first,
    which are here for sharded teachers alone, write nothing."""
    from distill.probes.world import World
    from distill.report.pictures import draw_pictures

    recipe, config = runner.recipe, runner.recipe.validate
    assert config is not None
    teachers = {name: runner.teacher(name) for name in recipe.teachers}
    models, untrained_of = probed_models(runner, teachers)
    last = list(recipe.stages.values())[-1]
    sizes = config.sizes or [last.image_sizes[0]]
    steps = len(models) * len(sizes) * (1 + len(config.tasks))
    with runner.progress.task("probes", steps) as bar:

        def advanced(what: str, done: int, _: int) -> None:
            bar.note(what)
            bar.advance(done - bar.done)

        rows = validate(
            models,
            teachers,
            tasks=config.tasks,
            sizes=sizes,
            train=config.train,
            test=config.test,
            seed=config.seed,
            device=runner.accelerator.device,
            progress=advanced,
        )
    world = World(sizes[0], config.train, config.test, config.seed)
    first = runner.accelerator.is_main_process
    with tempfile.TemporaryDirectory() as thrown_away:
        draw_pictures(
            list({model.name: model for model in reversed(models)}.values())[::-1],
            teachers,
            world.test,
            world.train,
            sizes[0],
            runner.folder.path / "pictures" if first else Path(thrown_away),
            runner.accelerator.device,
        )
    if first:
        # Last, for it says that all of this is done.
        runner.folder.write_validation(recipe, rows, untrained_of)


def probed_models(
    runner: Runner, teachers: dict[str, Teacher]
) -> tuple[list[ProbedModel], dict[str, str]]:
    """The models, in the order of the table, and for each student its untrained self."""
    recipe, config = runner.recipe, runner.recipe.validate
    assert config is not None
    models = [
        ProbedModel(name, "teacher", "", recipe.seed, teacher, {name: lambda features: features})
        for name, teacher in teachers.items()
    ]
    fresh: dict[tuple[tuple[str, str], int], ProbedModel] = {}
    untrained_of: dict[str, str] = {}
    for stage in config.stages or recipe.stages:
        for plan in planned_students(recipe, stage):
            if f"{stage}/{plan.name}" in runner.stopped:
                continue
            folder = runner.folder.path / stage / plan.name
            student, name = load_student(folder), f"{stage}/{plan.entry}"
            student.to(runner.accelerator.device).eval().requires_grad_(False)
            origin, entry = origin_of(recipe, plan)
            # Students of one architecture and seed start from the same weights.
            same = student.arch, repr(student.arguments)
            called = next((m.name for key, m in fresh.items() if key[0] == same), None)
            if (same, plan.seed) not in fresh:
                fresh[same, plan.seed] = _untrained(
                    called or f"untrained {origin}", recipe, stage, plan, student, teachers
                )
            untrained_of[name] = fresh[same, plan.seed].name
            spaces = Spaces.load(folder)
            for space in spaces.steps.values():
                space.to(runner.accelerator.device)
            role = "proxy" if entry.proxy else "student"
            reached, left_out = spaces.chains(), spaces.left_out()
            models.append(ProbedModel(name, role, stage, plan.seed, student, reached, left_out))
    return [*fresh.values(), *models], untrained_of


def _untrained(
    name: str,
    recipe: Recipe,
    stage: str,
    plan: StudentPlan,
    student: Student,
    teachers: dict[str, Teacher],
) -> ProbedModel:
    """The student's architecture with random weights, and fresh adapters to every teacher."""
    start = build_student(
        student.arch,
        size=student.size,
        overrides=student.arguments,
        proxy=True,
        seed=plan.seed,
        name=student.arch,
    )
    adapter = plan.config.adapter or recipe.stages[stage].adapter
    if adapter.kind == "ladder":
        # It would reach nothing, and later stages' students are compared with this model too.
        adapter = replace(adapter, kind="mlp")
    learner = build_learner(
        start,
        {teacher: widths(teachers[teacher]) for teacher in teachers},
        dict.fromkeys(teachers, "none"),
        adapter,
        seed=plan.seed,
        name=student.arch,
    )
    device = next(student.parameters()).device
    learner.to(device).eval().requires_grad_(False)
    spaces = learner.own_spaces()
    reached, left_out = spaces.chains(), spaces.left_out()
    return ProbedModel(name, "untrained", "", plan.seed, learner.student, reached, left_out)
