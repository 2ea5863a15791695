"""The answer of a comparison as a section of the page: heat map, contributions, Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distill.compare.contributions import LEAVE_ONE_OUT, SHAPLEY
from distill.compare.figures import METHODS, figure, words
from distill.report.bars import Bar, bar_chart, bar_range
from distill.report.heat import heat
from distill.report.scatter import Point, scatter
from distill.retention import AVERAGE

_TEMPLATE = Path(__file__).with_name("compare.html.jinja")

_METHODS = {
    SHAPLEY: "Shapley value: the gap that a teacher closes, averaged over all orders in which the "
    "teachers could be added; they sum to what all of them close.",
    LEAVE_ONE_OUT: "Leave one out: what all teachers close less what all but this one close.",
}
_NEEDED = (
    " A hollow bar is what the needed teachers close by themselves at a task that cannot be done "
    "without them; the others add to it."
)


def compare_section(answer: Mapping[str, Any]) -> Markup:
    """compare.json as a `<section id="compare">` for report.html, whose style it uses.

    It loads nothing and runs no script, and all names in it are escaped.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        teachers=", ".join(answer["teachers"]),
        cost_unit=answer["cost_unit"],
        students=[_student(answer, one) for one in answer["answers"]],
    )
    return Markup(text)  # rendered with autoescape, which is what makes it safe to mark so


def _student(answer: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    seeds = f"{len(one['seeds'])} seeds" if len(one["seeds"]) > 1 else "1 seed"
    columns = [*([AVERAGE] if one["shared"] else []), *one["tasks"]]
    charts, method = _contributions(answer, one)
    return {
        "title": f"{one['student']} at {one['image_size']} pixels, {seeds}",
        "recommendations": [said["sentence"] for said in one["recommendations"]],
        "conflicts": [said["sentence"] for said in one["conflicts"]],
        "notes": one["notes"],
        "columns": [words(task) for task in columns],
        "rows": _rows(answer, one, columns),
        "charts": charts,
        "method": method,
        **_front(answer, one),
    }


def _rows(
    answer: Mapping[str, Any], one: Mapping[str, Any], columns: list[str]
) -> list[dict[str, Any]]:
    cells = {(cell["subset"], cell["task"]): cell["gap_closed"] for cell in one["cells"]}
    best = {}
    for task in columns:
        means = [cells[subset, task]["mean"] for subset in one["subsets"]]
        best[task] = max((mean for mean in means if mean is not None), default=None)

    def shown(subset: str, task: str) -> dict[str, Any]:
        cell = cells[subset, task]
        if cell["mean"] is None:
            return {"text": "", "title": cell["reason"]}
        ground, ink = heat(cell["mean"])
        text, _, below = figure(cell["mean"], cell["std"], 2).partition(" ")
        return {
            "text": text,
            "below": below,
            "ground": ground,
            "ink": ink,
            "best": cell["mean"] == best[task],
            "title": _scores(one, subset, task),
        }

    return [
        {
            "name": " + ".join(answer["subsets"][subset]),
            "cells": [shown(subset, task) for task in columns],
        }
        for subset in one["subsets"]
    ]


def _scores(one: Mapping[str, Any], subset: str, task: str) -> str:
    """The scores behind a cell, for who points at it."""
    if task == AVERAGE:
        return "mean over " + ", ".join(words(shared) for shared in one["shared"])
    return "; ".join(
        f"{words(cell['metric'])} "
        + figure(
            cell["value"]["mean"], cell["value"]["std"], 1 if cell["better"] == "higher" else 3
        )
        for cell in one["metrics"]
        if (cell["subset"], cell["task"]) == (subset, task) and cell["value"]["mean"] is not None
    )


def _contributions(
    answer: Mapping[str, Any], one: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """A chart a task, all on one scale, and what is drawn, in words."""
    by_task = {task: found for task, found in one["contributions"].items() if found["method"]}
    bars = {task: _bars(answer["teachers"], found) for task, found in by_task.items()}
    extent = bar_range([bar for some in bars.values() for bar in some])
    methods = list(dict.fromkeys(found["method"] for found in by_task.values()))
    charts = []
    for task, some in bars.items():
        title = words(task)
        if len(methods) > 1:
            title += f" ({METHODS[by_task[task]['method']]})"
        drawing = bar_chart(some, label=f"What each teacher adds: {title}", extent=extent)
        charts.append({"title": title, "drawing": Markup(drawing)})  # it escapes its text itself
    method = " ".join(_METHODS[name] for name in methods)
    if not methods:
        method = "The subsets that were trained are too few to tell."
    return charts, method + (_NEEDED if any(f["together"] for f in by_task.values()) else "")


def _bars(teachers: list[str], found: Mapping[str, Any]) -> list[Bar]:
    bars = []
    for place, teacher in enumerate(teachers):
        value = found["values"].get(teacher)
        alone = value is None and teacher in found["needed"] and found["together"] is not None
        if alone:
            value = found["together"]
        if value is None:
            bars.append(Bar(teacher, None, None, "\N{EN DASH}", place))
            continue
        shown = figure(value["mean"], value["std"], 2) + (" alone" if alone else "")
        bars.append(Bar(teacher, value["mean"], value["std"], shown, place, alone))
    return bars


def _front(answer: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    points = [
        Point(
            " + ".join(answer["subsets"][found["subset"]]),
            found["cost"],
            found["quality"],
            found["std"],
            found["on_front"],
        )
        for found in one["front"]
    ]
    if not points:
        return {"front": None, "points": []}
    drawing = scatter(
        points, label="Average gap closed over cost of the teachers", x_label=answer["cost_unit"]
    )
    lines = [
        f"{point.name}: {figure(point.y, point.error, 2)} at {point.x:.3g}"
        + (", on the front" if point.on_front else "")
        for point in points
    ]
    return {"front": Markup(drawing), "points": lines}
