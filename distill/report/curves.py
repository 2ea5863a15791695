"""Training curves of a stage: the loss of each student, the variance explained per teacher, and
the probes that were run on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from distill.report.plots import Series, legend, line_chart
from students.features import TOKEN_KINDS

BALANCE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("conflicts", "Cosine between teachers' gradients", {"y_range": (-1.0, 1.0)}),
    ("kept", "Share of images that each teacher counts for", {"y_range": (0.0, 1.0)}),
    ("weights", "What each teacher's loss is multiplied by", {}),
)
"""What a line of the log may hold by teacher or by pair, the title of its chart, and the axes."""


@dataclass(frozen=True)
class Chart:
    """A chart for the page: its title as plain text, its drawing and legend as safe HTML."""

    title: str
    drawing: Markup
    legend: Markup


def charts(log: Sequence[dict[str, Any]]) -> list[Chart]:
    """The charts of one stage from the lines of its log, in order of steps.

    One of losses with a line per student, then for each student one of explained variance with a
    line per teacher and token kind: 1 is a perfect copy, 0 is no better than the mean; and what the
    log holds of the balance between teachers.
    """
    students = list(dict.fromkeys(str(line["student"]) for line in log))
    if not students:
        return []
    losses = []
    for place, student in enumerate(students):
        lines = [line for line in log if line["student"] == student]
        steps = [line["step"] for line in lines]
        losses.append(Series(student, steps, [line["loss"] for line in lines], place, place // 6))
    out = [_chart("Loss", losses, log=True)]
    for student in students:
        lines = [line for line in log if line["student"] == student]
        explained = _explained(lines)
        if explained:
            title = f"Explained variance, {student}"
            out.append(_chart(title, explained, y_range=(0.0, 1.0)))
        out += _balance(student, lines)
    return out


def probe_charts(lines: Sequence[dict[str, Any]], students: Sequence[str]) -> list[Chart]:
    """The charts of one stage from the lines of its validation.jsonl, in order of steps.

    One for each metric of each task that was ever measured, with a line per student. `students` in
    the order of the stage's log, so that they have the colours of their losses.
    """
    order = list(dict.fromkeys([*students, *(str(line["student"]) for line in lines)]))
    out = []
    for task, metric, better in dict.fromkeys(
        (str(line["task"]), str(line["metric"]), line["better"]) for line in lines
    ):
        series = []
        for place, student in enumerate(order):
            own = [
                line
                for line in lines
                if (line["student"], line["task"], line["metric"]) == (student, task, metric)
            ]
            if any(line["value"] is not None for line in own):
                steps = [line["step"] for line in own]
                values = [line["value"] for line in own]
                series.append(Series(student, steps, values, place, place // 6))
        if series:
            arrow = " \N{DOWNWARDS ARROW}" if better == "lower" else ""
            out.append(_chart(f"{task} {metric}".replace("_", " ") + arrow, series, dots=True))
    return out


def probe_sizes(lines: Sequence[dict[str, Any]]) -> str:
    """The image sizes of one stage's validation.jsonl: "64 pixels"."""
    sizes = sorted({int(line["image_size"]) for line in lines})
    return f"{' and '.join(map(str, sizes))} pixels"


def _explained(lines: Sequence[dict[str, Any]]) -> list[Series]:
    """A line per (teacher, token kind): colours tell teachers apart, dashes summary from dense."""
    out = []
    teachers = list(dict.fromkeys(name for line in lines for name in line.get("teachers", {})))
    for colour, teacher in enumerate(teachers):
        for dash, kind in enumerate(reversed(TOKEN_KINDS)):
            points = [
                (line["step"], line["teachers"][teacher][kind].get("explained_variance"))
                for line in lines
                if kind in line.get("teachers", {}).get(teacher, {})
            ]
            if points:
                steps, values = zip(*points, strict=True)
                out.append(Series(f"{teacher}, {kind}", steps, values, colour, dash))
    return out


def _balance(student: str, lines: list[dict[str, Any]]) -> list[Chart]:
    """A chart for each thing that is logged by teacher, or by pair of teachers."""
    out = []
    for logged, title, axes in BALANCE:
        series = []
        names = list(dict.fromkeys(name for line in lines for name in line.get(logged, {})))
        for place, name in enumerate(names):
            points = [
                (line["step"], line[logged][name])
                for line in lines
                if line.get(logged, {}).get(name) is not None
            ]
            if points:
                steps, values = zip(*points, strict=True)
                series.append(Series(name.replace("|", " and "), steps, values, place, place // 6))
        if series:
            out.append(_chart(f"{title}, {student}", series, **axes))
    return out


def _chart(title: str, series: list[Series], **axes: Any) -> Chart:
    # Both escape the names in them themselves, which is what makes them safe to mark so.
    drawing = Markup(line_chart(series, label=title, **axes))
    return Chart(title, drawing, Markup(legend(series)))
