"""Which models of a run are probed: its teachers, its students, and the same untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill.engine.learner import (
    StudentPlan,
    build_learner,
    first_architecture,
    planned_students,
)
from distill.engine.targets import widths
from distill.probes.models import ProbedModel
from distill.probes.validate import validate
from distill.recipe.schema import Recipe
from students import Spaces, Student, build_student, load_student
from teachers import Teacher

if TYPE_CHECKING:
    from distill.run import Runner


def validate_run(runner: Runner) -> list[dict[str, Any]]:
    """Probe everything the recipe asks for; write validation.json, print the table."""
    from distill.probes.world import World
    from distill.report.pictures import draw_pictures
    from distill.retention import comparison_table, render_terminal

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
    runner.folder.write_validation(recipe, rows, untrained_of)
    world = World(sizes[0], config.train, config.test, config.seed)
    draw_pictures(
        [model for model in models if model.role != "untrained"],
        teachers,
        world.test,
        world.train,
        sizes[0],
        runner.folder.path / "pictures",
        runner.accelerator.device,
    )
    if runner.progress.shown:
        runner.progress.console.print(render_terminal(comparison_table(rows, untrained_of)))
    return rows


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
    untrained: dict[str, ProbedModel] = {}
    untrained_of: dict[str, str] = {}
    for stage in config.stages or recipe.stages:
        for plan in planned_students(recipe, stage):
            folder = runner.folder.path / stage / plan.name
            student, name = (
                load_student(folder).to(runner.accelerator.device),
                f"{stage}/{plan.name}",
            )
            proxy = first_architecture(recipe, plan.config).proxy
            before = _untrained(recipe, plan, student, teachers)
            before = untrained.setdefault(before.name, before)
            untrained_of[name] = before.name
            spaces = Spaces.load(folder)
            for space in spaces.steps.values():
                space.to(runner.accelerator.device)
            models.append(
                ProbedModel(
                    name,
                    "proxy" if proxy else "student",
                    stage,
                    plan.seed,
                    student.eval().requires_grad_(False),
                    spaces.chains(),
                )
            )
    return [*untrained.values(), *models], untrained_of


def _untrained(
    recipe: Recipe, plan: StudentPlan, student: Student, teachers: dict[str, Teacher]
) -> ProbedModel:
    """The student's architecture with random weights, and fresh adapters to every teacher."""
    root = first_architecture(recipe, plan.config)
    arch = root.arch or student.arch
    fresh = build_student(
        arch,
        size=student.size,
        overrides={k: v for k, v in student.arguments.items() if k not in _SET_BY_BUILD},
        proxy=True,
        seed=plan.seed,
        name=arch,
    )
    learner = build_learner(
        fresh,
        {name: widths(teacher) for name, teacher in teachers.items()},
        dict.fromkeys(teachers, "none"),
        recipe.stages[next(iter(recipe.stages))].adapter,
        seed=plan.seed,
        name=arch,
    )
    device = next(student.parameters()).device
    learner.to(device).eval().requires_grad_(False)
    width = "x".join(str(v) for v in (fresh.dense_dim,))
    return ProbedModel(
        f"untrained {arch} {width}" + (f" seed{plan.seed}" if plan.seed != recipe.seed else ""),
        "untrained",
        "",
        plan.seed,
        learner.student,
        learner.own_spaces().chains(),
    )


_SET_BY_BUILD = ("img_size", "dynamic_img_size", "global_pool")
