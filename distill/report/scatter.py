"""Numbered points, some on a front, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from distill.report.plots import (
    HEIGHT,
    PALETTE,
    WIDTH,
    _log_ticks,
    _number,
    _spread,
    _text,
    _ticks,
)

_LEFT, _RIGHT, _TOP, _BOTTOM, _RADIUS = 46, 16, 16, 36, 9


@dataclass(frozen=True)
class Point:
    """One point: `error` is drawn above and below it, `name` is what its number stands for."""

    name: str
    x: float
    y: float
    error: float | None
    on_front: bool


def scatter(
    points: Sequence[Point],
    *,
    label: str,
    x_label: str,
    log: bool = False,
    least_range: float = 0.0,
) -> str:
    """An `<svg>` of the points, numbered from 1 in the order given.

    Those on the front are filled and joined by steps: at each cost the best that it buys. A number
    that would cover another stands above or below its point, on a stem. The x axis starts at 0, or
    is logarithmic with `log`, for points that are all above 0; the y axis is at least
    `least_range` long. All text is escaped.
    """
    if not points:
        return _svg(label, [_text(WIDTH / 2, HEIGHT / 2, "nothing to compare", "middle")])
    ends = [point.y + sign * (point.error or 0.0) for point in points for sign in (-1, 1)]
    short = max(0.0, least_range - (max(ends) - min(ends))) / 2
    low, high = _spread(min(ends) - short, max(ends) + short, 0.08)
    left, right = 0.0, max(point.x for point in points) * 1.06 or 1.0
    if log:
        exponents = [math.log10(point.x) for point in points]
        left, right = min(exponents) - 0.1, max(exponents) + 0.1

    def place(x: float, y: float) -> tuple[float, float]:
        along = ((math.log10(x) if log else x) - left) / (right - left)
        return (
            _LEFT + along * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts, bottom = [], HEIGHT - _BOTTOM
    for value in _ticks(low, high, 5):
        _, y = place(points[0].x, value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, _number(value), "end"))
    for value in _log_ticks(left, right) if log else _ticks(left, right, 5):
        x, _ = place(value, low)
        parts.append(_text(x, bottom + 16, _number(value), "middle"))
    parts.append(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" '
        'stroke="currentColor" stroke-opacity="0.6"/>'
    )
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
    front = [place(p.x, p.y) for p in sorted(points, key=lambda p: (p.x, p.y)) if p.on_front]
    if front:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in front[1:])
        path = f"M{front[0][0]:.1f} {front[0][1]:.1f}{steps}H{WIDTH - _RIGHT}"
        parts.append(
            f'<path class="front" d="{path}" fill="none" stroke="{PALETTE[0]}" stroke-width="1.8"/>'
        )
    at = [place(point.x, point.y) for point in points]
    heights = _apart(at)
    for (x, y), height in zip(at, heights, strict=True):
        if height != y:
            parts.append(
                f'<path class="stem" d="M{x:.1f} {y:.1f}h0V{height:.1f}" fill="none" '
                f'stroke="{PALETTE[0]}" stroke-opacity="0.6"/>'
                f'<path d="M{x:.1f} {y:.1f}h0" stroke="{PALETTE[0]}" stroke-width="6" '
                'stroke-linecap="round"/>'
            )
    for number, (point, height) in enumerate(zip(points, heights, strict=True), 1):
        parts.append(_mark(number, point, height, place))
    return _svg(label, parts)


def _apart(at: Sequence[tuple[float, float]]) -> list[float]:
    """How high the numbers stand: on their points, or where an earlier one is in the way as near
    above or below as there is room."""
    placed: list[tuple[float, float]] = []
    for x, y in at:
        rows = range(int(HEIGHT / (2 * _RADIUS)))
        tries = [
            y + sign * 2 * _RADIUS * row for row in rows for sign in ((-1, 1) if row else (1,))
        ]
        free = (
            height
            for height in tries
            if (height == y or _TOP + _RADIUS <= height <= HEIGHT - _BOTTOM - _RADIUS)
            and all(math.hypot(x - a, height - b) >= 2 * _RADIUS - 1 for a, b in placed)
        )
        placed.append((x, next(free, y)))
    return [height for _, height in placed]


def _mark(
    number: int, point: Point, height: float, place: Callable[[float, float], tuple[float, float]]
) -> str:
    x, _ = place(point.x, point.y)
    parts = [f"<title>{escape(point.name)}</title>"]
    if point.error is not None:
        above, below = (place(point.x, point.y + s * point.error)[1] for s in (1, -1))
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{above:.1f}" y2="{below:.1f}" '
            'stroke="currentColor" stroke-width="1.5"/>'
        )
    fill, ink = (PALETTE[0], "#ffffff") if point.on_front else ("#ffffff", "#000000")
    parts.append(
        f'<circle cx="{x:.1f}" cy="{height:.1f}" r="{_RADIUS}" fill="{fill}" '
        f'stroke="{PALETTE[0]}" stroke-width="1.5"/>'
        f'<text x="{x:.1f}" y="{height + 4:.1f}" text-anchor="middle" font-size="12" '
        f'fill="{ink}">{number}</text>'
    )
    return f"<g>{''.join(parts)}</g>"


def _svg(label: str, parts: list[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
