"""What the students of a run take in each format, as a section of the page: tables, and quality
against latency."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distill.formats.latency_table import Bench, Column, Line, columns, lines, machine_words
from distill.formats.quality import run_quality
from distill.report.scatter import Point, scatter

LEAST_RANGE = 0.1
"""Gap closed from bottom to top of a drawing at least: less would make much of noise."""

LEAST_GAIN = 0.01
"""Gap closed that is worth more milliseconds: less is noise."""

_TEMPLATE = Path(__file__).with_name("latency.html.jinja")

Quality = Mapping[tuple[str, int], Mapping[str, float]]
"""Average gap closed by label of format, for (student, image size)."""


def latency_section(run: Path, benches: Mapping[str, Bench]) -> Markup:
    """The bench.json of each student, by `stage/student`, as a `<section id="latency">` for
    report.html, whose style it uses. It loads nothing and runs no script, and all text is escaped.
    """
    quality = {
        (name, size): run_quality(run, run / name, size)
        for name, bench in benches.items()
        for size in dict.fromkeys(column.size for column in columns(bench))
    }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        tables=[_table(name, bench, quality) for name, bench in benches.items()],
        plots=_plots(benches, quality),
    )
    return Markup(text)  # rendered with autoescape, which is what makes it safe to mark so


def _table(student: str, bench: Bench, quality: Quality) -> dict[str, Any]:
    order, every = columns(bench), lines(bench)
    sizes = [s for s in dict.fromkeys(one.size for one in order) if quality.get((student, s))]
    return {
        "title": student,
        "machine": machine_words(bench["machine"]),
        "columns": [
            *({"title": f"{one.size} px", "below": f"{one.words}, ms"} for one in order),
            {"title": "peak", "below": "MB"},
            {"title": "of it", "below": "libraries, MB"},
            *({"title": "gap closed", "below": f"{size} px"} for size in sizes),
        ],
        "rows": [
            {
                "name": line.form if line.model == student else line.model,
                "role": "" if line.model == student else f"teacher, {line.form}",
                "first": not i or every[i - 1].model != line.model,
                "cells": [
                    *map(_milliseconds, line.ms),
                    _whole(line.peak_mb),
                    _whole(line.library_mb),
                    *(_closed(student, line, quality[student, size]) for size in sizes),
                ],
            }
            for i, line in enumerate(every)
        ],
    }


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _closed(student: str, line: Line, quality: Mapping[str, float]) -> str:
    known = line.model == student and line.form in quality
    return f"{quality[line.form]:.3f}" if known else ""


def _plots(benches: Mapping[str, Bench], quality: Quality) -> list[dict[str, Any]]:
    """One for each machine and image size at which students were both timed and scored."""
    drawn: dict[tuple[str, int], list[tuple[str, str, float, float, Column]]] = {}
    for student, bench in benches.items():
        machine, order = json.dumps(bench["machine"], sort_keys=True), columns(bench)
        for line in lines(bench):
            for size in dict.fromkeys(one.size for one in order):
                # One image, by as few threads as were tried: what a phone or a server's core does.
                timed = [
                    (one, ms)
                    for one, ms in zip(order, line.ms, strict=True)
                    if one.size == size and ms is not None
                ]
                if line.model != student or line.form not in quality[student, size] or not timed:
                    continue
                column, ms = min(timed, key=lambda pair: (pair[0].batch, pair[0].threads))
                point = student, line.form, ms, quality[student, size][line.form], column
                drawn.setdefault((machine, size), []).append(point)
    # Of one stage alone, its name tells nothing apart.
    one_stage = len({student.partition("/")[0] for student in benches}) == 1
    shown = {name: name.partition("/")[2] if one_stage else name for name in benches}
    return [
        _plot(size, [(f"{shown[name]}, {form}", ms, y, at) for name, form, ms, y, at in found])
        for (_, size), found in drawn.items()
    ]


def _plot(size: int, found: list[tuple[str, float, float, Column]]) -> dict[str, Any]:
    found = sorted(found, key=lambda point: point[1])
    points: list[Point] = []
    best = -math.inf
    for name, ms, closed, _ in found:
        better = closed >= best + LEAST_GAIN
        best = closed if better else best
        points.append(Point(name, ms, closed, None, better))
    words = " or ".join(dict.fromkeys(column.words for *_, column in found))
    title = f"Average gap closed over latency at {size} pixels"
    return {
        "title": title,
        "drawing": Markup(
            scatter(points, label=title, x_label=f"ms, {words}", log=True, least_range=LEAST_RANGE)
        ),
        "points": [
            f"{one.name}: {one.y:.3f} at {_milliseconds(one.x)} ms"
            + (", on the front" if one.on_front else "")
            for one in points
        ],
    }
