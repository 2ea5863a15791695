"""The answer of a comparison on a terminal: tables by subset and task, then sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rich.box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.compare.answer import Answer, StudentAnswer
from distill.compare.contributions import Estimate
from distill.compare.figures import METHODS, figure, words
from distill.comparison import Cell
from distill.retention import AVERAGE


def render_answer(answer: Answer) -> Group:
    """Everything for `rich.print`: for each student and size, gap closed and scores by subset and
    task (mean and deviation over seeds, the best in bold), contributions, sentences."""
    parts: list[RenderableType] = []
    for one in answer.answers:
        parts += _student(answer, one)
    return Group(*parts)


def _student(answer: Answer, one: StudentAnswer) -> Iterator[RenderableType]:
    seeds = f"{len(one.seeds)} seeds" if len(one.seeds) > 1 else "1 seed"
    yield Text(f"{one.student}, {one.image_size} px, {seeds}", style="bold cyan")
    yield from (_cells(answer, one, section) for section in ("gap closed", "score"))
    yield _contributions(answer, one)
    for conflict in one.conflicts:
        yield Text(conflict.sentence, style="yellow")
    for recommendation in one.recommendations:
        yield Text(recommendation.sentence)
    for note in one.notes:
        yield Text(note, style="dim")
    yield Text()


def _cells(answer: Answer, one: StudentAnswer, section: str) -> Table:
    of_gap = section == "gap closed"
    found = {(c.subset, c.task): c.gap_closed if of_gap else c.score for c in one.cells}
    tasks = [*([task for task in (AVERAGE,) if one.shared and of_gap]), *one.tasks]
    lower = {cell.task for cell in one.metrics if cell.better == "lower"}
    arrows = set() if of_gap else lower
    table = _table(section, [words(task) + (" ↓" if task in arrows else "") for task in tasks])
    best = {}
    for task in tasks:
        means = [found[subset, task].mean for subset in one.subsets]
        known = [mean for mean in means if mean is not None]
        best[task] = (min if task in arrows else max)(known, default=None)
    for subset in one.subsets:
        cells = [found[subset, task] for task in tasks]
        shown = [
            _cell(cell, 2 if of_gap else 3 if task in arrows else 1, cell.mean == best[task])
            for task, cell in zip(tasks, cells, strict=True)
        ]
        table.add_row(Text(" + ".join(answer.subsets[subset])), *shown)
    return table


def _contributions(answer: Answer, one: StudentAnswer) -> Table:
    tasks = [task for task in (AVERAGE, *one.tasks) if task in one.contributions]
    methods = [METHODS[one.contributions[task].method] for task in tasks]
    alike = f" ({methods[0]})" if len(set(methods)) == 1 else ""
    table = _table(f"each teacher adds{alike}", [words(task) for task in tasks])
    for teacher in answer.teachers:
        shown = []
        for task in tasks:
            found = one.contributions[task]
            value = found.values.get(teacher)
            if value is None and teacher in found.needed and found.together is not None:
                shown.append(Text.assemble(_estimate(found.together), "*"))
            else:
                shown.append(_estimate(value) if value else Text("-", style="dim"))
        table.add_row(Text(teacher), *shown)
    if not alike:
        table.add_row(Text("by", style="dim"), *(Text(name, style="dim") for name in methods))
    if any(one.contributions[task].together for task in tasks):
        table.caption = (
            "* needed for the task: what the subset of the needed teachers alone closes; the "
            "others add to it."
        )
        table.caption_justify = "left"
    return table


def _table(corner: str, columns: Sequence[str]) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(Text(corner), overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _cell(cell: Cell, decimals: int, best: bool) -> Text:
    if cell.mean is None:
        return Text("-", style="dim")
    return Text(figure(cell.mean, cell.std, decimals), style="bold" if best else "")


def _estimate(value: Estimate) -> Text:
    return Text(figure(value.mean, value.std, 2))
