"""`distill validate`: from the words of a command to results, a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.progress import Progress
from distill.protocols.plan import is_plan, plan_of, read_plan
from distill.protocols.run import RESULTS, Row, validate_models
from students import UserError


def validate_command(
    models: Sequence[str],
    *,
    data: Sequence[str] = (),
    tasks: Sequence[str] = (),
    sizes: Sequence[int] = (),
    dense_sizes: Sequence[int] = (),
    curve: bool = False,
    out: str | Path | None = None,
    batch: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> list[Row]:
    """Measure models, or what a plan says; print the table, write results.json and report.html.

    Args:
        models: as on the command line; or a plan's file or name, then overrides KEY=VALUE.
        data, tasks, sizes, dense_sizes, curve, batch, workers: see ValidationPlan.
        out: the folder of results (default: validation/NAME of the plan).
        quiet: no bars, no table.

    Returns:
        The rows of results.json.

    Raises:
        UserError, RecipeError: as `plan_of`, `read_plan` and `validate_models`.
    """
    from distill.launch import make_accelerator

    if is_plan(models[0]):
        if data:
            raise UserError(
                f"{models[0]} names its data itself; change them by data.NAME=LAYOUT:PATH"
            )
        plan = read_plan(models[0], models[1:])
        plan.tasks, plan.sizes = list(tasks) or plan.tasks, list(sizes) or plan.sizes
        plan.dense_sizes, plan.curve = list(dense_sizes) or plan.dense_sizes, plan.curve or curve
    else:
        plan = plan_of(
            models,
            data,
            tasks=tasks,
            sizes=sizes,
            dense_sizes=dense_sizes,
            curve=curve,
            batch=batch,
            workers=workers,
        )
    accelerator = make_accelerator()
    progress = Progress(shown=accelerator.is_main_process and not quiet)
    folder = Path(out) if out is not None else Path("validation") / plan.name
    rows = validate_models(plan, folder, accelerator, progress)
    if accelerator.is_main_process:
        from distill.report.field_page import render_field_table, write_field_page

        page = write_field_page(folder)
        if progress.shown:
            progress.console.print(render_field_table(folder / RESULTS, progress.console.width))
        progress.say(f"results: {folder / RESULTS}, {page}")
    return rows
