"""A plan as a person reads it on a terminal: the resolved recipe, then tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.recipe.load import to_yaml
from distill.recipe.plan import Plan, PlannedStage, PlannedStudent

# What is piped into a file or another program has no width of its own.
WIDTH_WITHOUT_TERMINAL = 140


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the resolved recipe and what it comes to."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_WITHOUT_TERMINAL)
    console.print(Text(to_yaml(plan.recipe)), soft_wrap=True)  # a broken line is other YAML
    console.print(_teachers(plan))
    for stage in plan.stages:
        console.print()
        console.print(Text(_headline(stage, plan.images)), soft_wrap=True)
        console.print(_students(stage))
    if plan.notes:
        console.print()
    for note in plan.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _teachers(plan: Plan) -> Table:
    columns = (
        "teacher",
        "family",
        "source",
        "state",
        "sizes",
        "parameters",
        "summary",
        "dense",
        "licence",
    )
    rows = [
        (
            teacher.name,
            teacher.family,
            teacher.source,
            "fetched" if teacher.fetched else "not fetched yet",
            _listed(teacher.sizes) or "its own",
            _count(teacher.parameters),
            _dim(teacher.summary_dim, teacher.dense_dim),
            _dim(teacher.dense_dim, teacher.dense_dim),
            teacher.licence or "?",
        )
        for teacher in plan.teachers
    ]
    return _table(columns, rows)


def _students(stage: PlannedStage) -> Table:
    columns = ("student", "architecture", "parameters", "adapters", "grid", "learns from")
    return _table(columns, [_student(student) for student in stage.students])


def _student(student: PlannedStudent) -> tuple[str, ...]:
    times = f" x {student.seeds} seeds" if student.seeds > 1 else ""
    return (
        student.name + times,
        student.arch,
        _count(student.parameters),
        _count(student.adapters),
        ", ".join(f"{side}x{side} at {size}" for size, side in student.grids),
        ", ".join(student.teachers),
    )


def _headline(stage: PlannedStage, images: int | None) -> str:
    epochs = "epochs not known until all shards are read"
    if stage.epochs is not None:
        epochs = f"{stage.epochs:,.1f} epochs over {images:,}"
    memory = "unknown until the teachers are fetched"
    if stage.memory is not None:
        memory = f"about {stage.memory / 2**30:.1f} GiB (a rough estimate, all on one device)"
    return (
        f"stage {stage.name}: {stage.steps:,} steps of {stage.batch_size:,} = "
        f"{stage.images_seen:,} images, {epochs}; "
        f"sizes {_listed(stage.image_sizes)}"
        + (f", of teachers {_listed(stage.teacher_sizes)}" if stage.teacher_sizes else "")
        + f"; memory {memory}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in ("parameters", "adapters", "summary", "dense")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a name or a path may hold brackets.
        table.add_row(*(Text(cell) for cell in row))
    return table


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _count(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters:,}"


def _dim(width: int | None, dense: int | None) -> str:
    """A width; "-" where the family has none, "?" while nothing is known."""
    if width is not None:
        return str(width)
    return "?" if dense is None else "-"
