"""How dense tasks change with the size of the image: a chart a metric, a line a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from distill.report.curves import Chart
from distill.report.plots import (
    HEIGHT,
    PALETTE,
    WIDTH,
    Series,
    _number,
    _spread,
    _stroke,
    _text,
    _ticks,
    legend,
)

_LEFT, _TOP, _BOTTOM = 46, 14, 36
_LINE, _MOST_LETTERS, _RIGHT = 14, 17, 144
"""A line's room at 12 units, how many letters of a name are written beside its line, and the room
for them in a wide font."""


def resolution_charts(results: Mapping[str, Any]) -> list[Chart]:
    """A chart for each data set, task and metric that some model was measured at several sizes of.

    `results` is results.json. A model has the same colour in all charts, by its place among
    `models`. The legend is empty unless names were too long to be written beside their lines.
    """
    names = [model["name"] for model in results["models"]]
    places = {name: place for place, name in enumerate(names)}
    found: dict[tuple[str, str, str, str], dict[str, dict[int, float]]] = {}
    for row in results["rows"]:
        if row["value"] is None or not row["metric"]:
            continue
        key = row["dataset"], row["task"], row["metric"], row["better"]
        by_model = found.setdefault(key, {})
        by_model.setdefault(row["model"], {})[row["image_size"]] = row["value"]
    charts = []
    for (dataset, task, metric, better), by_model in found.items():
        if max(len(values) for values in by_model.values()) < 2:
            continue
        series = []
        for name in sorted(by_model, key=lambda name: places.get(name, len(places))):
            sizes, values = zip(*sorted(by_model[name].items()), strict=True)
            place = places.get(name, len(places))
            series.append(Series(name, sizes, values, place, place // len(PALETTE)))
        arrow = "\N{DOWNWARDS ARROW}" if better == "lower" else "\N{UPWARDS ARROW}"
        words = f"{task} {metric}".replace("_", " ")
        title = f"{dataset}: {words} {arrow}"
        drawing = size_chart(series, label=f"{title} over image size")
        long = any(len(one.name) > _MOST_LETTERS for one in series)
        charts.append(Chart(title, Markup(drawing), Markup(legend(series)) if long else Markup("")))
    return charts


def size_chart(series: Sequence[Series], *, label: str) -> str:
    """An `<svg>` of values over image sizes in pixels, both axes linear, a tick at each size.

    The name of a series stands at its last point, moved up or down where it would cover another's;
    more than 17 letters of it are cut. `label` is what a screen reader says. All text is escaped.

    Raises:
        ValueError: if there is no series, or one with a value that is None.
    """
    if not series or any(value is None for one in series for value in one.y):
        raise ValueError("a chart over image sizes needs values")
    sizes = sorted({x for one in series for x in one.x})
    values = [value for one in series for value in one.y if value is not None]
    left, right = _spread(sizes[0], sizes[-1], 0.03)
    low, high = _spread(min(values), max(values), 0.08)
    edge, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - left) / (right - left) * (edge - _LEFT),
            bottom - (y - low) / (high - low) * (bottom - _TOP),
        )

    parts = []
    for value in _ticks(low, high, 5):
        _, y = place(left, value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{edge}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, _number(value), "end"))
    written = float("-inf")
    for size in sizes:
        x, _ = place(size, low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" '
            'stroke="currentColor" stroke-opacity="0.6"/>'
        )
        if x - written >= 30:
            parts.append(_text(x, bottom + 16, f"{size:g}", "middle"))
            written = x
    parts.append(
        f'<line x1="{_LEFT}" x2="{edge}" y1="{bottom}" y2="{bottom}" '
        'stroke="currentColor" stroke-opacity="0.6"/>'
    )
    parts.append(_text((_LEFT + edge) / 2, HEIGHT - 4, "image size in pixels", "middle"))
    ends = []
    for one in series:
        points = [place(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        colour = PALETTE[one.colour % len(PALETTE)]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points)
        parts.append(
            f"<g><title>{escape(one.name)}</title>"
            f'<path d="M{path}" fill="none" {_stroke(one)}/><g fill="{colour}">{dots}</g></g>'
        )
        ends.append(points[-1])
    parts += _names(series, ends, edge)
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _names(series: Sequence[Series], ends: Sequence[tuple[float, float]], edge: float) -> list[str]:
    """The names in a column right of the axes, each joined to the end of its line."""
    heights = apart([y for _, y in ends], _LINE, _TOP, HEIGHT - 4)
    parts = []
    for one, (x, y), at in zip(series, ends, heights, strict=True):
        colour = PALETTE[one.colour % len(PALETTE)]
        name = one.name
        if len(name) > _MOST_LETTERS:
            name = name[: _MOST_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        parts.append(
            f'<path d="M{x + 4:.1f} {y:.1f}L{edge + 8:.1f} {at:.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="0.8" stroke-opacity="0.6"/>'
        )
        parts.append(_text(edge + 12, at + 4, name, "start"))
    return parts


def apart(wanted: Sequence[float], least: float, top: float, bottom: float) -> list[float]:
    """Heights as near to the wanted ones as they come while `least` apart, in the same order, and
    from `top` to `bottom` if there is room for all."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Blocks of neighbours that touch: [sum of wanted firsts, how many].
    blocks: list[tuple[float, int]] = []
    for i in order:
        total, count = wanted[i], 1
        while blocks and blocks[-1][0] / blocks[-1][1] + least * blocks[-1][1] > total / count:
            before, several = blocks.pop()
            total, count = before + total - least * several * count, several + count
        blocks.append((total, count))
    heights = [total / count + least * k for total, count in blocks for k in range(count)]
    for k in reversed(range(len(heights))):
        heights[k] = min(heights[k], bottom - least * (len(heights) - 1 - k))
    for k in range(len(heights)):
        heights[k] = max(heights[k], top + least * k)
    out = [0.0] * len(wanted)
    for i, height in zip(order, heights, strict=True):
        out[i] = height
    return out
